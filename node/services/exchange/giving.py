"""The giving half of the exchange: one session an asker, chunks in fair turns within bounded memory."""

import logging
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from weakref import WeakValueDictionary

import attrs
import trio

from node.buffers import BufferPool
from node.driver import Driver
from node.events import EventBus, StoreChanged
from node.ports import BlobMissing, Blobs, CarriedChunk, ChunkLink, StoreError, Stream, TransportError
from node.services.exchange.budget import purpose_of
from node.services.limits.service import LimitsService
from protocols.effects import Effect, Received, Send
from protocols.errors import RemoteProtocolError
from protocols.exchange.config import ExchangeConfig
from protocols.exchange.giving import (
    BlobChanged,
    BlobFound,
    BlobGrew,
    BlobNotFound,
    BlobReleased,
    GivingSession,
    Greeted,
    LookUp,
    WantedChunk,
    WantsQueued,
)
from protocols.exchange.messages import CODEC, MESSAGE_SIZE_BYTES_MAX, HeldBack
from protocols.exchange.slots import WINDOW_MAX_S, SendSlots
from protocols.exchange.spread import Spread
from protocols.exchange.turns import ServeTurns
from protocols.ids import Digest, PeerId, RecipeId
from protocols.limits.config import Direction

log = logging.getLogger("herd.exchange")

OUTBOX_PAUSE_BYTES = 4 * 1024 * 1024
"""An asker that does not read its answers is not read either."""
OUTBOX_SIZE_BYTES_MAX = 64 * 1024 * 1024
"""News of the store is queued even then; an asker this far behind loses its session."""
READ_AHEAD_CHUNKS = 1
"""How many chunks lie read before there is a slot to send them in."""
HELD_BACK_INTERVAL_S = 5.0
"""How often an asker hears that its chunk waits for a limit here, so that it does not give us up."""
RECHECK_S = 2.0
"""How often a blob that an asker waits for is looked for, when it came by another way than a fetch of ours."""


@attrs.define(eq=False)
class _Shelved:
    """A recipe as sessions need it, made once for all of them and gone with the last."""

    recipe_id: RecipeId
    data: bytes
    sizes_bytes: tuple[int, ...]


class _Asker:
    """One session: its streams, its queues, and what it has open."""

    def __init__(self, stream: Stream, config: ExchangeConfig, spread: Spread) -> None:
        self.peer = stream.peer
        self.stream = stream
        self.core = GivingSession(stream.peer, config, spread)
        self.scope = trio.CancelScope()
        self.ended = trio.Event()
        self.leaving = False
        self.failure: RemoteProtocolError | None = None
        self.ticket: bytes | None = None
        self.link: ChunkLink | None = None
        self.outbox: deque[bytes] = deque()
        self.outbox_bytes = 0
        self.outbox_changed = trio.Event()
        self.lookups: dict[Digest, None] = {}
        self.lookups_changed = trio.Event()
        self.shelved: dict[Digest, _Shelved] = {}
        self.nursery: trio.Nursery
        self.driver: Driver

    def post(self, frame: bytes) -> None:
        self.outbox.append(frame)
        self.outbox_bytes += len(frame)
        self.outbox_changed.set()
        if self.outbox_bytes > OUTBOX_SIZE_BYTES_MAX:
            log.warning("%s does not read its answers; its session ends", self.peer)
            self.scope.cancel()

    def look_up(self, digest: Digest) -> None:
        self.lookups[digest] = None
        self.lookups_changed.set()


@attrs.define
class GivingCounters:
    """What was given so far."""

    served_bytes: int = 0
    served_chunks: int = 0
    sessions: int = 0


class GivingSide:
    """Serves every asker. `serve_control` and `serve_link` are the handlers of inbound streams and links."""

    def __init__(
        self, blobs: Blobs, bus: EventBus, config: ExchangeConfig, limits: LimitsService | None = None
    ) -> None:
        self._blobs = blobs
        self._limits = limits
        self._bus = bus
        self._config = config
        self._askers: dict[PeerId, _Asker] = {}
        self._turns: ServeTurns[_Asker] = ServeTurns(config.serve_buffer_bytes)
        self._spread = Spread()
        self._slots = SendSlots(config.serve_sends_max)
        self._sending = 0
        self._waiting = 0
        self._slot_freed = trio.Event()
        self._shelf: WeakValueDictionary[Digest, _Shelved] = WeakValueDictionary()
        self._changes = 0
        self._buffers = BufferPool()
        self.counters = GivingCounters()

    @property
    def askers(self) -> int:
        """How many sessions stand now."""
        return len(self._askers)

    @property
    def buffered_bytes(self) -> int:
        """How many bytes of chunks are in memory on their way out."""
        return self._turns.buffered_bytes

    def grew(self, digest: Digest, index: int) -> None:
        """A chunk can be served from now on."""
        for asker in list(self._askers.values()):
            asker.driver.feed(BlobGrew(digest, index))

    def changed(self, digest: Digest) -> None:
        """A blob came, went, or is received anew."""
        self._changes += 1
        self._shelf.pop(digest, None)
        for asker in list(self._askers.values()):
            asker.shelved.pop(digest, None)
            asker.driver.feed(BlobChanged(digest))

    async def serve_control(self, stream: Stream) -> None:
        """One session, until the asker leaves. Raises the RemoteProtocolError that it committed."""
        asker = _Asker(stream, self._config, self._spread)
        asker.driver = Driver(asker.core, lambda effect: self._perform(asker, effect))
        before = self._askers.pop(asker.peer, None)
        if before is not None:
            # An asker has one session; it opens a second one only when it has given up the first.
            before.scope.cancel()
        self._askers[asker.peer] = asker
        self.counters.sessions += 1
        try:
            with asker.scope:
                async with trio.open_nursery() as nursery:
                    asker.nursery = nursery
                    nursery.start_soon(asker.driver.run)
                    nursery.start_soon(self._answer, asker)
                    nursery.start_soon(self._look_up_all, asker)
                    nursery.start_soon(self._listen, asker)
        finally:
            if self._askers.get(asker.peer) is asker:
                del self._askers[asker.peer]
            asker.core.end()
            asker.ended.set()
        if asker.failure is not None:
            raise asker.failure

    async def serve_link(self, link: ChunkLink) -> None:
        """Keep the link of a session until the session ends."""
        asker = self._askers.get(link.peer)
        if asker is None or asker.leaving or asker.ticket != link.ticket or asker.link is not None:
            log.info("%s attached a chunk link to no session of its own", link.peer)
            return
        asker.link = link
        self._turns.add(asker)
        self._pump()
        await asker.ended.wait()

    async def _listen(self, asker: _Asker) -> None:
        try:
            while True:
                while asker.outbox_bytes > OUTBOX_PAUSE_BYTES:
                    asker.outbox_changed = trio.Event()
                    await asker.outbox_changed.wait()
                idle = asker.core.opened() == 0
                patience_s = 2 * self._config.idle_timeout_s if idle else float("inf")
                with trio.move_on_after(patience_s) as waiting:
                    frame = await asker.stream.receive(MESSAGE_SIZE_BYTES_MAX)
                if waiting.cancelled_caught or frame is None:
                    break
                asker.driver.feed(Received(asker.peer, CODEC.decode(frame)))
        except RemoteProtocolError as error:
            asker.failure = error
        except TransportError as error:
            log.debug("the session of %s ended: %s", asker.peer, error)
        finally:
            # Before the nursery closes, so that no turn starts a task in a closed one.
            asker.leaving = True
            self._turns.remove(asker)
            asker.scope.cancel()

    async def _answer(self, asker: _Asker) -> None:
        while True:
            while not asker.outbox:
                asker.outbox_changed = trio.Event()
                await asker.outbox_changed.wait()
            frame = asker.outbox.popleft()
            try:
                with trio.fail_after(self._config.serve_timeout_s):
                    await asker.stream.send(frame)
            except (TransportError, trio.TooSlowError) as error:
                log.debug("%s takes no answers: %s", asker.peer, error)
                asker.scope.cancel()
                return
            asker.outbox_bytes -= len(frame)
            asker.outbox_changed.set()

    def _perform(self, asker: _Asker, effect: Effect) -> None:
        match effect:
            case Send(_, message):
                asker.post(CODEC.encode(message))
            case LookUp(digest):
                asker.look_up(digest)
            case WantsQueued():
                self._pump()
            case BlobReleased(digest):
                asker.shelved.pop(digest, None)
                asker.lookups.pop(digest, None)
            case Greeted(ticket):
                asker.ticket = ticket

    async def _look_up_all(self, asker: _Asker) -> None:
        while True:
            while not asker.lookups:
                asker.lookups_changed = trio.Event()
                with trio.move_on_after(RECHECK_S if asker.core.absent() else float("inf")):
                    await asker.lookups_changed.wait()
                for digest in asker.core.absent():
                    if self._blobs.held(digest) is not None:
                        asker.look_up(digest)
            digest = next(iter(asker.lookups))
            del asker.lookups[digest]
            shelved = await self._shelve(digest)
            bits = self._blobs.held(digest)
            if shelved is None or bits is None or bits.count != len(shelved.sizes_bytes):
                asker.driver.feed(BlobNotFound(digest))
            else:
                # No await since `held`: what grows from here on is announced as news.
                asker.shelved[digest] = shelved
                found = BlobFound(digest, bits.copy(), shelved.recipe_id, shelved.data, shelved.sizes_bytes)
                asker.driver.feed(found)

    async def _shelve(self, digest: Digest) -> _Shelved | None:
        shelved = self._shelf.get(digest)
        if shelved is not None:
            return shelved
        changes = self._changes
        try:
            recipe = await self._blobs.recipe(digest)
        except BlobMissing:
            return None
        except StoreError as error:
            log.warning("the recipe of %s cannot be served: %s", digest, error)
            return None
        shelved = _Shelved(recipe.id(), recipe.to_bytes(), recipe.sizes_bytes)
        if changes != self._changes:
            return shelved  # It may be old by now; if so, the change has queued another look.
        return self._shelf.setdefault(digest, shelved)

    def _pump(self) -> None:
        while (
            self._turns.running < self._slots.count + READ_AHEAD_CHUNKS
            and (asker := self._turns.next(_next_of, _lanes_of)) is not None
        ):
            want = asker.core.peek()
            assert want is not None, "an asker's turn comes only when it wants something"
            asker.core.take(want)
            self._turns.start(asker, want.size_bytes)
            asker.nursery.start_soon(self._give, asker, want)

    async def _give(self, asker: _Asker, want: WantedChunk) -> None:
        buffer = self._buffers.lend(want.size_bytes)
        try:
            if await self._read(asker, want, buffer.view):
                await self._wait_for_limits(asker, want)
                async with self._slot(want):
                    await self._send(asker, want, buffer.view)
        finally:
            buffer.release()
            self._turns.end(asker, want.size_bytes)
            self._pump()

    async def _wait_for_limits(self, asker: _Asker, want: WantedChunk) -> None:
        if self._limits is None or self._limits.unlimited(Direction.UP):
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._say_held_back, asker, want)
            await self._limits.take(Direction.UP, asker.peer, purpose_of(want.purpose), want.size_bytes)
            nursery.cancel_scope.cancel()

    async def _say_held_back(self, asker: _Asker, want: WantedChunk) -> None:
        while True:
            await trio.sleep(HELD_BACK_INTERVAL_S)
            self._perform(asker, Send(asker.peer, HeldBack(want.digest)))

    @asynccontextmanager
    async def _slot(self, want: WantedChunk) -> AsyncIterator[None]:
        """One of the sends that may go on at a time; how many those are follows what they bring."""
        self._waiting += 1
        try:
            while self._sending >= self._slots.count:
                freed = self._slot_freed
                with trio.move_on_after(WINDOW_MAX_S):
                    await freed.wait()
                self._slots.look(trio.current_time())
        finally:
            self._waiting -= 1
        self._sending += 1
        began_s = trio.current_time()
        try:
            yield
            now = trio.current_time()
            self._slots.sent(want.size_bytes, now - began_s, now, waiting=self._waiting > 0, others=self._sending - 1)
        finally:
            self._sending -= 1
            self._slot_freed.set()
            self._slot_freed = trio.Event()

    async def _read(self, asker: _Asker, want: WantedChunk, buffer: memoryview) -> bool:
        try:
            size_bytes = await self._blobs.read(want.digest, want.index, buffer)
        except (BlobMissing, StoreError) as error:
            if isinstance(error, StoreError):
                log.warning("chunk %d of %s cannot be served: %s", want.index, want.digest, error)
                self._bus.publish(StoreChanged(want.digest, "damaged", str(error)))
        else:
            if size_bytes == want.size_bytes:
                return True
            log.warning("chunk %d of %s has %d bytes on disk", want.index, want.digest, size_bytes)
        for effect in asker.core.unreadable(want):
            self._perform(asker, effect)
        return False

    async def _send(self, asker: _Asker, want: WantedChunk, data: memoryview) -> None:
        if asker.link is None:
            return
        chunk = CarriedChunk(want.digest, want.index, data)
        try:
            with trio.fail_after(self._config.serve_timeout_s):
                went = await asker.link.send(chunk, lambda: asker.core.begin_sending(want))
        except (TransportError, trio.TooSlowError) as error:
            log.info("%s takes no chunks: %s", asker.peer, error or "too slow")
            asker.scope.cancel()
        else:
            if went:
                asker.core.sent(want)
                self.counters.served_bytes += want.size_bytes
                self.counters.served_chunks += 1


def _lanes_of(asker: _Asker) -> int:
    return asker.link.lanes if asker.link is not None else 0


def _next_of(asker: _Asker) -> tuple[int, int] | None:
    want = asker.core.peek()
    return None if want is None else (want.size_bytes, asker.core.copies(want))
