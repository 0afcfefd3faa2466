"""Datagrams in memory: the twin of the UDP socket, under any clock of Trio. The seals are the real ones."""

import heapq
import itertools
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio

from node.identity import Identity
from node.ports import Door
from protocols.datagram import LIFE_SIZE_BYTES, PAYLOAD_SIZE_BYTES_MAX, DatagramRefused, Sealer
from protocols.ids import PeerId

QUEUE_LENGTH_MAX = 1024


class SimDatagramNetwork:
    """All sockets. `latency_s` is one way, `jitter_s` adds up to that much, `loss` is the share that never arrives."""

    def __init__(self, rng: random.Random, latency_s: float = 0.0, loss: float = 0.0, jitter_s: float = 0.0) -> None:
        self.loss = loss
        self._rng = rng
        self._latency_s = latency_s
        self._jitter_s = jitter_s
        self._sockets: dict[str, SimDatagrams] = {}
        self._cut: dict[tuple[str, str], None] = {}
        self._blocked: dict[str, None] = {}
        self._opened = 0
        self.on_datagram: Callable[[PeerId, PeerId, int], object] | None = None

    @asynccontextmanager
    async def datagrams(self, identity: Identity, door: Door) -> AsyncIterator["SimDatagrams"]:
        """A socket on this network until the block ends."""
        self._opened += 1
        number = self._opened
        address = f"/ip4/10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}/udp/4701"
        # The sequence begins anew above that of every earlier life, as the wall clock does it for real sockets.
        sealer = Sealer(
            identity.seed, identity.public_key, door.datagram_key, number << 32, self._rng.randbytes(LIFE_SIZE_BYTES)
        )
        self._sockets[address] = SimDatagrams(self, identity.peer_id, address, sealer)
        try:
            yield self._sockets[address]
        finally:
            del self._sockets[address]

    def cut(self, one: PeerId, other: PeerId) -> None:
        """Nothing passes between two peers from now on."""
        self._cut[min(one, other), max(one, other)] = None

    def mend(self, one: PeerId, other: PeerId) -> None:
        """Undo a cut."""
        self._cut.pop((min(one, other), max(one, other)), None)

    def block(self, peer: PeerId) -> None:
        """No datagram from or to a peer passes, as behind a firewall that drops UDP."""
        self._blocked[peer] = None

    def unblock(self, peer: PeerId) -> None:
        """Undo a block."""
        self._blocked.pop(peer, None)

    def carry(self, sender: PeerId, address: str, datagram: bytes) -> None:
        """Let raw bytes travel; whoever receives at the address judges them."""
        receiver = self._sockets.get(address)
        if receiver is None or sender in self._blocked or receiver.peer_id in self._blocked:
            return
        if self.on_datagram is not None:
            self.on_datagram(sender, receiver.peer_id, len(datagram))
        pair = (min(sender, receiver.peer_id), max(sender, receiver.peer_id))
        if pair in self._cut or (self.loss and self._rng.random() < self.loss):
            return
        jitter_s = self._rng.random() * self._jitter_s if self._jitter_s else 0.0
        receiver.arrive(trio.current_time() + self._latency_s + jitter_s, datagram)


class SimDatagrams:
    """One peer's `node.ports.Datagrams`. One task receives."""

    def __init__(self, network: SimDatagramNetwork, peer_id: PeerId, address: str, sealer: Sealer) -> None:
        self.peer_id = peer_id
        self._network = network
        self._address = address
        self._sealer = sealer
        self._under_way: list[tuple[float, int, bytes]] = []
        self._serial = itertools.count()
        self._news = trio.Event()
        self._counts: Counter[str] = Counter()

    def send(self, to: PeerId, address: str, payload: bytes) -> None:
        """Seal and send."""
        datagram = self._sealer.seal(to, payload)
        self._counts["sent"] += 1
        self._network.carry(self.peer_id, address, datagram)

    def arrive(self, at: float, datagram: bytes) -> None:
        """Raw bytes reach this socket at a time; lost when too many are under way."""
        if len(self._under_way) >= QUEUE_LENGTH_MAX:
            self._counts["overflow"] += 1
            return
        heapq.heappush(self._under_way, (at, next(self._serial), datagram))
        self._news.set()

    async def receive(self) -> tuple[PeerId, bytes]:
        """The next authentic payload and its sender. Cancelling loses nothing."""
        await trio.lowlevel.checkpoint()
        while True:
            self._news = trio.Event()
            due = self._under_way[0][0] if self._under_way else float("inf")
            if due > trio.current_time():
                with trio.move_on_at(due):
                    await self._news.wait()
                continue
            _, _, datagram = heapq.heappop(self._under_way)
            try:
                opened = self._sealer.open(datagram)
            except DatagramRefused as refused:
                self._counts[refused.reason] += 1
                continue
            self._counts["received"] += 1
            return opened

    def address(self) -> str:
        """Where this socket receives."""
        return self._address

    def payload_size_bytes_max(self) -> int:
        """As for real sockets."""
        return PAYLOAD_SIZE_BYTES_MAX

    def statistics(self) -> dict[str, int]:
        """Counts by the names of the real socket's statistics."""
        return dict(self._counts)
