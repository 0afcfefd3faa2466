"""Making a bare GGUF file a model of the store: the same bytes under the same digest, shared where the disk can.

A hard link costs nothing, a reflink next to nothing, a copy is the last resort. The source is only ever read.
"""

import errno
import hashlib
import logging
import os
import stat
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import attrs
import trio

from node.errors import NotFound, UsageError
from node.ports import StoreError
from node.store.blobs import StoreBlobs
from node.store.census import VERIFIED, BlobFile, Census
from node.store.config import StoreConfig
from node.store.files import (
    COPY_SIZE_BYTES,
    Disk,
    FileKey,
    clone_file,
    explain,
    read_at,
    remove_file,
    run_stoppable,
    sync_file,
    temporary_path,
    write_at,
    write_durably,
)
from node.store.hashing import Hasher
from node.store.index import Index
from node.store.ollama import Layout
from node.store.partials import require_space
from node.store.placing import Placer
from node.views import ModelView
from protocols.ids import Digest, digest_of
from protocols.manifest import GgufModel, model_from_gguf
from protocols.names import ModelName
from protocols.recipe.gguf import GgufError, GgufHeader, read_gguf_header
from protocols.recipe.recipe import Recipe

log = logging.getLogger("herd.store")

_LINK_IMPOSSIBLE = (
    errno.EXDEV,
    errno.EPERM,
    errno.EACCES,
    errno.EMLINK,
    errno.EOPNOTSUPP,
    errno.ENOSYS,
)


@attrs.frozen
class Source:
    """The file given, as it was when it was opened."""

    path: Path
    key: FileKey
    header: GgufHeader

    def check_unchanged(self) -> None:
        """UsageError when somebody wrote to the file, or replaced it, since. Blocking."""
        try:
            key = FileKey.at(self.path)
        except OSError as error:
            raise UsageError(f"{self.path} vanished while it was being added: {error.strerror}") from error
        if key != self.key:
            raise UsageError(f"{self.path} changed while it was being added: add it again when it is complete")


class Ingest:
    """Adds files."""

    def __init__(
        self,
        layout: Layout,
        disk: Disk,
        index: Index,
        hasher: Hasher,
        census: Census,
        blobs: StoreBlobs,
        placer: Placer,
        config: StoreConfig,
    ) -> None:
        self._layout = layout
        self._disk = disk
        self._index = index
        self._hasher = hasher
        self._census = census
        self._blobs = blobs
        self._placer = placer
        self._config = config
        self._copying = trio.CapacityLimiter(1)
        self._lock = trio.Lock()

    async def add(
        self, path: Path, name: ModelName, on_progress: Callable[[int, int], None] | None = None
    ) -> ModelView:
        """Make the file a model under `name`; `on_progress` gets bytes hashed and bytes in all.

        UsageError for a file that is no usable GGUF or a name Ollama keeps for itself; StoreError when the store cannot
        take it. Nothing is left behind then.
        """
        _check_name(name)
        source = await self._disk.run("read", path, lambda: _open_source(path))
        _make_model(source, digest_of(b""))  # What cannot be a model is refused before 40 GB are read.
        total = source.key.size_bytes
        report = None if on_progress is None else (lambda done: on_progress(done, total))
        digest, recipe = await self._hasher.hash(source.path, on_progress=report)
        model = _make_model(source, digest)
        added: list[Digest] = []
        # One at a time: who takes back what failed must not take it from under another add of the same file.
        async with self._lock:
            try:
                with self._blobs.hold([digest, model.config_digest]):
                    await self._bring_in(source, digest, recipe, added)
                    await self._put_config(model, added)
                    return await self._placer.place(name, model.manifest_bytes)
            except BaseException:
                with trio.CancelScope(shield=True):
                    await self._take_back(added)
                raise

    async def _bring_in(self, source: Source, digest: Digest, recipe: Recipe, added: list[Digest]) -> None:
        """Have the source's bytes among the whole blobs."""
        await self._disk.run("read", source.path, source.check_unchanged)
        if self._census.verified(digest) is not None:
            return
        added.append(digest)
        target = self._layout.whole_blob(digest)
        key = await self._disk.run("add", source.path, lambda: _share(self._layout, source, target))
        if key is None:
            require_space(self._layout, self._config, source.key.size_bytes, f"copy {source.path}")
            try:
                key = await run_stoppable(partial(_copy, self._layout, source, target, digest), self._copying)
            except OSError as error:
                raise explain(error, f"copy {source.path} to", self._layout.herd) from error
        await self._keep(key, target, recipe)

    async def _put_config(self, model: GgufModel, added: list[Digest]) -> None:
        digest = model.config_digest
        if self._census.verified(digest) is not None:
            return
        added.append(digest)
        target = self._layout.whole_blob(digest)
        await self._disk.run("write", target, lambda: _write_blob(self._layout, target, model.config_bytes))
        found, recipe = await self._hasher.hash(target)
        if found != digest:
            raise StoreError(f"{target} came back from the disk with other bytes: check the disk's health")
        await self._keep(await self._disk.run("look at", target, lambda: FileKey.at(target)), target, recipe)

    async def _keep(self, key: FileKey, target: Path, recipe: Recipe) -> None:
        with trio.CancelScope(shield=True):
            await self._index.record(key, recipe)
            self._census.put_file(BlobFile(recipe.digest, target, key, VERIFIED, len(recipe)))
            self._census.announce()

    async def _take_back(self, added: list[Digest]) -> None:
        """The model did not come about: let go of what only it needed."""
        for digest in added:
            if self._census.references(digest) or self._blobs.in_use(digest):
                continue
            file = self._census.file(digest)
            target = self._layout.whole_blob(digest)
            try:
                await self._disk.run("remove", target, partial(_remove_with_link, self._layout, digest))
                if file is not None:
                    self._census.drop_file(digest)
                    await self._index.forget([file.key])
            except StoreError as error:
                # The reason why the model did not come about matters more than what could not be tidied.
                log.warning("%s", error)


def _check_name(name: ModelName) -> None:
    tag = name.tag.lower()
    if tag in ("cloud", "local") or tag.endswith("-cloud"):
        raise UsageError(f"the tag of {name.display()} has a meaning of its own for Ollama: choose another tag")


def _open_source(path: Path) -> Source:
    try:
        # Without O_NONBLOCK, opening a FIFO would wait for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError as error:
        raise NotFound(f"{path}: no such file on the node's host") from error
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    try:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise UsageError(f"{path} is a directory: give the .gguf file itself")
        if not stat.S_ISREG(status.st_mode):
            raise UsageError(f"{path} is no regular file: give a .gguf file")
        header = read_gguf_header(lambda offset, size: read_at(descriptor, size, offset), status.st_size)
    except GgufError as error:
        raise UsageError(f"{path} cannot be added: {error}") from error
    finally:
        os.close(descriptor)
    return Source(path.resolve(), FileKey.of(status), header)


def _make_model(source: Source, digest: Digest) -> GgufModel:
    try:
        return model_from_gguf(source.header, digest, source.key.size_bytes)
    except GgufError as error:
        raise UsageError(f"{source.path} cannot be added: {error}") from error


def _share(layout: Layout, source: Source, target: Path) -> FileKey | None:
    """Hard link or reflink the source to `target`; None where only a copy will do."""
    with temporary_path(layout.temporary, "add") as temporary:
        if not (_link(layout, source, temporary) or _reflink(source, temporary)):
            return None
        source.check_unchanged()
        sync_file(temporary)
        os.rename(temporary, target)
        return FileKey.at(target)


def _link(layout: Layout, source: Source, temporary: Path) -> bool:
    status = os.stat(source.path)
    readable_by_all = stat.S_IMODE(status.st_mode) & 0o444 == 0o444
    if not readable_by_all and status.st_uid != os.stat(layout.models).st_uid:
        # A link shares the mode; Ollama could not read what only its owner may, and the mode is not ours to change.
        return False
    try:
        os.link(source.path, temporary)
    except OSError as error:
        if error.errno not in _LINK_IMPOSSIBLE:
            raise
        return False
    return True


def _reflink(source: Source, temporary: Path) -> bool:
    with (
        source.path.open("rb") as original,
        open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644), "wb") as clone,
    ):
        shared = clone_file(original.fileno(), clone.fileno())
    if not shared:
        remove_file(temporary)
    return shared


def _copy(layout: Layout, source: Source, target: Path, digest: Digest, stop: threading.Event) -> FileKey:
    """Copy the source, hashing what is copied: it must be what was hashed before."""
    hasher = hashlib.sha256()
    with temporary_path(layout.temporary, "copy") as temporary:
        with (
            source.path.open("rb", buffering=0) as original,
            open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644), "wb") as copy,
        ):
            offset = 0
            while data := read_at(original.fileno(), COPY_SIZE_BYTES, offset):
                if stop.is_set():
                    raise StoreError(f"copying {source.path} was stopped")
                hasher.update(data)
                write_at(copy.fileno(), data, offset)
                offset += len(data)
            os.fsync(copy.fileno())
        source.check_unchanged()
        if "sha256:" + hasher.hexdigest() != digest:
            raise UsageError(f"{source.path} changed while it was being added: add it again when it is complete")
        os.rename(temporary, target)
        return FileKey.at(target)


def _write_blob(layout: Layout, target: Path, data: bytes) -> None:
    with temporary_path(layout.temporary, "config") as temporary:
        write_durably(temporary, data)
        os.rename(temporary, target)


def _remove_with_link(layout: Layout, digest: Digest) -> None:
    """Remove a waiting blob, and its final name where that is only another link to it."""
    whole, final = layout.whole_blob(digest), layout.blob(digest)
    try:
        linked = os.path.samefile(whole, final)
    except FileNotFoundError:
        linked = False
    if linked:
        remove_file(final)
    remove_file(whole)
