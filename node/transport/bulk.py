"""The bulk plane of a node: its listener, the tickets it gives out, and the links it connects.

`BulkCarrier` is `node.ports.ChunkCarrier`. A ticket is asked for over a control stream, so who gets one is a member and
admitted; the connection itself is plain TCP and proves itself by the ticket (`protocols/bulk/frames.py`).
"""

import logging
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial

import attrs
import trio

from node.background import open_background
from node.buffers import BufferPool
from node.errors import UsageError
from node.ports import ChunkLinkHandler, Stream, Transport, TransportError
from node.transport.bulk_lane import AskerLane, GiverLane
from node.transport.bulk_link import AskerLink, GiverLink
from node.transport.bulk_socket import BulkSocket
from node.transport.listening import accept_forever, failure_reason
from protocols.bulk.config import BulkConfig
from protocols.bulk.frames import (
    CIPHERS,
    OPENING_SIZE_BYTES,
    BrokenFrame,
    asker_ends,
    giver_ends,
    opening,
    parse_opening,
)
from protocols.bulk.tickets import (
    BULK_PROTOCOL,
    CODEC,
    MESSAGE_SIZE_BYTES_MAX,
    GetTicket,
    NoTicket,
    Ticket,
    TicketBook,
)
from protocols.errors import RemoteProtocolError
from protocols.ids import PeerId

log = logging.getLogger("herd.bulk")

TRIAL_SIZE_BYTES = 256 * 1024
TRIAL_ROUNDS = 4


@attrs.define
class BulkStatistics:
    """What stands now (`links`, `lanes`, `tickets`), and counts since the start."""

    links: int = 0
    lanes: int = 0
    tickets: int = 0
    connections_accepted: int = 0
    connections_refused: int = 0
    connections_opened: int = 0
    connections_failed: int = 0
    tickets_issued: int = 0
    broken_frames: int = 0


class BulkCarrier:
    """Made by `open_bulk_carrier`. `hosts_of` tells under which hosts a peer is reached, the likeliest first."""

    def __init__(
        self,
        transport: Transport,
        hosts_of: Callable[[PeerId], Sequence[str]],
        config: BulkConfig,
        port: int,
        ciphers: Sequence[str],
        nursery: trio.Nursery,
    ) -> None:
        self._transport = transport
        self._hosts_of = hosts_of
        self._config = config
        self._ciphers = tuple(ciphers)
        self._nursery = nursery
        self._book = TicketBook(config.ticket_valid_s, config.connection_bytes_max, random.SystemRandom())
        self._pool = BufferPool()
        self._links: dict[tuple[PeerId, bytes], GiverLink] = {}
        self._asker_links: dict[AskerLink, None] = {}
        self._openings: Counter[str] = Counter()
        self._handler: ChunkLinkHandler | None = None
        self.port = port
        self.counters = BulkStatistics()

    def statistics(self) -> BulkStatistics:
        """What stands now, and totals since the node started."""
        links: list[GiverLink | AskerLink] = [*self._links.values(), *self._asker_links]
        return attrs.evolve(
            self.counters, links=len(links), lanes=sum(link.lanes for link in links), tickets=len(self._book)
        )

    # -- the asker's end

    async def connect(self, peer: PeerId, ticket: bytes, *, timeout_s: float) -> AskerLink:
        """Attach a link to the session this ticket names. TransportError saying which step failed."""
        open_lane = partial(self._open_lane, peer, ticket)
        with trio.move_on_after(timeout_s):
            lane = await open_lane()
            link = AskerLink(
                peer,
                ticket,
                self._nursery,
                open_lane,
                self._count_broken,
                self._config.connections_per_peer_max,
            )
            self._asker_links[link] = None
            link.add(lane)
            self._nursery.start_soon(self._keep_asking, link)
            return link
        raise TransportError(f"no bulk connection to {peer} within {timeout_s:g} s")

    async def _keep_asking(self, link: AskerLink) -> None:
        try:
            await link.grow()
        finally:
            del self._asker_links[link]

    async def _open_lane(self, peer: PeerId, session: bytes) -> AskerLane:
        granted = await self._get_ticket(peer, session)
        socket: BulkSocket | None = None
        established = False
        try:
            with trio.move_on_after(self._config.connect_timeout_s):
                socket = await self._dial(peer, granted.port)
                sealer, opener = asker_ends(granted.cipher, granted.key, granted.connection_id)
                lane = AskerLane(socket, sealer, opener, self._pool, granted.bytes_max)
                await socket.send_all(memoryview(opening(granted.connection_id)))
                await lane.greet()
                await lane.hear_greeting()
                established = True
                self.counters.connections_opened += 1
                return lane
        except BrokenFrame as error:
            raise TransportError(f"who answers at bulk port {granted.port} of {peer} is not it: {error}") from error
        finally:
            if not established:
                self.counters.connections_failed += 1
                if socket is not None:
                    socket.close()
        raise TransportError(f"bulk port {granted.port} does not answer (a firewall?)")

    async def _get_ticket(self, peer: PeerId, session: bytes) -> Ticket:
        stream = await self._transport.open(peer, BULK_PROTOCOL, timeout_s=self._config.connect_timeout_s)
        try:
            with trio.move_on_after(self._config.connect_timeout_s):
                await stream.send(CODEC.encode(GetTicket(session, self._ciphers)))
                frame = await stream.receive(MESSAGE_SIZE_BYTES_MAX)
                answer = CODEC.decode(frame) if frame is not None else NoTicket("it ended the conversation")
                if isinstance(answer, Ticket):
                    return answer
                reason = answer.reason if isinstance(answer, NoTicket) else "it said something else"
                raise TransportError(f"it gives no ticket: {reason}")
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
                await stream.abort()
        raise TransportError("it gives no ticket: no answer")

    async def _dial(self, peer: PeerId, port: int) -> BulkSocket:
        problem = "no address is known"
        hosts = self._hosts_of(peer)
        for tried, host in enumerate(hosts):
            # A host that swallows what comes must leave time for those after it.
            time_s = max(0.0, trio.current_effective_deadline() - trio.current_time()) / (len(hosts) - tried)
            try:
                with trio.move_on_after(time_s):
                    stream = await trio.open_tcp_stream(host, port)
                    return BulkSocket(stream, self._config.congestion_control)
                problem = f"{host} port {port}: no answer (a firewall?)"
            except OSError as error:
                problem = f"{host} port {port}: {failure_reason(error)}"
        raise TransportError(f"its bulk port cannot be reached: {problem}")

    # -- the giver's end

    def serve(self, handler: ChunkLinkHandler) -> None:
        """Hand every attached link to the handler, which knows its ticket or ends it."""
        self._handler = handler
        self._transport.serve(BULK_PROTOCOL, self._serve_tickets)

    async def _serve_tickets(self, stream: Stream) -> None:
        frame = await stream.receive(MESSAGE_SIZE_BYTES_MAX)
        if frame is None:
            return
        request = CODEC.decode(frame)
        if not isinstance(request, GetTicket):
            raise RemoteProtocolError(f"a ticket is asked for, not {type(request).__name__} said")
        issued = self._book.issue(stream.peer, request, self._ciphers, self.port, trio.current_time())
        self.counters.tickets_issued += issued is not None
        await stream.send(CODEC.encode(issued or NoTicket("no cipher of yours is known here")))

    async def accept(self, listeners: Sequence[trio.SocketListener]) -> None:
        """Let connections in until cancelled."""
        async with trio.open_nursery() as nursery:
            for listener in listeners:
                nursery.start_soon(accept_forever, listener, self._let_in)

    def _let_in(self, stream: trio.SocketStream) -> None:
        socket = BulkSocket(stream, self._config.congestion_control)
        crowded = self._openings.total() >= self._config.openings_max
        if crowded or self._openings[socket.remote_host] >= max(1, self._config.openings_max // 4):
            self.counters.connections_refused += 1
            socket.close()
            return
        self._openings[socket.remote_host] += 1
        self._nursery.start_soon(self._welcome, socket)

    async def _welcome(self, socket: BulkSocket) -> None:
        lane: GiverLane | None = None
        key: tuple[PeerId, bytes] | None = None
        try:
            with trio.move_on_after(self._config.opening_timeout_s):
                lane, key = await self._hear_opening(socket)
        except (BrokenFrame, TransportError) as error:
            log.debug("a bulk connection from %s is none: %s", socket.remote_host, error)
        finally:
            self._openings[socket.remote_host] -= 1
            self._openings = +self._openings
            if lane is None:
                self.counters.connections_refused += 1
                socket.close()
        if lane is not None and key is not None:
            self.counters.connections_accepted += 1
            try:
                await self._keep(lane, key)
            except Exception:  # boundary: a fault of ours that one connection meets ends it, never the node.
                log.exception("a bulk connection of %s failed", key[0])

    async def _hear_opening(self, socket: BulkSocket) -> tuple[GiverLane, tuple[PeerId, bytes]]:
        first = bytearray(OPENING_SIZE_BYTES)
        if not await socket.receive_exactly(memoryview(first)):
            raise TransportError("it said nothing")
        connection_id = parse_opening(bytes(first))
        grant = self._book.find(connection_id, trio.current_time())
        if grant is None:
            raise BrokenFrame("no such ticket is out")
        sealer, opener = giver_ends(grant.ticket.cipher, grant.ticket.key, connection_id)
        lane = GiverLane(socket, sealer, opener, self._config.frame_size_bytes)
        await lane.hear_greeting()
        if not self._book.use(connection_id, trio.current_time()):
            raise BrokenFrame("its ticket was used or ran out meanwhile")
        await lane.greet()
        return lane, (grant.peer, grant.session)

    async def _keep(self, lane: GiverLane, key: tuple[PeerId, bytes]) -> None:
        link = self._links.get(key)
        if link is None:
            link = self._links[key] = GiverLink(*key, self._config.connection_bytes_max, self._count_broken)
            self._nursery.start_soon(self._handle, link)
        await link.keep(lane)

    async def _handle(self, link: GiverLink) -> None:
        try:
            if self._handler is not None:
                await self._handler(link)
        except Exception:  # boundary: a fault met in serving one link must not end the node.
            log.exception("the bulk link of %s failed", link.peer)
        finally:
            del self._links[link.peer, link.ticket]
            with trio.CancelScope(shield=True):
                await link.close()

    def _count_broken(self) -> None:
        self.counters.broken_frames += 1


@asynccontextmanager
async def open_bulk_carrier(
    transport: Transport, hosts_of: Callable[[PeerId], Sequence[str]], config: BulkConfig, host: str, port: int
) -> AsyncIterator[BulkCarrier]:
    """Listen on `host` and serve until the block ends; `port` is used where the configuration names none.

    UsageError naming address and remedy when a configured port cannot be listened on.
    """
    listeners = await _listen(host, config.port, port)
    try:
        ciphers = await trio.to_thread.run_sync(ciphers_by_speed)
        async with open_background() as nursery:
            bound = listeners[0].socket.getsockname()[1]
            carrier = BulkCarrier(transport, hosts_of, config, bound, ciphers, nursery)
            nursery.start_soon(carrier.accept, listeners)
            yield carrier
    finally:
        for listener in listeners:
            listener.socket.close()


async def _listen(host: str, configured: int, preferred: int) -> list[trio.SocketListener]:
    try:
        return await trio.open_tcp_listeners(configured or preferred, host=host)
    except (OSError, OverflowError) as error:
        if configured:
            reason = getattr(error, "strerror", None) or str(error)
            raise UsageError(
                f"cannot listen on {host} port {configured}: {reason}; choose another with --set bulk.port=PORT"
            ) from error
    return await trio.open_tcp_listeners(0, host=host)


def ciphers_by_speed() -> list[str]:
    """The ciphers of the plane, the fastest on this machine first; takes about a millisecond. Blocking."""
    data, sealed = bytes(TRIAL_SIZE_BYTES), bytearray(TRIAL_SIZE_BYTES + 16)

    def fastest_round_s(name: str) -> float:
        cipher = CIPHERS[name](bytes(32))
        took_s = []
        for number in range(TRIAL_ROUNDS):
            began_s = time.perf_counter()
            cipher.encrypt_into(number.to_bytes(12, "big"), data, None, sealed)
            took_s.append(time.perf_counter() - began_s)
        return min(took_s)

    return sorted(CIPHERS, key=fastest_round_s)
