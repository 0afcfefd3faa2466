"""Blobs in memory: the twin of the store's, with the faults a test asks for."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import attrs
import trio
from blake3 import blake3

from node.ports import BlobMissing, StoreError
from protocols.bits import Bits
from protocols.errors import LocalProtocolError, RemoteProtocolError
from protocols.ids import Digest, digest_of
from protocols.recipe.recipe import Recipe


def cut(data: bytes, chunk_size_bytes: int) -> Recipe:
    """The recipe of bytes cut at a fixed size."""
    chunks = [data[offset : offset + chunk_size_bytes] for offset in range(0, len(data), chunk_size_bytes)]
    hashes = b"".join(blake3(chunk).digest() for chunk in chunks)
    sizes = tuple(len(chunk) for chunk in chunks)
    return Recipe(digest_of(data), len(data), f"fixed-{chunk_size_bytes}", sizes, hashes)


@attrs.define
class _Whole:
    recipe: Recipe
    data: bytearray
    bits: Bits


class _Partial:
    """A blob being received, and how many receive it now."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.receivers = 0
        self.data = bytearray(recipe.size_bytes)
        self.bits = Bits(len(recipe))
        self.durable = Bits(len(recipe))

    def chunk(self, index: int) -> bytes:
        offset = self.recipe.offset_bytes(index)
        return bytes(self.data[offset : offset + self.recipe.sizes_bytes[index]])

    def put(self, index: int, data: bytes | memoryview) -> None:
        offset = self.recipe.offset_bytes(index)
        self.data[offset : offset + len(data)] = data
        self.bits.add(index)

    def held_bytes(self) -> int:
        return sum(self.recipe.sizes_bytes[index] for index in self.bits)

    def recut(self, recipe: Recipe) -> "_Partial":
        """What is here under another recipe of the same blob: the chunks whose every byte is held and right."""
        held = bytearray(self.recipe.size_bytes)
        for index in self.bits:
            offset, size = self.recipe.offset_bytes(index), self.recipe.sizes_bytes[index]
            held[offset : offset + size] = b"\1" * size
        other = _Partial(recipe)
        for index in range(len(recipe)):
            offset, size = recipe.offset_bytes(index), recipe.sizes_bytes[index]
            chunk = bytes(self.data[offset : offset + size])
            if all(held[offset : offset + size]) and blake3(chunk).digest() == recipe.chunk_hash(index):
                other.put(index, chunk)
        other.durable = other.bits.copy()
        return other


class MemoryReception:
    """One receiver's hold on a blob that comes in: `node.ports.PartialBlob`."""

    def __init__(self, blobs: "MemoryBlobs", partial: _Partial) -> None:
        self.recipe = partial.recipe
        self.copied_bytes = 0
        self._blobs = blobs
        self._partial = partial
        self._closed = False
        partial.receivers += 1

    def held(self) -> Bits:
        """The live set of chunks written so far, by whomever."""
        return self._partial.bits

    def hashed_bytes(self) -> int:
        """What stands before the first missing chunk: memory needs no time to hash it."""
        first = next(self._partial.bits.missing(), None)
        return self.recipe.size_bytes if first is None else self.recipe.offset_bytes(first)

    async def write(self, index: int, data: bytes | memoryview) -> None:
        """Store one chunk. RemoteProtocolError for wrong bytes, StoreError when the disk is full."""
        if not 0 <= index < len(self.recipe):
            raise RemoteProtocolError(f"{self.recipe.digest} has no chunk {index}")
        await self._blobs.wait(self._blobs.write_delay_s)
        if len(data) != self.recipe.sizes_bytes[index] or blake3(data).digest() != self.recipe.chunk_hash(index):
            raise RemoteProtocolError(f"chunk {index} of {self.recipe.digest} does not match its BLAKE3")
        if index not in self._partial.bits:
            self._blobs.take_space(len(data))
            self._partial.put(index, data)

    async def finish(self) -> None:
        """Check the whole blob and make it servable; RemoteProtocolError when the recipe was a lie."""
        await self._blobs.wait(self._blobs.write_delay_s)
        if not self._partial.bits.complete():
            raise StoreError(f"{self.recipe.digest} still lacks {sum(1 for _ in self._partial.bits.missing())} chunks")
        self._blobs.conclude(self._partial)

    async def close(self) -> None:
        """Make what is held durable and let go; idempotent."""
        await self._blobs.wait(0)
        if not self._closed:
            self._closed = True
            self._partial.receivers -= 1
        self._partial.durable = self._partial.bits.copy()


class MemoryBlobs:
    """Implements `node.ports.Blobs`. Delays pass on Trio's clock; `capacity_bytes` is the size of the disk,
    and `reads_at_once` makes its readers share it."""

    def __init__(
        self,
        *,
        chunk_size_bytes: int = 4 * 1024 * 1024,
        capacity_bytes: int | None = None,
        read_delay_s: float = 0.0,
        write_delay_s: float = 0.0,
        reads_at_once: float = float("inf"),
    ) -> None:
        self.chunk_size_bytes = chunk_size_bytes
        self.read_delay_s = read_delay_s
        self.write_delay_s = write_delay_s
        self.reads: list[tuple[Digest, int]] = []
        self.kept: Counter[Digest] = Counter()
        self.on_read: Callable[[Digest, int], object] | None = None
        self._free_bytes = capacity_bytes
        self._reading = trio.CapacityLimiter(reads_at_once)
        self._whole: dict[Digest, _Whole] = {}
        self._partial: dict[Digest, _Partial] = {}

    async def recipe(self, digest: Digest) -> Recipe:
        """The recipe of a whole or partial blob; BlobMissing when there is none."""
        await self.wait(0)
        found = self._whole.get(digest) or self._partial.get(digest)
        if found is None:
            raise BlobMissing(f"{digest} is not here")
        return found.recipe

    def held(self, digest: Digest) -> Bits | None:
        """The live set of chunks that can be served."""
        if digest in self._whole:
            return self._whole[digest].bits
        return self._partial[digest].bits if digest in self._partial else None

    async def read(self, digest: Digest, index: int, buffer: memoryview) -> int:
        """One chunk as it stands here, into the buffer; BlobMissing when it does not."""
        async with self._reading:
            await self.wait(self.read_delay_s)
        if self.on_read is not None:
            self.on_read(digest, index)
        held = self.held(digest)
        if held is None or index not in held:
            raise BlobMissing(f"chunk {index} of {digest} is not here")
        self.reads.append((digest, index))
        whole = self._whole.get(digest)
        found = self._partial[digest] if whole is None else whole
        size_bytes = found.recipe.sizes_bytes[index]
        if len(buffer) < size_bytes:
            raise LocalProtocolError(f"chunk {index} of {digest} has {size_bytes} bytes, the buffer {len(buffer)}")
        offset = found.recipe.offset_bytes(index)
        buffer[:size_bytes] = found.data[offset : offset + size_bytes]
        return size_bytes

    async def receive(self, recipe: Recipe, on_copied: Callable[[int], None] | None = None) -> MemoryReception:
        """Begin, resume or join. StoreError when the disk has no room.

        The recipe that counts is that of what is given back: a whole blob keeps its own, and who joins other
        receivers works under theirs. With no receiver, what is here is cut anew, and what other blobs have is copied.
        """
        await self.wait(0)
        whole = self._whole.get(recipe.digest)
        if whole is not None:
            complete = _Partial(whole.recipe)
            complete.data, complete.bits = whole.data, whole.bits
            return MemoryReception(self, complete)
        partial = self._partial.get(recipe.digest)
        if partial is not None and not partial.receivers and partial.recipe != recipe:
            recut = partial.recut(recipe)
            self._discard(partial)
            self.take_space(recut.held_bytes())
            partial = self._partial[recipe.digest] = recut
        if partial is None:
            self._check_room(recipe.size_bytes, recipe.digest)
            partial = self._partial[recipe.digest] = _Partial(recipe)
        reception = MemoryReception(self, partial)
        if partial.receivers == 1:
            self._copy_into(partial, reception, on_copied)
        return reception

    def _copy_into(
        self, partial: _Partial, reception: MemoryReception, on_copied: Callable[[int], None] | None
    ) -> None:
        """What other blobs have of this one, where it is still what its hash says."""
        recipe = partial.recipe
        sources: list[_Whole | _Partial] = [*self._whole.values(), *self._partial.values()]
        here = {
            source.recipe.chunk_hash(index): (source, index)
            for source in sources
            if source is not partial and len(source.recipe) > 1
            for index in source.bits
        }
        for index in partial.bits.missing() if len(recipe) > 1 else ():
            if recipe.chunk_hash(index) not in here:
                continue
            source, place = here[recipe.chunk_hash(index)]
            offset = source.recipe.offset_bytes(place)
            chunk = bytes(source.data[offset : offset + recipe.sizes_bytes[index]])
            if blake3(chunk).digest() == recipe.chunk_hash(index):
                self.take_space(len(chunk))
                partial.put(index, chunk)
                reception.copied_bytes += len(chunk)
                if on_copied is not None:
                    on_copied(reception.copied_bytes)

    def add(self, data: bytes, *, recipe: Recipe | None = None) -> Digest:
        """Put a verified blob here. Another recipe than the true one makes this store a liar."""
        recipe = recipe or cut(data, self.chunk_size_bytes)
        self.take_space(len(data))
        self._whole[recipe.digest] = _Whole(recipe, bytearray(data), Bits.full(len(recipe)))
        return recipe.digest

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
        """Delete a blob and what was received of it."""
        self._whole.pop(digest, None)
        self._partial.pop(digest, None)

    def corrupt(self, digest: Digest, offset_bytes: int) -> None:
        """Flip one bit of a whole blob behind the store's back."""
        self._whole[digest].data[offset_bytes] ^= 1

    def whole(self, digest: Digest) -> bytes | None:
        """The bytes of a verified blob, or None."""
        found = self._whole.get(digest)
        return None if found is None else bytes(found.data)

    def digests(self) -> list[Digest]:
        """The whole blobs that are here."""
        return list(self._whole)

    def free_disk_bytes(self) -> int:
        """What may still be written; a disk without a size has a terabyte left."""
        return 10**12 if self._free_bytes is None else self._free_bytes

    def crash(self) -> "MemoryBlobs":
        """The store as a restarted process finds it: whole blobs, and of partial ones what was durable."""
        after = MemoryBlobs(chunk_size_bytes=self.chunk_size_bytes)
        after._free_bytes = self._free_bytes
        after._whole = dict(self._whole)
        for digest, partial in self._partial.items():
            left = after._partial[digest] = _Partial(partial.recipe)
            for index in partial.durable:
                left.put(index, partial.chunk(index))
            left.durable = left.bits.copy()
        return after

    async def wait(self, delay_s: float) -> None:
        """A checkpoint that takes this long."""
        await trio.sleep(delay_s)

    def take_space(self, size_bytes: int) -> None:
        """Use up disk; StoreError when it is full."""
        if self._free_bytes is not None:
            self._check_room(size_bytes, None)
            self._free_bytes -= size_bytes

    def conclude(self, partial: _Partial) -> None:
        """A complete partial becomes a whole blob, or is thrown away with RemoteProtocolError."""
        recipe = partial.recipe
        if recipe.digest in self._whole:
            return
        if "sha256:" + hashlib.sha256(partial.data).hexdigest() != recipe.digest:
            self._discard(partial)
            raise RemoteProtocolError(f"the chunks of {recipe.digest} make another blob")
        self._partial.pop(recipe.digest, None)
        self._whole[recipe.digest] = _Whole(recipe, partial.data, partial.bits)

    def _discard(self, partial: _Partial) -> None:
        if self._partial.get(partial.recipe.digest) is partial:
            del self._partial[partial.recipe.digest]
            if self._free_bytes is not None:
                self._free_bytes += partial.held_bytes()

    def _check_room(self, size_bytes: int, digest: Digest | None) -> None:
        if self._free_bytes is not None and size_bytes > self._free_bytes:
            what = digest or f"{size_bytes} bytes"
            raise StoreError(f"no room for {what}: {size_bytes - self._free_bytes} bytes are missing; free some")
