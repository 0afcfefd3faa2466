"""The messages of `/herd/catalog/1`.

Gossip is Advert -> Want -> Records. Repair is Summary -> Buckets -> Keys -> Advert and Want -> Records: only where
the two sides differ is anything but hashes sent. Questions (AskHolding, AskVersion) are answered on their own stream.
"""

import attrs

from protocols.catalog.records import PEER_LENGTH_MAX, SEQUENCE_MAX, HoldingState, Inventory, VersionRecord
from protocols.codec import Codec
from protocols.ids import Digest, PeerId

KEYS_MAX = 20_000
"""Ids in one Advert, Want or Keys message."""

RECORDS_MAX = 256
"""Records in one message: 256 signatures keep a receiver busy for about 20 ms."""

RECORDS_SIZE_BYTES_MAX = 1024 * 1024
"""A batch of records is closed at this size; a single larger record travels alone."""

BUCKETS = 256
HASH_SIZE_BYTES = 32

MESSAGE_SIZE_BYTES_MAX = 16 * 1024 * 1024
"""The largest record (an inventory of 100,000 holdings) packed takes 8.5 MiB."""


def _check_keys(versions: tuple[bytes, ...], others: int) -> None:
    if len(versions) + others > KEYS_MAX:
        raise ValueError(f"{len(versions) + others} keys in one message, over {KEYS_MAX}")
    if any(len(version) != 32 for version in versions):
        raise ValueError("a version id has 32 bytes")


@attrs.frozen
class InventoryKey:
    """Which inventory: owner and sequence."""

    owner: PeerId
    sequence: int

    def __attrs_post_init__(self) -> None:
        if len(self.owner) > PEER_LENGTH_MAX or not 0 <= self.sequence <= SEQUENCE_MAX:
            raise ValueError("no key of an inventory")


@attrs.frozen
class Advert:
    """The sender has these. `repair` marks keys found by comparing catalogs, which are likely old news to others."""

    versions: tuple[bytes, ...]
    inventories: tuple[InventoryKey, ...]
    repair: bool = False

    def __attrs_post_init__(self) -> None:
        _check_keys(self.versions, len(self.inventories))


@attrs.frozen
class Want:
    """The sender asks for these versions and for these owners' inventories; `repair` as in the advert it answers."""

    versions: tuple[bytes, ...]
    owners: tuple[PeerId, ...]
    repair: bool = False

    def __attrs_post_init__(self) -> None:
        _check_keys(self.versions, len(self.owners))


@attrs.frozen
class Records:
    """Some of what was asked for."""

    versions: tuple[VersionRecord, ...]
    inventories: tuple[Inventory, ...]

    def __attrs_post_init__(self) -> None:
        if len(self.versions) + len(self.inventories) > RECORDS_MAX:
            raise ValueError(f"over {RECORDS_MAX} records in one message")


@attrs.frozen
class Summary:
    """The hash over the sender's whole catalog: the start of a repair."""

    root: bytes

    def __attrs_post_init__(self) -> None:
        if len(self.root) != HASH_SIZE_BYTES:
            raise ValueError("a root hash has 32 bytes")


@attrs.frozen
class Buckets:
    """The hashes of the sender's 256 buckets, one after the other."""

    hashes: bytes = attrs.field(repr=False)

    def __attrs_post_init__(self) -> None:
        if len(self.hashes) != BUCKETS * HASH_SIZE_BYTES:
            raise ValueError("a catalog has 256 bucket hashes of 32 bytes")


@attrs.frozen
class Keys:
    """Everything the sender has in these buckets (one byte each, ascending)."""

    buckets: bytes
    versions: tuple[bytes, ...]
    inventories: tuple[InventoryKey, ...]

    def __attrs_post_init__(self) -> None:
        _check_keys(self.versions, len(self.inventories))
        if list(self.buckets) != sorted(set(self.buckets)):
            raise ValueError("bucket numbers are distinct and ascending")


@attrs.frozen
class AskHolding:
    """Does the asked peer hold the model of this manifest, now and in truth?"""

    manifest_digest: Digest


@attrs.frozen
class HoldingAnswer:
    """Its answer; `state` is None when it does not."""

    manifest_digest: Digest
    state: HoldingState | None


@attrs.frozen
class AskVersion:
    """The version record of this id, or else any version of the same name and manifest."""

    version_id: bytes
    name: str
    manifest_digest: Digest


@attrs.frozen
class VersionAnswer:
    """The record, or None when the asked peer has none."""

    record: VersionRecord | None


CODEC = Codec(
    {
        1: Advert,
        2: Want,
        3: Records,
        4: Summary,
        5: Buckets,
        6: Keys,
        16: AskHolding,
        17: HoldingAnswer,
        18: AskVersion,
        19: VersionAnswer,
    }
)
