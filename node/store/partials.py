"""Blobs being received: a sparse file each, and which chunks of it are durable.

Order makes it safe: a chunk is checked, then written; its bit may be served from then on; written data is synced in
batches, and only then are the bits of that batch committed to the index. A crash loses at most the last batch and
never leaves a bit set for bytes that are not there.
"""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import attrs
import trio
from blake3 import blake3

from node.ports import StoreError
from node.store.config import StoreConfig
from node.store.files import Disk, OpenFile, free_bytes, read_into, remove_file, sync_directory, write_at
from node.store.held import chunks_here, held_bytes
from node.store.index import Index, StoredPartial
from node.store.ollama import Layout, digest_of_file_name
from protocols.bits import Bits
from protocols.errors import RemoteProtocolError
from protocols.ids import Digest
from protocols.recipe.recipe import Recipe

log = logging.getLogger("herd.store")


@attrs.frozen
class PartialView:
    """One blob that is not whole yet; `receiving` while somebody holds it open."""

    digest: Digest
    held_bytes: int
    size_bytes: int
    receiving: bool


class PartialFile:
    """One open partial blob, shared by all who receive it."""

    def __init__(self, path: Path, recipe: Recipe, stored: Bits | None, file: OpenFile, partials: "Partials") -> None:
        self.path = path
        self.recipe = recipe
        self.bits = stored.copy() if stored is not None else Bits(len(recipe))
        self.receivers = 0
        self.problem: str | None = None
        self.whole = False
        self.lock = trio.Lock()
        self.durable = self.bits.to_bytes() if stored is not None else None
        self._file = file
        self._config = partials.config
        self._disk = partials.disk
        self._index = partials.index
        self.held_bytes = held_bytes(recipe, self.bits)
        self._unsynced_bytes = 0
        self._synced_at = trio.current_time()

    def missing_bytes(self) -> int:
        """What is still to come."""
        return self.recipe.size_bytes - self.held_bytes

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
            good = await self._disk.run("check", self.path, lambda: self._matches(index, data))
        else:
            good = await self._check_and_write(index, data)
        if not good:
            raise RemoteProtocolError(f"chunk {index} of {recipe.digest} does not match its BLAKE3")
        if self.bits.add(index):
            self.held_bytes += len(data)
            self._unsynced_bytes += len(data)
        if self.sync_is_due():
            # Whoever fills a batch waits for it: that is how a slow disk slows the network down.
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

            return await self._disk.run(f"write chunk {index} to", self.path, work)

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
            try:
                with self.borrow() as descriptor:
                    await self._disk.run("sync", self.path, lambda: self._sync_data(descriptor))
            except StoreError as error:
                # After a failed sync the kernel may have thrown the pages away; nothing since the last one is certain.
                self.problem = str(error)
                raise
            await self._index.save_partial(self.recipe.digest, bits, None if self.durable else self.recipe)
            self.durable = bits
            self._unsynced_bytes -= batch
            self._synced_at = trio.current_time()

    def _sync_data(self, descriptor: int) -> None:
        os.fdatasync(descriptor)
        if self.durable is None:
            sync_directory(self.path.parent)

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
        self._file.close()


class Partials:
    """The partial blobs of one store, open ones and those that wait to be resumed."""

    def __init__(
        self, layout: Layout, disk: Disk, index: Index, config: StoreConfig, stored: dict[Digest, StoredPartial]
    ) -> None:
        self.disk = disk
        self.index = index
        self.config = config
        self._layout = layout
        self._stored = stored
        self._open: dict[Digest, PartialFile] = {}

    def open_one(self, digest: Digest) -> PartialFile | None:
        """The partial blob somebody is receiving now."""
        return self._open.get(digest)

    def views(self) -> list[PartialView]:
        """Every partial blob here."""
        found = [
            PartialView(digest, held_bytes(stored.recipe, stored.bits), stored.recipe.size_bytes, False)
            for digest, stored in self._stored.items()
            if digest not in self._open
        ]
        for digest, partial in self._open.items():
            size_bytes = partial.recipe.size_bytes
            found.append(PartialView(digest, size_bytes - partial.missing_bytes(), size_bytes, True))
        return found

    def require_space(self, sizes_bytes: Mapping[Digest, int]) -> None:
        """StoreError when there is no room for what is missing of these blobs, and of those being received besides."""
        needed = sum(max(0, size - self._taken_bytes(digest)) for digest, size in sizes_bytes.items())
        others = sum(each.missing_bytes() for digest, each in self._open.items() if digest not in sizes_bytes)
        if needed:
            purpose = f"receive {needed} bytes of {len(sizes_bytes)} blobs"
            require_space(self._layout, self.config, needed + others, purpose)

    def _taken_bytes(self, digest: Digest) -> int:
        """What a partial blob has of the disk already: what is held, and what was written and never made durable."""
        if digest in self._open:
            return self._open[digest].held_bytes
        stored = self._stored.get(digest)
        if stored is None:
            return 0
        with suppress(OSError):
            allocated = 512 * os.stat(self._layout.partial_blob(digest)).st_blocks
            return max(allocated, held_bytes(stored.recipe, stored.bits))
        return 0

    async def open(self, recipe: Recipe) -> PartialFile:
        """Begin, resume or join. The caller serializes calls and owns one of `receivers` afterwards."""
        partial = self._open.get(recipe.digest)
        if partial is None:
            partial = await self._open_file(recipe)
            self._open[recipe.digest] = partial
        partial.receivers += 1
        return partial

    async def _open_file(self, recipe: Recipe) -> PartialFile:
        path = self._layout.partial_blob(recipe.digest)
        stored = self._stored.get(recipe.digest)
        if stored is not None and stored.recipe != recipe:
            stored = await self._recut(path, stored, recipe)
        self._admit(recipe)
        descriptor = await self.disk.run("create", path, lambda: _open_sparse(path, recipe.size_bytes))
        return PartialFile(path, recipe, stored.bits if stored is not None else None, OpenFile(descriptor), self)

    async def _recut(self, path: Path, stored: StoredPartial, recipe: Recipe) -> StoredPartial:
        """What is here, under another recipe of the same blob.

        The row goes over to the new recipe before anything is written under it, so that no old bit outlives its bytes.
        """
        bits = await self.disk.run("read", path, lambda: chunks_here(path, stored, recipe))
        await self.index.save_partial(recipe.digest, bits.to_bytes(), recipe)
        recut = self._stored[recipe.digest] = StoredPartial(recipe, bits)
        return recut

    def _admit(self, recipe: Recipe) -> None:
        """Refuse before the first byte what would fill the disk, what others were promised included."""
        promised = sum(partial.missing_bytes() for partial in self._open.values())
        needed = max(0, recipe.size_bytes - self._taken_bytes(recipe.digest))
        require_space(self._layout, self.config, needed + promised, f"receive {recipe.digest} ({needed} bytes)")

    async def let_go(self, partial: PartialFile) -> None:
        """One receiver less; the last one makes it durable and closes it."""
        partial.receivers -= 1
        if partial.receivers or self._open.get(partial.recipe.digest) is not partial:
            return
        try:
            await partial.sync()
        finally:
            # Somebody may have joined, or thrown it away, while the sync waited.
            if not partial.receivers and self._open.get(partial.recipe.digest) is partial:
                self._close(partial)

    def _close(self, partial: PartialFile) -> None:
        digest = partial.recipe.digest
        del self._open[digest]
        partial.end(f"{partial.path} is no longer being received")
        if partial.durable is not None:
            self._stored[digest] = StoredPartial(partial.recipe, Bits.from_bytes(len(partial.recipe), partial.durable))
        else:
            with suppress(OSError):  # An empty sparse file; the next start removes it where this did not.
                remove_file(partial.path)

    def finished(self, partial: PartialFile) -> None:
        """The file has moved to its place among the whole ones, and the row is gone."""
        partial.whole = True
        self._open.pop(partial.recipe.digest, None)
        self._stored.pop(partial.recipe.digest, None)
        partial.end(f"{partial.recipe.digest} is whole")

    async def discard(self, partial: PartialFile, problem: str) -> None:
        """Throw an open partial blob away for all its receivers, who are told `problem`. The caller holds its lock."""
        digest = partial.recipe.digest
        self._open.pop(digest, None)
        self._stored.pop(digest, None)
        partial.end(problem)
        await self.index.drop_partial(digest)
        await self.disk.run("remove", partial.path, lambda: remove_file(partial.path))

    async def drop_closed(self, digest: Digest) -> bool:
        """Remove a partial blob that waits to be resumed; whether there was one. The caller serializes with `open`."""
        if digest in self._open or digest not in self._stored:
            return False
        path = self._layout.partial_blob(digest)
        with trio.CancelScope(shield=True):
            await self.index.drop_partial(digest)
            del self._stored[digest]
            await self.disk.run("remove", path, lambda: remove_file(path))
        return True

    async def forget_rot(self, partial: PartialFile) -> None:
        """StoreError when chunks do not stand on disk as they were written; the others wait for a resume.

        For a complete partial blob that came out wrong: only if every chunk is right was its recipe a lie. The caller
        holds its lock.
        """
        recipe, stored = partial.recipe, StoredPartial(partial.recipe, partial.bits.copy())
        good = await self.disk.run("read", partial.path, lambda: chunks_here(partial.path, stored, recipe))
        if good.complete():
            return
        problem = (
            f"{len(recipe) - len(good)} chunks of {recipe.digest} do not stand in {partial.path} as they were written:"
            " check the disk's health, then pull again, which fetches only them"
        )
        with trio.CancelScope(shield=True):
            await self.index.save_partial(recipe.digest, good.to_bytes(), recipe)
        self._open.pop(recipe.digest, None)
        self._stored[recipe.digest] = StoredPartial(recipe, good)
        partial.end(problem)
        raise StoreError(problem)

    async def close_all(self) -> None:
        """The store closes: what is held is made durable, whoever forgot to."""
        for partial in list(self._open.values()):
            try:
                await partial.sync()
            except StoreError as error:
                log.warning("%s", error)
            self._open.pop(partial.recipe.digest, None)
            partial.end("the store is closed")

    async def sync_due(self) -> None:
        """Sync every open partial blob whose time has come."""
        for partial in list(self._open.values()):
            # One that is being finished has its lock taken for long, and needs no sync any more.
            if partial.sync_is_due() and not partial.lock.locked():
                try:
                    await partial.sync(only_when_due=True)
                except StoreError as error:
                    # Whoever receives the blob learns it at the next write; the other blobs go on.
                    log.warning("%s", error)


def require_space(layout: Layout, config: StoreConfig, needed_bytes: int, purpose: str) -> None:
    """StoreError saying how many bytes are missing when the disk has no room above the reserve."""
    free = free_bytes(layout.herd)
    lacking = needed_bytes + config.reserve_free_bytes - free
    if needed_bytes and lacking > 0:
        raise StoreError(
            f"no room in {layout.models} to {purpose}: {lacking} bytes are missing"
            f" ({free} are free, {config.reserve_free_bytes} stay reserved by store.reserve_free_bytes)"
        )


def _open_sparse(path: Path, size_bytes: int) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        if os.fstat(descriptor).st_size != size_bytes:
            os.ftruncate(descriptor, size_bytes)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def reconcile(layout: Layout, stored: dict[Digest, StoredPartial]) -> list[Digest]:
    """After a start: remove partial files without a row; the digests of rows without their file. Blocking."""
    for path in sorted(layout.partial.iterdir()):
        digest = digest_of_file_name(path.name)
        if digest not in stored:
            remove_file(path)
    return [digest for digest, partial in stored.items() if not _is_there(layout.partial_blob(digest), partial)]


def _is_there(path: Path, partial: StoredPartial) -> bool:
    try:
        return path.stat().st_size == partial.recipe.size_bytes
    except FileNotFoundError:
        return False
