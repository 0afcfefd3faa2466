"""Blobs on a simulated disk: the twin of the store's, in its order, with the faults a test asks for."""

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress

import trio

from node.ports import BlobMissing, PartialBlob, StoreError
from node.store.blobs import SMALL_BLOB_BYTES
from node.store.config import StoreConfig
from protocols.bits import Bits
from protocols.errors import LocalProtocolError, RemoteProtocolError
from protocols.ids import Digest
from protocols.recipe.recipe import Recipe
from simnet.disk import SimDisk
from simnet.files import SimFile
from simnet.partials import MemoryPartial, MemoryReception, WholeReception, copy_from
from simnet.stock import (
    INDEX,
    LAYOUT,
    StoredPartial,
    Whole,
    chunks_here,
    commit,
    cut,
    explained,
    take_stock,
)

__all__ = ["RESERVE_FREE_BYTES", "MemoryBlobs", "cut"]

RESERVE_FREE_BYTES = 64 * 1024
"""What no blob is given, as `store.reserve_free_bytes`: manifests and the index need room too."""


class MemoryBlobs:
    """Implements `node.ports.Blobs`. Delays pass on Trio's clock, beside those of the disk itself;
    `capacity_bytes` is what blobs may take of a disk of its own, and `reads_at_once` makes its readers share it."""

    def __init__(
        self,
        *,
        disk: SimDisk | None = None,
        chunk_size_bytes: int = 4 * 1024 * 1024,
        capacity_bytes: int | None = None,
        read_delay_s: float = 0.0,
        write_delay_s: float = 0.0,
        reads_at_once: float = float("inf"),
        config: StoreConfig | None = None,
    ) -> None:
        size_bytes = None if capacity_bytes is None else capacity_bytes + RESERVE_FREE_BYTES
        self.disk = disk if disk is not None else SimDisk(random.Random(0), size_bytes=size_bytes)
        self.chunk_size_bytes = chunk_size_bytes
        self.config = config if config is not None else StoreConfig()
        self.read_delay_s = read_delay_s
        self.write_delay_s = write_delay_s
        self.reads: list[tuple[Digest, int]] = []
        self.kept: Counter[Digest] = Counter()
        self.on_read: Callable[[Digest, int], object] | None = None
        self._reading = trio.CapacityLimiter(reads_at_once)
        self._opening = trio.Lock()
        self._written = trio.Event()
        self._open: dict[Digest, MemoryPartial] = {}
        self._whole, self._stored = take_stock(self.disk, chunk_size_bytes)
        self._left = dict.fromkeys(self._stored)
        """Partial blobs of an earlier process that nobody resumed yet."""

    # -- what a start finds

    def crash(self, *, power_lost: bool = True) -> "MemoryBlobs":
        """The store as a restarted process finds it; this one's disk serves nobody any more."""
        return self.restarted(self.disk.crash(power_lost=power_lost))

    def restarted(self, disk: SimDisk) -> "MemoryBlobs":
        """A store of the same settings on what became of the disk."""
        return MemoryBlobs(
            disk=disk,
            chunk_size_bytes=self.chunk_size_bytes,
            read_delay_s=self.read_delay_s,
            write_delay_s=self.write_delay_s,
            reads_at_once=self._reading.total_tokens,
            config=self.config,
        )

    # -- reading

    async def recipe(self, digest: Digest) -> Recipe:
        """The recipe of a whole blob or of one being received; BlobMissing when there is none."""
        await self.wait(0)
        found = self._open.get(digest) or self._whole.get(digest)
        if found is None:
            raise BlobMissing(f"{digest} is not here")
        return found.recipe

    def held(self, digest: Digest) -> Bits | None:
        """The live set of chunks that can be served."""
        found = self._open.get(digest) or self._whole.get(digest)
        return None if found is None else found.bits

    async def read(self, digest: Digest, index: int, buffer: memoryview) -> int:
        """One chunk as it stands here, into the buffer; BlobMissing when it does not."""
        async with self._reading:
            await self.wait(self.read_delay_s)
            await self.disk.pause(len(buffer))
        if self.on_read is not None:
            self.on_read(digest, index)
        found = self._open.get(digest) or self._whole.get(digest)
        if found is None or index not in found.bits:
            raise BlobMissing(f"chunk {index} of {digest} is not here")
        self.reads.append((digest, index))
        size_bytes = found.recipe.sizes_bytes[index]
        if len(buffer) < size_bytes:
            raise LocalProtocolError(f"chunk {index} of {digest} has {size_bytes} bytes, the buffer {len(buffer)}")
        with explained(f"read chunk {index} of", LAYOUT.whole_blob(digest)):
            buffer[:size_bytes] = self.disk.read(found.file, found.recipe.offset_bytes(index), size_bytes)
        return size_bytes

    # -- receiving

    async def receive(self, recipe: Recipe, on_copied: Callable[[int], None] | None = None) -> PartialBlob:
        """Begin, resume or join. StoreError when the disk has no room.

        The recipe that counts is that of what is given back: a whole blob keeps its own, and who joins other
        receivers works under theirs. With no receiver, what is here is cut anew, and what other blobs have is copied.
        """
        await self.wait(0)
        digest = recipe.digest
        async with self._opening:
            whole = self._whole.get(digest)
            if whole is not None:
                return WholeReception(self, whole.recipe, whole.bits, self._use(digest))
            partial = self._open.get(digest)
            if partial is None:
                partial = self._open[digest] = await self._open_one(recipe)
            partial.receivers += 1
            joined = partial.receivers > 1
            reception = MemoryReception(self, partial, self._use(digest))
        try:
            if joined:
                await partial.filled.wait()
            else:
                reception.copied_bytes = await copy_from(self._sources(partial), partial, on_copied)
        except BaseException:
            partial.filled.set()
            await reception.close()
            raise
        partial.filled.set()
        return reception

    def _use(self, digest: Digest) -> Callable[[], object]:
        self.kept[digest] += 1
        return lambda: self.kept.subtract([digest])

    async def _open_one(self, recipe: Recipe) -> MemoryPartial:
        digest, path = recipe.digest, LAYOUT.partial_blob(recipe.digest)
        stored = self._stored.get(digest)
        with explained("make room for", path):
            file = self.disk.file(path)
        if stored is not None and file is not None and stored.recipe != recipe:
            self._left.pop(digest, None)
            bits = chunks_here(file, stored, recipe)
            # The row goes over to the new recipe before anything is written under it.
            stored = StoredPartial(recipe, bits)
            await commit(self.disk, {("partial", digest): stored}, durable=True)
            self._stored[digest] = stored
        self._check_room(recipe.size_bytes - (file.charged_bytes() if file is not None else 0), digest)
        with explained("make room for", path):
            if file is None:
                file = self.disk.make(path, recipe.size_bytes)
            self.disk.reserve(file, recipe.size_bytes)
            opened = self.disk.open(file)
        if stored is None and len(recipe) > 1:
            # Kill -9 before the first batch is durable must not make what was written nobody's.
            await commit(self.disk, {("partial", digest): StoredPartial(recipe, Bits(len(recipe)))})
        partial = MemoryPartial(self.disk, path, opened, recipe)
        partial.sync_interval_bytes = self.config.sync_interval_bytes
        partial.sync_interval_s = self.config.sync_interval_s
        partial.on_written = lambda: self._written.set()
        if stored is not None:
            partial.resume(stored)
        if digest in self._left:
            del self._left[digest]
            partial.reclaim()
        return partial

    def _sources(self, partial: MemoryPartial) -> Iterator[tuple[Recipe, SimFile, Bits]]:
        for whole in self._whole.values():
            yield whole.recipe, whole.file, whole.bits
        for recipe, file, bits in self.unfinished():
            if file is not partial.file:
                yield recipe, file, bits

    def unfinished(self) -> Iterator[tuple[Recipe, SimFile, Bits]]:
        """What is held of blobs that are received now, and what is durable of those that wait to be resumed."""
        for other in self._open.values():
            yield other.recipe, other.file, other.bits
        for digest, stored in self._stored.items():
            file = self.disk.file(LAYOUT.partial_blob(digest))
            if digest not in self._open and file is not None:
                yield stored.recipe, file, stored.bits

    async def run(self) -> None:
        """Sync what has waited its time, for ever, as the real store's own task does; idle while nothing comes in."""
        while True:
            await self._written.wait()
            self._written = trio.Event()
            await trio.sleep(self.config.sync_interval_s)
            for partial in list(self._open.values()):
                if partial.sync_is_due() and not partial.lock.locked():
                    with suppress(StoreError):  # Who receives the blob learns it at the next write.
                        await partial.sync(only_when_due=True)
            if any(partial.unsynced_bytes for partial in self._open.values()):
                self._written.set()

    async def let_go(self, partial: MemoryPartial) -> None:
        """One receiver less; the last one makes it durable and closes it."""
        partial.receivers -= 1
        digest = partial.recipe.digest
        if partial.receivers or self._open.get(digest) is not partial:
            return
        try:
            await partial.sync()
        finally:
            async with self._opening:
                # Somebody may have joined, or thrown it away, while the sync waited.
                if not partial.receivers and self._open.get(digest) is partial:
                    with trio.CancelScope(shield=True):
                        await self._close(partial)

    async def _close(self, partial: MemoryPartial) -> None:
        digest = partial.recipe.digest
        del self._open[digest]
        partial.end(f"{partial.path} is no longer being received")
        self.disk.give_back(partial.file)
        if partial.durable is not None:
            bits = Bits.from_bytes(len(partial.recipe), partial.durable)
            self._stored[digest] = StoredPartial(partial.recipe, bits)
        elif not self.disk.dead:
            self._stored.pop(digest, None)
            self.disk.unlink(partial.path)
            # The next start drops a row without a file.
            with suppress(StoreError):
                await commit(self.disk, {("partial", digest): None})

    async def finish(self, partial: MemoryPartial) -> None:
        """Check a complete partial blob and move it among the whole ones; once, however many ask."""
        async with partial.lock:
            if partial.whole:
                return
            if not partial.bits.complete():
                lacking = len(partial.recipe) - len(partial.bits)
                raise StoreError(f"{partial.recipe.digest} still lacks {lacking} chunks")
            if partial.recipe.size_bytes > SMALL_BLOB_BYTES:
                await partial.sync_data()
            if not self.is_the_blob(partial):
                with trio.CancelScope(shield=True):
                    await self._throw_away(partial)
            with trio.CancelScope(shield=True):
                await self._conclude(partial)

    def is_the_blob(self, partial: MemoryPartial) -> bool:
        """Whether the SHA-256 of what stands in a complete partial file is the blob's."""
        if partial.problem is not None:
            raise StoreError(partial.problem)
        hasher = hashlib.sha256()
        for _, piece in partial.file.pieces():
            hasher.update(piece)
        return f"sha256:{hasher.hexdigest()}" == partial.recipe.digest

    async def _throw_away(self, partial: MemoryPartial) -> None:
        """Whose fault was it? What rotted here is fetched again; a recipe that lied goes with its chunks."""
        digest, recipe = partial.recipe.digest, partial.recipe
        good = chunks_here(partial.file, StoredPartial(recipe, partial.bits), recipe)
        if not good.complete():
            problem = (
                f"{len(recipe) - len(good)} chunks of {digest} do not stand in {partial.path} as they were written"
            )
            await partial.save_bits(good)
            self._open.pop(digest, None)
            self._stored[digest] = StoredPartial(recipe, good)
            partial.end(problem)
            self.disk.give_back(partial.file)
            raise StoreError(problem)
        problem = f"the chunks of {digest} make another blob: its recipe was a lie"
        self._open.pop(digest, None)
        self._stored.pop(digest, None)
        partial.end(problem)
        await commit(self.disk, {("partial", digest): None})
        with explained("remove", partial.path):
            self.disk.unlink(partial.path)
        raise RemoteProtocolError(problem)

    async def _conclude(self, partial: MemoryPartial) -> None:
        """Synced, renamed, and only then known as whole."""
        recipe, digest = partial.recipe, partial.recipe.digest
        target = LAYOUT.whole_blob(digest)
        with explained("keep", partial.path):
            await self.disk.sync(self.disk.open(partial.file))
            self.disk.rename(partial.path, target)
            if recipe.size_bytes > SMALL_BLOB_BYTES:
                await self.disk.sync_names()
        partial.whole = True
        self._open.pop(digest, None)
        self._stored.pop(digest, None)
        partial.end(f"{digest} is whole")
        self.disk.give_back(partial.file)
        self._whole[digest] = Whole(recipe, partial.file, Bits.full(len(recipe)))
        index: dict[object, object] = {("file", partial.file.number): digest, ("recipe", digest): recipe}
        await commit(self.disk, {**index, ("partial", digest): None})

    # -- what tests and people do

    def add(self, data: bytes, *, recipe: Recipe | None = None) -> Digest:
        """Put a verified blob here, durable. Another recipe than the true one makes this store a liar."""
        recipe = recipe or cut(data, self.chunk_size_bytes)
        digest = recipe.digest
        view = memoryview(data)
        pieces = [
            self.disk.kept_once(view[offset : offset + size], recipe.chunk_hash(index))
            for index, size in enumerate(recipe.sizes_bytes)
            for offset in (recipe.offset_bytes(index),)
        ]
        with explained("write", LAYOUT.blob(digest)):
            file = self.disk.put(LAYOUT.blob(digest), pieces)
        self.disk.records(INDEX).live.update({("file", file.number): digest, ("recipe", digest): recipe})
        self._whole[digest] = Whole(recipe, file, Bits.full(len(recipe)))
        return digest

    @contextmanager
    def keep(self, sizes_bytes: Mapping[Digest, int]) -> Iterator[None]:
        """While the block lasts, removing a model leaves these blobs alone; StoreError when they have no room here."""
        self._check_room(sum(size for digest, size in sizes_bytes.items() if self.held(digest) is None), None)
        kept = list(sizes_bytes)
        self.kept.update(kept)
        try:
            yield
        finally:
            self.kept.subtract(kept)

    def remove(self, digest: Digest) -> None:
        """Delete a whole blob; what others still receive of it stays."""
        self._whole.pop(digest, None)
        for path in LAYOUT.candidates(digest):
            self.disk.unlink(path)

    def place(self, digest: Digest) -> None:
        """Give a whole blob its final name beside the one it waits under."""
        final, waiting = LAYOUT.blob(digest), LAYOUT.whole_blob(digest)
        with explained("place", final):
            if self.disk.file(final) is None:
                self.disk.link(waiting, final)

    def corrupt(self, digest: Digest, offset_bytes: int) -> None:
        """Flip one bit of a whole blob behind the store's back."""
        path = next(path for path in LAYOUT.candidates(digest) if self.disk.file(path) is not None)
        self.disk.rot(path, offset_bytes)

    def whole(self, digest: Digest) -> bytes | None:
        """The bytes of a verified blob, or None."""
        found = self._whole.get(digest)
        return None if found is None else found.file.content.read(0, found.file.size_bytes)

    def is_rotten(self, digest: Digest) -> bool:
        """Whether a test flipped bits of a whole blob."""
        found = self._whole.get(digest)
        return found is not None and found.file.rotten

    def digests(self) -> list[Digest]:
        """The whole blobs that are here."""
        return list(self._whole)

    def stored(self, digest: Digest) -> Bits | None:
        """Which chunks of a partial blob were durable when somebody last let go of it, or when this store began."""
        found = self._stored.get(digest)
        return None if found is None else found.bits

    def free_disk_bytes(self) -> int:
        """What may still be written; a disk without a size has a terabyte left."""
        return max(0, self.disk.free_bytes() - RESERVE_FREE_BYTES)

    async def wait(self, delay_s: float) -> None:
        """A checkpoint that takes this long."""
        await trio.sleep(delay_s)

    def _check_room(self, size_bytes: int, digest: Digest | None) -> None:
        free_bytes = self.free_disk_bytes()
        if size_bytes > free_bytes:
            what = digest or f"{size_bytes} bytes"
            raise StoreError(f"no room for {what}: {size_bytes - free_bytes} bytes are missing; free some")
