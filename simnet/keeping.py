"""What a simulated host keeps of a node's small files: twins of `node.ports.SmallFile` and the catalog's keeper."""

from collections.abc import Mapping
from pathlib import Path

import trio

from node.errors import HerdError
from node.services.catalog.file import Key, Record
from protocols.catalog.events import Restored
from protocols.catalog.records import Inventory, VersionRecord
from simnet.disk import SimDisk

HOME = Path("/simulated/herd")

CATALOG = "catalog"
"""The database of the catalog's records."""


class MemoryFile:
    """Implements `node.ports.SmallFile`. `broken` makes the disk refuse."""

    def __init__(self, disk: SimDisk | None = None, path: Path = HOME / "members.json") -> None:
        self.broken: OSError | None = None
        self._disk = disk if disk is not None else SimDisk()
        self._path = path

    def __str__(self) -> str:
        return f"the simulated file {self._path}"

    @property
    def data(self) -> bytes | None:
        """All of its bytes."""
        file = self._disk.file(self._path)
        return None if file is None else self._disk.read(file, 0, file.size_bytes)

    def read(self, size_bytes_max: int) -> bytes | None:
        """Its first bytes; None when nothing was ever written."""
        self._check()
        data = self.data
        return None if data is None else data[:size_bytes_max]

    def replace(self, data: bytes) -> None:
        """Make these its bytes. Nobody syncs them: a loss of power soon after leaves the old ones."""
        self._check()
        self._disk.replace(self._path, data)

    def restarted(self, disk: SimDisk) -> "MemoryFile":
        """The file as it stands on what became of its disk."""
        return MemoryFile(disk, self._path)

    def _check(self) -> None:
        if self.broken is not None:
            raise self.broken


class MemoryKeeper:
    """Implements `CatalogKeeper`: what is written outlives the process at once, and the power a little later."""

    def __init__(self, disk: SimDisk | None = None) -> None:
        self._disk = disk if disk is not None else SimDisk()

    @property
    def records(self) -> dict[Key, Record]:
        """Everything kept now."""
        found: dict[Key, Record] = {}
        for key, record in self._disk.records(CATALOG).live.items():
            if isinstance(key, bytes | str) and isinstance(record, VersionRecord | Inventory):
                found[key] = record
        return found

    async def load(self) -> Restored:
        """Everything kept, versions and inventories."""
        await self._disk.pause()
        records = list(self.records.values())
        versions = [record for record in records if isinstance(record, VersionRecord)]
        return Restored(versions, [record for record in records if isinstance(record, Inventory)])

    async def write(self, changes: Mapping[Key, Record | None]) -> None:
        """Keep these, and drop those with None, all or nothing. HerdError when the disk refuses."""
        rows: dict[object, object] = dict(changes.items())
        try:
            await self._disk.commit(CATALOG, rows, durable=False)
        except OSError as error:
            raise HerdError(f"the simulated catalog's file cannot be written: {error.strerror}") from error

    def restarted(self, disk: SimDisk) -> "MemoryKeeper":
        """The keeper on what became of its disk."""
        return MemoryKeeper(disk)

    async def close(self) -> None:
        """Nothing to let go of."""
        await trio.lowlevel.checkpoint()
