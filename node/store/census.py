"""What is known of the store now: each named model, each blob file, and the state that follows for each model.

All of it lives in the Trio thread and never waits. The scan and the verification feed it, everything else asks it;
when a model's state changes it tells the bus.
"""

import logging
from bisect import bisect_left, insort
from pathlib import Path

import attrs
import trio

from node.events import EventBus, StoreChanged
from node.store.files import FileKey
from node.views import ModelView
from protocols.ids import Digest
from protocols.manifest import Manifest
from protocols.names import ModelName

log = logging.getLogger("herd.store")

UNVERIFIED, VERIFIED, WRONG, UNREADABLE = "unverified", "verified", "wrong", "unreadable"


@attrs.frozen
class BlobFile:
    """One file under a blob's name. `chunk_count` is known once it is verified, `detail` says what is wrong.

    `wrong_ranges` are begin and end of the bytes that are wrong, where a recipe told.
    """

    digest: Digest
    path: Path
    key: FileKey
    state: str = UNVERIFIED
    chunk_count: int = 0
    detail: str = ""
    wrong_ranges: tuple[tuple[int, int], ...] = ()


@attrs.frozen
class NamedModel:
    """One manifest file. `manifest` is None when the bytes are none, and `problem` says why."""

    name: ModelName
    path: Path
    key: FileKey
    data: bytes = attrs.field(repr=False)
    digest: Digest
    manifest: Manifest | None = attrs.field(repr=False)
    problem: str = ""


class Census:
    """The models and blob files of one store. After a group of `put` and `drop` calls comes one `announce`."""

    def __init__(self, bus: EventBus) -> None:
        self._bus = bus
        self._models: dict[ModelName, NamedModel] = {}
        self._files: dict[Digest, BlobFile] = {}
        # For each blob, the size each model that names it gives.
        self._named_by: dict[Digest, dict[ModelName, int]] = {}
        self._told: dict[ModelName, tuple[str, str]] = {}
        self._begun = False
        self._dirty: dict[ModelName, None] = {}
        # What waits to be read, by size and, among equals, by when it was found: so one model is complete after the
        # other. Kept sorted, because a store may have a hundred thousand blobs.
        self._waiting: dict[Digest, tuple[int, int]] = {}
        self._in_order: list[tuple[tuple[int, int], Digest]] = []
        self._found = 0
        self._changes = 0
        self._changed = trio.Event()
        self._work = trio.Event()

    # -- models

    def model(self, name: ModelName) -> NamedModel | None:
        """The model of exactly this spelling."""
        return self._models.get(name)

    def models(self) -> list[NamedModel]:
        """Every named model."""
        return list(self._models.values())

    def put_model(self, model: NamedModel) -> None:
        """A manifest appeared or changed."""
        before = self._models.get(model.name)
        self._forget_references(before)
        self._models[model.name] = model
        if model.manifest is not None:
            for blob in model.manifest.blobs():
                self._named_by.setdefault(blob.digest, {})[model.name] = blob.size_bytes
                self.enqueue(blob.digest)
        if before is None or before.digest != model.digest:
            # A new version of a name is news even where the state is the same as that of the one before.
            self._told.pop(model.name, None)
            self._tell(model, "added", f"manifest {model.digest}")
        self._dirty[model.name] = None

    def drop_model(self, name: ModelName) -> None:
        """A manifest is gone."""
        model = self._models.pop(name, None)
        if model is None:
            return
        self._forget_references(model)
        self._told.pop(name, None)
        self._dirty.pop(name, None)
        self._tell(model, "removed", f"manifest {model.digest}")

    def references(self, digest: Digest) -> bool:
        """Whether any readable manifest names the blob."""
        return digest in self._named_by

    def referenced(self) -> list[Digest]:
        """Every blob a readable manifest names."""
        return list(self._named_by)

    def _forget_references(self, model: NamedModel | None) -> None:
        if model is None or model.manifest is None:
            return
        for blob in model.manifest.blobs():
            names = self._named_by.get(blob.digest)
            if names is not None:
                names.pop(model.name, None)
                if not names:
                    del self._named_by[blob.digest]

    # -- blob files

    def file(self, digest: Digest) -> BlobFile | None:
        """What is known of the file under a blob's name."""
        return self._files.get(digest)

    def verified(self, digest: Digest) -> BlobFile | None:
        """The blob's file when its bytes were seen to be right."""
        file = self._files.get(digest)
        return file if file is not None and file.state == VERIFIED else None

    def files(self) -> list[BlobFile]:
        """Every known file, verified or not."""
        return list(self._files.values())

    def put_file(self, file: BlobFile) -> None:
        """A file appeared, changed or was read."""
        if self._files.get(file.digest) == file:
            return
        self._files[file.digest] = file
        if file.state == UNVERIFIED:
            self.enqueue(file.digest)
        else:
            self.postpone(file.digest)
        self._dirty.update(dict.fromkeys(self._named_by.get(file.digest, ())))

    def drop_file(self, digest: Digest) -> None:
        """The file is gone."""
        self.postpone(digest)
        if self._files.pop(digest, None) is not None:
            self._dirty.update(dict.fromkeys(self._named_by.get(digest, ())))

    # -- verification

    def enqueue(self, digest: Digest) -> None:
        """Have this file read, if it is worth it and was not yet."""
        file = self._files.get(digest)
        if file is not None and file.state == UNVERIFIED and self._size_is_named(file):
            waiting = self._waiting.get(digest)
            if waiting is not None and waiting[0] == file.key.size_bytes:
                return
            self.postpone(digest)
            self._found += 1
            place = self._waiting[digest] = (file.key.size_bytes, self._found)
            insort(self._in_order, (place, digest))
            self._work.set()
            self._work = trio.Event()

    def _size_is_named(self, file: BlobFile) -> bool:
        """Worth reading is a file that can be right for some model, or that none names yet."""
        named = self._named_by.get(file.digest)
        return named is None or file.key.size_bytes in named.values()

    def next_unverified(self) -> BlobFile | None:
        """The file to read next: the smallest, so that small models are complete first."""
        return self._files[self._in_order[0][1]] if self._in_order else None

    def postpone(self, digest: Digest) -> None:
        """Do not read this file until something is heard of it again."""
        place = self._waiting.pop(digest, None)
        if place is not None:
            del self._in_order[bisect_left(self._in_order, (place, digest))]

    async def wait_unverified(self) -> None:
        """Until there may be a file to read."""
        while not self._waiting:
            await self._work.wait()

    def unverified_bytes(self) -> int:
        """What is still to be read."""
        return sum(size_bytes for size_bytes, _ in self._waiting.values())

    # -- what follows for models

    def view(self, model: NamedModel) -> ModelView:
        """The model as people see it."""
        state, detail = self._state(model)
        size_bytes = model.manifest.size_bytes if model.manifest is not None else 0
        return ModelView(model.name.display(), model.digest, size_bytes, state, model.key.mtime_ns / 1e9, detail)

    def complete(self, model: NamedModel) -> bool:
        """Whether every blob is verified now."""
        return self._state(model)[0] == "verified"

    def _state(self, model: NamedModel) -> tuple[str, str]:
        """State and reason; the worst a blob has to say wins: damaged, then incomplete, then verifying."""
        if model.manifest is None:
            return "damaged", model.problem
        missing = reading = ""
        for blob in model.manifest.blobs():
            file = self._files.get(blob.digest)
            if file is None:
                missing = missing or f"the blob {blob.digest} is missing"
            elif file.state in (WRONG, UNREADABLE):
                return "damaged", file.detail
            elif file.key.size_bytes != blob.size_bytes:
                return "damaged", f"{file.path} has {file.key.size_bytes} bytes, {model.path} says {blob.size_bytes}"
            elif file.state == UNVERIFIED:
                reading = reading or f"{file.path} is not verified yet"
        if missing:
            return "incomplete", f"{missing}, named by {model.path}"
        return ("verifying", reading) if reading else ("verified", "")

    def announce(self) -> None:
        """Tell what the changes since the last call mean for models."""
        dirty, self._dirty = self._dirty, {}
        for name in dirty:
            self._refresh(name)
        if not self._begun:
            self._begun = True
            verified = sum(state == "verified" for state, _ in self._told.values())
            log.info("the store has %d models, %d of them verified", len(self._models), verified)

    def _refresh(self, name: ModelName) -> None:
        model = self._models[name]
        state, detail = self._state(model)
        if state == "verifying":
            # Still being read is no news, but what comes after it is.
            self._told.pop(name, None)
            return
        if self._told.get(name) == (state, detail):
            return
        self._told[name] = (state, detail)
        self._tell(model, "verified" if state == "verified" else "damaged", detail)

    def _tell(self, model: NamedModel, change: str, detail: str) -> None:
        shown = model.name.display()
        # What the first look finds was there before: one line for all of it, not two for each model at every start.
        level = logging.WARNING if change == "damaged" else logging.INFO if self._begun else logging.DEBUG
        log.log(level, "model %s %s: %s", shown, change, detail or model.digest)
        self._bus.publish(StoreChanged(shown, change, detail))
        self._changes += 1
        self._changed.set()
        self._changed = trio.Event()

    # -- waiting for changes

    async def wait_changed(self, seen: int) -> int:
        """Wait until the count of changes differs from `seen`, and give it."""
        while self._changes == seen:
            await self._changed.wait()
        return self._changes
