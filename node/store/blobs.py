"""The chunks this node holds, whole blobs and partial ones alike: `node.ports.Blobs` over real files."""

import logging
import os
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

import attrs
import trio

from node.ports import BlobMissing, PartialBlob, StoreError
from node.store.census import UNVERIFIED, VERIFIED, BlobFile, Census
from node.store.copying import Copier
from node.store.damage import target_of
from node.store.files import Disk, FileKey, read_into, sync_directory
from node.store.hashing import Hasher
from node.store.index import Index
from node.store.ollama import Layout
from node.store.partials import Partials
from node.store.receiving import PartialFile
from node.store.verify import follows_its_rule
from protocols.bits import Bits
from protocols.errors import LocalProtocolError, RemoteProtocolError
from protocols.ids import Digest
from protocols.recipe.recipe import Recipe

log = logging.getLogger("herd.store")

RECIPES_CACHED_MAX = 64

CLOSE_TIMEOUT_S = 30.0
"""How long a cancelled receiver may still take to make its last batch durable."""

SMALL_BLOB_BYTES = 1024 * 1024
"""Up to here the new name of a received blob is not synced at once: losing it costs one chunk, syncing it costs more.

A model may have thousands of such blobs; placing the model syncs the names of all of them together.
"""


class StoreBlobs:
    """`node.ports.Blobs`: what is verified and what is being received can be read, by chunk."""

    def __init__(
        self,
        layout: Layout,
        disk: Disk,
        index: Index,
        hasher: Hasher,
        census: Census,
        partials: Partials,
        copier: Copier,
        verify_now: Callable[[Digest, int], Awaitable[None]],
    ) -> None:
        self._layout = layout
        self._disk = disk
        self._index = index
        self._hasher = hasher
        self._census = census
        self._partials = partials
        self._copier = copier
        self._verify_now = verify_now
        self._recipes: OrderedDict[Digest, Recipe] = OrderedDict()
        self._full: dict[Digest, Bits] = {}
        self._used: Counter[Digest] = Counter()
        self._touched: Counter[Digest] = Counter()
        self._receive_lock = trio.Lock()
        self.read_bytes = 0
        self.written_bytes = 0
        self.refused_chunks = 0

    async def recipe(self, digest: Digest) -> Recipe:
        """The recipe of a verified blob, or of one being received. BlobMissing when there is none."""
        partial = self._partials.open_one(digest)
        if partial is not None:
            return partial.recipe
        if self._census.verified(digest) is None:
            raise BlobMissing(f"{digest} is not here")
        recipe = self._recipes.get(digest)
        if recipe is None:
            recipe = await self._index.recipe(digest)
            if recipe is None:
                raise BlobMissing(f"{digest} has no recipe")
        self._remember(recipe)
        return recipe

    def _remember(self, recipe: Recipe) -> None:
        self._recipes[recipe.digest] = recipe
        self._recipes.move_to_end(recipe.digest)
        if len(self._recipes) > RECIPES_CACHED_MAX:
            self._recipes.popitem(last=False)

    def held(self, digest: Digest) -> Bits | None:
        """Which chunks can be served now (the live object), or None when nothing of the blob is here."""
        partial = self._partials.open_one(digest)
        if partial is not None:
            return partial.bits
        file = self._census.verified(digest)
        if file is None:
            self._full.pop(digest, None)
            return None
        bits = self._full.get(digest)
        if bits is None or bits.count != file.chunk_count:
            bits = self._full[digest] = Bits.full(file.chunk_count)
        return bits

    async def read(self, digest: Digest, index: int, buffer: memoryview) -> int:
        """One chunk's bytes, as they stand on disk, into the buffer; how many. Errors as the port says."""
        recipe = await self.recipe(digest)
        if not 0 <= index < len(recipe):
            raise BlobMissing(f"chunk {index} of {digest} is not here")
        size_bytes = recipe.sizes_bytes[index]
        if len(buffer) < size_bytes:
            raise LocalProtocolError(f"chunk {index} of {digest} has {size_bytes} bytes, the buffer {len(buffer)}")
        partial = self._partials.open_one(digest)
        if partial is not None and (partial.recipe is not recipe or index not in partial.bits):
            raise BlobMissing(f"chunk {index} of {digest} is not here yet")
        if partial is not None:
            count = await partial.read(index, buffer[:size_bytes])
        else:
            count = await self._read_whole(recipe, index, buffer[:size_bytes])
        self.read_bytes += count
        return count

    async def _read_whole(self, recipe: Recipe, index: int, buffer: memoryview) -> int:
        digest, offset = recipe.digest, recipe.offset_bytes(index)
        file = self._census.verified(digest)
        if file is None:
            raise BlobMissing(f"chunk {index} of {digest} is not here")
        candidates = (file.path, *self._layout.candidates(digest))
        key, count = await self._disk.run(
            f"read chunk {index} of", file.path, lambda: _read_first(candidates, buffer, offset)
        )
        if key is None:
            self._gone(file)
            raise BlobMissing(f"{file.path} is gone")
        if key != file.key and not self._touched[digest] and self._census.verified(digest) == file:
            # Somebody wrote to it since it was read through: not a byte of it is certain any more.
            self._census.put_file(attrs.evolve(file, key=key, state=UNVERIFIED))
            self._census.announce()
            raise BlobMissing(f"{file.path} has changed and is verified again")
        if count != len(buffer):
            raise StoreError(f"cannot read chunk {index} of {file.path}: the file ends before it")
        return count

    def _gone(self, file: BlobFile) -> None:
        if self._census.file(file.digest) == file:
            self._census.drop_file(file.digest)
            self._census.announce()

    async def receive(self, recipe: Recipe, on_copied: Callable[[int], None] | None = None) -> PartialBlob:
        """Begin, resume or join a partial blob. StoreError when the disk has no room for what is missing.

        The recipe that counts is that of the blob given back: who joins others, or comes when the blob is whole,
        works under theirs. What other blobs here have of it is copied before it is given back.
        """
        if self._partials.open_one(recipe.digest) is None:
            # An unread file under the blob's name is read before anything is fetched: a disk is nearer than a peer.
            await self._verify_now(recipe.digest, recipe.size_bytes)
        async with self._receive_lock:
            if self._census.verified(recipe.digest) is not None:
                whole = await self.recipe(recipe.digest)
                return WholeReception(self, whole, Bits.full(len(whole)))
            partial = await self._partials.open(recipe)
            reception, joined = Reception(self, self._partials, partial), partial.receivers > 1
        try:
            if joined:
                await partial.filled.wait()
            else:
                reception.copied_bytes = await self._copier.fill(partial, on_copied)
        except BaseException:
            partial.filled.set()
            await reception.close()
            raise
        partial.filled.set()
        return reception

    async def drop_abandoned(self, digest: Digest) -> bool:
        """Remove a partial blob that nobody receives or wants kept; whether there was one."""
        async with self._receive_lock:
            return not self.in_use(digest) and await self._partials.drop_closed(digest)

    async def finish(self, partial: PartialFile) -> None:
        """Check a complete partial blob and move it among the whole ones; once, however many ask."""
        async with partial.lock:
            if partial.whole:
                return
            if not partial.bits.complete():
                lacking = len(partial.recipe) - len(partial.bits)
                raise StoreError(f"{partial.path} cannot be finished: {lacking} chunks are still missing")
            with partial.borrow():
                if partial.recipe.size_bytes > SMALL_BLOB_BYTES:
                    # The last batch goes to the disk while the last bytes are hashed.
                    await partial.sync_data()
                found = await partial.front.finish()
                if found != partial.recipe.digest:
                    await self._partials.forget_rot(partial)
                    with trio.CancelScope(shield=True):
                        await self._throw_away(partial, found)
                recipe = await self._recipe_by_rule(partial)
                with trio.CancelScope(shield=True):
                    await self._conclude(partial, recipe)

    async def _throw_away(self, partial: PartialFile, found: Digest) -> NoReturn:
        problem = f"{partial.recipe.digest} came out as {found}: its recipe was a lie, the partial blob is thrown away"
        await self._partials.discard(partial, problem)
        raise RemoteProtocolError(problem)

    async def _recipe_by_rule(self, partial: PartialFile) -> Recipe:
        """The recipe of a blob whose bytes are right: as it came, or ours where its cut is not what its rule says."""
        recipe, path = partial.recipe, partial.path
        if await self._disk.run("read", path, lambda: follows_its_rule(path, recipe)):
            return recipe
        log.warning("the recipe of %s does not follow its rule %s; ours replaces it", recipe.digest, recipe.rule)
        _, computed = await self._hasher.hash(path, target_size_bytes=target_of(recipe))
        return computed

    async def _conclude(self, partial: PartialFile, recipe: Recipe) -> None:
        target = self._layout.whole_blob(recipe.digest)
        key = await self._disk.run("keep", partial.path, lambda: _make_whole(partial.path, target))
        self._remember(recipe)
        self._partials.finished(partial)
        self._census.put_file(BlobFile(recipe.digest, target, key, VERIFIED, len(recipe)))
        self._census.announce()
        await self._index.record(key, recipe, partial_done=True)

    # -- what must not be removed, and what is being moved

    def in_use(self, digest: Digest) -> bool:
        """Whether somebody receives the blob or wants it kept."""
        return self._used[digest] > 0

    @contextmanager
    def keep(self, sizes_bytes: Mapping[Digest, int]) -> Iterator[None]:
        """Keep `remove` from taking these blobs while the block lasts; StoreError when they do not fit on the disk."""
        lacking = {digest: size for digest, size in sizes_bytes.items() if not self._here(digest, size)}
        self._partials.require_space(lacking)
        with self.hold(sizes_bytes):
            yield

    def _here(self, digest: Digest, size_bytes: int) -> bool:
        """Whether a file that may be the blob is here, read or not: what it takes on the disk it has taken."""
        file = self._census.file(digest)
        if file is not None:
            return file.state in (VERIFIED, UNVERIFIED) and file.key.size_bytes == size_bytes
        with suppress(OSError):
            return self._layout.blob(digest).stat().st_size == size_bytes
        return False

    @contextmanager
    def hold(self, digests: Iterable[Digest]) -> Iterator[None]:
        """`keep`, where the disk has been asked or need not be."""
        kept = list(digests)
        self._used.update(kept)
        try:
            yield
        finally:
            self._used.subtract(kept)
            self._used = +self._used

    @contextmanager
    def touch(self, digest: Digest) -> Iterator[None]:
        """Our own change of a file's mtime is no reason to doubt its bytes."""
        self._touched[digest] += 1
        try:
            yield
        finally:
            self._touched[digest] -= 1
            self._touched = +self._touched


class Reception:
    """One receiver's hold on a partial blob: `node.ports.PartialBlob`."""

    def __init__(self, blobs: StoreBlobs, partials: Partials, partial: PartialFile) -> None:
        self.recipe = partial.recipe
        self.copied_bytes = 0
        self._blobs = blobs
        self._partials = partials
        self._partial = partial
        self._use = blobs.hold([partial.recipe.digest])
        self._use.__enter__()
        self._closed = False

    def held(self) -> Bits:
        """The chunks written so far, by whomever."""
        return self._partial.bits

    def hashed_bytes(self) -> int:
        """How far the SHA-256 that `finish` waits for has come."""
        return self._partial.front.hashed_bytes

    async def write(self, index: int, data: bytes | memoryview) -> None:
        """Store one chunk. RemoteProtocolError when its BLAKE3 is not the recipe's; StoreError when it cannot."""
        before = len(self._partial.bits)
        try:
            await self._partial.write(index, data)
        except RemoteProtocolError:
            self._blobs.refused_chunks += 1
            raise
        if len(self._partial.bits) > before:
            self._blobs.written_bytes += len(data)

    async def finish(self) -> None:
        """Check the whole blob's SHA-256 and make it servable; RemoteProtocolError when it does not match.

        StoreError when it was the disk that changed the bytes: nobody else is to blame for that.
        """
        await self._blobs.finish(self._partial)

    async def close(self) -> None:
        """Make what is held durable and let go, cancelled or not; idempotent."""
        if self._closed:
            return
        self._closed = True
        self._use.__exit__(None, None, None)
        with trio.CancelScope(deadline=trio.current_time() + CLOSE_TIMEOUT_S, shield=True):
            await self._partials.let_go(self._partial)


class WholeReception:
    """What `receive` gives for a blob that is here already: complete from the start."""

    def __init__(self, blobs: StoreBlobs, recipe: Recipe, bits: Bits) -> None:
        self.recipe = recipe
        self.copied_bytes = 0
        self._bits = bits
        self._use = blobs.hold([recipe.digest])
        self._use.__enter__()
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
        """It was verified before."""
        await trio.lowlevel.checkpoint()

    async def close(self) -> None:
        """Let go; idempotent."""
        if not self._closed:
            self._closed = True
            self._use.__exit__(None, None, None)


def _read_first(candidates: Iterable[Path], buffer: memoryview, offset: int) -> tuple[FileKey | None, int]:
    for path in candidates:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            return FileKey.of(os.fstat(descriptor)), read_into(descriptor, buffer, offset)
        finally:
            os.close(descriptor)
    return None, 0


def _make_whole(partial: Path, whole: Path) -> FileKey:
    descriptor = os.open(partial, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fchmod(descriptor, 0o644)
        os.fsync(descriptor)
        key = FileKey.of(os.fstat(descriptor))
    finally:
        os.close(descriptor)
    os.rename(partial, whole)
    if key.size_bytes > SMALL_BLOB_BYTES:
        sync_directory(whole.parent)
        sync_directory(partial.parent)
    return key
