"""What a simulated host keeps of a node's small files: twins of `node.ports.SmallFile` and the catalog's keeper."""

from collections.abc import Mapping

import trio

from node.services.catalog.file import Key, Record
from protocols.catalog.events import Restored
from protocols.catalog.records import VersionRecord


class MemoryFile:
    """Implements `node.ports.SmallFile`. `broken` makes the disk refuse."""

    def __init__(self) -> None:
        self.data: bytes | None = None
        self.broken: OSError | None = None

    def __str__(self) -> str:
        return "a simulated file"

    def read(self, size_bytes_max: int) -> bytes | None:
        """Its first bytes; None when nothing was ever written."""
        self._check()
        return None if self.data is None else self.data[:size_bytes_max]

    def replace(self, data: bytes) -> None:
        """Make these its bytes."""
        self._check()
        self.data = data

    def copy(self) -> "MemoryFile":
        """As a crash leaves it."""
        after = MemoryFile()
        after.data = self.data
        return after

    def _check(self) -> None:
        if self.broken is not None:
            raise self.broken


class MemoryKeeper:
    """Implements `CatalogKeeper`: the records outlive a crash of the node that wrote them."""

    def __init__(self) -> None:
        self.records: dict[Key, Record] = {}

    async def load(self) -> Restored:
        """Everything kept, versions and inventories."""
        await trio.lowlevel.checkpoint()
        versions, inventories = [], []
        for record in self.records.values():
            if isinstance(record, VersionRecord):
                versions.append(record)
            else:
                inventories.append(record)
        return Restored(versions, inventories)

    async def write(self, changes: Mapping[Key, Record | None]) -> None:
        """Keep these, and drop those with None."""
        await trio.lowlevel.checkpoint()
        for key, record in changes.items():
            self.records.pop(key, None)
            if record is not None:
                self.records[key] = record

    def copy(self) -> "MemoryKeeper":
        """As a crash leaves it."""
        after = MemoryKeeper()
        after.records = dict(self.records)
        return after

    async def close(self) -> None:
        """Nothing to let go of."""
        await trio.lowlevel.checkpoint()
