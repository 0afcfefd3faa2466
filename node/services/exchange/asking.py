"""The asking half of the exchange: one session a giver, shared by all transfers, closed when idle."""

import logging
from collections import deque
from random import Random

import attrs
import trio

from node.blame import BlameLedger
from node.ports import CarriedChunk, ChunkCarrier, ChunkLink, Stream, Transport, TransportError
from node.services.exchange.budget import AskBudget
from node.services.exchange.listener import BlobListener, tell
from protocols.effects import Effect, Event, Received, Send
from protocols.errors import RemoteProtocolError
from protocols.exchange.asking import AskingSession
from protocols.exchange.asking_words import (
    BlobAbsent,
    BlobGained,
    BlobHeld,
    BlobHeldBack,
    CancelChunks,
    ChunkCame,
    ChunkTaken,
    CloseBlob,
    FetchRecipe,
    OpenBlob,
    RecipeCame,
    SessionStarted,
    WantChunks,
    WantsOver,
    Welcomed,
)
from protocols.exchange.config import ExchangeConfig
from protocols.exchange.messages import CODEC, EXCHANGE_PROTOCOL, MESSAGE_SIZE_BYTES_MAX, TICKET_SIZE_BYTES
from protocols.exchange.paces import Paces
from protocols.ids import Digest, PeerId

log = logging.getLogger("herd.exchange")

ABORT_TIMEOUT_S = 2.0


@attrs.define
class AskingCounters:
    """What came in so far, over all transfers."""

    received_bytes: int = 0
    received_chunks: int = 0
    unneeded_bytes: int = 0
    sessions: int = 0


class _Giver:
    """One session with one giver: its streams, its queue, its listeners."""

    def __init__(self, peer: PeerId, ticket: bytes, config: ExchangeConfig) -> None:
        self.peer = peer
        self.ticket = ticket
        self.core = AskingSession(peer, ticket, config)
        self.listeners: dict[Digest, BlobListener] = {}
        self.listeners_changed = trio.Event()
        self.scope = trio.CancelScope()
        self.outbox: deque[bytes] = deque()
        self.outbox_changed = trio.Event()
        self.welcomed = trio.Event()
        self.frames = 0

    def post(self, frame: bytes) -> None:
        # Bounded by what may be open and wanted at a time; the giver reads always, or loses the session as owing.
        self.outbox.append(frame)
        self.outbox_changed.set()


class AskingSide:
    """Sessions by giver. `start` is given the nursery they live in."""

    def __init__(
        self,
        transport: Transport,
        carrier: ChunkCarrier,
        blame: BlameLedger,
        config: ExchangeConfig,
        rng: Random,
        budget: AskBudget | None = None,
    ) -> None:
        self._transport = transport
        self._carrier = carrier
        self._blame = blame
        self._config = config
        self._rng = rng
        self._nursery: trio.Nursery | None = None
        self._givers: dict[PeerId, _Giver] = {}
        self._listeners: dict[Digest, BlobListener] = {}
        self._full = False
        self.budget = budget
        self.paces = Paces(config, budget)
        self.counters = AskingCounters()

    @property
    def held_back(self) -> bool:
        """Whether something is not asked now because of a limit."""
        return self.budget is not None and self.budget.holds_back

    @property
    def givers(self) -> int:
        """How many sessions stand now."""
        return len(self._givers)

    def start(self, nursery: trio.Nursery) -> None:
        """Let sessions live in this nursery."""
        self._nursery = nursery

    def attach(self, peer: PeerId, listener: BlobListener) -> None:
        """Open the listener's blob with a giver, over the session there is or a new one."""
        giver = self._givers.get(peer)
        if giver is None:
            assert self._nursery is not None, "the exchange runs before anything is fetched"
            giver = self._givers[peer] = _Giver(peer, self._rng.randbytes(TICKET_SIZE_BYTES), self._config)
            self.counters.sessions += 1
            self._nursery.start_soon(self._converse, giver)
        giver.listeners[listener.digest] = listener
        giver.listeners_changed.set()
        self._listeners[listener.digest] = listener
        self._handle(giver, OpenBlob(listener.digest, listener.size_bytes, listener.purpose))

    def detach(self, peer: PeerId, listener: BlobListener) -> None:
        """Close the listener's blob with a giver; a session that ended before is fine."""
        giver = self._givers.get(peer)
        if giver is not None and giver.listeners.get(listener.digest) is listener:
            del giver.listeners[listener.digest]
            giver.listeners_changed.set()
            self._handle(giver, CloseBlob(listener.digest))

    def leave(self, listener: BlobListener) -> None:
        """The listener is through with its blob, after it has detached from all givers."""
        if self._listeners.get(listener.digest) is listener:
            del self._listeners[listener.digest]

    def command(self, peer: PeerId, event: FetchRecipe | CancelChunks) -> None:
        """Ask a giver the listener is attached to; one that was lost meanwhile is fine, the listener will hear."""
        giver = self._givers.get(peer)
        if giver is not None and event.digest in giver.listeners:
            self._handle(giver, event)

    def want(self, peer: PeerId, event: WantChunks) -> None:
        """The same for wants, which `Paces.asked` knows of already."""
        if event.digest in self._listeners:
            self._listeners[event.digest] = self._listeners.pop(event.digest)
        giver = self._givers.get(peer)
        if giver is not None and event.digest in giver.listeners:
            self._handle(giver, event)
        else:
            for _, size_bytes in event.chunks:
                self.paces.ended(peer, size_bytes, came=False)

    def drop(self, peer: PeerId, reason: str) -> None:
        """End the session with a giver; every listener is told."""
        giver = self._givers.get(peer)
        if giver is not None:
            self._lose(giver, TransportError(reason))

    def end_unused(self, peer: PeerId) -> None:
        """End the session with a giver when nothing is open with it and nothing asked of it, without waiting longer."""
        giver = self._givers.get(peer)
        if giver is not None and not giver.listeners and not giver.core.wants():
            self._lose(giver, TransportError("it gave its place to another"))

    def stored(self, peer: PeerId, chunk: CarriedChunk) -> None:
        """A chunk that came is stored or thrown away, and its memory is free."""
        self.paces.ended(peer, len(chunk.data), came=True)
        chunk.release()
        self._room_freed(peer)

    def look_again(self) -> None:
        """Something that was not allowed may be allowed now."""
        self._offer_room(None)

    def _room_freed(self, peer: PeerId) -> None:
        self._offer_room(peer)
        full = self.paces.outstanding_bytes > self._config.receive_buffer_bytes // 2
        if full or self._full:
            self._offer_room(None)
        self._full = full

    def _offer_room(self, peer: PeerId | None) -> None:
        # Sorting is stable: among equals whoever was served longest ago comes first, so that none starves another.
        for listener in sorted(self._listeners.values(), key=lambda listener: -listener.priority):
            listener.room_freed(peer)

    def _handle(self, giver: _Giver, event: Event) -> None:
        for effect in giver.core.handle(event, trio.current_time()):
            self._perform(giver, effect)

    def _perform(self, giver: _Giver, effect: Effect) -> None:
        match effect:
            case Send(_, message):
                giver.post(CODEC.encode(message))
            case Welcomed():
                giver.welcomed.set()
            case WantsOver(digest, indices, sizes_bytes, gone, is_open):
                for size_bytes in sizes_bytes:
                    self.paces.ended(giver.peer, size_bytes, came=False)
                listener = giver.listeners.get(digest)
                if listener is not None and is_open:
                    listener.wants_over(giver.peer, indices, gone)
                self._room_freed(giver.peer)
            case BlobHeld(digest) | BlobAbsent(digest) | BlobGained(digest) | RecipeCame(digest) | BlobHeldBack(digest):
                listener = giver.listeners.get(digest)
                if listener is not None:
                    tell(listener, giver.peer, effect)

    async def _converse(self, giver: _Giver) -> None:
        stream: Stream | None = None
        try:
            with giver.scope:
                try:
                    stream = await self._transport.open(
                        giver.peer, EXCHANGE_PROTOCOL, timeout_s=self._config.open_timeout_s
                    )
                except TransportError as error:
                    self._lose(giver, error)
                else:
                    async with trio.open_nursery() as nursery:
                        self._handle_first(giver)
                        nursery.start_soon(self._ask, giver, stream)
                        nursery.start_soon(self._listen, giver, stream)
                        nursery.start_soon(self._receive, giver)
                        nursery.start_soon(self._watch, giver)
        except Exception:
            # boundary: isolates a peer; a fault of ours that one session meets must not end the node.
            log.exception("the session with %s failed", giver.peer)
        finally:
            self._lose(giver, TransportError("the session ended"))
            if stream is not None:
                with trio.CancelScope(shield=True, deadline=trio.current_time() + ABORT_TIMEOUT_S):
                    await stream.abort()

    def _handle_first(self, giver: _Giver) -> None:
        # Opens were queued while the stream was not there yet; the greeting goes before them.
        waiting, giver.outbox = giver.outbox, deque()
        self._handle(giver, SessionStarted())
        giver.outbox.extend(waiting)

    async def _ask(self, giver: _Giver, stream: Stream) -> None:
        while True:
            while not giver.outbox:
                giver.outbox_changed = trio.Event()
                await giver.outbox_changed.wait()
            try:
                with trio.fail_after(self._config.answer_timeout_s):
                    await stream.send(giver.outbox.popleft())
            except TransportError as error:
                return self._lose(giver, error)
            except trio.TooSlowError:
                return self._lose(giver, TransportError(f"{giver.peer} does not read what it is asked"))

    async def _listen(self, giver: _Giver, stream: Stream) -> None:
        try:
            while (frame := await stream.receive(MESSAGE_SIZE_BYTES_MAX)) is not None:
                if not self._stands(giver):
                    return
                giver.frames += 1
                self._handle(giver, Received(giver.peer, CODEC.decode(frame)))
            self._lose(giver, TransportError(f"{giver.peer} ended the session"))
        except (TransportError, RemoteProtocolError) as error:
            self._lose(giver, error)

    async def _receive(self, giver: _Giver) -> None:
        await giver.welcomed.wait()
        link: ChunkLink | None = None
        try:
            link = await self._carrier.connect(giver.peer, giver.ticket, timeout_s=self._config.open_timeout_s)
            while (chunk := await link.receive()) is not None:
                if not self._stands(giver):
                    return
                giver.frames += 1
                event = ChunkCame(chunk.digest, chunk.index, len(chunk.data))
                # The first effect is ChunkTaken: the session has no other answer to a wanted chunk.
                for effect in giver.core.handle(event, trio.current_time()):
                    if isinstance(effect, ChunkTaken):
                        self._take(giver, effect, chunk)
                    else:
                        self._perform(giver, effect)
            self._lose(giver, TransportError(f"{giver.peer} ended its chunk link"))
        except (TransportError, RemoteProtocolError) as error:
            self._lose(giver, error)
        finally:
            if link is not None:
                with trio.CancelScope(shield=True, deadline=trio.current_time() + ABORT_TIMEOUT_S):
                    await link.close()

    def _take(self, giver: _Giver, taken: ChunkTaken, chunk: CarriedChunk) -> None:
        self.paces.came(giver.peer, taken.size_bytes, trio.current_time())
        self.counters.received_bytes += taken.size_bytes
        self.counters.received_chunks += 1
        listener = giver.listeners.get(taken.digest)
        if listener is None or not taken.open:
            self.counters.unneeded_bytes += taken.size_bytes
            self.stored(giver.peer, chunk)
        else:
            listener.chunk_came(giver.peer, chunk)
            # More is asked now, not when the disk is through with it.
            self._room_freed(giver.peer)

    async def _watch(self, giver: _Giver) -> None:
        """End the session when nothing has been open for a while, or when the giver owes an answer for too long."""
        frames = -1
        while True:
            owed, idle = giver.core.owed(), not giver.listeners
            if owed and frames == giver.frames:
                return self._lose(giver, TransportError(f"{giver.peer} does not answer"))
            frames = giver.frames if owed else -1
            giver.listeners_changed = trio.Event()
            patience_s = self._config.answer_timeout_s if owed or not idle else self._config.idle_timeout_s
            with trio.move_on_after(patience_s) as waiting:
                if not owed:
                    await giver.listeners_changed.wait()
                else:
                    await trio.sleep_forever()
            if waiting.cancelled_caught and idle and not owed:
                return self._lose(giver, TransportError("nothing was open for a while"))

    def _stands(self, giver: _Giver) -> bool:
        # A session that was lost is counted off already, even where its tasks have not noticed yet.
        return self._givers.get(giver.peer) is giver

    def _lose(self, giver: _Giver, error: TransportError | RemoteProtocolError) -> None:
        if not self._stands(giver):
            return
        del self._givers[giver.peer]
        giver.scope.cancel()
        if isinstance(error, RemoteProtocolError):
            self._blame.blame(giver.peer, "protocol", str(error), ban=True)
        for _, _, size_bytes in giver.core.wants():
            self.paces.ended(giver.peer, size_bytes, came=False)
        listeners, giver.listeners = giver.listeners, {}
        for listener in listeners.values():
            listener.giver_lost(giver.peer, str(error))
        self._room_freed(giver.peer)
