"""Taking away what nobody came back for: downloads that were given up, and what was set aside as damaged.

All of it lies in `.herd/`. What a model names, somebody receives or wants kept is never old.
"""

import logging
import os
import time
from functools import partial
from pathlib import Path

import trio

from node.ports import StoreError
from node.store.adopt import Adopter
from node.store.blobs import StoreBlobs
from node.store.census import Census
from node.store.config import StoreConfig
from node.store.files import Disk, remove_file
from node.store.index import Index
from node.store.ollama import Layout, digest_of_file_name
from protocols.ids import Digest

log = logging.getLogger("herd.store")

CLEAN_UP_INTERVAL_S = 3600.0


class Cleaner:
    """Removes what is older than the configured age. `watch` is started once."""

    def __init__(
        self,
        layout: Layout,
        disk: Disk,
        index: Index,
        census: Census,
        blobs: StoreBlobs,
        adopter: Adopter,
        config: StoreConfig,
    ) -> None:
        self._layout = layout
        self._disk = disk
        self._index = index
        self._census = census
        self._blobs = blobs
        self._adopter = adopter
        self._config = config

    async def watch(self) -> None:
        """Clean up now and every hour, for ever."""
        while True:
            try:
                await self.clean_up(time.time())
            except StoreError as error:
                log.warning("%s", error)
            await trio.sleep(CLEAN_UP_INTERVAL_S)

    async def clean_up(self, now_s: float) -> None:
        """Remove what nothing has happened to since the configured age before `now_s`. StoreError from the disk."""
        before_s = now_s - self._config.clean_up_age_s
        for path in await self._old_files(self._layout.partial, before_s):
            digest = digest_of_file_name(path.name)
            if digest is not None and await self._blobs.drop_abandoned(digest):
                self._tell(path)
        async with self._adopter.lock:
            for path in await self._old_files(self._layout.whole, before_s):
                digest = digest_of_file_name(path.name)
                if digest is not None and self._is_abandoned(digest):
                    await self._drop_whole(digest, path)
                    self._tell(path)
        for path in await self._old_files(self._layout.damaged, before_s):
            await self._disk.run("remove", path, partial(remove_file, path))
            self._tell(path)

    async def _old_files(self, directory: Path, before_s: float) -> list[Path]:
        return await self._disk.run("look at", directory, lambda: _untouched_since(directory, before_s))

    def _is_abandoned(self, digest: Digest) -> bool:
        # Nobody knows which blobs an unreadable manifest means.
        named = self._census.references(digest) or bool(self._adopter.unreadable_names())
        return not named and not self._blobs.in_use(digest)

    async def _drop_whole(self, digest: Digest, path: Path) -> None:
        file = self._census.file(digest)
        with trio.CancelScope(shield=True):
            if file is not None and file.path == path:
                # Nobody may be told of it any more when it goes.
                self._census.drop_file(digest)
            await self._disk.run("remove", path, lambda: remove_file(path))
            if file is not None and file.path == path:
                await self._index.forget([file.key])

    def _tell(self, path: Path) -> None:
        log.info("removed %s: nobody came back for it in %g days", path, self._config.clean_up_age_s / 86400)


def _untouched_since(directory: Path, before_s: float) -> list[Path]:
    """The files of a directory that were last written, renamed or linked before then, by name. Blocking."""
    try:
        with os.scandir(directory) as entries:
            found = [entry for entry in entries if entry.stat(follow_symlinks=False).st_ctime < before_s]
    except FileNotFoundError:
        return []
    return sorted(Path(entry.path) for entry in found)
