"""The models of a store on a simulated disk: the twin of the real one, over `simnet.blobs`.

Blobs first, under their final names and those names durable; then the manifest, written, synced and renamed.
"""

from collections.abc import Callable
from pathlib import Path

import attrs
import trio

from node.errors import NotFound, UsageError
from node.events import EventBus, StoreChanged
from node.ports import StoreError
from node.views import ModelView
from protocols.errors import RemoteProtocolError
from protocols.ids import digest_of
from protocols.manifest import GgufModel, Manifest, model_from_gguf, parse_manifest
from protocols.names import ModelName
from protocols.recipe.gguf import GgufError, read_gguf_header
from simnet.blobs import MemoryBlobs
from simnet.stock import LAYOUT, explained


@attrs.frozen
class _Named:
    manifest: Manifest
    modified_at: float


class MemoryModels:
    """Implements `node.ports.Models`. A file to add is read from the real disk: people name files."""

    def __init__(self, blobs: MemoryBlobs, bus: EventBus) -> None:
        self._blobs = blobs
        self._disk = blobs.disk
        self._bus = bus
        self._named: dict[ModelName, _Named] = {}
        self._written = 0
        self.unreadable: list[Path] = []
        """Manifests of which nobody knows what they name; while there are any, no blob is removed."""
        for path in self._disk.paths(LAYOUT.manifests):
            self._take_manifest(path)

    def restarted(self, blobs: MemoryBlobs, bus: EventBus) -> "MemoryModels":
        """The models as a restarted process finds them on the disk of these blobs."""
        return MemoryModels(blobs, bus)

    def _take_manifest(self, path: Path) -> None:
        file = self._disk.file(path)
        name = ModelName(*path.relative_to(LAYOUT.manifests).parts)
        if file is not None:
            try:
                manifest = parse_manifest(file.content.read(0, file.size_bytes))
                self._named[name] = _Named(manifest, file.made_at_s)
            except RemoteProtocolError:
                self.unreadable.append(path)

    async def models(self) -> list[ModelView]:
        """Every model, newest first, with its state."""
        await trio.lowlevel.checkpoint()
        views = [self._view(name, named) for name, named in self._named.items()]
        return sorted(views, key=lambda view: (-view.modified_at, view.name))

    async def add_gguf(
        self, path: Path, name: ModelName, on_progress: Callable[[int, int], None] | None = None
    ) -> ModelView:
        """Make a bare GGUF file a model. UsageError for a file that is none."""
        await trio.lowlevel.checkpoint()
        data, model = _read_model(path)
        for blob in (data, model.config_bytes):
            if self._blobs.whole(digest_of(blob)) is None:
                self._blobs.add(blob)
        if on_progress is not None:
            on_progress(len(data), len(data))
        return await self._name(name, model.manifest_bytes)

    async def place_model(self, name: ModelName, manifest: bytes) -> ModelView:
        """Give a model its name. StoreError when a blob is not here whole."""
        await trio.lowlevel.checkpoint()
        for blob in parse_manifest(manifest).blobs():
            data = self._blobs.whole(blob.digest)
            if data is None or len(data) != blob.size_bytes:
                raise StoreError(f"{name.display()} cannot be placed: blob {blob.digest} is not here whole")
        return await self._name(name, manifest)

    async def remove(self, name: ModelName) -> None:
        """Remove a model, then the blobs no other manifest references. NotFound when it is not here."""
        await trio.lowlevel.checkpoint()
        removed = self._named.get(name)
        if removed is None:
            raise NotFound(f"{name.display()} is not in this store")
        path = LAYOUT.manifest(name)
        with trio.CancelScope(shield=True), explained("remove", path):
            self._disk.unlink(path)
            await self._disk.sync_names()
            del self._named[name]
            self._remove_unreferenced(removed.manifest)
        self._bus.publish(StoreChanged(name.display(), "removed", ""))

    def _remove_unreferenced(self, manifest: Manifest) -> None:
        if self.unreadable:
            return
        needed = {blob.digest for named in self._named.values() for blob in named.manifest.blobs()}
        for blob in manifest.blobs():
            if blob.digest not in needed and not self._blobs.kept[blob.digest]:
                self._blobs.remove(blob.digest)

    async def complete_manifests(self) -> dict[ModelName, bytes]:
        """The manifests whose every blob is here."""
        await trio.lowlevel.checkpoint()
        return {name: named.manifest.raw for name, named in self._named.items() if self._missing(named) == []}

    def manifests(self) -> dict[ModelName, Manifest]:
        """Every name and what it stands for, whole or not."""
        return {name: named.manifest for name, named in self._named.items()}

    async def _name(self, name: ModelName, manifest: bytes) -> ModelView:
        parsed, path = parse_manifest(manifest), LAYOUT.manifest(name)
        for blob in parsed.blobs():
            self._blobs.place(blob.digest)
        with trio.CancelScope(shield=True), explained("write", path):
            await self._disk.sync_names()
            await self._write_manifest(path, manifest)
            for blob in parsed.blobs():
                self._disk.unlink(LAYOUT.whole_blob(blob.digest))
        self._named[name] = _Named(parsed, trio.current_time())
        self._bus.publish(StoreChanged(name.display(), "added", ""))
        return self._view(name, self._named[name])

    async def _write_manifest(self, path: Path, manifest: bytes) -> None:
        """Under a name of our own first, synced, then under its name at once, and that durable."""
        self._written += 1
        temporary = LAYOUT.temporary / f"manifest-{self._written}"
        try:
            file = self._disk.make(temporary, len(manifest))
            self._disk.write(file, 0, manifest)
            await self._disk.sync(self._disk.open(file))
            self._disk.rename(temporary, path)
        finally:
            if not self._disk.dead:
                self._disk.unlink(temporary)
        await self._disk.sync_names()

    def _missing(self, named: _Named) -> list[str]:
        whole = dict.fromkeys(self._blobs.digests())
        return [blob.digest for blob in named.manifest.blobs() if blob.digest not in whole]

    def _view(self, name: ModelName, named: _Named) -> ModelView:
        missing = self._missing(named)
        return ModelView(
            name.display(),
            digest_of(named.manifest.raw),
            named.manifest.size_bytes,
            "incomplete" if missing else "verified",
            named.modified_at,
            f"missing: {missing[0]}" if missing else "",
        )


def _read_model(path: Path) -> tuple[bytes, GgufModel]:
    try:
        data = path.read_bytes()
        header = read_gguf_header(lambda offset, size: data[offset : offset + size], len(data))
        return data, model_from_gguf(header, digest_of(data), len(data))
    except (OSError, GgufError) as error:
        raise UsageError(f"{path}: {error}") from error
