"""Everything a catalog holds, versions and inventories under one set of bucketed keys."""

from collections.abc import Callable, Container, Iterable, Iterator, Sequence

from blake3 import blake3

from protocols.catalog.buckets import BucketedKeys
from protocols.catalog.config import CatalogConfig
from protocols.catalog.inventories import Inventories
from protocols.catalog.messages import KEYS_MAX, RECORDS_MAX, RECORDS_SIZE_BYTES_MAX, InventoryKey, Records
from protocols.catalog.records import Inventory, VersionRecord
from protocols.catalog.versions import Versions
from protocols.ids import PeerId, VersionId

HOLDING_SIZE_BYTES = 90


def _place(owner: PeerId) -> bytes:
    return blake3(b"herd inventory of\x00" + owner.encode()).digest()


class Contents:
    """The records, and their keys for comparing with another catalog."""

    def __init__(self, config: CatalogConfig, own: PeerId) -> None:
        self.versions = Versions(config.versions_max, config.versions_size_bytes_max, own)
        self.inventories = Inventories(own, config.owners_max, config.holdings_max)
        self.keys = BucketedKeys()
        self._owner_at: dict[bytes, PeerId] = {}

    def add_version(self, record: VersionRecord) -> list[VersionId]:
        """Take in a version; gives the ids let go, which may hold its own."""
        let_go = self.versions.add(record)
        if record.id() in self.versions:
            self.keys.set(record.id(), record.id())
        for version_id in let_go:
            self.keys.remove(version_id)
        return let_go

    def add_inventory(self, inventory: Inventory, living: Callable[[], Container[PeerId]]) -> list[PeerId]:
        """Take in an inventory that is news; gives the owners let go, which may hold its own."""
        place = _place(inventory.owner)
        self._owner_at[place] = inventory.owner
        self.keys.set(place, place + inventory.sequence.to_bytes(8, "big"))
        let_go = self.inventories.add(inventory, living)
        for owner in let_go:
            self.keys.remove(_place(owner))
            del self._owner_at[_place(owner)]
        return let_go

    def key_of(self, owner: PeerId) -> InventoryKey | None:
        """The key of an owner's newest inventory."""
        inventory = self.inventories.get(owner)
        return None if inventory is None else InventoryKey(owner, inventory.sequence)

    def keys_in(self, bucket: int) -> tuple[list[VersionId], list[InventoryKey]]:
        """All keys of one bucket."""
        versions: list[VersionId] = []
        inventories: list[InventoryKey] = []
        for place in self.keys.places(bucket):
            key = self.key_of(self._owner_at[place]) if place in self._owner_at else None
            if key is not None:
                inventories.append(key)
            else:
                versions.append(VersionId(place))
        return versions, inventories

    def all_keys(self) -> tuple[list[VersionId], list[InventoryKey]]:
        """All keys of all buckets."""
        keys = [key for owner in self.inventories.owners() if (key := self.key_of(owner)) is not None]
        return self.versions.ids(), keys

    def known_keys(self, versions: Iterable[bytes], owners: Iterable[PeerId]) -> Iterator[VersionId | PeerId]:
        """Those of these keys under which there is a record."""
        yield from (VersionId(version) for version in versions if version in self.versions)
        yield from (owner for owner in owners if self.inventories.get(owner) is not None)

    def records(self, versions: Iterable[bytes], owners: Iterable[PeerId]) -> Iterator[Records]:
        """Those of the wanted records that are here, in messages of a bounded size."""
        batch: list[VersionRecord | Inventory] = []
        size_bytes = 0
        for record in self._known(versions, owners):
            if isinstance(record, VersionRecord):
                record_size_bytes = record.memory_bytes
            else:
                record_size_bytes = HOLDING_SIZE_BYTES * len(record.holdings)
            if batch and (len(batch) >= RECORDS_MAX or size_bytes + record_size_bytes > RECORDS_SIZE_BYTES_MAX):
                yield _message(batch)
                batch, size_bytes = [], 0
            batch.append(record)
            size_bytes += record_size_bytes
        if batch:
            yield _message(batch)

    def _known(self, versions: Iterable[bytes], owners: Iterable[PeerId]) -> Iterator[VersionRecord | Inventory]:
        # Each once, however often it was asked for: a key is small, a record large.
        for version_id in dict.fromkeys(versions):
            record = self.versions.get(version_id)
            if record is not None:
                yield record
        for owner in dict.fromkeys(owners):
            inventory = self.inventories.get(owner)
            if inventory is not None:
                yield inventory


def _message(batch: Sequence[VersionRecord | Inventory]) -> Records:
    return Records(
        tuple(record for record in batch if isinstance(record, VersionRecord)),
        tuple(record for record in batch if isinstance(record, Inventory)),
    )


def key_batches(
    versions: Sequence[VersionId], inventories: Sequence[InventoryKey], size_max: int = KEYS_MAX
) -> Iterator[tuple[tuple[bytes, ...], tuple[InventoryKey, ...]]]:
    """The keys in portions that fit one message each; nothing for no keys."""
    for start in range(0, len(versions), size_max):
        yield tuple(versions[start : start + size_max]), ()
    for start in range(0, len(inventories), size_max):
        yield (), tuple(inventories[start : start + size_max])
