"""Giving models their names and taking them away, in the order that is safe beside a running Ollama.

Placing: every blob whole and verified under its final name, then the manifest, which alone makes a model. Removing: the
manifest first, then the blobs that no other manifest names. A crash in between leaves blobs too many, never too few.
"""

import errno
import logging
import os
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import attrs
import trio

from node.errors import NotFound
from node.events import EventBus, StoreChanged
from node.ports import StoreError
from node.store.adopt import Adopter
from node.store.blobs import StoreBlobs
from node.store.census import VERIFIED, BlobFile, Census, NamedModel
from node.store.files import Disk, FileKey, durable_key, remove_file, sync_directory
from node.store.hashing import Hasher
from node.store.index import Index
from node.store.ollama import (
    Layout,
    make_directories,
    remove_manifest,
    spelled_as_stored,
    take_owner_of,
    write_manifest,
)
from node.views import ModelView
from protocols.ids import Digest, digest_of
from protocols.manifest import Manifest, parse_manifest
from protocols.names import ModelName

log = logging.getLogger("herd.store")

FRESH_S = 600.0
"""Ollama prunes what no manifest names once it is an hour old; a blob is placed with an mtime well younger."""


class Placer:
    """Changes what the store's names mean."""

    def __init__(
        self,
        layout: Layout,
        disk: Disk,
        index: Index,
        hasher: Hasher,
        census: Census,
        blobs: StoreBlobs,
        adopter: Adopter,
        bus: EventBus,
    ) -> None:
        self._layout = layout
        self._disk = disk
        self._index = index
        self._hasher = hasher
        self._census = census
        self._blobs = blobs
        self._adopter = adopter
        self._bus = bus

    # -- placing

    async def place(self, name: ModelName, data: bytes) -> ModelView:
        """Give verified blobs a name. RemoteProtocolError for a bad manifest, StoreError when a blob is not here."""
        manifest = parse_manifest(data)
        digests = [blob.digest for blob in manifest.blobs()]
        with self._blobs.hold(digests):
            async with self._adopter.lock:
                name = await self._disk.run(
                    "look at", self._layout.manifests, lambda: spelled_as_stored(self._layout, name)
                )
                self._check_complete(name, manifest)
                for digest in digests:
                    await self._place_blob(digest)
                with trio.CancelScope(shield=True):
                    model = await self._write_name(name, manifest)
        return self._census.view(model)

    def _check_complete(self, name: ModelName, manifest: Manifest) -> None:
        for blob in manifest.blobs():
            file = self._census.verified(blob.digest)
            if file is None:
                path = self._layout.blob(blob.digest)
                raise StoreError(f"cannot place {name.display()}: {path} is not here verified; pull the model again")
            if file.key.size_bytes != blob.size_bytes:
                raise StoreError(
                    f"cannot place {name.display()}: its manifest gives {blob.digest} {blob.size_bytes} bytes,"
                    f" but {file.path} has {file.key.size_bytes}"
                )

    async def _place_blob(self, digest: Digest) -> None:
        """Bring a verified blob under its final name, which may be taken already: by the right bytes or by others."""
        final = self._layout.blob(digest)
        file = self._verified(digest)
        if file.path != final:
            occupant = await self._disk.run("look at", final, lambda: _occupant(final, file.path))
            if occupant == "other":
                if await self._is_right(final, digest):
                    return
                await self._set_aside(final)
        # Cancelled between the two, the file would have an mtime of which the index knows nothing: 40 GB read again.
        with self._blobs.touch(digest), trio.CancelScope(shield=True):
            key = await self._disk.run("place", final, partial(_place, self._layout, file.path, final, file.key))
            await self._index.move(file.key, key)
            if self._census.file(digest) == file:
                self._census.put_file(attrs.evolve(file, path=final, key=key))

    def _verified(self, digest: Digest) -> BlobFile:
        file = self._census.verified(digest)
        if file is None:
            raise StoreError(f"{self._layout.blob(digest)} changed while it was being placed: pull the model again")
        return file

    async def _is_right(self, final: Path, digest: Digest) -> bool:
        """Whether a file that was under a blob's final name before us holds the blob. Ollama would never look again."""
        try:
            found, recipe = await self._hasher.hash(final)
            key = await self._disk.run("sync", final, lambda: durable_key(final))
        except StoreError:
            return False
        if found != digest or key is None or key.size_bytes != recipe.size_bytes:
            return False
        await self._index.record(key, recipe)
        self._census.put_file(BlobFile(digest, final, key, VERIFIED, len(recipe)))
        return True

    async def _set_aside(self, final: Path) -> None:
        target = await self._disk.run("set aside", final, lambda: _set_aside(final, self._layout.damaged))
        detail = f"{final} did not hold the bytes of its name; they were set aside as {target} and replaced"
        log.warning("%s", detail)
        self._bus.publish(StoreChanged("", "damaged", detail))

    async def _write_name(self, name: ModelName, manifest: Manifest) -> NamedModel:
        digests = [blob.digest for blob in manifest.blobs()]

        def work() -> tuple[Path, FileKey]:
            sync_directory(self._layout.blobs)
            path = write_manifest(self._layout, name, manifest.raw)
            # An Ollama that started in between may have pruned a blob that no manifest named yet.
            for digest in digests:
                _restore(self._layout, digest)
                remove_file(self._layout.whole_blob(digest))
            return path, FileKey.at(path)

        await self._disk.run(
            "make", self._layout.blobs, lambda: make_directories(self._layout.models, self._layout.blobs)
        )
        path, key = await self._disk.run("write", self._layout.manifest(name), work)
        model = NamedModel(name, path, key, manifest.raw, digest_of(manifest.raw), manifest)
        self._census.put_model(model)
        self._census.announce()
        return model

    # -- removing

    async def remove(self, name: ModelName) -> None:
        """Take a name away, and the blobs it alone named. NotFound when it is not here."""
        async with self._adopter.lock:
            await self._adopter.scan_manifests()
            stored = await self._disk.run(
                "look at", self._layout.manifests, lambda: spelled_as_stored(self._layout, name)
            )
            model = self._census.model(stored)
            with trio.CancelScope(shield=True):
                path = self._layout.manifest(stored)
                removed = await self._disk.run("remove", path, lambda: remove_manifest(self._layout, stored))
                if model is None and not removed:
                    raise NotFound(f"model {name.display()} is not in this store")
                self._census.drop_model(stored)
                if model is not None and model.manifest is not None:
                    await self._remove_unreferenced(model.manifest)
                self._census.announce()

    async def _remove_unreferenced(self, manifest: Manifest) -> None:
        broken = self._adopter.unreadable_names()
        if broken:
            # As Ollama does: nobody knows which blobs a broken manifest means.
            log.warning("blobs are kept, because the manifest of %s cannot be read", broken[0])
            return
        gone = []
        for blob in manifest.blobs():
            digest = blob.digest
            if self._census.references(digest) or self._blobs.in_use(digest):
                continue
            file = self._census.file(digest)
            await self._disk.run("remove", self._layout.blob(digest), partial(_remove_blob, self._layout, digest))
            self._census.drop_file(digest)
            if file is not None:
                gone.append(file.key)
        await self._index.forget(gone)


def _remove_blob(layout: Layout, digest: Digest) -> None:
    for path in layout.candidates(digest):
        remove_file(path)


def _occupant(final: Path, source: Path) -> str:
    """What stands under a final name: `nothing`, the `same` file, or an `other` one."""
    if not os.path.lexists(final):
        return "nothing"
    try:
        return "same" if os.path.samefile(final, source) else "other"
    except FileNotFoundError:
        return "other"


def _place(layout: Layout, source: Path, final: Path, expected: FileKey) -> FileKey:
    """Make `final` the file at `source`, which stays until the manifest stands; the file's key afterwards."""
    status = os.stat(source)
    if FileKey.of(status) != expected:
        raise StoreError(f"{source} changed since it was verified: it is verified again, try later")
    if source == final:
        return expected
    if status.st_nlink == 1:
        # Nobody else has this file, so its metadata are ours to settle. A hard link's are its owner's.
        take_owner_of(layout.models, source)
        os.chmod(source, 0o644)
        if time.time() - status.st_mtime > FRESH_S:
            os.utime(source)
    make_directories(layout.models, final.parent)
    with suppress(FileExistsError):
        try:
            os.link(source, final)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
                raise
            # No hard links here: the file itself moves.
            os.rename(source, final)
    key = FileKey.at(final)
    if key.inode != status.st_ino:
        raise StoreError(f"{final} was written by another program at this moment: try again")
    return key


def _restore(layout: Layout, digest: Digest) -> None:
    """Put a blob back under its final name if it vanished from there and waits with us."""
    final, whole = layout.blob(digest), layout.whole_blob(digest)
    if not final.exists() and whole.exists():
        os.link(whole, final)
        sync_directory(final.parent)


def _set_aside(final: Path, damaged: Path) -> Path:
    damaged.mkdir(exist_ok=True)
    target = damaged / f"{final.name}.{time.time_ns()}"
    os.rename(final, target)
    return target
