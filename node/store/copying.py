"""Chunks that a blob to come shares with blobs that are here: found by their hashes, copied instead of fetched.

A source is not believed: each chunk counts when its BLAKE3 is right. Where the file system can, the copy shares the
source's blocks and is checked as it stands in the partial file; elsewhere it is checked on its way there.
"""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import attrs
import trio
from blake3 import blake3

from node.buffers import BufferPool
from node.ports import StoreError
from node.store.census import UNVERIFIED, VERIFIED, Census
from node.store.files import Disk, Lane, clone_range, read_into, write_at
from node.store.index import Index, StoredPartial
from node.store.ollama import Layout
from node.store.partials import Partials
from node.store.receiving import PartialFile
from protocols.bits import Bits
from protocols.codec import unpack
from protocols.errors import RemoteProtocolError
from protocols.ids import Digest

log = logging.getLogger("herd.store")

COPIES_AT_ONCE = 2
"""Enough to keep two cores or one disk busy."""

PAGE_CHUNKS = 100_000
"""How many chunks of stored recipes are looked through at a time: 4 MB of them, some 20 ms."""

CLONE_BLOCK_SIZE_BYTES = 4096
"""Files can share whole blocks only. Where blocks are larger, sharing fails and the chunk is copied."""


@attrs.define
class CopyCounters:
    """What was copied since the start; `reflinked_bytes` of it takes no room of its own."""

    copied_bytes: int = 0
    reflinked_bytes: int = 0


@attrs.frozen
class _Copy:
    """One chunk of the blob to come, and where the source has it."""

    index: int
    source_offset_bytes: int


class Copier:
    """Fills partial blobs from the whole and partial blobs of one store."""

    def __init__(self, layout: Layout, disk: Disk, index: Index, census: Census, partials: Partials) -> None:
        self.counters = CopyCounters()
        self._layout = layout
        self._disk = disk
        self._index = index
        self._census = census
        self._partials = partials
        self._buffers = BufferPool()

    async def fill(self, blob: PartialFile, on_copied: Callable[[int], None] | None) -> int:
        """Copy what other blobs here have of this one; how many bytes. `on_copied` gets the bytes copied so far.

        StoreError when the partial file cannot be written. A source that is gone or wrong is passed over, its chunks
        stay missing; a whole blob found wrong is verified again.
        """
        copied_bytes = 0

        def copied(size_bytes: int) -> None:
            nonlocal copied_bytes
            copied_bytes += size_bytes
            self.counters.copied_bytes += size_bytes
            if on_copied is not None:
                on_copied(copied_bytes)

        for digest, copies in (await self._plan(blob)).copies.items():
            await self._copy_from(digest, copies, blob, copied)
        if copied_bytes:
            log.info("%d bytes of %s were copied from other blobs here", copied_bytes, blob.recipe.digest)
        return copied_bytes

    # -- finding

    async def _plan(self, blob: PartialFile) -> "_Plan":
        plan = _Plan()
        recipe = blob.recipe
        pages, partials = list(self._pages(recipe.digest)), self._partials.held_besides(recipe.digest)
        if len(recipe) < 2 or not (pages or partials):
            return plan  # One chunk is shared as the whole blob or not at all, and some models have thousands of these.
        for index in blob.bits.missing():
            plan.wanted.setdefault(recipe.chunk_hash(index), []).append(index)
        for page in pages:
            if plan.wanted:
                await self._look(partial(plan.look_through, await self._index.recipe_bodies(page)))
        if plan.wanted:
            await self._look(partial(plan.look_at, partials))
        return plan

    async def _look(self, work: Callable[[], None]) -> None:
        await self._disk.run("look through", self._layout.index, work, Lane.LONG)

    def _pages(self, besides: Digest) -> Iterator[list[Digest]]:
        """The verified blobs of more than one chunk, some at a time."""
        page: list[Digest] = []
        count = 0
        for file in self._census.files():
            if file.state == VERIFIED and file.chunk_count > 1 and file.digest != besides:
                page.append(file.digest)
                count += file.chunk_count
            if count >= PAGE_CHUNKS:
                yield page
                page, count = [], 0
        if page:
            yield page

    # -- copying

    async def _copy_from(
        self, digest: Digest, copies: list[_Copy], blob: PartialFile, copied: Callable[[int], None]
    ) -> None:
        file = self._census.verified(digest)
        path = self._layout.partial_blob(digest) if file is None else file.path
        paths = (path, *self._layout.candidates(digest))  # It may have moved to its place meanwhile.
        try:
            source = await self._disk.run("read", path, lambda: _open_first(paths))
        except StoreError as error:
            log.warning("%s", error)
            return
        if source < 0:
            return
        job = _Job(source, blob)
        try:
            await self._work_through(job, copies, copied)
        finally:
            os.close(source)
        if job.wrong and file is not None and self._census.verified(digest) == file:
            log.warning("%s does not hold what was read when it was verified: it is read again", file.path)
            self._census.put_file(attrs.evolve(file, state=UNVERIFIED))
            self._census.announce()

    async def _work_through(self, job: "_Job", copies: list[_Copy], copied: Callable[[int], None]) -> None:
        waiting = list(reversed(copies))
        failures: list[StoreError] = []

        async def work() -> None:
            while waiting:
                try:
                    await self._copy_one(job, waiting.pop(), copied)
                except StoreError as error:
                    failures.append(error)
                    nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            for _ in range(COPIES_AT_ONCE):
                nursery.start_soon(work)
        if failures:
            raise failures[0]

    async def _copy_one(self, job: "_Job", copy: _Copy, copied: Callable[[int], None]) -> None:
        blob = job.blob
        size_bytes = blob.recipe.sizes_bytes[copy.index]
        buffer = self._buffers.lend(size_bytes)
        try:
            with blob.borrow() as target:
                work = partial(job.copy, target, copy, buffer.view)
                good, shared_bytes = await self._disk.run(f"copy chunk {copy.index} to", blob.path, work, Lane.LONG)
        finally:
            buffer.release()
        if good:
            blob.gained(copy.index)
            self.counters.reflinked_bytes += shared_bytes
            copied(size_bytes)
            await blob.keep_pace()


class _Plan:
    """Which chunks are still looked for, and what was found of them, by source."""

    def __init__(self) -> None:
        self.wanted: dict[bytes, list[int]] = {}
        self.copies: dict[Digest, list[_Copy]] = {}

    def look_through(self, bodies: Sequence[bytes]) -> None:
        """Match stored recipes. Blocking: they are taken apart without the checks a peer's recipe needs."""
        for body in bodies:
            try:
                digest, _, _, sizes_bytes, hashes = unpack(body, list[Any])
            except (RemoteProtocolError, ValueError) as error:
                log.warning("a stored recipe cannot be read: %s", error)
                continue
            self.match(digest, sizes_bytes, hashes, None)

    def look_at(self, partials: Sequence[StoredPartial]) -> None:
        """Match what partial blobs hold. Blocking."""
        for stored in partials:
            self.match(stored.recipe.digest, stored.recipe.sizes_bytes, stored.recipe.hashes, stored.bits)

    def match(self, digest: Digest, sizes_bytes: Sequence[int], hashes: bytes, held: Bits | None) -> None:
        """Take from this blob what is wanted and held of it (None: all is)."""
        wanted = self.wanted
        hits = [place for place in range(len(sizes_bytes)) if hashes[32 * place : 32 * place + 32] in wanted]
        if not hits:
            return
        offsets = (0, *accumulate(sizes_bytes))
        for place in hits:
            if held is None or place in held:
                # The first place that has it: within one blob, a chunk may stand more than once.
                for index in wanted.pop(hashes[32 * place : 32 * place + 32], ()):
                    self.copies.setdefault(digest, []).append(_Copy(index, offsets[place]))


class _Job:
    """The copying from one open source into one partial blob."""

    def __init__(self, source: int, blob: PartialFile) -> None:
        self.blob = blob
        self.wrong = False
        self._source = source
        self._can_share = True

    def copy(self, target: int, copy: _Copy, buffer: memoryview) -> tuple[bool, int]:
        """Whether the chunk stands in the target now, and how many bytes of it are shared. Blocking.

        An OSError is the target's: a source that cannot be read is wrong.
        """
        recipe = self.blob.recipe
        offset, expected = recipe.offset_bytes(copy.index), recipe.chunk_hash(copy.index)
        shared_bytes = self._share(target, copy.source_offset_bytes, offset, buffer)
        if shared_bytes:
            good = read_into(target, buffer, offset) == len(buffer) and blake3(buffer).digest() == expected
        else:
            good = self._read(buffer, copy.source_offset_bytes) and blake3(buffer).digest() == expected
            if good:
                write_at(target, buffer, offset)
        self.wrong = self.wrong or not good
        return good, shared_bytes

    def _share(self, target: int, source_offset: int, offset: int, buffer: memoryview) -> int:
        """Let the target share a chunk's whole blocks and copy its edges; the bytes shared, 0 where that cannot be."""
        head = -source_offset % CLONE_BLOCK_SIZE_BYTES
        shared_bytes = (len(buffer) - head) // CLONE_BLOCK_SIZE_BYTES * CLONE_BLOCK_SIZE_BYTES
        if not self._can_share or (source_offset - offset) % CLONE_BLOCK_SIZE_BYTES or shared_bytes <= 0:
            return 0
        if not clone_range(self._source, source_offset + head, target, offset + head, shared_bytes):
            self._can_share = False
            return 0
        for begin, end in ((0, head), (head + shared_bytes, len(buffer))):
            edge = buffer[begin:end]
            if not self._read(edge, source_offset + begin):
                return 0
            write_at(target, edge, offset + begin)
        return shared_bytes

    def _read(self, buffer: memoryview, offset: int) -> bool:
        """Fill the buffer from the source; False when it is not all there or cannot be read."""
        try:
            return read_into(self._source, buffer, offset) == len(buffer)
        except OSError as error:
            log.warning("a source of chunks cannot be read: %s", error)
            return False


def _open_first(paths: Sequence[Path]) -> int:
    """The descriptor of the first file there is; -1 when there is none."""
    for path in paths:
        try:
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
    return -1
