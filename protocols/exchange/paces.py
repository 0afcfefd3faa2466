"""How fast each peer gives, how much may be asked of it, and when it is late: shared by all transfers of a node.

What may be asked follows bandwidth x delay: the best rate of the last chunks, times how long a chunk takes when nothing
was asked before it. Half of that again and two chunks (many, when they are small) lie ready at the peer, so that it
never runs dry; what waits longer at one peer others could have given.
"""

from collections import deque
from collections.abc import Hashable
from typing import Protocol

import attrs

from protocols.exchange.config import ExchangeConfig
from protocols.exchange.messages import DEFAULT_PURPOSE
from protocols.ids import PeerId

LATE_S = 30.0
"""How long a late peer is passed over where others hold the same chunk."""
AHEAD_FACTOR = 1.5
"""How many times bandwidth x delay is asked for: a rate that the window holds down can show itself, and is let grow."""
AHEAD_CHUNKS = 2
AHEAD_PART = 8
"""Small chunks lie ready by bytes: an eighth of what is asked at the start."""
SAMPLES = 8
"""Over how many chunks the best rate and the least delay are taken; a burst or a pause within moves neither."""
_WEIGHT = 0.3


@attrs.frozen
class _Want:
    asked_at_s: float
    ahead_bytes: int
    came_before_bytes: int


@attrs.define
class _Pace:
    window_bytes: int
    outstanding_bytes: int = 0
    outstanding_chunks: int = 0
    waiting_bytes: int = 0
    wants: deque[_Want] = attrs.field(factory=deque)
    since_s: float = 0.0
    came_bytes: int = 0
    rate_bytes_per_s: float | None = None
    rates_bytes_per_s: deque[float] = attrs.field(factory=lambda: deque(maxlen=SAMPLES))
    delays_s: deque[float] = attrs.field(factory=lambda: deque(maxlen=SAMPLES))
    delay_min_s: float = float("inf")
    late_until_s: float = float("-inf")
    hungry: dict[Hashable, int] = attrs.field(factory=dict)

    def measure(self, want: _Want, now: float) -> None:
        """Learn from a chunk that came: what came since it was asked, and how long it alone took."""
        elapsed_s = now - want.asked_at_s
        if elapsed_s <= 0:
            return
        rate = (self.came_bytes - want.came_before_bytes) / elapsed_s
        before = self.rate_bytes_per_s
        self.rate_bytes_per_s = rate if before is None else before + _WEIGHT * (rate - before)
        self.rates_bytes_per_s.append(rate)
        self.delay_min_s = min(self.delay_min_s, elapsed_s)
        # While too little is asked the rate looks low, and this too small; then the least ever seen stands.
        self.delays_s.append(elapsed_s - want.ahead_bytes / max(self.rates_bytes_per_s))

    def pipe_bytes(self) -> int:
        """What is on its way at a time when the peer is kept busy, and half of that again."""
        if not self.rates_bytes_per_s:
            return self.window_bytes
        return int(AHEAD_FACTOR * max(self.rates_bytes_per_s) * max(self.delay_min_s, min(self.delays_s)))


class Budget(Protocol):
    """What an operator's limits leave: asked before each want."""

    def allows(self, peer: PeerId, purpose: str) -> bool:
        """Whether a chunk may be asked of the peer now."""
        ...

    def asked(self, peer: PeerId, purpose: str, size_bytes: int) -> None:
        """A chunk was asked."""
        ...


class Paces:
    """Counts what is outstanding: `asked` once for each want, then `came` at most once, then `ended` exactly once."""

    def __init__(self, config: ExchangeConfig, budget: Budget | None = None) -> None:
        self._config = config
        self._budget = budget
        self._peers: dict[PeerId, _Pace] = {}
        self._outstanding_bytes = 0

    @property
    def outstanding_bytes(self) -> int:
        """What is asked of all peers and not yet stored."""
        return self._outstanding_bytes

    def outstanding_of(self, peer: PeerId) -> int:
        """The bytes asked of one peer and not yet stored."""
        return self._pace(peer).outstanding_bytes

    def rate_bytes_per_s_of(self, peer: PeerId) -> float | None:
        """How fast one peer gave lately while it was asked for something; None when it gave nothing yet."""
        pace = self._peers.get(peer)
        return None if pace is None else pace.rate_bytes_per_s

    def hunger(self, peer: PeerId, transfer: Hashable, priority: int) -> None:
        """A transfer would ask more of the peer; until `sated`, those of lower priority ask nothing of it."""
        self._pace(peer).hungry[transfer] = priority

    def sated(self, peer: PeerId, transfer: Hashable) -> None:
        """The transfer has nothing more to ask of the peer now."""
        pace = self._peers.get(peer)
        if pace is not None:
            pace.hungry.pop(transfer, None)

    def allows(
        self, peer: PeerId, size_bytes: int, now: float, priority: int = 0, purpose: str = DEFAULT_PURPOSE
    ) -> bool:
        """Whether a chunk of this size may be asked of the peer now, by a transfer of this priority and purpose."""
        return self._has_room(peer, size_bytes, now, priority) and (
            self._budget is None or self._budget.allows(peer, purpose)
        )

    def _has_room(self, peer: PeerId, size_bytes: int, now: float, priority: int) -> bool:
        pace = self._pace(peer)
        if pace.hungry and max(pace.hungry.values()) > priority:
            return False
        if self._outstanding_bytes and self._outstanding_bytes + size_bytes > self._config.receive_buffer_bytes:
            return False
        if pace.outstanding_chunks == 0:
            return True
        return (
            not self.is_late(peer, now)
            and pace.outstanding_chunks < self._config.outstanding_chunks_max
            and pace.outstanding_bytes + size_bytes <= self._config.outstanding_bytes_max
            and pace.waiting_bytes + size_bytes <= pace.window_bytes
        )

    def asked(self, peer: PeerId, size_bytes: int, now: float, purpose: str = DEFAULT_PURPOSE) -> None:
        """A chunk was asked of the peer."""
        if self._budget is not None:
            self._budget.asked(peer, purpose, size_bytes)
        pace = self._pace(peer)
        if not pace.wants:
            pace.since_s = now
        pace.wants.append(_Want(now, pace.waiting_bytes, pace.came_bytes))
        pace.waiting_bytes += size_bytes
        pace.outstanding_chunks += 1
        pace.outstanding_bytes += size_bytes
        self._outstanding_bytes += size_bytes

    def came(self, peer: PeerId, size_bytes: int, now: float) -> None:
        """A chunk asked of the peer came; it counts as outstanding until it has `ended`."""
        pace = self._pace(peer)
        pace.waiting_bytes -= size_bytes
        pace.came_bytes += size_bytes
        pace.since_s, pace.late_until_s = now, float("-inf")
        # Chunks come in the order they were asked, or nearly: which of the wants this one was hardly matters.
        pace.measure(pace.wants.popleft(), now)
        ready_bytes = max(AHEAD_CHUNKS * size_bytes, self._config.outstanding_start_bytes // AHEAD_PART)
        pace.window_bytes = min(self._config.outstanding_bytes_max, pace.pipe_bytes() + ready_bytes)

    def ended(self, peer: PeerId, size_bytes: int, *, came: bool) -> None:
        """A want is over: stored or thrown away when it `came`, else answered without a chunk or lost."""
        pace = self._pace(peer)
        if not came:
            pace.waiting_bytes -= size_bytes
            pace.wants.pop()  # Whatever is taken back was asked last.
        pace.outstanding_chunks -= 1
        pace.outstanding_bytes -= size_bytes
        self._outstanding_bytes -= size_bytes

    def notice_late(self, peer: PeerId, size_bytes: int, now: float) -> bool:
        """Whether the peer, asked for chunks of about this size, is late; once late it stays so for a while."""
        pace = self._pace(peer)
        if pace.wants and now - pace.since_s >= self.patience_s(peer, size_bytes):
            pace.late_until_s = now + LATE_S
            pace.window_bytes = min(pace.window_bytes, self._config.outstanding_start_bytes)
        return self.is_late(peer, now)

    def is_late(self, peer: PeerId, now: float) -> bool:
        """Whether the peer was late and has not given anything since."""
        return now < self._pace(peer).late_until_s

    def patience_s(self, peer: PeerId, size_bytes: int) -> float:
        """How long the peer may take for its next chunk."""
        rate = self._pace(peer).rate_bytes_per_s
        if rate is None:
            return self._config.straggler_first_s
        return max(self._config.straggler_min_s, self._config.straggler_factor * size_bytes / rate)

    def wait_s(self, peer: PeerId, size_bytes: int, now: float) -> float | None:
        """How long the peer will presumably take for this many bytes from now; None when its rate is unknown."""
        pace = self._pace(peer)
        if pace.rate_bytes_per_s is None:
            return None
        gone_s = now - pace.since_s if pace.wants else 0.0
        return max(0.0, size_bytes / pace.rate_bytes_per_s - gone_s)

    def forget(self, peer: PeerId) -> None:
        """Drop what is known of a peer that nothing is outstanding at."""
        pace = self._peers.get(peer)
        if pace is not None and pace.outstanding_chunks == 0 and not pace.hungry:
            del self._peers[peer]

    def _pace(self, peer: PeerId) -> _Pace:
        pace = self._peers.get(peer)
        if pace is None:
            start = min(self._config.outstanding_start_bytes, self._config.outstanding_bytes_max)
            pace = self._peers[peer] = _Pace(window_bytes=start)
        return pace
