"""The stream transport of a node: TCP, Noise, the door, yamux and multistream-select, as libp2p specifies them.

`Libp2pTransport` is `node.ports.Transport`. This room is the only one that imports libp2p: keys, the Noise handshake
and the host under the Kad-DHT are py-libp2p's; what its swarm and muxer get wrong is written anew beside this file.
"""

import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial

import trio
from libp2p.host.basic_host import BasicHost

from node.background import open_background
from node.blame import BlameLedger
from node.errors import UsageError
from node.identity import Identity
from node.ports import Door, Stream, StreamHandler, TransportError
from node.transport import multistream
from node.transport.addresses import announced_addresses, tcp_target
from node.transport.config import NetworkConfig
from node.transport.host import HostNetwork, make_host
from node.transport.multistream import ProtocolRefused
from node.transport.network import Network
from node.transport.serving import serve_stream
from node.transport.statistics import TransportStatistics
from node.transport.streams import FramedStream
from node.transport.upgrade import Credentials, make_credentials
from node.transport.yamux import YamuxConnection
from node.transport.yamux_stream import YamuxStream
from protocols.errors import LocalProtocolError, RemoteProtocolError
from protocols.ids import PeerId

log = logging.getLogger("herd.transport")

NEGOTIATION_TIMEOUT_S = 10.0
"""How long a peer may take to say which protocol its stream is for."""

SILENCE_S = 3.0
"""A connection on which nothing at all came while an open waited this long is given up, so the next one redials."""

PEERS_LEARNED_MAX = 65536


class Libp2pTransport:
    """Streams to and from admitted peers. Made by `open_libp2p_transport`; `host` is for services of py-libp2p."""

    def __init__(
        self,
        credentials: Credentials,
        config: NetworkConfig,
        blame: BlameLedger,
        nursery: trio.Nursery,
        addresses: Callable[[], list[str]],
    ) -> None:
        self.peer_id: PeerId = credentials.peer
        self._blame = blame
        self._addresses = addresses
        self._known: dict[PeerId, tuple[str, ...]] = {}
        self._handlers: dict[str, StreamHandler] = {}
        self._network = Network(credentials, config, blame, nursery, self._serve_inbound)
        self._host_network = HostNetwork(
            self._network, credentials, addresses(), lambda peer: self._known.get(peer, ()), nursery
        )
        self.host: BasicHost = make_host(self._host_network)

    def learn(self, peer: PeerId, addresses: Sequence[str]) -> None:
        """Remember where a peer listens (multiaddr texts without `/p2p/`), replacing what was known."""
        known = tuple(addresses)
        if self._known.pop(peer, None) != known:
            self._host_network.learn(peer, known)
        self._known[peer] = known
        if len(self._known) > PEERS_LEARNED_MAX:
            forgotten = next(iter(self._known))
            del self._known[forgotten]
            self._host_network.learn(forgotten, ())

    async def open(self, peer: PeerId, protocol: str, *, timeout_s: float) -> Stream:
        """A new stream to a learned peer, connecting first where needed; errors as `node.ports.Transport` says."""
        began_at_s = trio.current_time()
        with trio.move_on_after(timeout_s):
            return await self._open(peer, protocol)
        self._give_up_silent(peer, began_at_s)
        raise TransportError(f"peer {peer} did not answer within {timeout_s:g} s")

    def serve(self, protocol: str, handler: StreamHandler) -> None:
        """Hand every inbound stream of this protocol id to the handler."""
        if not protocol.startswith("/"):
            raise LocalProtocolError(f"{protocol!r} is no protocol id: it begins with /")
        self._handlers[protocol] = handler

    async def drop(self, peer: PeerId) -> None:
        """Close every connection to a peer, if there is any."""
        await self._network.drop(peer)

    def addresses(self) -> list[str]:
        """Where this node listens now: multiaddr texts without `/p2p/`, never 0.0.0.0; interfaces come and go."""
        return self._addresses()

    def hosts_of(self, peer: PeerId) -> list[str]:
        """Under which hosts a peer is reached: where it is connected now, then all that it announces."""
        connected = [connection.remote_host for connection in self._network.connections_of(peer)]
        announced = [tcp_target(address)[0] for address in self._known.get(peer, ())]
        return list(dict.fromkeys([*connected, *announced]))

    def statistics(self) -> TransportStatistics:
        """What is open now, and totals since the node started."""
        sent_bytes, received_bytes = self._network.transferred_bytes()
        counters = self._network.counters
        return TransportStatistics(
            connections=self._network.connection_count(),
            handshakes=self._network.handshake_count(),
            streams=self._network.stream_count(),
            connections_dialed=counters.connections_dialed,
            connections_offered=counters.connections_offered,
            connections_accepted=counters.connections_accepted,
            connections_turned_away=counters.connections_turned_away,
            dials_failed=counters.dials_failed,
            dials_refused=counters.dials_refused,
            handshakes_failed=counters.handshakes_failed,
            admissions_refused=counters.admissions_refused,
            streams_opened=counters.streams_opened,
            streams_accepted=counters.streams_accepted,
            violations=counters.violations,
            sent_bytes=sent_bytes,
            received_bytes=received_bytes,
        )

    async def run(self, listeners: Sequence[trio.SocketListener]) -> None:
        """Let peers in and keep connections tidy until cancelled."""
        async with trio.open_nursery() as nursery:
            for listener in listeners:
                nursery.start_soon(self._network.accept, listener)
            nursery.start_soon(self._network.tidy)

    async def _open(self, peer: PeerId, protocol: str) -> Stream:
        if peer == self.peer_id:
            raise TransportError(f"peer {peer} is this node itself")
        while True:
            standing = bool(self._network.connections_of(peer))
            addresses = self._known.get(peer, ())
            if not standing and not addresses:
                raise TransportError(f"no address of peer {peer} is known")
            connection = await self._network.connect(peer, addresses)
            try:
                return await self._open_on(connection, protocol)
            except ProtocolRefused:
                raise TransportError(f"peer {peer} does not serve {protocol}") from None
            except TransportError:
                # A connection that stood may have been dead without our knowing; a fresh one may not.
                if not standing or not connection.is_closed:
                    raise

    async def _open_on(self, connection: YamuxConnection, protocol: str) -> Stream:
        stream = connection.open_stream()
        try:
            await multistream.propose(stream, protocol)
        except RemoteProtocolError as error:
            await stream.reset()
            self._blame.blame(connection.peer, "protocol", str(error))
            raise TransportError(f"peer {connection.peer} broke the protocol: {error}") from error
        except BaseException:
            await stream.reset()
            raise
        self._network.counters.streams_opened += 1
        return FramedStream(stream, connection.peer)

    def _give_up_silent(self, peer: PeerId, began_at_s: float) -> None:
        if trio.current_time() - began_at_s < SILENCE_S:
            return
        for connection in self._network.connections_of(peer):
            if connection.received_at_s < began_at_s:
                connection.fail("the peer did not answer")

    async def _serve_inbound(self, connection: YamuxConnection, stream: YamuxStream) -> None:
        protocol = await self._negotiate(connection.peer, stream)
        if protocol is None:
            await stream.reset()
        elif protocol in self._handlers:
            await serve_stream(self._handlers[protocol], FramedStream(stream, connection.peer), self._blame)
        else:
            await self._serve_library(connection.peer, stream, protocol)

    async def _negotiate(self, peer: PeerId, stream: YamuxStream) -> str | None:
        try:
            with trio.move_on_after(NEGOTIATION_TIMEOUT_S):
                return await multistream.answer(stream, self._serves)
        except RemoteProtocolError as error:
            self._blame.blame(peer, "protocol", str(error))
        except TransportError as error:
            log.debug("a stream of %s broke off in its negotiation: %s", peer, error)
        return None

    def _serves(self, protocol: str) -> bool:
        return protocol in self._handlers or protocol in self.host.multiselect.handlers

    async def _serve_library(self, peer: PeerId, stream: YamuxStream, protocol: str) -> None:
        try:
            handler = self.host.multiselect.handlers.get(protocol)
            if handler is not None:
                await handler(self._host_network.wrap(stream, protocol))
                # A service that forgot to close its stream must not leave it open.
                stream.finish()
                await FramedStream(stream, peer).linger()
        except Exception as error:  # boundary: a library's handler ends its stream, never the node.
            log.info("a stream of %s for %s failed: %s: %s", peer, protocol, type(error).__name__, error)
        finally:
            await stream.reset()


@asynccontextmanager
async def open_libp2p_transport(
    identity: Identity, door: Door, config: NetworkConfig, blame: BlameLedger
) -> AsyncIterator[Libp2pTransport]:
    """Listen on `config.host` and `config.port` and serve until the block ends; then everything is closed.

    UsageError naming address and remedy when the port cannot be listened on.
    """
    try:
        listeners = await trio.open_tcp_listeners(config.port, host=config.host)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UsageError(
            f"cannot listen on {config.host} port {config.port}: {reason}; choose another with --host and --port"
        ) from error
    try:
        port = listeners[0].socket.getsockname()[1]
        addresses = partial(announced_addresses, config.host, port, config.advertise)
        async with open_background() as nursery:
            transport = Libp2pTransport(make_credentials(identity, door), config, blame, nursery, addresses)
            nursery.start_soon(transport.run, listeners)
            yield transport
    finally:
        for listener in listeners:
            listener.socket.close()
