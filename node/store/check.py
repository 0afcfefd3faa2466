"""Checking models on demand: what is recorded is told at once, what changed or is doubted is read again."""

import uuid
from collections.abc import Callable, Sequence

import attrs
import trio

from node.errors import NotFound
from node.store.adopt import Adopter
from node.store.census import UNVERIFIED, VERIFIED, BlobFile, Census, NamedModel
from node.views import DamagedBlob, Progress, VerifyReport
from protocols.ids import Digest
from protocols.names import ModelName


class Checks:
    """Answers whether models are still what their digests say."""

    def __init__(self, census: Census, adopter: Adopter) -> None:
        self._census = census
        self._adopter = adopter

    async def check(
        self, names: Sequence[ModelName], *, again: bool, on_progress: Callable[[Progress], None] | None = None
    ) -> VerifyReport:
        """Check these models, or all; with `again` every byte is read. NotFound for a name that is not here."""
        started_s = trio.current_time()
        models = self._chosen(names)
        sizes = _sizes(models)
        await self._adopter.look_at(list(sizes))
        files = [file for digest in sizes if (file := self._census.file(digest)) is not None]
        # A file of a size that no manifest gives is wrong however its bytes are.
        due = [file for file in files if file.key.size_bytes in sizes[file.digest] and _is_due(file, again)]
        title = models[0].name.display() if len(models) == 1 else f"{len(models)} models"
        progress = Progress(uuid.uuid4().hex, title, "verifying", 0, sum(file.key.size_bytes for file in due))
        for file in due:
            progress = await self._read(file, progress, on_progress)
        await self._adopter.look_at([file.digest for file in due])
        recorded = [file for file in files if file not in due and file.state == VERIFIED]
        return self._report(progress, models, recorded, trio.current_time() - started_s)

    async def _read(
        self, file: BlobFile, progress: Progress, on_progress: Callable[[Progress], None] | None
    ) -> Progress:
        def read(bytes_of_file: int) -> None:
            if on_progress is not None:
                on_progress(attrs.evolve(progress, held_bytes=progress.held_bytes + bytes_of_file))

        read(0)
        await self._adopter.read_now(file.digest, read)
        read(file.key.size_bytes)
        return attrs.evolve(progress, held_bytes=progress.held_bytes + file.key.size_bytes)

    def _chosen(self, names: Sequence[ModelName]) -> list[NamedModel]:
        known = {model.name.display().lower(): model for model in self._census.models()}
        if not names:
            return list(known.values())
        chosen: dict[ModelName, NamedModel] = {}
        for name in names:
            model = known.get(name.display().lower())
            if model is None:
                raise NotFound(f"{name.display()} is not in this store; `herd ls` lists what is")
            chosen[model.name] = model
        return list(chosen.values())

    def _report(
        self, progress: Progress, models: Sequence[NamedModel], recorded: Sequence[BlobFile], seconds: float
    ) -> VerifyReport:
        views = [self._census.view(model) for model in models]
        damaged = []
        for digest in _sizes(models):
            file = self._census.file(digest)
            if file is None or file.state in (VERIFIED, UNVERIFIED):
                continue
            ranges = list(file.wrong_ranges)
            damaged.append(DamagedBlob(digest, str(file.path), file.key.size_bytes, ranges, file.detail))
        return VerifyReport(
            operation_id=progress.operation_id,
            models=views,
            damaged=damaged,
            read_bytes=progress.held_bytes,
            recorded_bytes=sum(file.key.size_bytes for file in recorded),
            seconds=seconds,
            verified=all(view.state == "verified" for view in views),
        )


def _sizes(models: Sequence[NamedModel]) -> dict[Digest, list[int]]:
    """The blobs of these models and the sizes that their manifests give them."""
    sizes: dict[Digest, list[int]] = {}
    for model in models:
        for blob in model.manifest.blobs() if model.manifest is not None else ():
            sizes.setdefault(blob.digest, []).append(blob.size_bytes)
    return sizes


def _is_due(file: BlobFile, again: bool) -> bool:
    return again or file.state == UNVERIFIED
