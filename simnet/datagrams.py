"""Datagrams in memory: the twin of the UDP socket, under any clock of Trio. The seals are the real ones."""

import heapq
import itertools
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import attrs
import trio
from blake3 import blake3

from node.identity import Identity
from node.ports import Door
from protocols.datagram import LIFE_SIZE_BYTES, PAYLOAD_SIZE_BYTES_MAX, DatagramRefused, Sealer
from protocols.ids import PeerId, peer_id_from_public_key
from simnet.conditions import Conditions, Quality

QUEUE_LENGTH_MAX = 1024


class SimDatagramNetwork:
    """All sockets, and what lies between them: `conditions`, by default the three figures given.

    `latency_s` is one way, `jitter_s` adds up to that much, `loss` is the share that never arrives. Unless `sealed`,
    the keys of pairs cost no elliptic curve: for worlds so large that making them is most of the work.
    """

    def __init__(
        self,
        rng: random.Random,
        latency_s: float = 0.0,
        loss: float = 0.0,
        jitter_s: float = 0.0,
        *,
        conditions: Conditions | None = None,
        sealed: bool = True,
    ) -> None:
        usual = Quality(latency_s=latency_s, jitter_s=jitter_s, loss=loss)
        self.conditions = conditions if conditions is not None else Conditions(usual)
        self.conditions.listen(self._release)
        self._rng = rng
        self._sealer = Sealer if sealed else CheapSealer
        self._sockets: dict[str, SimDatagrams] = {}
        self._held: dict[tuple[PeerId, PeerId], list[tuple[str, bytes]]] = {}
        self._blocked: dict[str, None] = {}
        self._opened = 0
        self.on_datagram: Callable[[PeerId, PeerId, int], object] | None = None

    @property
    def loss(self) -> float:
        """The share of datagrams that never arrives, where nothing else is said."""
        return self.conditions.usual.loss

    @loss.setter
    def loss(self, share: float) -> None:
        self.conditions.usual = attrs.evolve(self.conditions.usual, loss=share)

    @asynccontextmanager
    async def datagrams(self, identity: Identity, door: Door) -> AsyncIterator["SimDatagrams"]:
        """A socket on this network until the block ends."""
        self._opened += 1
        number = self._opened
        address = f"/ip4/10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}/udp/4701"
        # The sequence begins anew above that of every earlier life, as the wall clock does it for real sockets.
        sealer = self._sealer(
            identity.seed, identity.public_key, door.datagram_key, number << 32, self._rng.randbytes(LIFE_SIZE_BYTES)
        )
        self._sockets[address] = SimDatagrams(self, identity.peer_id, address, sealer)
        try:
            yield self._sockets[address]
        finally:
            del self._sockets[address]

    def cut(self, one: PeerId, other: PeerId) -> None:
        """No datagram passes between two peers from now on."""
        self.conditions.partition([one], [other], streams=False)

    def mend(self, one: PeerId, other: PeerId) -> None:
        """Undo a cut."""
        self.conditions.repair([one], [other], streams=False)

    def block(self, peer: PeerId) -> None:
        """No datagram from or to a peer passes, as behind a firewall that drops UDP."""
        self._blocked[peer] = None

    def unblock(self, peer: PeerId) -> None:
        """Undo a block."""
        self._blocked.pop(peer, None)

    def carry(self, sender: PeerId, address: str, datagram: bytes) -> None:
        """Let raw bytes travel; whoever receives at the address judges them."""
        receiver = self._sockets.get(address)
        if receiver is None or (self._blocked and (sender in self._blocked or receiver.peer_id in self._blocked)):
            return
        if self.on_datagram is not None:
            self.on_datagram(sender, receiver.peer_id, len(datagram))
        for delay_s in self.conditions.datagram_delays_s(self._rng, sender, receiver.peer_id):
            if self.conditions.held(sender, receiver.peer_id):
                held = self._held.setdefault((sender, receiver.peer_id), [])
                if len(held) < QUEUE_LENGTH_MAX:
                    held.append((address, datagram))
            else:
                receiver.arrive(trio.current_time() + delay_s, datagram)

    def _release(self) -> None:
        """Let arrive what is held no longer."""
        for pair in [each for each in self._held if not self.conditions.held(*each)]:
            for address, datagram in self._held.pop(pair):
                receiver = self._sockets.get(address)
                if receiver is not None and receiver.peer_id not in self._blocked:
                    receiver.arrive(trio.current_time(), datagram)


class CheapSealer(Sealer):
    """Seals and refuses as the real one does, with keys that anybody could make."""

    def _pair(self, public_key: bytes, *, keep: bool = True) -> tuple[PeerId, bytes]:
        known = self._keys.get(public_key)
        if known is None:
            ends = min(public_key, self._public_key) + max(public_key, self._public_key)
            known = peer_id_from_public_key(public_key), blake3(self._hint + ends).digest()
            if keep:
                self._keep(public_key, *known)
        return known


class SimDatagrams:
    """One peer's `node.ports.Datagrams`. One task receives."""

    def __init__(self, network: SimDatagramNetwork, peer_id: PeerId, address: str, sealer: Sealer) -> None:
        self.peer_id = peer_id
        self._network = network
        self._address = address
        self._sealer = sealer
        self._under_way: list[tuple[float, int, bytes]] = []
        self._serial = itertools.count()
        self._waiting: trio.CancelScope | None = None
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
        # Who waits wakes when something is due and not before: most of what happens in a large world happens here.
        if self._waiting is not None and at < self._waiting.deadline:
            self._waiting.deadline = at

    async def receive(self) -> tuple[PeerId, bytes]:
        """The next authentic payload and its sender. Cancelling loses nothing."""
        waited = False
        while True:
            due = self._under_way[0][0] if self._under_way else float("inf")
            if due > trio.current_time():
                with trio.CancelScope(deadline=due) as self._waiting:
                    await trio.sleep_forever()
                self._waiting, waited = None, True
                continue
            if not waited:
                await trio.lowlevel.checkpoint()
                waited = True
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
