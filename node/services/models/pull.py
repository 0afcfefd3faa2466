"""One pull of one model: its blobs from whoever holds them, its manifest last, and how far it is meanwhile."""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import get_args

import attrs
import trio

from node.errors import HerdError
from node.events import EventBus, TransferEnded, TransferProgressed
from node.facade import OnProgress, Priority
from node.ports import Blobs, Models
from node.services.exchange.reports import FetchProgress, FetchReport
from node.services.exchange.service import ExchangeService
from node.views import Progress, PullReport, TransferView
from protocols.catalog.records import BlobEntry, VersionRecord
from protocols.ids import Digest, PeerId, RecipeId
from protocols.names import ModelName

log = logging.getLogger("herd.pull")

BLOBS_AT_ONCE = 4
"""A model of thousands of small layers must not wait a round trip for each; large blobs fill the link alone."""

PROGRESS_INTERVAL_S = 0.1


@attrs.define
class _BlobState:
    held_bytes: int = 0
    resumed_bytes: int = 0
    copied_bytes: int = 0
    sources: dict[PeerId, int] = attrs.field(factory=dict)
    verified_bytes: int | None = None
    """How far the check of the whole is, once nothing else is left to do."""
    done: bool = False


@attrs.frozen(eq=False)
class Waiter:
    """One who waits for a pull: how it stands to other pulls (higher goes first), and who hears how far it is."""

    priority: int
    on_progress: OnProgress | None

    @classmethod
    def of(cls, priority: Priority, on_progress: OnProgress | None) -> "Waiter":
        """From what a person says."""
        return cls(get_args(Priority).index(priority), on_progress)


class Pull:
    """One running pull. `waiters` come and go while it runs: each hears every progress, the highest priority counts."""

    def __init__(
        self,
        operation_id: str,
        version: VersionRecord,
        *,
        sources: Callable[[Digest], Sequence[PeerId]],
        exchange: ExchangeService,
        blobs: Blobs,
        models: Models,
        bus: EventBus,
        waiters: Sequence[Waiter],
    ) -> None:
        self.version = version
        self._id = operation_id
        self._name = ModelName.parse(version.name)
        self._sources = sources
        self._exchange = exchange
        self._store = blobs
        self._models = models
        # Blobs that another model brought, removed while this pull runs, are still needed here.
        self._kept = blobs.keep({entry.digest: entry.size_bytes for entry in version.blobs})
        self._bus = bus
        self._waiters = waiters
        self._phase = "fetching"
        self._started_s = trio.current_time()
        self._told_s = float("-inf")
        self._blobs: dict[Digest, _BlobState] = {entry.digest: _BlobState() for entry in version.blobs}
        self._reports: list[FetchReport] = []

    async def run(self) -> PullReport:
        """Fetch, verify, place. Whatever ends it is told on the bus; what was fetched stays for a resume."""
        outcome, detail = "cancelled", "nobody waits for it any more"
        try:
            report = await self._fetch_and_place()
            outcome, detail = "verified", f"{report.fetched_bytes} bytes fetched"
            return report
        except HerdError as error:
            outcome, detail = "failed", str(error)
            raise
        finally:
            seconds = trio.current_time() - self._started_s
            log.info("pull %s of %s %s after %.2f s: %s", self._id, self._name.display(), outcome, seconds, detail)
            self._bus.publish(
                TransferEnded(self._id, self._name.display(), outcome, detail, seconds, self.view().sources)
            )

    async def _fetch_and_place(self) -> PullReport:
        with self._kept:
            self._tell("fetching", now=True)
            await self._fetch_all()
            self._tell("writing", now=True)
            await self._models.place_model(self._name, self.version.manifest)
        self._tell("done", now=True)
        fetched = sum(report.fetched_bytes for report in self._reports)
        view = self.view()
        return PullReport(
            operation_id=self._id,
            name=self._name.display(),
            digest=self.version.manifest_digest,
            size_bytes=self.version.size_bytes,
            fetched_bytes=fetched,
            resumed_bytes=view.resumed_bytes,
            local_bytes=self.version.size_bytes - fetched - view.resumed_bytes - view.copied_bytes,
            seconds=trio.current_time() - self._started_s,
            sources=view.sources,
            verified=True,
            copied_bytes=view.copied_bytes,
        )

    async def _fetch_all(self) -> None:
        # The first failure ends the pull; HerdErrors of several blobs at once are told as the first of them.
        failures: list[HerdError] = []
        waiting = list(reversed(self.version.blobs))

        async def fetch_some() -> None:
            while waiting and not failures:
                try:
                    await self._fetch(waiting.pop())
                except HerdError as error:
                    failures.append(error)
                    nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            for _ in range(min(BLOBS_AT_ONCE, len(waiting))):
                nursery.start_soon(fetch_some)
        if failures:
            raise failures[0]

    async def _fetch(self, entry: BlobEntry) -> None:
        bits = self._store.held(entry.digest)
        # What was whole before is no resumed transfer: another model brought it, or an earlier pull.
        was_here = bits is not None and bits.complete()

        def progressed(progress: FetchProgress) -> None:
            state = self._blobs[entry.digest]
            state.held_bytes = progress.held_bytes
            state.resumed_bytes = 0 if was_here else progress.resumed_bytes
            state.copied_bytes = progress.copied_bytes
            state.sources = dict(progress.sources)
            state.verified_bytes = progress.verified_bytes if progress.verifying else None
            self._tell(self._fetching_or_verifying(), digest=entry.digest)

        report = await self._exchange.fetch(
            entry.digest,
            entry.size_bytes,
            recipe_id=RecipeId(entry.recipe_id) if entry.recipe_id else None,
            sources=partial(self._sources, entry.digest),
            on_progress=progressed,
            priority=lambda: max((waiter.priority for waiter in self._waiters), default=0),
        )
        self._reports.append(report)
        resumed_bytes = 0 if was_here else report.resumed_bytes
        self._blobs[entry.digest] = _BlobState(
            entry.size_bytes, resumed_bytes, report.copied_bytes, dict(report.sources), entry.size_bytes, True
        )
        self._tell(self._fetching_or_verifying(), digest=entry.digest)

    def _fetching_or_verifying(self) -> str:
        """`verifying` when every blob is here and at least one is still checked."""
        left = [state for state in self._blobs.values() if not state.done]
        return "verifying" if left and all(state.verified_bytes is not None for state in left) else "fetching"

    def view(self) -> TransferView:
        """How far the pull is, now."""
        sources: Counter[str] = Counter()
        for state in self._blobs.values():
            sources.update(state.sources)
        return TransferView(
            operation_id=self._id,
            model=self._name.display(),
            phase=self._phase,
            held_bytes=sum(state.held_bytes for state in self._blobs.values()),
            size_bytes=self.version.size_bytes,
            resumed_bytes=sum(state.resumed_bytes for state in self._blobs.values()),
            copied_bytes=sum(state.copied_bytes for state in self._blobs.values()),
            sources=dict(sources),
            seconds=trio.current_time() - self._started_s,
        )

    def _tell(self, phase: str, *, digest: str = "", now: bool = False) -> None:
        self._phase = phase
        if not now and trio.current_time() < self._told_s + PROGRESS_INTERVAL_S:
            return
        self._told_s = trio.current_time()
        view = self.view()
        held_bytes = view.held_bytes
        if phase == "verifying":
            held_bytes = sum(state.verified_bytes or 0 for state in self._blobs.values())
        progress = Progress(
            operation_id=self._id,
            model=view.model,
            phase=phase,
            held_bytes=held_bytes,
            size_bytes=view.size_bytes,
            resumed_bytes=view.resumed_bytes,
            sources=view.sources,
            digest=digest,
            copied_bytes=view.copied_bytes,
        )
        self._bus.publish(
            TransferProgressed(self._id, view.model, digest, view.held_bytes, view.size_bytes, view.sources)
        )
        tell(self._waiters, progress)


def tell(waiters: Sequence[Waiter], progress: Progress) -> None:
    """Let all who wait and listen hear a progress."""
    for waiter in list(waiters):
        if waiter.on_progress is not None:
            waiter.on_progress(progress)
