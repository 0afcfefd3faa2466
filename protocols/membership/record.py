"""What a member says of itself, signed by itself: nobody else can move its addresses, labels or incarnation.

The signature stands over the record's bytes as the subject made them, and members pass those bytes on
unchanged. So a later release may add fields, and an older one still relays and verifies them.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

import attrs
from blake3 import blake3

from protocols.codec import pack, unpack
from protocols.errors import LocalProtocolError, RemoteProtocolError
from protocols.ids import PeerId, public_key_of, x25519_public_key
from protocols.signing import Signer, verify

RECORD_SIZE_BYTES_MAX = 900
"""The record's bytes without the signature: with it and a ping around them they fit one datagram."""

ADDRESS_COUNT_MAX = 8
ADDRESS_SIZE_BYTES_MAX = 120
LABEL_COUNT_MAX = 16
LABELS_SIZE_BYTES_MAX = 300
"""Keys and values of all labels together, in UTF-8."""

RECORDS_READ_KEPT = 2048
"""A record comes from many sides; of the last so many the form is not looked at again."""

INCARNATION_MAX = 2**63 - 1
_DOMAIN = b"herd member record 1\x00"


@attrs.frozen
class MemberRecord:
    """One incarnation of one member.

    `addresses` are TCP multiaddr texts without `/p2p/`, `datagram_address` is a UDP one or empty when the member
    takes no datagrams. `left` marks the last record of a graceful leave. Of two records of a peer the one with
    the higher incarnation holds.
    """

    peer: PeerId
    incarnation: int
    addresses: tuple[str, ...]
    datagram_address: str
    labels: dict[str, str] = attrs.field(hash=False)
    free_disk_bytes: int
    left: bool = False


@attrs.frozen
class SignedRecord:
    """A record's canonical bytes and the 64-byte Ed25519 signature of its subject over them."""

    body: bytes
    signature: bytes


def labels_problem(labels: Mapping[str, str]) -> str | None:
    """Why these labels cannot stand in a member record, or None when they can."""
    if len(labels) > LABEL_COUNT_MAX:
        return f"{len(labels)} labels are over the limit of {LABEL_COUNT_MAX}"
    for key, value in labels.items():
        if not key or not key.isprintable() or not value.isprintable():
            return f"label {key[:60]!r} = {value[:60]!r}: a label has a key and holds printable text only"
    size_bytes = sum(len(key.encode()) + len(value.encode()) for key, value in labels.items())
    if size_bytes > LABELS_SIZE_BYTES_MAX:
        return f"labels of {size_bytes} bytes (keys and values) are over the limit of {LABELS_SIZE_BYTES_MAX}"
    return None


def _address_problem(address: str) -> str | None:
    if not address.startswith("/") or not address.isascii() or not address.isprintable() or " " in address:
        return f"{address[:60]!r} is no multiaddr text"
    if len(address) > ADDRESS_SIZE_BYTES_MAX:
        return f"an address of {len(address)} bytes is over the limit of {ADDRESS_SIZE_BYTES_MAX}"
    return None


def record_problem(record: MemberRecord) -> str | None:
    """Why no such record may travel, naming the limit it breaks, or None when it may."""
    if not 0 <= record.incarnation <= INCARNATION_MAX:
        return f"incarnation {record.incarnation} is not 0 to {INCARNATION_MAX}"
    if record.free_disk_bytes < 0 or record.free_disk_bytes > INCARNATION_MAX:
        return f"{record.free_disk_bytes} bytes of free disk are impossible"
    if len(record.addresses) > ADDRESS_COUNT_MAX:
        return f"{len(record.addresses)} addresses are over the limit of {ADDRESS_COUNT_MAX}"
    texts = [*record.addresses, record.datagram_address] if record.datagram_address else record.addresses
    for address in texts:
        problem = _address_problem(address)
        if problem is not None:
            return problem
    return labels_problem(record.labels)


def sign_record(record: MemberRecord, signer: Signer) -> SignedRecord:
    """The record as it travels. LocalProtocolError naming the limit when it may not."""
    problem = record_problem(record)
    if problem is not None:
        raise LocalProtocolError(f"this member's record: {problem}")
    body = pack(record)
    if len(body) > RECORD_SIZE_BYTES_MAX:
        raise LocalProtocolError(
            f"this member's record has {len(body)} bytes, over the limit of {RECORD_SIZE_BYTES_MAX}:"
            f" it needs fewer addresses ({len(record.addresses)}) or shorter labels ({len(record.labels)})"
        )
    return SignedRecord(body, signer(_DOMAIN + body))


def read_record(signed: SignedRecord) -> MemberRecord:
    """The record inside, its form checked but not yet its signature. RemoteProtocolError when the form is wrong."""
    if len(signed.body) > RECORD_SIZE_BYTES_MAX:
        raise RemoteProtocolError(f"a member record of {len(signed.body)} bytes is over {RECORD_SIZE_BYTES_MAX}")
    return _read_body(signed.body)


@lru_cache(RECORDS_READ_KEPT)
def _read_body(body: bytes) -> MemberRecord:
    record = unpack(body, MemberRecord)
    # A key that signs may still be of no use for sealing (a point outside the main subgroup): no such member is let in,
    # for nobody could send it a datagram.
    x25519_public_key(public_key_of(record.peer))
    problem = record_problem(record)
    if problem is not None:
        raise RemoteProtocolError(f"member record of {record.peer}: {problem}")
    return record


def check_signature(record: MemberRecord, signed: SignedRecord) -> None:
    """RemoteProtocolError unless the record's own subject signed it."""
    if not verify(record.peer, _DOMAIN + signed.body, signed.signature):
        raise RemoteProtocolError(f"member record of {record.peer} is not signed by it")


def fitting_addresses(addresses: Sequence[str]) -> tuple[str, ...]:
    """As many of a node's addresses, in order, as always fit a record beside the longest labels."""
    chosen: list[str] = []
    size_bytes = 0
    for address in dict.fromkeys(addresses):
        size_bytes += len(address) + 2
        if len(chosen) == ADDRESS_COUNT_MAX or size_bytes > 320:
            break
        if _address_problem(address) is None:
            chosen.append(address)
    return tuple(chosen)


def fingerprint(records: Iterable[SignedRecord]) -> bytes:
    """16 bytes that tell one set of records from another, in whatever order they come."""
    return blake3(b"".join(sorted(record.signature for record in records))).digest(16)
