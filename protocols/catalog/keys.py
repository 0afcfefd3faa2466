"""Where model-level records stand in the DHT: 32-byte keys that any program can compute from a name or a digest."""

from blake3 import blake3

from protocols.catalog.records import HeadRecord
from protocols.codec import pack, unpack
from protocols.errors import RemoteProtocolError
from protocols.ids import Digest

HEAD_SIZE_BYTES_MAX = 2048


def name_key(name: str) -> bytes:
    """The key under which the head of a name (in its full form) stands."""
    return blake3(b"herd name " + name.encode()).digest()


def manifest_key(manifest_digest: Digest) -> bytes:
    """The key under which the providers of a manifest's model stand."""
    return blake3(b"herd manifest " + manifest_digest.encode()).digest()


def pack_head(head: HeadRecord) -> bytes:
    """A head record as the DHT holds it."""
    return pack(head)


def read_head(data: bytes) -> HeadRecord:
    """The head record in a value of the DHT, its signature checked; RemoteProtocolError when it holds none."""
    if len(data) > HEAD_SIZE_BYTES_MAX:
        raise RemoteProtocolError(f"a head record of {len(data)} bytes is over {HEAD_SIZE_BYTES_MAX}")
    head = unpack(data, HeadRecord)
    if pack(head) != data:
        # One record, one form: else equal heads would count as different values for ever.
        raise RemoteProtocolError("a head record is not in its canonical form")
    head.verify()
    return head


def newest_head(values: list[bytes]) -> int | None:
    """The index of the newest good head record among the values, the last of equal ones; None when none is good."""
    best: tuple[HeadRecord, int] | None = None
    for index, value in enumerate(values):
        try:
            head = read_head(value)
        except RemoteProtocolError:
            continue
        if best is None or (head.clock, head.version_id) >= (best[0].clock, best[0].version_id):
            best = head, index
    return best[1] if best is not None else None
