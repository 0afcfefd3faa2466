"""The connections of a node: who is dialed and let in, which one a stream takes, and when one is given up.

This stands where py-libp2p has its swarm. The swarm dies of one exception in one stream handler, refuses everybody
after 250 inbound connections in its life, waits 250 ms in every dial, tries one address a peer and then none for a
minute, dials known peers by itself, and lets a silent peer hold a handshake for 45 s. Here a stream's failure is the
stream's, a slot is free when its handshake is over, all addresses race under deadlines, and nothing is remembered
against an address.
"""

import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence

import attrs
import trio

from node.blame import BlameLedger
from node.ports import AdmissionError, TransportError
from node.transport.addresses import tcp_target
from node.transport.admission import Stranger
from node.transport.config import NetworkConfig
from node.transport.listening import accept_forever, failure_reason
from node.transport.secured import SecuredConnection, TcpConnection
from node.transport.statistics import Counters
from node.transport.upgrade import Credentials, upgrade_accepted, upgrade_dialed
from node.transport.yamux import YamuxConnection, YamuxLimits
from node.transport.yamux_stream import YamuxStream
from protocols.errors import RemoteProtocolError
from protocols.ids import PeerId

log = logging.getLogger("herd.transport")

DIAL_STAGGER_S = 0.25
"""How long an address is alone before the next one is tried beside it (RFC 8305, section 8)."""

ADDRESSES_MAX = 16
CONNECTIONS_PER_PEER_MAX = 4
EVICTION_AGE_S = 1.0
"""A handshake younger than this is not pushed out by a newcomer: an honest burst must not undo itself."""

TIDY_INTERVAL_S = 30.0
SIMULTANEOUS_S = 5.0
"""Connections of one pair this close together come from both ends dialing at once."""

BLAMES_PER_MINUTE_MAX = 20
"""Strangers may not flood log, events and ledger; what is over the limit is only counted."""

ServeStream = Callable[[YamuxConnection, YamuxStream], Awaitable[None]]


@attrs.define(eq=False)
class _Handshake:
    """An inbound connection that did not prove itself yet."""

    host: str
    began_at_s: float
    scope: trio.CancelScope


@attrs.define(eq=False)
class _Dial:
    """What the racing attempts to reach one peer came to."""

    connection: YamuxConnection | None = None
    failures: dict[str, Exception] = attrs.field(factory=dict)


class Network:
    """All connections of one node. `serve_stream` gets every stream a peer opens, in a task of its own."""

    def __init__(
        self,
        credentials: Credentials,
        config: NetworkConfig,
        blame: BlameLedger,
        nursery: trio.Nursery,
        serve_stream: ServeStream,
    ) -> None:
        self.counters = Counters()
        self._credentials = credentials
        self._config = config
        self._blame = blame
        self._nursery = nursery
        self._serve_stream = serve_stream
        self._connections: dict[PeerId, list[YamuxConnection]] = {}
        self._handshakes: dict[int, _Handshake] = {}
        self._handshakes_made = 0
        self._dial_locks: dict[PeerId, trio.Lock] = {}
        self._streams_served: Counter[PeerId] = Counter()
        self._blames_since_s = 0.0
        self._blames_counted = 0
        self._limits = YamuxLimits(
            streams_max=config.streams_per_peer_max,
            write_timeout_s=config.write_timeout_s,
            stall_timeout_s=config.stall_timeout_s,
        )

    # -- what is there

    def peers(self) -> list[PeerId]:
        """Everybody connected now."""
        return list(self._connections)

    def connections_of(self, peer: PeerId) -> list[YamuxConnection]:
        """The open connections to a peer, the one for new streams first."""
        alive = [each for each in self._connections.get(peer, ()) if not each.is_closed]
        if len(alive) < 2:
            return alive
        newest_s = max(each.opened_at_s for each in alive)
        smaller_is_here = self._credentials.peer < peer

        def rank(each: YamuxConnection) -> tuple[bool, bool, float]:
            # Of two dialed at once both ends take the one that the smaller peer id dialed; else the newest is best.
            fresh = newest_s - each.opened_at_s < SIMULTANEOUS_S
            return (fresh, each.dialed_here == smaller_is_here, each.opened_at_s)

        return sorted(alive, key=rank, reverse=True)

    def connection_count(self) -> int:
        """Connections open now."""
        return sum(len(each) for each in self._connections.values())

    def handshake_count(self) -> int:
        """Inbound connections that did not prove themselves yet."""
        return len(self._handshakes)

    def stream_count(self) -> int:
        """Streams open now."""
        return sum(each.stream_count() for peers in self._connections.values() for each in peers)

    def transferred_bytes(self) -> tuple[int, int]:
        """Bytes sent and received by all connections so far."""
        open_now = [each for peers in self._connections.values() for each in peers]
        sent_bytes = self.counters.sent_bytes + sum(each.sent_bytes for each in open_now)
        return sent_bytes, self.counters.received_bytes + sum(each.received_bytes for each in open_now)

    # -- dialing

    async def connect(self, peer: PeerId, addresses: Sequence[str]) -> YamuxConnection:
        """The connection for new streams to a peer, dialed where there is none. The caller sets the deadline.

        AdmissionError when the peer and we do not admit each other, TransportError when no address led to it.
        """
        lock = self._dial_locks.setdefault(peer, trio.Lock())
        try:
            async with lock:
                connections = self.connections_of(peer)
                return connections[0] if connections else await self._dial(peer, addresses)
        finally:
            if not lock.locked() and not lock.statistics().tasks_waiting:
                self._dial_locks.pop(peer, None)

    async def _dial(self, peer: PeerId, addresses: Sequence[str]) -> YamuxConnection:
        if self.connection_count() >= self._config.connections_max:
            raise TransportError(f"{self._config.connections_max} connections are open: peer {peer} is not dialed")
        dial = _Dial()
        async with trio.open_nursery() as nursery:
            for address in list(dict.fromkeys(addresses))[:ADDRESSES_MAX]:
                failed = trio.Event()
                nursery.start_soon(self._attempt, peer, address, dial, failed, nursery.cancel_scope)
                with trio.move_on_after(DIAL_STAGGER_S):
                    await failed.wait()
        if dial.connection is not None:
            return dial.connection
        self.counters.dials_failed += 1
        for error in dial.failures.values():
            if isinstance(error, AdmissionError):
                self.counters.dials_refused += 1
                raise error
        reasons = "; ".join(f"{address}: {error}" for address, error in dial.failures.items())
        raise TransportError(f"peer {peer} cannot be reached ({reasons or 'no address of it is known'})")

    async def _attempt(
        self, peer: PeerId, address: str, dial: _Dial, failed: trio.Event, race: trio.CancelScope
    ) -> None:
        try:
            channel = await self._dial_address(peer, address)
        except (TransportError, RemoteProtocolError, ValueError) as error:
            dial.failures[address] = error
            failed.set()
            return
        # Without a wait since the handshake ended: an attempt that won is registered, one that lost is registered too
        # and serves as well, so no cancellation can leave a socket that nobody owns.
        connection = self._register(channel)
        self.counters.connections_dialed += 1
        dial.connection = dial.connection or connection
        race.cancel()

    async def _dial_address(self, peer: PeerId, address: str) -> SecuredConnection:
        host, port = tcp_target(address)
        with trio.move_on_after(self._config.dial_timeout_s) as connecting:
            try:
                stream = await trio.open_tcp_stream(host, port)
            except OSError as error:
                raise TransportError(failure_reason(error)) from error
        if connecting.cancelled_caught:
            raise TransportError(f"no connection within {self._config.dial_timeout_s:g} s")
        raw = TcpConnection(stream, dialed_here=True, remote_host=host)
        try:
            with trio.fail_after(self._config.admission_timeout_s):
                return await upgrade_dialed(raw, self._credentials, peer)
        except trio.TooSlowError:
            await raw.close()
            raise TransportError(f"no admission within {self._config.admission_timeout_s:g} s") from None
        except BaseException:
            await raw.close()
            raise

    # -- listening

    async def accept(self, listener: trio.abc.Listener[trio.SocketStream]) -> None:
        """Let peers in until cancelled."""
        await accept_forever(listener, self._offered)

    def _offered(self, stream: trio.SocketStream) -> None:
        self.counters.connections_offered += 1
        host = _remote_host(stream)
        if host is None or not self._has_room(host):
            self.counters.connections_turned_away += 1
            stream.socket.close()
            return
        # Counted here, not in its task: a burst must not pass before its first task has run.
        self._handshakes_made += 1
        handshake = _Handshake(host, trio.current_time(), trio.CancelScope())
        self._handshakes[self._handshakes_made] = handshake
        self._nursery.start_soon(self._let_in, stream, self._handshakes_made, handshake)

    def _has_room(self, host: str) -> bool:
        """Whether a newcomer may begin a handshake; one that dawdles is pushed out for it."""
        if self.connection_count() >= self._config.connections_max:
            return False
        of_host = [number for number, each in self._handshakes.items() if each.host == host]
        if len(of_host) >= self._config.handshakes_per_host_max:
            oldest = of_host[0]
        elif len(self._handshakes) >= self._config.handshakes_max:
            oldest = next(iter(self._handshakes))
        else:
            return True
        handshake = self._handshakes[oldest]
        if trio.current_time() - handshake.began_at_s < EVICTION_AGE_S:
            return False
        # Out of the count at once: two newcomers must not push out the same one and both stay.
        del self._handshakes[oldest]
        handshake.scope.cancel()
        return True

    async def _let_in(self, stream: trio.SocketStream, number: int, handshake: _Handshake) -> None:
        raw = TcpConnection(stream, dialed_here=False, remote_host=handshake.host)
        channel: SecuredConnection | None = None
        try:
            handshake.scope.deadline = handshake.began_at_s + self._config.admission_timeout_s
            with handshake.scope:
                channel = await upgrade_accepted(raw, self._credentials)
        except Stranger as error:
            self._refused(error, handshake.host)
        except (TransportError, RemoteProtocolError) as error:
            log.debug("a handshake from %s failed: %s", handshake.host, error)
        except Exception:  # boundary: a defect in one handshake ends that handshake, never the node.
            log.exception("a handshake from %s failed", handshake.host)
        finally:
            self._handshakes.pop(number, None)
            if channel is None:
                self.counters.handshakes_failed += 1
                await raw.close()
        if channel is not None:
            self.counters.connections_accepted += 1
            self._register(channel)

    def _refused(self, error: Stranger, host: str) -> None:
        self.counters.admissions_refused += 1
        now = trio.current_time()
        if now - self._blames_since_s > 60:
            self._blames_since_s, self._blames_counted = now, 0
        self._blames_counted += 1
        if self._blames_counted <= BLAMES_PER_MINUTE_MAX:
            self._blame.blame(error.peer, "admission", f"it dialed from {host} and did not prove the mesh key")

    # -- a connection's life

    def _register(self, channel: SecuredConnection) -> YamuxConnection:
        connection = YamuxConnection(channel, self._limits, self._stream_opened, self._violated)
        siblings = self._connections.setdefault(connection.peer, [])
        siblings.append(connection)
        # Those that are ending already leave the list a little later.
        for surplus in [each for each in siblings if not each.is_closed][:-CONNECTIONS_PER_PEER_MAX]:
            surplus.fail("the peer opened too many connections")
        self._nursery.start_soon(self._run_connection, connection)
        return connection

    async def _run_connection(self, connection: YamuxConnection) -> None:
        try:
            await connection.run()
        except Exception:  # boundary: a defect in one connection ends that connection, never the node.
            log.exception("the connection to %s failed", connection.peer)
        finally:
            siblings = self._connections.get(connection.peer, [])
            if connection in siblings:
                siblings.remove(connection)
                self.counters.sent_bytes += connection.sent_bytes
                self.counters.received_bytes += connection.received_bytes
            if not siblings:
                self._connections.pop(connection.peer, None)

    def _stream_opened(self, stream: YamuxStream) -> None:
        connection = stream.muxed_conn
        if self._streams_served[connection.peer] >= self._config.streams_per_peer_max:
            connection.queue_reset(stream)
            stream.break_off("too many streams of the peer are served")
            return
        self.counters.streams_accepted += 1
        # Counted until its handler is done: a peer that resets what it opens could else pile up handlers.
        self._streams_served[connection.peer] += 1
        self._nursery.start_soon(self._serve, connection, stream)

    async def _serve(self, connection: YamuxConnection, stream: YamuxStream) -> None:
        try:
            await self._serve_stream(connection, stream)
        finally:
            self._streams_served[connection.peer] -= 1
            if not self._streams_served[connection.peer]:
                del self._streams_served[connection.peer]

    def _violated(self, peer: PeerId, detail: str) -> None:
        self.counters.violations += 1
        self._blame.blame(peer, "protocol", detail)

    async def drop(self, peer: PeerId) -> None:
        """Close every connection to a peer."""
        for connection in list(self._connections.get(peer, ())):
            await connection.close()

    async def tidy(self) -> None:
        """Until cancelled, close what simultaneous dials left over: unused connections beside the chosen one."""
        while True:
            await trio.sleep(TIDY_INTERVAL_S)
            for peer in [each for each, siblings in self._connections.items() if len(siblings) > 1]:
                # One end tidies, so that the two never close each other's choice.
                if self._credentials.peer < peer:
                    for spare in self.connections_of(peer)[1:]:
                        if not spare.stream_count() and trio.current_time() - spare.used_at_s > SIMULTANEOUS_S:
                            spare.fail("another connection to the peer is open")


def _remote_host(stream: trio.SocketStream) -> str | None:
    try:
        return str(stream.socket.getpeername()[0])
    except OSError:
        # It hung up before it was looked at.
        return None
