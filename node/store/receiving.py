"""One blob on its way in: its partial file, which chunks of it are here, and which of them are durable.

Order makes it safe: a chunk is checked, then written; its bit may be served from then on; written data is synced in
batches, and only then are the bits of that batch committed to the index. A crash never leaves a bit set for bytes that
are not there. One batch is synced while the next is written, and writers wait when too much is not durable.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs
import trio
from blake3 import blake3

from node.ports import StoreError
from node.store.config import StoreConfig
from node.store.files import Disk, Lane, OpenFile, read_into, sync_directory, write_at
from node.store.front import Front, FrontThreads
from node.store.held import held_bytes
from node.store.index import Index
from node.store.space import give_back
from protocols.bits import Bits
from protocols.errors import RemoteProtocolError
from protocols.recipe.recipe import Recipe


@attrs.frozen
class Means:
    """What all partial blobs of a store work with."""

    disk: Disk
    index: Index
    config: StoreConfig
    front_threads: FrontThreads


class PartialFile:
    """One open partial blob, shared by all who receive it."""

    def __init__(
        self, path: Path, recipe: Recipe, stored: Bits | None, file: OpenFile, means: Means, reserved: bool
    ) -> None:
        self.path = path
        self.recipe = recipe
        self.bits = stored.copy() if stored is not None else Bits(len(recipe))
        self.receivers = 0
        self.reserved = reserved
        self.problem: str | None = None
        self.whole = False
        self.lock = trio.Lock()
        self.filled = trio.Event()
        """Set when what other blobs here have of it was copied. Nobody else writes before."""
        # A row without a bit stands before anything is durable, the file's name included.
        self.durable = self.bits.to_bytes() if stored is not None and len(stored) else None
        self._file = file
        self._config = means.config
        self._disk = means.disk
        self._index = means.index
        self.held_bytes = held_bytes(recipe, self.bits)
        self.front = Front(recipe, self.bits, file, path, means.front_threads)
        self._unsynced_bytes = 0
        self._synced_at = trio.current_time()

    def missing_bytes(self) -> int:
        """What is still to come."""
        return self.recipe.size_bytes - self.held_bytes

    def promised_bytes(self) -> int:
        """What it still needs of the room that others see as free."""
        return 0 if self.reserved else self.missing_bytes()

    async def write(self, index: int, data: bytes | memoryview) -> None:
        """Check a chunk and write it, unless it is here already."""
        recipe = self.recipe
        if not 0 <= index < len(recipe):
            raise RemoteProtocolError(f"{recipe.digest} has no chunk {index}")
        if len(data) != recipe.sizes_bytes[index]:
            raise RemoteProtocolError(
                f"chunk {index} of {recipe.digest} has {recipe.sizes_bytes[index]} bytes, {len(data)} came"
            )
        if index in self.bits:
            good = await self._disk.run("check", self.path, lambda: self._matches(index, data), Lane.WRITE)
        else:
            good = await self._check_and_write(index, data)
        if not good:
            raise RemoteProtocolError(f"chunk {index} of {recipe.digest} does not match its BLAKE3")
        self.gained(index)
        await self.keep_pace()

    def gained(self, index: int) -> None:
        """A chunk stands in the file, checked."""
        if self.bits.add(index):
            self.held_bytes += self.recipe.sizes_bytes[index]
            self._unsynced_bytes += self.recipe.sizes_bytes[index]
            self.front.follow()

    async def keep_pace(self) -> None:
        """Sync what is due. To be called after `gained` by who goes on writing.

        Whoever fills a batch sees to it while the others write the next. When too much is not durable, all wait for
        the sync: that is how a slow disk slows the network down and not the memory up.
        """
        full = self._unsynced_bytes >= self._config.unsynced_bytes_max
        if full or (self.sync_is_due() and not self.lock.locked()):
            await self.sync(only_when_due=True)

    def _matches(self, index: int, data: bytes | memoryview) -> bool:
        return blake3(data).digest() == self.recipe.chunk_hash(index)

    async def _check_and_write(self, index: int, data: bytes | memoryview) -> bool:
        offset = self.recipe.offset_bytes(index)
        with self.borrow() as descriptor:

            def work() -> bool:
                good = self._matches(index, data)
                if good:
                    write_at(descriptor, data, offset)
                return good

            return await self._disk.run(f"write chunk {index} to", self.path, work, Lane.WRITE)

    @contextmanager
    def borrow(self) -> Iterator[int]:
        """The open file's descriptor for a worker thread. StoreError when the partial blob has come to an end."""
        if self.problem is not None:
            raise StoreError(self.problem)
        with self._file.borrow() as descriptor:
            yield descriptor

    def sync_is_due(self) -> bool:
        """Whether a batch is full, or something written has waited its time."""
        waited = trio.current_time() >= self._synced_at + self._config.sync_interval_s
        return self._unsynced_bytes >= self._config.sync_interval_bytes or (waited and self._unsynced_bytes > 0)

    async def sync(self, *, only_when_due: bool = False) -> None:
        """Make durable what is held, first the data, then its bits."""
        async with self.lock:
            if not self._unsynced_bytes or self.problem is not None:
                return
            if only_when_due and not self.sync_is_due():
                return  # Several writers filled one batch; the first of them has seen to it.
            batch = self._unsynced_bytes
            bits = self.bits.to_bytes()  # Every bit here was set after its bytes had been written.
            await self.sync_data()
            await self._index.save_partial(self.recipe.digest, bits, None if self.durable else self.recipe)
            self.durable = bits
            self._unsynced_bytes -= batch
            self._synced_at = trio.current_time()

    async def sync_data(self) -> None:
        """Make the bytes durable. The caller holds the lock."""
        try:
            with self.borrow() as descriptor:
                await self._disk.run("sync", self.path, lambda: self._sync_file(descriptor), Lane.LONG)
        except StoreError as error:
            # After a failed sync the kernel may have thrown the pages away; nothing since the last one is certain.
            self.problem = str(error)
            raise

    def _sync_file(self, descriptor: int) -> None:
        os.fdatasync(descriptor)
        if self.durable is None:
            sync_directory(self.path.parent)

    async def give_back(self) -> None:
        """Give back the room of what has not come. The caller lets nobody write any more."""
        if self.problem is None and self.reserved:
            with self.borrow() as descriptor:
                await self._disk.run("give back room of", self.path, lambda: give_back(descriptor), Lane.LONG)

    async def read(self, index: int, buffer: memoryview) -> int:
        """A chunk that is held, into a buffer of its size."""
        offset = self.recipe.offset_bytes(index)
        with self.borrow() as descriptor:
            return await self._disk.run(
                f"read chunk {index} of", self.path, lambda: read_into(descriptor, buffer, offset)
            )

    def end(self, problem: str) -> None:
        """Close the file; `problem` is what a receiver that still writes is told."""
        self.problem = self.problem or problem
        self.front.stop()
        self._file.close()
