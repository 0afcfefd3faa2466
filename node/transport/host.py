"""The libp2p host that library services (the Kad-DHT) run on, over the node's own connections.

It is py-libp2p's `BasicHost` with nothing of its own running: no swarm under it, no identify, no ping. What such a
service raises or leaves open ends with its stream.
"""

import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import trio
from libp2p.host.basic_host import BasicHost
from libp2p.network.exceptions import SwarmException
from libp2p.network.stream.exceptions import StreamEOF, StreamReset
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStore, PeerStoreError
from multiaddr import Multiaddr
from multiaddr.exceptions import MultiaddrError

from node.ports import TransportError
from node.transport.network import Network
from node.transport.upgrade import Credentials
from node.transport.yamux import YamuxConnection
from node.transport.yamux_stream import YamuxStream
from protocols.ids import PeerId

# Importing py-libp2p cuts its logger off from the process's handlers; its warnings are for whoever runs the node.
logging.getLogger("libp2p").propagate = True

ADDRESS_LIFE_S = 365 * 24 * 3600
"""Addresses are forgotten when membership replaces them, not by the peer store's clock."""

LINGER_S = 30.0

PEERS_MAX = 8192
"""How many peers' addresses are kept for services of the library."""

AddressesOf = Callable[[PeerId], Sequence[str]]


class LibraryStream:
    """A stream as py-libp2p's services know it (`INetStream`), with their errors."""

    def __init__(self, stream: YamuxStream, protocol: str | None, linger: Callable[[YamuxStream], object]) -> None:
        self.muxed_stream = stream
        self.muxed_conn = stream.muxed_conn
        self._protocol = protocol
        self._linger = linger

    def get_protocol(self) -> str | None:
        """The agreed protocol id."""
        return self._protocol

    def set_protocol(self, protocol_id: str) -> None:
        """Note the agreed protocol id."""
        self._protocol = protocol_id

    async def read(self, n: int | None = None) -> bytes:
        """1 to `n` bytes; StreamEOF at the end, StreamReset when the stream broke off."""
        try:
            data = await self.muxed_stream.read(n)
        except TransportError as error:
            raise StreamReset(str(error)) from error
        if not data:
            raise StreamEOF("the peer finished the stream")
        return data

    async def write(self, data: bytes) -> None:
        """Send all bytes; StreamReset when the stream broke off."""
        try:
            await self.muxed_stream.write(data)
        except TransportError as error:
            raise StreamReset(str(error)) from error

    async def close_write(self) -> None:
        """Nothing more is written; the answer can still be read."""
        await self.muxed_stream.close()

    async def close_read(self) -> None:
        """Nothing to do: unread bytes go with the stream."""
        await trio.lowlevel.checkpoint()

    async def close(self) -> None:
        """Finish; a peer that does not finish too is cut off after a while."""
        await self.muxed_stream.close()
        self._linger(self.muxed_stream)

    async def reset(self) -> None:
        """End both directions."""
        await self.muxed_stream.reset()

    def get_remote_address(self) -> tuple[str, int] | None:
        """The peer's host."""
        return self.muxed_stream.get_remote_address()


class _Listening:
    """The addresses of a listener, where a library looks for them."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self._addresses = [Multiaddr(each) for each in addresses]

    def get_addrs(self) -> list[Multiaddr]:
        """The announced addresses."""
        return list(self._addresses)


class PeerBook(PeerStore):  # type: ignore[misc]  # the library ships no types
    """The library's address book, but a full one forgets whom it has known longest.

    The library's own forgets the node's own key before all others, and sorts all it has for each newcomer.
    """

    def __init__(self, own: ID) -> None:
        super().__init__(max_peers=PEERS_MAX)
        self._own = own

    def forget(self, peer_id: ID) -> None:
        """Drop all that is known of another peer."""
        if peer_id != self._own and self.has_peer(peer_id):
            self.clear_peerdata(peer_id)

    def _enforce_peer_limit(self) -> None:
        while len(self.peer_data_map) > self.max_peers:
            self.forget(next(each for each in self.peer_data_map if each != self._own))


class HostNetwork:
    """What `BasicHost` and the services on it ask of a network, answered from the node's connections."""

    def __init__(
        self,
        network: Network,
        credentials: Credentials,
        addresses: Sequence[str],
        addresses_of: AddressesOf,
        nursery: trio.Nursery,
    ) -> None:
        self._network = network
        self._peer = ID.from_pubkey(credentials.key_pair.public_key)
        self._addresses_of = addresses_of
        self._nursery = nursery
        self.peerstore = PeerBook(self._peer)
        self.peerstore.add_key_pair(self._peer, credentials.key_pair)
        self.listeners = {"tcp": _Listening(addresses)}
        self.connection_config = None

    @property
    def connections(self) -> dict[ID, list[YamuxConnection]]:
        """Open connections by peer."""
        return {ID.from_base58(peer): self._network.connections_of(peer) for peer in self._network.peers()}

    def get_connections(self, peer_id: ID | None = None) -> list[YamuxConnection]:
        """Open connections, of one peer or all."""
        if peer_id is not None:
            return self._network.connections_of(PeerId(peer_id.to_base58()))
        return [each for siblings in self.connections.values() for each in siblings]

    def get_peer_id(self) -> ID:
        """This node."""
        return self._peer

    def set_stream_handler(self, stream_handler: Callable[[Any], Awaitable[None]]) -> None:
        """Not used: the transport negotiates inbound streams itself and takes the handlers from the multiselect."""

    def register_notifee(self, notifee: object) -> None:
        """Nobody is notified: what `BasicHost` would do then (identify) is not wanted."""

    async def dial_peer(self, peer_id: ID) -> list[YamuxConnection]:
        """Connect to a peer at its known addresses. SwarmException when that fails."""
        peer = PeerId(peer_id.to_base58())
        addresses = list(self._addresses_of(peer)) or self._stored_addresses(peer_id)
        try:
            return [await self._network.connect(peer, addresses)]
        except TransportError as error:
            raise SwarmException(str(error)) from error

    async def new_stream(self, peer_id: ID) -> LibraryStream:
        """A new stream, connecting first where needed. SwarmException when it does not come about."""
        connection = (await self.dial_peer(peer_id))[0]
        try:
            return self.wrap(connection.open_stream(), None)
        except TransportError as error:
            raise SwarmException(str(error)) from error

    def wrap(self, stream: YamuxStream, protocol: str | None) -> LibraryStream:
        """A stream in the form services of the library want."""
        return LibraryStream(stream, protocol, lambda closed: self._nursery.start_soon(self._end, closed))

    def learn(self, peer: PeerId, addresses: Sequence[str]) -> None:
        """Let services tell others where a peer listens."""
        try:
            peer_id = ID.from_base58(peer)
        except ValueError:
            # No peer id: nobody can be dialed under it, so there is nothing to tell.
            return
        known = []
        for address in addresses:
            try:
                known.append(Multiaddr(address))
            except (MultiaddrError, ValueError):
                # A form that this release of the library does not know: the peer stays reachable by its others.
                continue
        if known:
            self.peerstore.clear_addrs(peer_id)
            self.peerstore.add_addrs(peer_id, known, ADDRESS_LIFE_S)
        else:
            self.peerstore.forget(peer_id)

    def _stored_addresses(self, peer_id: ID) -> list[str]:
        try:
            return [str(each).split("/p2p/")[0] for each in self.peerstore.addrs(peer_id)]
        except PeerStoreError:
            return []

    async def _end(self, stream: YamuxStream) -> None:
        """A service that closed its stream reads no more; without this a peer could keep it open for ever."""
        with trio.move_on_after(LINGER_S):
            try:
                while await stream.read():
                    pass
            except TransportError:
                pass
        await stream.reset()


def make_host(network: HostNetwork) -> BasicHost:
    """A host on these connections that serves nothing yet."""
    host = BasicHost(network, default_protocols=OrderedDict({"/herd/none/1": None}))
    host.multiselect.handlers.clear()
    return host
