"""All limits of one node: which chunk may go now, or how long it has to wait.

A chunk stands under three limits of its direction: the node's, its peer's and its purpose's; it goes when none of the
three is in debt, and counts in all of them. Ask `wait_s`, let the chunk go, say `took`: with no wait in between, since
others ask too.
"""

import math
from collections.abc import Mapping

import attrs

from protocols.ids import PeerId
from protocols.limits.bucket import Bucket
from protocols.limits.config import LIMIT_KEYS, Direction, LimitsConfig, Purpose, peer_key, purpose_key
from protocols.limits.delays import Delays
from protocols.limits.periods import LocalTime
from protocols.limits.rates import RateInForce

PEERS_MAX = 4096
"""So many peers are counted, each way; past it the one that moved nothing for longest is forgotten."""


@attrs.frozen
class LimiterStatistics:
    """What the limits did, by direction. Bytes that went while nothing was limited are not counted."""

    counted_bytes: dict[str, int]
    delayed_bytes: dict[str, int]
    delayed_s: dict[str, float]
    peers: dict[str, int]


@attrs.frozen
class Waits:
    """How long a chunk has to wait for each of its three limits; 0.0 where it may go."""

    peer_s: float
    purpose_s: float
    node_s: float

    @property
    def longest_s(self) -> float:
        """How long it has to wait, if nothing else goes before."""
        return max(self.peer_s, self.purpose_s, self.node_s)


class _Way:
    """The buckets of one direction. Peers have one only while their limit is on."""

    def __init__(self, direction: Direction, now: float) -> None:
        self.direction = direction
        self.whole = Bucket(None, now)
        self.purposes = {purpose: Bucket(None, now) for purpose in Purpose}
        self.peers: dict[PeerId, Bucket] = {}
        self.peer_bytes_per_s: int | None = None
        self.unlimited = True
        self.counted_bytes = 0
        self.delays: Delays[tuple[PeerId, Purpose]] = Delays()

    def change(self, rates: Mapping[str, RateInForce], now: float) -> None:
        """Let these rates hold from now on."""
        self.whole.change(rates[self.direction.value].bytes_per_s, now)
        for purpose, bucket in self.purposes.items():
            bucket.change(rates[purpose_key(purpose, self.direction)].bytes_per_s, now)
        self.peer_bytes_per_s = rates[peer_key(self.direction)].bytes_per_s
        if self.peer_bytes_per_s is None:
            self.peers.clear()
        for bucket in self.peers.values():
            bucket.change(self.peer_bytes_per_s, now)
        keys = [self.direction.value, peer_key(self.direction), *(purpose_key(one, self.direction) for one in Purpose)]
        self.unlimited = all(rates[key].bytes_per_s is None for key in keys)
        self.delays.settle(now)
        if self.unlimited:
            # Who waited goes now, and `took` is not counted any more.
            self.delays.clear()

    def waits(self, peer: PeerId, purpose: Purpose, now: float) -> Waits:
        """How long the limits hold a chunk back; a peer that took nothing yet owes nothing and has no bucket."""
        of_peer = self.peers[peer].wait_s(now) if peer in self.peers else 0.0
        return Waits(of_peer, self.purposes[purpose].wait_s(now), self.whole.wait_s(now))

    def take(self, peer: PeerId, purpose: Purpose, size_bytes: int, now: float) -> None:
        """Count a chunk everywhere it belongs."""
        if self.peer_bytes_per_s is not None:
            # The order of the dict is that of the last use.
            bucket = self.peers.pop(peer) if peer in self.peers else Bucket(self.peer_bytes_per_s, now)
            self.peers[peer] = bucket
            if len(self.peers) > PEERS_MAX:
                del self.peers[next(iter(self.peers))]
            bucket.take(size_bytes, now)
        self.purposes[purpose].take(size_bytes, now)
        self.whole.take(size_bytes, now)
        self.counted_bytes += size_bytes
        self.delays.went((peer, purpose), size_bytes, now)


class Limiter:
    """The limits of one node, both ways. `now` is a clock that does not run backwards; the wall clock is told."""

    def __init__(self, config: LimitsConfig, local_time: LocalTime, now: float) -> None:
        self._local_time = local_time
        self._ways = {direction: _Way(direction, now) for direction in Direction}
        self._rates: dict[str, RateInForce] = {key: RateInForce(None) for key in LIMIT_KEYS}
        self.change(config, now)

    @property
    def config(self) -> LimitsConfig:
        """What is set now."""
        return self._config

    def unlimited(self, direction: Direction) -> bool:
        """Whether nothing at all is limited this way now, so that nobody needs to ask or to say what it took."""
        return self._ways[direction].unlimited

    def wait_s(self, direction: Direction, peer: PeerId, purpose: Purpose, now: float) -> float:
        """How long a chunk has to wait, if nothing else goes before; 0.0 when it may go now."""
        way = self._ways[direction]
        if way.unlimited:
            return 0.0
        wait_s = way.waits(peer, purpose, now).longest_s
        if wait_s > 0:
            way.delays.refused((peer, purpose), wait_s, now)
        return wait_s

    def waits(self, direction: Direction, peer: PeerId, purpose: Purpose, now: float) -> Waits:
        """The same for each limit, for who waits in line: say `waiting` first, then `took` or `gave_up`."""
        return self._ways[direction].waits(peer, purpose, now)

    def waiting(self, direction: Direction, peer: PeerId, purpose: Purpose, now: float) -> None:
        """Somebody waits from now on until it goes or gives up, however long that takes."""
        self._ways[direction].delays.refused((peer, purpose), math.inf, now)

    def gave_up(self, direction: Direction, peer: PeerId, purpose: Purpose, now: float) -> None:
        """Who was waiting waits no longer, and nothing went."""
        self._ways[direction].delays.gave_up((peer, purpose), now)

    def took(self, direction: Direction, peer: PeerId, purpose: Purpose, size_bytes: int, now: float) -> None:
        """A chunk goes now: its bytes count against the node's, the peer's and the purpose's limit."""
        if not self._ways[direction].unlimited:
            self._ways[direction].take(peer, purpose, size_bytes, now)

    def tell_time(self, local_time: LocalTime, now: float) -> bool:
        """What the wall clock shows; whether another rate is in force since."""
        self._local_time = local_time
        return self._settle(now)

    def change(self, config: LimitsConfig, now: float) -> bool:
        """Set other limits; whether another rate is in force since. What is owed to a limit stays owed."""
        self._config = config
        self._schedules = config.scheduled_rates()
        self._periods = config.parsed_periods()
        return self._settle(now)

    def forget(self, peer: PeerId) -> None:
        """A member is gone for good. Not for a stream that ended: who comes again would owe nothing."""
        for way in self._ways.values():
            way.peers.pop(peer, None)

    def rates(self) -> Mapping[str, RateInForce]:
        """What is in force now, by key of `LimitsConfig`."""
        return dict(self._rates)

    def statistics(self) -> LimiterStatistics:
        """Sums since the start, and how many peers are counted now."""
        ways = {direction.value: way for direction, way in self._ways.items()}
        return LimiterStatistics(
            counted_bytes={name: way.counted_bytes for name, way in ways.items()},
            delayed_bytes={name: way.delays.delayed_bytes for name, way in ways.items()},
            delayed_s={name: way.delays.delayed_s for name, way in ways.items()},
            peers={name: len(way.peers) for name, way in ways.items()},
        )

    def _settle(self, now: float) -> bool:
        holding = {period.name for period in self._periods if period.holds(self._local_time)}
        rates = {key: schedule.at(holding) for key, schedule in self._schedules.items()}
        changed = any(rates[key].bytes_per_s != earlier.bytes_per_s for key, earlier in self._rates.items())
        self._rates = rates
        if changed:
            for way in self._ways.values():
                way.change(rates, now)
        return changed
