"""Blobs that are not whole yet: those being received, a sparse file each, and those that wait to be resumed."""

import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import attrs
import trio

from node.ports import StoreError
from node.store.config import StoreConfig
from node.store.files import Disk, Lane, OpenFile, free_bytes, remove_file
from node.store.front import FrontThreads
from node.store.held import chunks_here, held_bytes, rewrite_unclaimed
from node.store.index import Index, StoredPartial
from node.store.ollama import Layout, digest_of_file_name
from node.store.receiving import Means, PartialFile
from node.store.space import give_back, reserve
from protocols.bits import Bits
from protocols.ids import Digest
from protocols.recipe.recipe import Recipe

log = logging.getLogger("herd.store")

FRONT_THREADS = 2
"""How many blobs are hashed at the same time as they come in; each front keeps a core busy at 1.6 GB/s."""


@attrs.frozen
class PartialView:
    """One blob that is not whole yet; `receiving` while somebody holds it open."""

    digest: Digest
    held_bytes: int
    size_bytes: int
    receiving: bool


class Partials:
    """The partial blobs of one store, open ones and those that wait to be resumed."""

    def __init__(
        self, layout: Layout, disk: Disk, index: Index, config: StoreConfig, stored: dict[Digest, StoredPartial]
    ) -> None:
        self.disk = disk
        self.index = index
        self.config = config
        self._means = Means(disk, index, config, FrontThreads(FRONT_THREADS))
        self._layout = layout
        self._stored = stored
        self._open: dict[Digest, PartialFile] = {}
        self._left = set(stored)
        self._files = trio.Lock()

    def open_one(self, digest: Digest) -> PartialFile | None:
        """The partial blob somebody is receiving now."""
        return self._open.get(digest)

    def held_besides(self, digest: Digest) -> list[StoredPartial]:
        """What is held of every other partial blob now."""
        closed = [stored for other, stored in self._stored.items() if other not in self._open and other != digest]
        being_received = [each for other, each in self._open.items() if other != digest]
        return closed + [StoredPartial(each.recipe, each.bits) for each in being_received]

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
        others = sum(each.promised_bytes() for digest, each in self._open.items() if digest not in sizes_bytes)
        if needed:
            purpose = f"receive {needed} bytes of {len(sizes_bytes)} blobs"
            require_space(self._layout, self.config, needed + others, purpose)

    def _taken_bytes(self, digest: Digest) -> int:
        """What a partial blob has of the disk already: what is held or reserved, or was written and never durable."""
        if digest in self._open:
            partial = self._open[digest]
            return partial.recipe.size_bytes - partial.promised_bytes()
        stored = self._stored.get(digest)
        if stored is None:
            return 0
        with suppress(OSError):
            allocated = 512 * os.stat(self._layout.partial_blob(digest)).st_blocks
            return max(allocated, held_bytes(stored.recipe, stored.bits))
        return 0

    async def open(self, recipe: Recipe) -> PartialFile:
        """Begin, resume or join. The caller serializes calls and owns one of `receivers` afterwards."""
        async with self._files:
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
            self._left.discard(recipe.digest)
            stored = await self._recut(path, stored, recipe)
        self._admit(recipe)
        descriptor, reserved = await self.disk.run(
            "make room for", path, lambda: _open_reserved(path, recipe.size_bytes, new=stored is None), Lane.LONG
        )
        bits = stored.bits if stored is not None else None
        partial = PartialFile(path, recipe, bits, OpenFile(descriptor), self._means, reserved)
        if stored is None and len(recipe) > 1:
            # Else what is written before the first batch is durable would be nobody's when this process is killed.
            await self._begin(partial)
        if recipe.digest in self._left:
            self._left.remove(recipe.digest)
            try:
                await self._reclaim(partial)
            except BaseException:
                partial.end(f"{path} could not be resumed")
                raise
        partial.front.follow()
        return partial

    async def _begin(self, partial: PartialFile) -> None:
        try:
            await self.index.begin_partial(partial.recipe)
        except BaseException:
            partial.end(f"{partial.path} could not be begun")
            raise

    async def _reclaim(self, partial: PartialFile) -> None:
        """Take again what a process that was killed had written and not yet made durable.

        Only what an earlier process left is looked at: after a failed sync in this one nothing may come back.
        """
        limit_bytes = self.config.unsynced_bytes_max + self.config.sync_interval_bytes
        recipe, bits = partial.recipe, partial.bits.copy()
        with partial.borrow() as descriptor:
            found = await self.disk.run(
                "read", partial.path, lambda: rewrite_unclaimed(descriptor, recipe, bits, limit_bytes), Lane.LONG
            )
        for index in found:
            partial.gained(index)

    async def _recut(self, path: Path, stored: StoredPartial, recipe: Recipe) -> StoredPartial:
        """What is here, under another recipe of the same blob.

        The row goes over to the new recipe before anything is written under it, so that no old bit outlives its bytes.
        """
        bits = await self.disk.run("read", path, lambda: chunks_here(path, stored, recipe), Lane.LONG)
        await self.index.save_partial(recipe.digest, bits.to_bytes(), recipe)
        recut = self._stored[recipe.digest] = StoredPartial(recipe, bits)
        return recut

    def _admit(self, recipe: Recipe) -> None:
        """Refuse before the first byte what would fill the disk, what others were promised included."""
        promised = sum(partial.promised_bytes() for partial in self._open.values())
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
            with trio.CancelScope(shield=True):
                async with self._files:
                    # Somebody may have joined, or thrown it away, while the sync waited.
                    if not partial.receivers and self._open.get(partial.recipe.digest) is partial:
                        await self._close(partial)

    async def _close(self, partial: PartialFile) -> None:
        """Nobody opens it again before it has given its room back: what is written then must stay."""
        digest = partial.recipe.digest
        del self._open[digest]
        if partial.durable is not None:
            self._stored[digest] = StoredPartial(partial.recipe, Bits.from_bytes(len(partial.recipe), partial.durable))
        try:
            if partial.durable is not None:
                await partial.give_back()
        except StoreError as error:
            log.warning("%s", error)
        finally:
            partial.end(f"{partial.path} is no longer being received")
        if partial.durable is None:
            self._stored.pop(digest, None)
            with suppress(OSError):  # An empty sparse file; the next start removes it where this did not.
                remove_file(partial.path)
            try:
                await self.index.drop_partial(digest)
            except StoreError as error:
                log.warning("%s", error)  # The next start drops a row without a file.

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
        good = await self.disk.run("read", partial.path, lambda: chunks_here(partial.path, stored, recipe), Lane.LONG)
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
            await partial.front.wait_stopped()

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


def _open_reserved(path: Path, size_bytes: int, *, new: bool) -> tuple[int, bool]:
    """The file at its full size, and whether all of its room is taken. A full disk raises OSError. Blocking."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        if os.fstat(descriptor).st_size != size_bytes:
            os.ftruncate(descriptor, size_bytes)
        try:
            return descriptor, reserve(descriptor, size_bytes)
        except OSError:
            # What it got before the disk was full helps nobody.
            remove_file(path) if new else give_back(descriptor)
            raise
    except BaseException:
        os.close(descriptor)
        raise


def reconcile(layout: Layout, stored: dict[Digest, StoredPartial]) -> list[Digest]:
    """After a start: remove partial files without a row; the digests of rows without their file. Blocking."""
    for path in sorted(layout.partial.iterdir()):
        digest = digest_of_file_name(path.name)
        if digest not in stored:
            remove_file(path)
    lost = [digest for digest, partial in stored.items() if not _is_there(layout.partial_blob(digest), partial)]
    for digest in stored.keys() - lost:
        _release(layout.partial_blob(digest))
    return lost


def _release(path: Path) -> None:
    """A process that was killed gave nothing back of what it had reserved; nobody may ever resume."""
    with suppress(OSError), path.open("r+b", buffering=0) as file:
        give_back(file.fileno())


def _is_there(path: Path, partial: StoredPartial) -> bool:
    try:
        return path.stat().st_size == partial.recipe.size_bytes
    except FileNotFoundError:
        return False
