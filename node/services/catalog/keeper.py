"""Who keeps the catalog's records beyond the life of the process."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Protocol

import trio

from node.services.catalog.file import CatalogFile, Key, Record
from protocols.catalog.events import Restored


class CatalogKeeper(Protocol):
    """One at a time calls it; every verb raises HerdError when it cannot."""

    async def load(self) -> Restored:
        """Everything that is kept."""
        ...

    async def write(self, changes: Mapping[Key, Record | None]) -> None:
        """Keep these records, and drop those whose key has None, all or nothing."""
        ...

    async def close(self) -> None:
        """Let go; idempotent."""
        ...


class FileKeeper:
    """Implements `CatalogKeeper` by a file, in worker threads."""

    def __init__(self, path: Path) -> None:
        self._file = CatalogFile(path)

    async def load(self) -> Restored:
        """Everything in the file. HerdError when a newer release wrote it or it cannot be opened at all."""
        return await trio.to_thread.run_sync(self._file.load)

    async def write(self, changes: Mapping[Key, Record | None]) -> None:
        """Keep and drop. HerdError when the disk refuses."""
        await trio.to_thread.run_sync(partial(self._file.write, changes))

    async def close(self) -> None:
        """Let go of the file."""
        await trio.to_thread.run_sync(self._file.close)
