"""The store of one node, opened and closed as a whole: the one class behind which all access to the models stands."""

import fcntl
import logging
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import attrs
import trio

from node.errors import NotFound, UsageError
from node.events import EventBus
from node.ports import StoreError
from node.store.adopt import Adopter
from node.store.blobs import StoreBlobs
from node.store.census import VERIFIED, Census
from node.store.check import Checks
from node.store.cleaning import Cleaner
from node.store.config import StoreConfig
from node.store.copying import Copier
from node.store.files import Disk, explain, free_bytes, remove_file
from node.store.hashing import Hasher
from node.store.index import Index
from node.store.ingest import Ingest
from node.store.ollama import Layout, make_directories
from node.store.partials import Partials, PartialView, reconcile
from node.store.placing import Placer
from node.views import ModelView, Progress, VerifyReport
from protocols.names import ModelName

log = logging.getLogger("herd.store")


@attrs.frozen
class StoreStatistics:
    """Counts since the start, and how things stand: plain numbers for metrics."""

    models: int
    models_verified: int
    blobs_verified: int
    partial_blobs: int
    stored_bytes: int
    unverified_bytes: int
    free_disk_bytes: int
    verified_bytes_total: int
    read_bytes_total: int
    written_bytes_total: int
    copied_bytes_total: int
    reflinked_bytes_total: int
    refused_chunks_total: int
    scans_total: int


class Store:
    """An open store: `node.ports.Models`, and in `blobs` its `node.ports.Blobs`. `run` is started once."""

    def __init__(self, layout: Layout, config: StoreConfig, bus: EventBus, index: Index) -> None:
        self.layout = layout
        self.config = config
        self._bus = bus
        self._index = index
        self._disk = Disk(config.io_threads)
        self._hasher = Hasher(config)
        self._census = Census(bus)

    async def _open(self) -> None:
        stored = await self._index.partials()
        lost = await self._disk.run("look at", self.layout.partial, lambda: reconcile(self.layout, stored))
        for digest in lost:
            del stored[digest]
            await self._index.drop_partial(digest)
        known = await self._index.files()
        layout, disk, index, hasher, census = self.layout, self._disk, self._index, self._hasher, self._census
        self._partials = Partials(layout, disk, index, self.config, stored)
        self._adopter = Adopter(layout, disk, index, hasher, census, self.config, known)
        self._copier = Copier(layout, disk, index, census, self._partials)
        self.blobs = StoreBlobs(
            layout, disk, index, hasher, census, self._partials, self._copier, self._adopter.verify_now
        )
        self._placer = Placer(layout, disk, index, hasher, census, self.blobs, self._adopter, self._bus)
        self._ingest = Ingest(layout, disk, index, hasher, census, self.blobs, self._placer, self.config)
        self._checks = Checks(census, self._adopter)
        self._cleaner = Cleaner(layout, disk, index, census, self.blobs, self._adopter, self.config)
        await self._adopter.scan()

    async def _close(self) -> None:
        await self._partials.close_all()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Watch the store, verify what was never read, keep partial blobs durable and clean up, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._adopter.watch)
            nursery.start_soon(self._adopter.verify_waiting)
            nursery.start_soon(self._sync_partials)
            nursery.start_soon(self._cleaner.watch)
            task_status.started()

    async def _sync_partials(self) -> None:
        while True:
            await trio.sleep(self.config.sync_interval_s)
            await self._partials.sync_due()

    # -- models

    async def models(self) -> list[ModelView]:
        """Every model that has a manifest here, newest first, with its state."""
        await trio.lowlevel.checkpoint()
        views = [self._census.view(model) for model in self._census.models()]
        return sorted(views, key=lambda view: (-view.modified_at, view.name))

    async def add_gguf(
        self, path: Path, name: ModelName, on_progress: Callable[[int, int], None] | None = None
    ) -> ModelView:
        """Make a bare GGUF file a model, digest preserved; `on_progress` gets bytes hashed and bytes in all.

        UsageError for a file that is no usable GGUF, StoreError when the store cannot take it; nothing half-written.
        """
        return await self._ingest.add(path, name, on_progress)

    async def place_model(self, name: ModelName, manifest: bytes) -> ModelView:
        """Give a model its name: every blob must be here verified; blobs first, the manifest last.

        RemoteProtocolError for bytes that are no manifest, StoreError when a blob is not here or the disk refuses.
        """
        return await self._placer.place(name, manifest)

    async def remove(self, name: ModelName) -> None:
        """Remove a model: manifest first, then the blobs no other manifest references. NotFound when it is not here."""
        await self._placer.remove(name)

    async def verify(
        self,
        names: Sequence[ModelName] = (),
        *,
        again: bool = False,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> VerifyReport:
        """Check these models, or all: from the record what is as it was when it was read last, the rest by reading it.

        With `again` everything is read. What turns out wrong is withdrawn at once. NotFound for a name not here.
        """
        return await self._checks.check(names, again=again, on_progress=on_progress)

    async def complete_manifests(self) -> dict[ModelName, bytes]:
        """The manifests whose every blob is verified now: all that may be announced."""
        await trio.lowlevel.checkpoint()
        return {model.name: model.data for model in self._census.models() if self._census.complete(model)}

    def manifest(self, name: ModelName) -> bytes:
        """The manifest bytes of a name in the store's own spelling. NotFound when it is not here."""
        model = self._census.model(name)
        if model is None:
            raise NotFound(f"model {name.display()} is not in this store")
        return model.data

    async def scan(self) -> None:
        """Look for changes now instead of at the next interval."""
        await self._adopter.scan()

    async def wait_changed(self, seen: int = 0) -> int:
        """Wait until the count of changes of models differs from `seen` (0: none seen yet), and give it."""
        return await self._census.wait_changed(seen)

    # -- blobs

    def partials(self) -> list[PartialView]:
        """The blobs that are not whole yet."""
        return self._partials.views()

    # -- figures

    def free_disk_bytes(self) -> int:
        """What may still be stored, the reserve left out. 0 when the disk cannot be asked."""
        try:
            return max(0, free_bytes(self.layout.herd) - self.config.reserve_free_bytes)
        except OSError:
            return 0

    def stored_bytes(self) -> int:
        """The bytes of all blob files that models name or that wait for a model."""
        return sum(file.key.size_bytes for file in self._census.files())

    def unverified_bytes(self) -> int:
        """What the background verification has still to read."""
        return self._census.unverified_bytes()

    def statistics(self) -> StoreStatistics:
        """Figures for metrics."""
        models = self._census.models()
        return StoreStatistics(
            models=len(models),
            models_verified=sum(self._census.complete(model) for model in models),
            blobs_verified=sum(file.state == VERIFIED for file in self._census.files()),
            partial_blobs=len(self._partials.views()),
            stored_bytes=self.stored_bytes(),
            unverified_bytes=self.unverified_bytes(),
            free_disk_bytes=self.free_disk_bytes(),
            verified_bytes_total=self._adopter.verified_bytes,
            read_bytes_total=self.blobs.read_bytes,
            written_bytes_total=self.blobs.written_bytes,
            copied_bytes_total=self._copier.counters.copied_bytes,
            reflinked_bytes_total=self._copier.counters.reflinked_bytes,
            refused_chunks_total=self.blobs.refused_chunks,
            scans_total=self._adopter.scans,
        )


@asynccontextmanager
async def open_store(
    config: StoreConfig, bus: EventBus, environment: Mapping[str, str] | None = None
) -> AsyncIterator[Store]:
    """The store that config and environment name, made if there is none, for this process alone.

    StoreError when another node uses it, or when `.herd/` cannot be written; the message names directory and remedy.
    """
    layout = Layout(config.models_directory(os.environ if environment is None else environment))
    lock = await trio.to_thread.run_sync(_prepare, layout)
    try:
        index = await trio.to_thread.run_sync(Index, layout.index)
        try:
            store = Store(layout, config, bus, index)
            await store._open()
            try:
                yield store
            finally:
                with trio.CancelScope(shield=True):
                    await store._close()
        finally:
            index.close()
    finally:
        os.close(lock)


def _prepare(layout: Layout) -> int:
    """Make what is missing, take the lock, and clear what an earlier process left half-done; the lock's descriptor."""
    doing, path = "make", layout.herd
    try:
        for directory in (layout.manifests, layout.blobs):
            doing, path = "make", directory
            make_directories(layout.models if layout.models.is_dir() else Path("/"), directory)
        doing, path = "make", layout.herd
        for directory in (layout.herd, layout.partial, layout.whole, layout.temporary):
            directory.mkdir(mode=0o755, exist_ok=True)
        doing, path = "write", layout.lock
        descriptor = _take_lock(layout.lock)
    except OSError as error:
        problem = explain(error, doing, path)
        raise StoreError(f"{problem}; herd keeps its index and unfinished downloads in {layout.herd}") from error
    for leftover in layout.temporary.iterdir():
        with suppress(OSError):
            remove_file(leftover)
    return descriptor


def _take_lock(path: Path) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        owner = os.read(descriptor, 32).decode("ascii", "replace").strip() or "unknown"
        os.close(descriptor)
        raise UsageError(
            f"another herd node (process {owner}) uses the store {path.parent.parent}:"
            " stop it, or give this node a store of its own (--models DIR)"
        ) from error
    except OSError:
        os.close(descriptor)
        raise
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor
