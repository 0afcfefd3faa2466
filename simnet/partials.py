"""A blob on its way in, in the order of `node/store/receiving.py`: a chunk checked, then written; written data synced
in batches, and only then the bits of that batch committed."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import trio
from blake3 import blake3

from node.ports import StoreError
from protocols.bits import Bits
from protocols.errors import RemoteProtocolError
from protocols.recipe.recipe import Recipe
from simnet.disk import SimDisk
from simnet.files import Opened, SimFile
from simnet.stock import StoredPartial, commit, explained, is_right

if TYPE_CHECKING:
    from simnet.blobs import MemoryBlobs


class MemoryPartial:
    """One open partial blob, shared by all who receive it."""

    def __init__(self, disk: SimDisk, path: Path, opened: Opened, recipe: Recipe) -> None:
        self.path = path
        self.recipe = recipe
        self.file = opened.file
        self.bits = Bits(len(recipe))
        self.durable: bytes | None = None
        self.receivers = 0
        self.problem: str | None = None
        self.whole = False
        self.lock = trio.Lock()
        self.filled = trio.Event()
        self.sync_interval_bytes = 0
        self.sync_interval_s = 0.0
        self.unsynced_bytes = 0
        self.on_written: Callable[[], object] = lambda: None
        self._disk = disk
        self._opened = opened
        self._synced_at_s = trio.current_time()

    def resume(self, stored: StoredPartial) -> None:
        """Begin with what was durable; a row without a bit stands before anything is."""
        self.bits = stored.bits.copy()
        self.durable = stored.bits.to_bytes() if len(stored.bits) else None

    def reclaim(self) -> None:
        """What stands right in the file though no bit says so was written before the crash; it is written again."""
        for index in list(self.bits.missing()):
            offset, size = self.recipe.offset_bytes(index), self.recipe.sizes_bytes[index]
            if not self.file.growth_bytes(offset, size) and is_right(self.file, self.recipe, index):
                self.put(index, self.file.content.read(offset, size))

    async def copy(self, index: int, data: bytes) -> None:
        """Write a chunk that another blob here has."""
        await self._disk.pause(len(data))
        self.put(index, data)
        await self.keep_pace()

    def check(self, index: int, data: bytes | memoryview) -> None:
        """RemoteProtocolError unless these are the chunk's bytes."""
        if len(data) != self.recipe.sizes_bytes[index] or blake3(data).digest() != self.recipe.chunk_hash(index):
            raise RemoteProtocolError(f"chunk {index} of {self.recipe.digest} does not match its BLAKE3")

    async def write(self, index: int, data: bytes | memoryview) -> None:
        """Check a chunk and write it, unless it is here already."""
        if not 0 <= index < len(self.recipe):
            raise RemoteProtocolError(f"{self.recipe.digest} has no chunk {index}")
        self._check_open()
        await self._disk.pause(len(data))
        self.check(index, data)
        if index not in self.bits:
            self.put(index, self._disk.kept_once(data, self.recipe.chunk_hash(index)))
        await self.keep_pace()

    def put(self, index: int, data: bytes) -> None:
        """Write the bytes of a chunk, which are right, and hold it from now on."""
        with explained(f"write chunk {index} to", self.path):
            self._disk.write(self.file, self.recipe.offset_bytes(index), data)
        if self.bits.add(index):
            self.unsynced_bytes += len(data)
            self.on_written()

    async def keep_pace(self) -> None:
        """Sync what is due, unless somebody does."""
        if self.sync_is_due() and not self.lock.locked():
            await self.sync(only_when_due=True)

    def sync_is_due(self) -> bool:
        """Whether a batch is full, or something written has waited its time."""
        waited = trio.current_time() >= self._synced_at_s + self.sync_interval_s
        return self.unsynced_bytes >= self.sync_interval_bytes or (waited and self.unsynced_bytes > 0)

    async def sync(self, *, only_when_due: bool = False) -> None:
        """Make durable what is held, first the data, then its bits."""
        async with self.lock:
            if not self.unsynced_bytes or self.problem is not None or (only_when_due and not self.sync_is_due()):
                return
            batch, bits = self.unsynced_bytes, self.bits.copy()
            await self.sync_data()
            await self.save_bits(bits)
            self.unsynced_bytes -= batch
            self._synced_at_s = trio.current_time()

    async def save_bits(self, bits: Bits) -> None:
        """Commit which chunks are durable."""
        row = {("partial", self.recipe.digest): StoredPartial(self.recipe, bits)}
        await commit(self._disk, dict(row), durable=True)
        self.durable = bits.to_bytes()

    async def sync_data(self) -> None:
        """Make the bytes durable. The caller holds the lock."""
        self._check_open()
        try:
            with explained("sync", self.path):
                await self._disk.sync(self._opened)
                if self.durable is None:
                    await self._disk.sync_names()
        except StoreError as error:
            # After a failed sync the kernel may have thrown the pages away; nothing since the last one is certain.
            self.problem = str(error)
            raise

    def end(self, problem: str) -> None:
        """Nobody writes any more; `problem` is what who tries is told."""
        self.problem = self.problem or problem

    def _check_open(self) -> None:
        if self.problem is not None:
            raise StoreError(self.problem)


class MemoryReception:
    """One receiver's hold on a blob that comes in: `node.ports.PartialBlob`."""

    def __init__(self, blobs: "MemoryBlobs", partial: MemoryPartial, release: Callable[[], object]) -> None:
        self.recipe = partial.recipe
        self.copied_bytes = 0
        self._blobs = blobs
        self._partial = partial
        self._release = release
        self._closed = False

    def held(self) -> Bits:
        """The live set of chunks written so far, by whomever."""
        return self._partial.bits

    def hashed_bytes(self) -> int:
        """What stands before the first missing chunk: memory needs no time to hash it."""
        first = next(self._partial.bits.missing(), None)
        return self.recipe.size_bytes if first is None else self.recipe.offset_bytes(first)

    async def write(self, index: int, data: bytes | memoryview) -> None:
        """Store one chunk. RemoteProtocolError for wrong bytes, StoreError when the disk refuses."""
        await self._blobs.wait(self._blobs.write_delay_s)
        await self._partial.write(index, data)

    async def finish(self) -> None:
        """Check the whole blob and make it servable; RemoteProtocolError when the recipe was a lie."""
        await self._blobs.wait(self._blobs.write_delay_s)
        await self._blobs.finish(self._partial)

    async def close(self) -> None:
        """Make what is held durable and let go, cancelled or not; idempotent."""
        if not self._closed:
            self._closed = True
            self._release()
            with trio.CancelScope(shield=True):
                await self._blobs.let_go(self._partial)


class WholeReception:
    """What `receive` gives for a blob that is here already: complete from the start."""

    def __init__(self, blobs: "MemoryBlobs", recipe: Recipe, bits: Bits, release: Callable[[], object]) -> None:
        self.recipe = recipe
        self.copied_bytes = 0
        self._blobs = blobs
        self._bits = bits
        self._release = release
        self._closed = False

    def held(self) -> Bits:
        """All chunks."""
        return self._bits

    def hashed_bytes(self) -> int:
        """All: it was verified before."""
        return self.recipe.size_bytes

    async def write(self, index: int, data: bytes | memoryview) -> None:
        """Nothing is missing, so nothing is written."""
        await trio.lowlevel.checkpoint()

    async def finish(self) -> None:
        """It was verified before; a slow disk takes its time all the same."""
        await self._blobs.wait(self._blobs.write_delay_s)

    async def close(self) -> None:
        """Let go; idempotent."""
        if not self._closed:
            self._closed = True
            self._release()
            await trio.lowlevel.checkpoint()


async def copy_from(
    sources: Iterable[tuple[Recipe, SimFile, Bits]], partial: MemoryPartial, on_copied: Callable[[int], None] | None
) -> int:
    """Copy what other blobs have of this one, where it is still what its hash says; how many bytes."""
    recipe, copied_bytes = partial.recipe, 0
    if len(recipe) <= 1:
        return 0
    here = {
        source_recipe.chunk_hash(index): (file, source_recipe.offset_bytes(index))
        for source_recipe, file, bits in sources
        if len(source_recipe) > 1
        for index in bits
    }
    for index in list(partial.bits.missing()) if here else ():
        if recipe.chunk_hash(index) not in here:
            continue
        file, offset = here[recipe.chunk_hash(index)]
        chunk = file.content.read(offset, recipe.sizes_bytes[index])
        if blake3(chunk).digest() == recipe.chunk_hash(index):
            await partial.copy(index, chunk)
            copied_bytes += len(chunk)
            if on_copied is not None:
                on_copied(copied_bytes)
    return copied_bytes
