"""One blob on its way in: from whoever holds it, chunk by chunk, checked, until the whole is verified."""

import functools
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import trio

from node.background import isolating
from node.errors import HerdError, TransferFailed, VerificationFailed
from node.ports import CarriedChunk
from node.services.exchange.attempt import Attempt
from node.services.exchange.recipes import ChosenRecipe, Recipes
from node.services.exchange.reports import FetchProgress, FetchReport
from node.services.exchange.rooms import Rooms
from node.services.exchange.sources import Holders, Sources
from protocols.errors import RemoteProtocolError
from protocols.exchange.asking_words import (
    BlobGained,
    BlobHeld,
)
from protocols.exchange.picks import PeerGained, PeerLost, PeerReady, RoomFreed, WantsEnded
from protocols.ids import Digest, PeerId, RecipeId

log = logging.getLogger("herd.exchange")

CLOSE_TIMEOUT_S = 60.0
"""How long making durable what is held may take when a transfer is cancelled."""
VERIFYING_INTERVAL_S = 0.25
"""How often it is told how far the check of the whole is."""
HELD_BACK_S_MAX = 3600.0
"""How long a transfer waits for a giver that says it waits for a limit, from the last chunk that came."""
SWITCH_AFTER_S = 5.0
"""How long a transfer waits for holders of its own recipe when there are holders of another."""


class Transfer:
    """Shared by all who fetch this digest; implements `BlobListener`. `run` is started once."""

    def __init__(self, digest: Digest, size_bytes: int, recipe_id: RecipeId | None, rooms: Rooms, purpose: str) -> None:
        self.digest = digest
        self.size_bytes = size_bytes
        self.purpose = purpose
        self.ended = trio.Event()
        self.progressed = trio.Event()
        self.progress = FetchProgress(0, size_bytes, {}, 0)
        self.scope = trio.CancelScope()
        self.report: FetchReport | None = None
        self.failure: BaseException | None = None
        self.leaving = False
        self._rooms = rooms
        self._config = rooms.config
        self._sources = Sources(rooms.me, rooms.blame, rooms.known, rooms.config, rooms.rng)
        self._recipes = Recipes(digest, size_bytes, recipe_id, self._sources, rooms.asking, rooms.blame, rooms.config)
        self._sources_changed = trio.Event()
        self._priorities: dict[object, Callable[[], int]] = {}
        self._attempt: Attempt | None = None
        self._attempt_scope = trio.CancelScope()
        self._disk_works = False
        self._verifying = False
        self._started_s = trio.current_time()
        self._progress_at_s = self._started_s
        self._stored_at_s = self._started_s
        self._usable_at_s = self._started_s
        self._matched_at_s = self._started_s
        self._duplicate_bytes = 0
        self._refused_bytes = 0
        self._refused_chunks = 0

    def join(self, key: object, holders: Holders, priority: Callable[[], int]) -> None:
        """One more waits for this blob, and knows these holders. The highest priority of those who wait counts."""
        self._priorities[key] = priority
        self._sources.add(key, holders)
        self._sources_changed.set()

    def part(self, key: object) -> None:
        """One waits no longer; with the last the transfer ends, and keeps what it has for a later one."""
        del self._priorities[key]
        self._sources.remove(key)
        if not self._priorities:
            self.leaving = True
            self.scope.cancel()

    @property
    def priority(self) -> int:
        """How it stands to other transfers."""
        return max((priority() for priority in self._priorities.values()), default=0)

    async def run(self) -> None:
        """Fetch, until verified, failed or cancelled; the outcome is in `report` or `failure`."""
        try:
            # A failure belongs to this transfer: every `fetch` that waits for it raises it again.
            with isolating(self._fail), self.scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._watch)
                    nursery.start_soon(self._tell_verifying)
                    self.report = await self._receive()
                    self.leaving = True
                    nursery.cancel_scope.cancel()
        finally:
            self.leaving = True
            self._detach_all()
            self._rooms.asking.leave(self)
            self.ended.set()
            self.progressed.set()

    # What givers say

    def blob_held(self, peer: PeerId, news: BlobHeld) -> None:
        """A giver holds these chunks, as this recipe cuts them."""
        count = news.bits.count
        note = f"holds {len(news.bits)} of {count} chunks" if count else "holds it"
        if not self._recipes.offered(peer, news):
            note = "holds it under another recipe than the one asked for"
        self._sources.answered(peer, note)
        attempt = self._attempt
        if attempt is not None:
            if news.recipe_id == attempt.chosen.id:
                self._feed_ready(attempt, peer, news)
            elif attempt.asks(peer):
                # It cuts the blob otherwise now. What is on its way ends before it is asked anything new.
                self._sources.lost(peer, "it receives the blob anew", trio.current_time())
                self._detach(peer)
            else:
                self._feed_lost(peer)

    def blob_absent(self, peer: PeerId) -> None:
        """A giver has nothing of the blob."""
        self._sources.answered(peer, "has nothing of it")
        self._recipes.withdrawn(peer)
        self._feed_lost(peer)

    def blob_gained(self, peer: PeerId, news: BlobGained) -> None:
        """A giver holds these chunks too."""
        self._recipes.gained(peer, news.indices)
        self._sources.answered(peer, "holds a growing part of it")
        if self._attempt is not None:
            self._attempt.feed(PeerGained(peer, news.indices, news.load))

    def recipe_came(self, peer: PeerId, data: bytes | None) -> None:
        """A page of the recipe, or the whole."""
        self._progress_at_s = trio.current_time()
        self._recipes.came(peer, data)

    def wants_over(self, peer: PeerId, indices: tuple[int, ...], gone: bool) -> None:
        """Wants ended without a chunk."""
        if self._attempt is not None:
            self._attempt.feed(WantsEnded(peer, indices, gone))

    def chunk_came(self, peer: PeerId, chunk: CarriedChunk) -> None:
        """A chunk, unchecked."""
        if self._attempt is not None:
            self._attempt.arrived(peer, chunk)
        else:
            self.chunk_unneeded(len(chunk.data))
            self._rooms.asking.stored(peer, chunk)

    def held_back(self) -> None:
        """A giver waits for a limit of its own: that is no stall, unless it never ends."""
        now = trio.current_time()
        if now - self._stored_at_s < HELD_BACK_S_MAX:
            self._progress_at_s = now

    def giver_lost(self, peer: PeerId, reason: str) -> None:
        """A session ended."""
        self._sources.lost(peer, reason, trio.current_time())
        self._recipes.withdrawn(peer)
        self._feed_lost(peer)
        self._sources_changed.set()

    def room_freed(self, peer: PeerId | None) -> None:
        """More may be asked."""
        if self._attempt is not None:
            self._attempt.feed(RoomFreed(peer))

    # Sources

    async def _watch(self) -> None:
        while True:
            self._sources_changed = trio.Event()
            now, attempt = trio.current_time(), self._attempt
            received = None if attempt is None else (attempt.chosen.id, attempt.partial.held())
            changes = self._sources.refresh(now, functools.partial(self._recipes.standing, received))
            for peer in changes.dropped:
                self._detach(peer)
                self._rooms.asking.end_unused(peer)
            for peer in changes.attached:
                self._rooms.asking.attach(peer, self)
            self._judge(now)
            with trio.move_on_after(self._config.sources_interval_s):
                await self._sources_changed.wait()

    async def _tell_verifying(self) -> None:
        # After chunks in random order, most of a large blob may be left to hash.
        while True:
            await trio.sleep(VERIFYING_INTERVAL_S)
            if self._verifying:
                self._tell()

    def _judge(self, now: float) -> None:
        """Whether there is any sense in going on."""
        attempt = self._attempt
        if self._disk_works or (attempt is not None and attempt.writes()):
            # The disk is at work, not the network.
            self._progress_at_s = self._usable_at_s = self._matched_at_s = now
            return
        if self._sources.usable():
            self._usable_at_s = now
        if self._rooms.asking.held_back:
            self._progress_at_s = now
        if self._recipes.hopeless():
            self._give_up(VerificationFailed, "its recipe does not make it")
        elif self._sources.all_wrong() and not self._sources.usable():
            self._give_up(VerificationFailed, "every holder sent wrong bytes")
        elif now - self._usable_at_s >= self._config.sources_grace_s:
            self._give_up(TransferFailed, "no holder is left")
        elif now - self._progress_at_s >= self._config.stall_timeout_s:
            self._give_up(TransferFailed, f"nothing came for {self._config.stall_timeout_s:g} s")
        elif attempt is not None:
            self._judge_recipe(attempt, now)

    def _judge_recipe(self, attempt: Attempt, now: float) -> None:
        offers = self._recipes.offers()
        if not offers or any(offer.recipe_id == attempt.chosen.id for offer in offers.values()):
            self._matched_at_s = now
        elif now - self._matched_at_s >= SWITCH_AFTER_S:
            log.info("%s goes on under another recipe: nobody is left who cuts it as begun", self.digest)
            self._attempt_scope.cancel()

    def _give_up(self, kind: type[HerdError], why: str) -> None:
        held = f"{self.progress.held_bytes} of {self.size_bytes} bytes are here"
        self._fail(kind(f"{self.digest} did not come in: {why} ({self._sources.story()}); {held}"))

    def _fail(self, error: BaseException) -> None:
        self.failure = self.failure or error
        self.scope.cancel()

    # Chunks

    async def _receive(self) -> FetchReport:
        chosen = await self._recipes.resumed(self._rooms.blobs)
        while True:
            chosen = chosen or await self._recipes.choose()
            with self._disk_at_work():
                partial = await self._rooms.blobs.receive(chosen.recipe, self._copied)
            if partial.recipe != chosen.recipe:
                # The store had begun, or has finished, under another one.
                chosen = ChosenRecipe(partial.recipe, partial.recipe.id(), None)
            attempt = Attempt(chosen, partial, self._rooms.asking, self._config, self._rooms.me, self._rooms.rng, self)
            try:
                report = await self._attempt_under(chosen, attempt)
            finally:
                attempt.end()
                self._attempt = None
                self._detach_all()
                with trio.CancelScope(shield=True, deadline=trio.current_time() + CLOSE_TIMEOUT_S):
                    await partial.close()
            if report is not None:
                return report
            chosen = None
            self._sources_changed.set()

    async def _attempt_under(self, chosen: ChosenRecipe, attempt: Attempt) -> FetchReport | None:
        """Receive under one recipe; None when that makes another blob, or nobody is left who knows it."""
        self._attempt = attempt
        self._attempt_scope = trio.CancelScope()
        self._matched_at_s = self._progress_at_s = trio.current_time()
        self._rooms.giving.changed(self.digest)
        self._tell()
        with self._attempt_scope:
            for peer, offer in self._recipes.offers().items():
                if offer.recipe_id == chosen.id:
                    self._feed_ready(attempt, peer, offer)
            await attempt.run()
        if not attempt.complete():
            return None
        try:
            self._verifying = True
            with self._disk_at_work():
                await attempt.partial.finish()
        except RemoteProtocolError as error:
            self._recipe_lied(chosen, attempt, error)
            return None
        finally:
            self._verifying = False
        return self._report(attempt)

    @contextmanager
    def _disk_at_work(self) -> Iterator[None]:
        self._disk_works = True
        try:
            yield
        finally:
            self._disk_works = False

    def chunk_stored(self, peer: PeerId, index: int, size_bytes: int) -> None:
        """A chunk was checked and is stored."""
        self._progress_at_s = self._stored_at_s = trio.current_time()
        self._rooms.counters.stored_bytes += size_bytes
        self._sources.gave(peer, self._progress_at_s)
        self._rooms.giving.grew(self.digest, index)
        self._tell()

    def chunk_refused(self, peer: PeerId, index: int, size_bytes: int, error: RemoteProtocolError) -> None:
        """A chunk's bytes were wrong: its giver is asked for nothing more."""
        self._refused_chunks += 1
        self._refused_bytes += size_bytes
        self._rooms.counters.refused_chunks += 1
        self._rooms.counters.refused_bytes += size_bytes
        self._sources.wrong(peer, f"sent wrong bytes for chunk {index}")
        self._rooms.blame.blame(peer, "chunk", f"chunk {index} of {self.digest}: {error}", ban=True)
        self._rooms.asking.drop(peer, "it sent wrong bytes")
        self._sources_changed.set()

    def chunk_unneeded(self, size_bytes: int) -> None:
        """A chunk came that another copy had made unneeded."""
        self._duplicate_bytes += size_bytes
        self._rooms.counters.duplicate_bytes += size_bytes

    def _recipe_lied(self, chosen: ChosenRecipe, attempt: Attempt, error: RemoteProtocolError) -> None:
        self._recipes.refuse(chosen.id)
        self._refused_bytes += attempt.fetched_bytes
        self._rooms.giving.changed(self.digest)
        if chosen.giver is not None:
            self._sources.wrong(chosen.giver, "gave a recipe that makes another blob")
            self._rooms.blame.blame(chosen.giver, "recipe", f"the recipe of {self.digest}: {error}", ban=True)
            self._rooms.asking.drop(chosen.giver, "it gave a recipe that makes another blob")

    def _report(self, attempt: Attempt) -> FetchReport:
        return FetchReport(
            fetched_bytes=attempt.fetched_bytes,
            resumed_bytes=attempt.resumed_bytes,
            sources=dict(attempt.sources),
            refused_chunks=self._refused_chunks,
            duplicate_bytes=self._duplicate_bytes,
            seconds=trio.current_time() - self._started_s,
            refused_bytes=self._refused_bytes,
            copied_bytes=attempt.copied_bytes,
        )

    def _tell(self) -> None:
        attempt = self._attempt
        if attempt is not None:
            self._show(
                FetchProgress(
                    held_bytes=attempt.held_bytes,
                    size_bytes=self.size_bytes,
                    sources=dict(attempt.sources),
                    resumed_bytes=attempt.resumed_bytes,
                    copied_bytes=attempt.copied_bytes,
                    verifying=self._verifying,
                    verified_bytes=attempt.partial.hashed_bytes() if self._verifying else 0,
                )
            )

    def _copied(self, copied_bytes: int) -> None:
        """The store copies from other blobs before the first chunk is asked for."""
        self._show(FetchProgress(copied_bytes, self.size_bytes, {}, 0, copied_bytes))

    def _show(self, progress: FetchProgress) -> None:
        self.progress = progress
        self.progressed.set()
        self.progressed = trio.Event()

    def _detach(self, peer: PeerId) -> None:
        self._rooms.asking.detach(peer, self)
        self._recipes.withdrawn(peer)
        self._feed_lost(peer)

    def _detach_all(self) -> None:
        for peer in self._sources.release_all():
            self._detach(peer)

    def _feed_ready(self, attempt: Attempt, peer: PeerId, offer: BlobHeld) -> None:
        count, right = offer.bits.count, len(attempt.chosen.recipe)
        if count == right:
            attempt.feed(PeerReady(peer, offer.bits, offer.turn, offer.load))
            return
        # Its bits would stand for other chunks than those they name.
        detail = f"offered {count} chunks of {self.digest}, whose recipe has {right}"
        self._rooms.blame.blame(peer, "protocol", detail, ban=True)
        self._rooms.asking.drop(peer, detail)

    def _feed_lost(self, peer: PeerId) -> None:
        if self._attempt is not None:
            self._attempt.feed(PeerLost(peer))
