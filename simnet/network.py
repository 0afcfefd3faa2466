"""A network in memory: the twin of the libp2p transport, under any clock of Trio.

Streams carry frames in order, delayed as `Conditions` says, wait for slow readers as the real ones do, and break as the
real ones break: when a side aborts, when a node goes, when a partition lasts too long. No real socket, no sleep but
on Trio's clock.
"""

import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import attrs
import trio

from node.background import open_background
from node.blame import BlameLedger
from node.ports import AdmissionError, Door, Stream, StreamHandler, TransportError
from node.transport.serving import serve_stream
from protocols.errors import LocalProtocolError
from protocols.ids import PeerId, short_peer
from simnet.conditions import Conditions, Quality
from simnet.pipe import WINDOW_SIZE_BYTES, Pipe
from simnet.stream import SimStream
from simnet.wire import Lane, Wire


@attrs.define(eq=False)
class _Link:
    """The connection between two nodes that admit each other, and its streams."""

    ends: tuple["SimTransport", "SimTransport"]
    streams: dict[int, tuple[SimStream, SimStream]] = attrs.field(factory=dict)


class SimNetwork:
    """All hosts and links, and what lies between them: `conditions`, by default the two figures given.

    `latency_s` is one way; `jitter_s` adds up to that much per frame, drawn from `rng`. `queue_s` is how long the
    queue before a limited link grows. `send_buffer_bytes` is what a stream may leave with its host when a send returns,
    `window_size_bytes` what it has unread and on its way besides. Sizes and rates are those of declared bytes.
    """

    def __init__(
        self,
        rng: random.Random,
        latency_s: float = 0.0,
        jitter_s: float = 0.0,
        *,
        conditions: Conditions | None = None,
        queue_s: float = 0.1,
        segment_size_bytes: int = 64 * 1024,
        window_size_bytes: int = WINDOW_SIZE_BYTES,
        send_buffer_bytes: int = 256 * 1024,
    ) -> None:
        usual = Quality(latency_s=latency_s, jitter_s=jitter_s)
        self.conditions = conditions if conditions is not None else Conditions(usual)
        self.conditions.listen(self._changed)
        self._rng = rng
        self._queue_s = queue_s
        self._segment_size_bytes = segment_size_bytes
        self._window_size_bytes = window_size_bytes
        self.send_buffer_bytes = send_buffer_bytes
        self._hosts: dict[str, SimTransport] = {}
        self._links: dict[tuple[PeerId, PeerId], _Link] = {}
        self._hosts_made = 0
        self._streams_made = 0
        self._mended = trio.Event()
        self.on_frame: Callable[[PeerId, PeerId, int], object] | None = None
        self.on_chunk: Callable[[PeerId, PeerId, int], object] | None = None

    @asynccontextmanager
    async def transport(
        self,
        peer_id: PeerId,
        door: Door,
        blame: BlameLedger | None = None,
        *,
        address: str = "",
        up_bytes_per_s: float | None = None,
        down_bytes_per_s: float | None = None,
    ) -> AsyncIterator["SimTransport"]:
        """A host on this network until the block ends; then every stream of it breaks, as when a process dies.

        `address` is the one of an earlier life, by default one that nobody had. The rates limit its link.
        """
        self._hosts_made += 1
        number = self._hosts_made
        address = address or f"/ip4/10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}/tcp/4701"
        async with open_background() as nursery:
            wire = Wire(nursery, up_bytes_per_s, down_bytes_per_s, self._queue_s, self._segment_size_bytes)
            self._slow(peer_id, wire)
            host = SimTransport(self, peer_id, door, blame, address, nursery, wire)
            self._hosts[address] = host
            try:
                yield host
            finally:
                if self._hosts.get(address) is host:
                    del self._hosts[address]
                for link in self._links_of(peer_id):
                    self._break(link, f"peer {peer_id} is gone")
                wire.close(f"peer {peer_id} is gone")

    def cut(self, one: PeerId, other: PeerId) -> None:
        """No stream passes between two hosts from now on; their connection breaks when that lasts `CUT_BREAKS_S`."""
        self.conditions.partition([one], [other], datagrams=False)

    def mend(self, one: PeerId, other: PeerId) -> None:
        """What a cut held back arrives now."""
        self.conditions.repair([one], [other], datagrams=False)

    def vanish(self, host: "SimTransport") -> None:
        """A host's process dies here and now: its streams break, and nothing that its tasks still do gets out."""
        self._hosts = {address: each for address, each in self._hosts.items() if each is not host}
        for link in self._links_of(host.peer_id):
            self._break(link, f"peer {host.peer_id} is gone")

    def stream_count(self) -> int:
        """How many streams there are now."""
        return sum(len(link.streams) for link in self._links.values())

    def delay_s(self, sender: PeerId, receiver: PeerId) -> float:
        """One draw of how long a frame travels."""
        return self.conditions.stream_delay_s(self._rng, sender, receiver)

    def _changed(self) -> None:
        """Conditions are others now: whoever waits looks again."""
        mended, self._mended = self._mended, trio.Event()
        mended.set()
        for host in self._hosts.values():
            self._slow(host.peer_id, host.wire)
        for link in list(self._links.values()):
            for pair in list(link.streams.values()):
                for stream in pair:
                    stream.wake()

    def _slow(self, peer: PeerId, wire: Wire) -> None:
        slowness = self.conditions.slowness(peer)
        wire.slowed = slowness.factor if slowness is not None else 1.0

    def _apart(self, one: PeerId, other: PeerId) -> bool:
        return not (self.conditions.arrives(one, other) and self.conditions.arrives(other, one))

    def _links_of(self, peer: PeerId) -> list[_Link]:
        return [link for pair, link in self._links.items() if peer in pair]

    def _break(self, link: _Link, why: str) -> None:
        self._links.pop(_pair(link.ends[0].peer_id, link.ends[1].peer_id), None)
        for pair in list(link.streams.values()):
            for stream in pair:
                stream.break_off(why)
        link.streams.clear()

    async def _travel(self, one: PeerId, other: PeerId, trips: int) -> None:
        """Wait as long as `trips` messages to and fro take; while either way is shut or held, wait for its end."""
        while self._apart(one, other):
            await self._mended.wait()
        ways = [(one, other), (other, one)]
        await trio.sleep(sum(self.delay_s(*ways[trip % 2]) for trip in range(trips)))

    async def _connect(self, dialer: "SimTransport", peer: PeerId, addresses: Sequence[str]) -> _Link:
        link = self._links.get(_pair(dialer.peer_id, peer))
        if link is not None and not self._apart(dialer.peer_id, peer):
            return link
        await self._travel(dialer.peer_id, peer, 4)
        listener = next(
            (self._hosts[a] for a in addresses if a in self._hosts and self._hosts[a].peer_id == peer), None
        )
        if listener is None:
            raise TransportError(f"peer {peer} answers at none of {', '.join(addresses)}")
        # Somebody else may have connected the two while we travelled: one connection a pair.
        link = self._links.get(_pair(dialer.peer_id, peer))
        if link is None:
            _admit(dialer, listener)
            link = self._links[_pair(dialer.peer_id, peer)] = _Link((dialer, listener))
        return link

    async def _open(self, dialer: "SimTransport", peer: PeerId, protocol: str, addresses: Sequence[str]) -> SimStream:
        link = await self._connect(dialer, peer, addresses)
        await self._travel(dialer.peer_id, peer, 2)
        if self._links.get(_pair(dialer.peer_id, peer)) is not link:
            raise TransportError(f"the connection to {peer} closed while a stream was opened")
        listener = link.ends[1] if link.ends[0] is dialer else link.ends[0]
        handler = listener.handler_of(protocol)
        if handler is None:
            raise TransportError(f"peer {peer} does not serve {protocol}")
        there, back = Pipe(self._window_size_bytes), Pipe(self._window_size_bytes)
        self._streams_made += 1
        number = self._streams_made
        forget: Callable[[], object] = lambda: link.streams.pop(number, None)  # noqa: E731
        near = SimStream(self, dialer.peer_id, peer, back, dialer.lane(there, listener), forget)
        far = SimStream(self, peer, dialer.peer_id, there, listener.lane(back, dialer), forget)
        link.streams[number] = (near, far)
        listener.start_handler(handler, far)
        return near


def _pair(one: PeerId, other: PeerId) -> tuple[PeerId, PeerId]:
    return (one, other) if one < other else (other, one)


def _admit(dialer: "SimTransport", listener: "SimTransport") -> None:
    """The exchange of `node.transport.admission`, without its bytes: dialer proves first, listener answers."""
    nonces = dialer.door.challenge() + listener.door.challenge()
    proof = dialer.door.proof("dialer", dialer.peer_id, listener.peer_id, nonces)
    if not listener.door.admits("dialer", dialer.peer_id, listener.peer_id, nonces, proof):
        listener.refused(dialer.peer_id)
        raise AdmissionError(f"peer {listener.peer_id} does not admit this node: the mesh keys differ")
    answer = listener.door.proof("listener", listener.peer_id, dialer.peer_id, nonces)
    if not dialer.door.admits("listener", listener.peer_id, dialer.peer_id, nonces, answer):
        dialer.refused(listener.peer_id)
        raise AdmissionError(f"peer {listener.peer_id} did not prove the mesh key")


class SimTransport:
    """One host's `node.ports.Transport`."""

    def __init__(
        self,
        network: SimNetwork,
        peer_id: PeerId,
        door: Door,
        blame: BlameLedger | None,
        address: str,
        nursery: trio.Nursery,
        wire: Wire,
    ) -> None:
        self.peer_id = peer_id
        self.door = door
        self.wire = wire
        self._network = network
        self._blame = blame
        self._address = address
        self._nursery = nursery
        self._known: dict[PeerId, tuple[str, ...]] = {}
        self._handlers: dict[str, StreamHandler] = {}

    def learn(self, peer: PeerId, addresses: Sequence[str]) -> None:
        """Remember where a peer listens, replacing what was known."""
        self._known[peer] = tuple(addresses)

    async def open(self, peer: PeerId, protocol: str, *, timeout_s: float) -> Stream:
        """A new stream to a learned peer; errors as `node.ports.Transport.open` says."""
        await trio.lowlevel.checkpoint()
        if self not in self._network._hosts.values():
            raise TransportError("this host is dead")
        if peer == self.peer_id:
            raise TransportError(f"peer {peer} is this node itself")
        addresses = self._known.get(peer)
        if not addresses:
            raise TransportError(f"no address of peer {peer} is known")
        with trio.move_on_after(timeout_s):
            return await self._network._open(self, peer, protocol, addresses)
        raise TransportError(f"peer {peer} did not answer within {timeout_s:g} s")

    def serve(self, protocol: str, handler: StreamHandler) -> None:
        """Hand every inbound stream of this protocol id to the handler."""
        if not protocol.startswith("/"):
            raise LocalProtocolError(f"{protocol!r} is no protocol id: it begins with /")
        self._handlers[protocol] = handler

    async def drop(self, peer: PeerId) -> None:
        """Close the connection to a peer, if there is one."""
        await trio.lowlevel.checkpoint()
        link = self._network._links.get(_pair(self.peer_id, peer))
        if link is not None:
            self._network._break(link, f"{short_peer(self.peer_id)} closed the connection")

    def addresses(self) -> list[str]:
        """This host's one address."""
        return [self._address]

    def limit(self, *, up_bytes_per_s: float | None, down_bytes_per_s: float | None) -> None:
        """Change the rates of this host's link, None for no limit; what is under way keeps its order."""
        self.wire.limit(up_bytes_per_s, down_bytes_per_s)

    def lane(self, pipe: Pipe, to: "SimTransport") -> Lane:
        """The way of one direction of a stream from this host to another."""
        return Lane(pipe, self.wire, to.wire)

    def handler_of(self, protocol: str) -> StreamHandler | None:
        """Who serves a protocol here."""
        return self._handlers.get(protocol)

    def refused(self, peer: PeerId) -> None:
        """Count a peer that did not prove the mesh key."""
        if self._blame is not None:
            self._blame.blame(peer, "admission", "it did not prove the mesh key")

    def start_handler(self, handler: StreamHandler, stream: SimStream) -> None:
        """Serve one inbound stream in a task of this host."""
        self._nursery.start_soon(serve_stream, handler, stream, self._blame)
