"""What lies between each two peers of a simulated network: distance, quality, partitions, holds, slow nodes.

One `Conditions` is asked by both networks, streams and datagrams, and changed while they run; the verbs are those of
turmoil. Whatever is drawn is drawn from the rng of who asks. While nothing is wrong, asking costs a look into an empty
dict or two.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product

import attrs
import trio

from protocols.errors import LocalProtocolError
from protocols.ids import PeerId

RETRANSMISSION_S = 0.2
"""How long the sender of a stream waits before it sends a lost frame again: Linux's least, RFC 6298 asks for 1 s."""

RETRANSMISSIONS_MAX = 6
"""The wait doubles each time; past so many in a row a stream would break, which loss alone never does here."""

Pair = tuple[PeerId, PeerId]
"""Sender and receiver."""


@attrs.frozen(kw_only=True)
class Quality:
    """One direction between two peers. `jitter_s` adds up to that much; loss, duplication, reordering are shares.

    A reordered datagram comes up to `reordering_s` later than it would. Of a stream, a lost frame is sent again, and
    nothing is ever doubled or out of order.
    """

    latency_s: float = 0.0
    jitter_s: float = 0.0
    loss: float = 0.0
    duplication: float = 0.0
    reordering: float = 0.0
    reordering_s: float = 0.05

    def __attrs_post_init__(self) -> None:
        if min(self.latency_s, self.jitter_s, self.reordering_s) < 0:
            raise LocalProtocolError("nothing arrives before it was sent: latency, jitter, reordering are not negative")
        if not all(0 <= share <= 1 for share in (self.loss, self.duplication, self.reordering)):
            raise LocalProtocolError("loss, duplication and reordering are shares: 0 to 1")


@attrs.frozen(kw_only=True)
class Slowness:
    """A node that takes `factor` times as long for whatever it sends and receives, and `delay_s` more."""

    factor: float = 1.0
    delay_s: float = 0.0


class Conditions:
    """Between peers that nothing is said about, `usual` holds; verbs take groups of peers and work at once."""

    def __init__(self, usual: Quality | None = None) -> None:
        self._usual = usual if usual is not None else Quality()
        self._region_of: dict[PeerId, str] = {}
        self._region_latency_s: dict[tuple[str, str], float] = {}
        self._changes: dict[Pair, dict[str, float]] = {}
        self._qualities: dict[Pair, Quality] = {}
        self._special = False
        self._slow: dict[PeerId, Slowness] = {}
        self._shut: tuple[dict[Pair, float], dict[Pair, float]] = ({}, {})
        self._held: dict[Pair, None] = {}
        self._listeners: list[Callable[[], object]] = []

    def listen(self, changed: Callable[[], object]) -> None:
        """Call this whenever a verb changed something."""
        self._listeners.append(changed)

    # Distance and quality

    @property
    def usual(self) -> Quality:
        """What holds wherever nothing else is said."""
        return self._usual

    @usual.setter
    def usual(self, quality: Quality) -> None:
        self._usual = quality
        self._changed_quality()

    def place(self, peer: PeerId, region: str) -> None:
        """Say where a peer is; by default it is nowhere, and the usual latency away from everybody."""
        self._region_of[peer] = region
        self._changed_quality()

    def distances(self, latency_s: Mapping[tuple[str, str], float]) -> None:
        """How far regions are from each other, one way; a pair not named backwards is as far that way."""
        backwards = {(other, one): far_s for (one, other), far_s in latency_s.items()}
        self._region_latency_s = {**backwards, **latency_s}
        self._changed_quality()

    def change(self, senders: Sequence[PeerId], receivers: Sequence[PeerId], **fields: float) -> None:
        """From each sender to each receiver, fields of `Quality` are these from now on; no fields: as usual again."""
        attrs.evolve(self._usual, **fields)
        for pair in _pairs(senders, receivers):
            if fields:
                self._changes.setdefault(pair, {}).update(fields)
            else:
                self._changes.pop(pair, None)
        self._changed_quality()

    def slow(self, peers: Sequence[PeerId], factor: float = 1.0, delay_s: float = 0.0) -> None:
        """Make nodes slow: all they send and receive takes `factor` times as long and `delay_s` more; (1, 0) undoes it.

        The rate of a slow node's link is divided by the factor too.
        """
        if factor < 1 or delay_s < 0:
            raise LocalProtocolError(f"a slow node is slower: factor {factor:g} < 1 or delay {delay_s:g} s < 0")
        for peer in peers:
            self._slow.pop(peer, None)
            if (factor, delay_s) != (1.0, 0.0):
                self._slow[peer] = Slowness(factor=factor, delay_s=delay_s)
        self._tell()

    def slowness(self, peer: PeerId) -> Slowness | None:
        """How slow a peer is, None when it is not."""
        return self._slow.get(peer)

    def quality(self, sender: PeerId, receiver: PeerId) -> Quality:
        """What holds from one peer to another."""
        if not self._special:
            return self._usual
        known = self._qualities.get((sender, receiver))
        if known is None:
            regions = (self._region_of.get(sender, ""), self._region_of.get(receiver, ""))
            fields = dict(self._changes.get((sender, receiver), {}))
            if regions in self._region_latency_s:
                fields.setdefault("latency_s", self._region_latency_s[regions])
            known = self._qualities[sender, receiver] = attrs.evolve(self._usual, **fields)
        return known

    # Partitions and holds

    def partition(
        self, one: Sequence[PeerId], other: Sequence[PeerId], *, streams: bool = True, datagrams: bool = True
    ) -> None:
        """Nothing passes between two groups, either way. Datagrams are lost; a stream breaks when it lasts."""
        self._part([*_pairs(one, other), *_pairs(other, one)], streams, datagrams)

    def partition_oneway(
        self, senders: Sequence[PeerId], receivers: Sequence[PeerId], *, streams: bool = True, datagrams: bool = True
    ) -> None:
        """Nothing passes from one group to another; the other way it does, until unanswered streams break."""
        self._part(list(_pairs(senders, receivers)), streams, datagrams)

    def repair(
        self, one: Sequence[PeerId], other: Sequence[PeerId], *, streams: bool = True, datagrams: bool = True
    ) -> None:
        """Undo every partition between two groups, either way. What streams had sent arrives now."""
        for shut, wanted in zip(self._shut, (streams, datagrams), strict=True):
            for pair in (*_pairs(one, other), *_pairs(other, one)) if wanted else ():
                shut.pop(pair, None)
        self._tell()

    def hold(self, one: Sequence[PeerId], other: Sequence[PeerId]) -> None:
        """Keep what two groups send each other from now on; nothing is lost and no stream breaks for it."""
        self._held.update(dict.fromkeys((*_pairs(one, other), *_pairs(other, one))))
        self._tell()

    def release(self, one: Sequence[PeerId], other: Sequence[PeerId]) -> None:
        """Let what was held arrive now, in the order in which it was sent."""
        for pair in (*_pairs(one, other), *_pairs(other, one)):
            self._held.pop(pair, None)
        self._tell()

    def calm(self) -> None:
        """The end of all faults: repair, release, nobody slow, and every changed quality as usual."""
        for shut in self._shut:
            shut.clear()
        self._held.clear()
        self._slow.clear()
        self._changes.clear()
        self._changed_quality()
        self._tell()

    @property
    def troubled(self) -> bool:
        """Whether any stream is shut or held."""
        return bool(self._shut[0] or self._held)

    def held(self, sender: PeerId, receiver: PeerId) -> bool:
        """Whether what one sends another is kept for now."""
        return (sender, receiver) in self._held

    def arrives(self, sender: PeerId, receiver: PeerId) -> bool:
        """Whether what a stream carries from one to another arrives now."""
        shut = self._shut[0]
        return not (shut and (sender, receiver) in shut) and not (self._held and (sender, receiver) in self._held)

    def shut_since(self, one: PeerId, other: PeerId) -> float | None:
        """Since when streams between two lack an answer, whichever way is shut; None when they do not."""
        shut = self._shut[0]
        if not shut:
            return None
        since_s = [at_s for at_s in (shut.get((one, other)), shut.get((other, one))) if at_s is not None]
        return min(since_s) if since_s else None

    # What happens to one message

    def stream_delay_s(self, rng: random.Random, sender: PeerId, receiver: PeerId) -> float:
        """How long a frame of a stream travels, with the times that it is lost and sent again."""
        quality = self.quality(sender, receiver)
        delay_s = quality.latency_s
        if quality.jitter_s:
            delay_s += rng.random() * quality.jitter_s
        if quality.loss:
            lost = 0
            while lost < RETRANSMISSIONS_MAX and rng.random() < quality.loss:
                delay_s += RETRANSMISSION_S * 2**lost
                lost += 1
        return self._slowed(delay_s, sender, receiver) if self._slow else delay_s

    def datagram_delays_s(self, rng: random.Random, sender: PeerId, receiver: PeerId) -> tuple[float, ...]:
        """How long each copy of a datagram travels that arrives, soonest first; none when it is lost."""
        shut = self._shut[1]
        if shut and (sender, receiver) in shut:
            return ()
        quality = self.quality(sender, receiver)
        if quality.loss and rng.random() < quality.loss:
            return ()
        delays_s = [self._datagram_delay_s(rng, quality, sender, receiver)]
        if quality.duplication and rng.random() < quality.duplication:
            delays_s.append(self._datagram_delay_s(rng, quality, sender, receiver))
            delays_s.sort()
        return tuple(delays_s)

    def _datagram_delay_s(self, rng: random.Random, quality: Quality, sender: PeerId, receiver: PeerId) -> float:
        delay_s = quality.latency_s
        if quality.jitter_s:
            delay_s += rng.random() * quality.jitter_s
        if quality.reordering and rng.random() < quality.reordering:
            delay_s += rng.random() * quality.reordering_s
        return self._slowed(delay_s, sender, receiver) if self._slow else delay_s

    def _slowed(self, delay_s: float, sender: PeerId, receiver: PeerId) -> float:
        for slowness in (self._slow.get(sender), self._slow.get(receiver)):
            if slowness is not None:
                delay_s = delay_s * slowness.factor + slowness.delay_s
        return delay_s

    def _part(self, pairs: Sequence[Pair], streams: bool, datagrams: bool) -> None:
        now = trio.current_time()
        for shut, wanted in zip(self._shut, (streams, datagrams), strict=True):
            for pair in pairs if wanted else ():
                shut.setdefault(pair, now)
        self._tell()

    def _changed_quality(self) -> None:
        self._qualities.clear()
        self._special = bool(self._changes or self._region_latency_s)

    def _tell(self) -> None:
        for changed in self._listeners:
            changed()


def _pairs(senders: Sequence[PeerId], receivers: Sequence[PeerId]) -> Iterator[Pair]:
    return ((sender, receiver) for sender, receiver in product(senders, receivers) if sender != receiver)
