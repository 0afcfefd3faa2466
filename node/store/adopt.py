"""Adopting what stands in the store, whoever put it there: find it, read it through once, and notice when it changes.

Nothing outside `.herd/` is touched. A file is read again only when its device, inode, size or mtime changed.
"""

import errno
import logging
import os
import time
from collections.abc import Callable, Container, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import attrs
import trio

from node.ports import StoreError
from node.store.census import UNREADABLE, UNVERIFIED, VERIFIED, WRONG, BlobFile, Census, NamedModel
from node.store.chunk_check import ChunkChecker, WorkerEnded
from node.store.config import StoreConfig
from node.store.damage import damage_text, differing_chunks, target_of, wrong_ranges
from node.store.files import Disk, FileKey, durable_key, remove_file
from node.store.hashing import Hasher
from node.store.index import Index, KnownFile
from node.store.manifests import RACY_NS, ManifestFile, ManifestTree, read_manifest
from node.store.ollama import Layout, digest_of_file_name
from node.store.verify import FileChanged
from protocols.errors import RemoteProtocolError
from protocols.ids import Digest, digest_of
from protocols.manifest import Manifest, parse_manifest
from protocols.names import ModelName
from protocols.recipe.recipe import Recipe

log = logging.getLogger("herd.store")

FAST_SIZE_BYTES_MIN = 16 * 1024 * 1024
"""Up to here a SHA-256 is computed sooner than a process is started."""

UNSETTLED_INTERVAL_S = 0.25
"""How soon a half-written manifest is looked at again."""


class Adopter:
    """Keeps the census true to the disk. `lock` is held by whoever scans or changes names; `run` is started once."""

    def __init__(
        self,
        layout: Layout,
        disk: Disk,
        index: Index,
        hasher: Hasher,
        census: Census,
        config: StoreConfig,
        known: dict[FileKey, KnownFile],
    ) -> None:
        self.lock = trio.Lock()
        self._layout = layout
        self._disk = disk
        self._index = index
        self._hasher = hasher
        self._checker = ChunkChecker(config.verify_rate_bytes_per_s)
        self._census = census
        self._config = config
        self._known = known
        self._tree = ManifestTree(layout)
        self._unsettled: dict[ModelName, float] = {}
        self._directories: tuple[FileKey | None, ...] | None = None
        self._swept_at = -float("inf")
        self._reading: dict[Digest, trio.Event] = {}
        self.verified_bytes = 0
        self.scans = 0

    # -- scanning

    async def watch(self) -> None:
        """Scan for ever. A store that cannot be looked at for a while keeps its last known state."""
        problem = ""
        while True:
            try:
                await self.scan()
                problem = ""
            except StoreError as error:
                if str(error) != problem:
                    problem = str(error)
                    log.warning("%s", problem)
            settling = bool(self._unsettled)
            await trio.sleep(min(UNSETTLED_INTERVAL_S, self._config.scan_interval_s) if settling else self._interval())

    def _interval(self) -> float:
        return self._config.scan_interval_s

    async def scan(self) -> None:
        """Bring the census up to date with the disk, except for what must be read through first."""
        async with self.lock:
            self.scans += 1
            changed = await self.scan_manifests()
            await self._look_at_files(changed)
            self._census.announce()

    async def scan_manifests(self) -> bool:
        """Find new, changed and vanished manifests; whether there were any. The caller holds the lock."""
        found = await self._disk.run("scan", self._layout.manifests, self._tree.scan)
        changed = [file for file in found.values() if not self._is_known(file)]
        gone = [model.name for model in self._census.models() if model.name not in found]
        for name in gone:
            self._census.drop_model(name)
        for name in [name for name in self._unsettled if name not in found]:
            del self._unsettled[name]
        for file in changed:
            await self._take_manifest(file)
        return bool(changed or gone)

    def _is_known(self, file: ManifestFile) -> bool:
        model = self._census.model(file.name)
        return model is not None and model.key == file.key

    async def _take_manifest(self, file: ManifestFile) -> None:
        data, key, problem = b"", file.key, ""
        manifest: Manifest | None = None
        try:
            data, key = await self._disk.run("read", file.path, lambda: read_manifest(file.path))
            manifest = parse_manifest(data)
        except (StoreError, RemoteProtocolError) as error:
            problem = f"{file.path} cannot be used: {error}"
            # Ollama writes manifests in place: what is empty or broken off now may be whole in a moment.
            since = self._unsettled.setdefault(file.name, trio.current_time())
            if trio.current_time() - since < self._config.settle_s:
                return
        self._unsettled.pop(file.name, None)
        self._census.put_model(NamedModel(file.name, file.path, key, data, digest_of(data), manifest, problem))

    def unreadable_names(self) -> list[str]:
        """Manifests whose references are not known now; while there are any, no blob may be called unreferenced."""
        broken = [model.name.display() for model in self._census.models() if model.manifest is None]
        return broken + [name.display() for name in self._unsettled]

    # -- blob files

    async def _look_at_files(self, manifests_changed: bool) -> None:
        now = trio.current_time()
        sweep = now - self._swept_at >= self._config.sweep_interval_s
        directories = await self._disk.run("look at", self._layout.blobs, lambda: _settled_keys(self._layout))
        if directories is not None and directories == self._directories and not (sweep or manifests_changed):
            return
        before = [file.digest for file in self._census.files()]
        referenced = {digest: None for digest in self._census.referenced()}
        waiting = await self._disk.run("look at", self._layout.whole, lambda: _waiting(self._layout, referenced))
        digests = list(dict.fromkeys([*referenced, *before, *waiting]))
        await self._look_again(digests, sweep)
        self._directories = directories
        if sweep:
            self._swept_at = now
            if not self._unsettled:
                # A manifest that is just being rewritten may name what no other names; reading it again takes long.
                await self._forget_stale()

    async def look_at(self, digests: Sequence[Digest]) -> None:
        """Bring the census up to date with the files of these blobs, whenever the next scan is due."""
        async with self.lock:
            await self._look_again(digests, sweep=True)
            self._census.announce()

    async def _look_again(self, digests: Sequence[Digest], sweep: bool) -> None:
        before = {digest: self._census.file(digest) for digest in digests}
        seen = await self._disk.run("look at", self._layout.blobs, lambda: _look(self._layout, digests))
        for digest in digests:
            # What changed hands while the thread looked was seen more recently by whoever changed it.
            if self._census.file(digest) is before[digest]:
                self._take_file(digest, seen[digest], sweep)

    def _take_file(self, digest: Digest, seen: tuple[Path, FileKey] | None, sweep: bool) -> None:
        file = self._census.file(digest)
        if seen is None:
            self._census.drop_file(digest)
            return
        path, key = seen
        if file is None or file.key != key or (sweep and file.state == UNREADABLE):
            self._census.put_file(self._judge(BlobFile(digest, path, key)))
        elif file.path != path:
            self._census.put_file(attrs.evolve(file, path=path))
        else:
            self._census.enqueue(digest)

    def _judge(self, file: BlobFile) -> BlobFile:
        """What an earlier reading of the same state of the file says about it."""
        known = self._known.get(file.key)
        if known is None:
            return file
        if known.digest == file.digest:
            return attrs.evolve(file, state=VERIFIED, chunk_count=known.chunk_count)
        return attrs.evolve(file, state=WRONG, detail=f"{file.path} holds the bytes of {known.digest}")

    async def _forget_stale(self) -> None:
        current = {file.key: None for file in self._census.files()}
        # The recipe of what was touched makes reading it again a matter of seconds.
        stale = [key for key, known in self._known.items() if key not in current and not self._awaits(known.digest)]
        for key in stale:
            del self._known[key]
        await self._index.forget(stale)

    def _awaits(self, digest: Digest) -> bool:
        file = self._census.file(digest)
        return file is not None and file.state == UNVERIFIED

    # -- reading through

    async def verify_waiting(self) -> None:
        """Read through, one after the other, what was never read, for ever."""
        while True:
            await self._census.wait_unverified()
            file = self._census.next_unverified()
            if file is None:
                continue
            try:
                await self._verify(file, background=True)
            except StoreError as error:
                # The index could not take the result; the other blobs may fare better, this one comes again.
                log.warning("%s", error)
                self._census.postpone(file.digest)
            await trio.lowlevel.checkpoint()

    async def verify_now(self, digest: Digest, size_bytes: int) -> None:
        """If a file of this name and size is here unread, read it before anybody fetches the same bytes."""
        if self._census.verified(digest) is not None:
            return
        seen = (await self._disk.run("look at", self._layout.blobs, lambda: _look(self._layout, [digest])))[digest]
        if seen is None or seen[1].size_bytes != size_bytes:
            return
        file = self._census.file(digest)
        if file is None or file.key != seen[1]:
            file = self._judge(BlobFile(digest, *seen))
            self._census.put_file(file)
        if file.state == UNVERIFIED:
            await self._verify(file, background=False)
        self._census.announce()

    async def read_now(self, digest: Digest, on_progress: Callable[[int], None]) -> None:
        """Read a blob's file, whatever is known of it, and judge it anew; `on_progress` gets the bytes read so far."""
        file = self._census.file(digest)
        if file is not None:
            await self._verify(file, background=False, on_progress=on_progress)

    async def _verify(
        self, file: BlobFile, *, background: bool, on_progress: Callable[[int], None] | None = None
    ) -> None:
        """Read one file through, unless somebody does already: then wait for that."""
        reading = self._reading.get(file.digest)
        if reading is not None:
            await reading.wait()
            return
        self._reading[file.digest] = trio.Event()
        try:
            await self._read_through(file, background, on_progress)
        finally:
            self._reading.pop(file.digest).set()

    async def _read_through(self, file: BlobFile, background: bool, on_progress: Callable[[int], None] | None) -> None:
        expected = await self._stored_recipe(file)
        try:
            wrong = await self._wrong_chunks(file, expected, background, on_progress)
            if expected is not None and wrong == []:
                digest, recipe = file.digest, expected
            else:
                if expected is not None and wrong:
                    # Withdrawn at once; the SHA-256 has the last word, since an index may rot as a blob may.
                    file = self._put_if_same(file, _damaged(file, expected, wrong))
                digest, recipe = await self._hasher.hash(
                    file.path,
                    target_size_bytes=target_of(expected) if expected is not None else None,
                    background=background,
                    on_progress=on_progress,
                )
        except FileChanged:
            # Whoever writes to it is not done; the next scan that finds it still has it read again.
            self._census.postpone(file.digest)
            return
        except StoreError as error:
            self._put_if_same(file, attrs.evolve(file, state=UNREADABLE, detail=str(error)))
            return
        # What is remembered as verified must still be so after a power cut.
        key = await self._disk.run("sync", file.path, lambda: durable_key(file.path))
        if key != file.key:
            self._census.postpone(file.digest)
            return
        with trio.CancelScope(shield=True):
            # The recipe must be there before anybody is told that the blob can be served.
            await self._index.record(key, recipe)
        self.verified_bytes += key.size_bytes
        self._known[key] = KnownFile(digest, len(recipe))
        judged = self._judge(attrs.evolve(file, state=UNVERIFIED, detail="", wrong_ranges=()))
        if expected is not None and judged.state == WRONG and (wrong := wrong or differing_chunks(expected, recipe)):
            judged = _damaged(file, expected, wrong)
        self._put_if_same(file, judged)

    async def _stored_recipe(self, file: BlobFile) -> Recipe | None:
        """The recipe of the blob a file should hold, if it was read before. One that cannot be read is made anew."""
        with suppress(StoreError):
            recipe = await self._index.recipe(file.digest)
            if recipe is not None and recipe.size_bytes == file.key.size_bytes:
                return recipe
        return None

    async def _wrong_chunks(
        self,
        file: BlobFile,
        expected: Recipe | None,
        background: bool,
        on_progress: Callable[[int], None] | None,
    ) -> list[int] | None:
        """The fast way, where there is one: the chunks that are wrong. None when the file must be hashed instead."""
        if expected is None or expected.size_bytes < FAST_SIZE_BYTES_MIN:
            return None
        try:
            return await self._checker.check(
                file.path, file.key, expected, background=background, on_progress=on_progress
            )
        except WorkerEnded as error:
            log.warning("%s: its SHA-256 is computed instead", error)
            return None

    def _put_if_same(self, before: BlobFile, after: BlobFile) -> BlobFile:
        """What stands in the census, unless somebody else changed it meanwhile, is `after` from now on."""
        if self._census.file(before.digest) == before:
            self._census.put_file(after)
            self._census.announce()
        return after


def _damaged(file: BlobFile, expected: Recipe, wrong: Sequence[int]) -> BlobFile:
    ranges = wrong_ranges(expected, wrong)
    return attrs.evolve(file, state=WRONG, detail=damage_text(file.path, expected, wrong), wrong_ranges=ranges)


def _key_or_none(path: Path) -> FileKey | None:
    try:
        return FileKey.at(path)
    except FileNotFoundError:
        return None


def _waiting(layout: Layout, referenced: Container[Digest]) -> list[Digest]:
    """The blobs that wait for their manifest. One that has it, and is still linked here after a crash, is let go."""
    waiting = []
    for name in sorted(os.listdir(layout.whole)):
        digest = digest_of_file_name(name)
        if digest is None:
            continue
        with suppress(FileNotFoundError):
            if digest in referenced and os.path.samefile(layout.blob(digest), layout.whole / name):
                remove_file(layout.whole / name)
                continue
        waiting.append(digest)
    return waiting


def _settled_keys(layout: Layout) -> tuple[FileKey | None, ...] | None:
    """The state of the directories of blobs; None while one changed so recently that its mtime may not tell."""
    keys = tuple(_key_or_none(path) for path in (layout.blobs, layout.whole))
    newest_ns = max((key.mtime_ns for key in keys if key is not None), default=0)
    return keys if time.time_ns() - newest_ns > RACY_NS else None


def _look(layout: Layout, digests: Iterable[Digest]) -> dict[Digest, tuple[Path, FileKey] | None]:
    """For each blob, the first place where it stands. Blocking."""
    return {digest: _find(layout, digest) for digest in digests}


def _find(layout: Layout, digest: Digest) -> tuple[Path, FileKey] | None:
    for path in layout.candidates(digest):
        try:
            return path, FileKey.at(path)
        except OSError as error:
            # A link that leads nowhere we can go is that blob's trouble; anything else is the whole store's.
            if error.errno not in (errno.ENOENT, errno.ENOTDIR) and not os.path.islink(path):
                raise
    return None
