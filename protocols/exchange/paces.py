"""How fast each peer gives, how much may be asked of it, and when it is late: shared by all transfers of a node.

The one place that later work changes to let outstanding bytes follow bandwidth x delay.
"""

import attrs

from protocols.exchange.config import ExchangeConfig
from protocols.ids import PeerId

LATE_S = 30.0
"""How long a late peer is passed over where others hold the same chunk."""
QUEUE_S = 0.5
"""How much is asked of a peer ahead, in seconds at its rate. What waits longer at one peer others could have given."""
_WEIGHT = 0.3


@attrs.define
class _Pace:
    window_bytes: int
    outstanding_bytes: int = 0
    outstanding_chunks: int = 0
    waiting_chunks: int = 0
    since_s: float = 0.0
    came_bytes: int = 0
    rate_bytes_per_s: float | None = None
    late_until_s: float = float("-inf")


class Paces:
    """Counts what is outstanding: `asked` once for each want, then `came` at most once, then `ended` exactly once."""

    def __init__(self, config: ExchangeConfig) -> None:
        self._config = config
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

    def allows(self, peer: PeerId, size_bytes: int, now: float) -> bool:
        """Whether a chunk of this size may be asked of the peer now."""
        pace = self._pace(peer)
        if self._outstanding_bytes and self._outstanding_bytes + size_bytes > self._config.receive_buffer_bytes:
            return False
        if pace.outstanding_chunks == 0:
            return True
        return (
            not self.is_late(peer, now)
            and pace.outstanding_chunks < self._config.outstanding_chunks_max
            and pace.outstanding_bytes + size_bytes <= pace.window_bytes
        )

    def asked(self, peer: PeerId, size_bytes: int, now: float) -> None:
        """A chunk was asked of the peer."""
        pace = self._pace(peer)
        if pace.waiting_chunks == 0:
            pace.since_s, pace.came_bytes = now, 0
        pace.waiting_chunks += 1
        pace.outstanding_chunks += 1
        pace.outstanding_bytes += size_bytes
        self._outstanding_bytes += size_bytes

    def came(self, peer: PeerId, size_bytes: int, now: float) -> None:
        """A chunk asked of the peer came; it counts as outstanding until it has `ended`."""
        pace = self._pace(peer)
        pace.waiting_chunks -= 1
        pace.came_bytes += size_bytes
        pace.late_until_s = float("-inf")
        elapsed_s = now - pace.since_s
        if elapsed_s > 0:
            rate = pace.came_bytes / elapsed_s
            before = pace.rate_bytes_per_s
            pace.rate_bytes_per_s = rate if before is None else before + _WEIGHT * (rate - before)
            pace.since_s, pace.came_bytes = now, 0
        ahead_bytes = max(self._config.outstanding_start_bytes, int(QUEUE_S * (pace.rate_bytes_per_s or 0.0)))
        pace.window_bytes = min(self._config.outstanding_bytes_max, pace.window_bytes + size_bytes, ahead_bytes)

    def ended(self, peer: PeerId, size_bytes: int, *, came: bool) -> None:
        """A want is over: stored or thrown away when it `came`, else answered without a chunk or lost."""
        pace = self._pace(peer)
        if not came:
            pace.waiting_chunks -= 1
        pace.outstanding_chunks -= 1
        pace.outstanding_bytes -= size_bytes
        self._outstanding_bytes -= size_bytes

    def notice_late(self, peer: PeerId, size_bytes: int, now: float) -> bool:
        """Whether the peer, asked for chunks of about this size, is late; once late it stays so for a while."""
        pace = self._pace(peer)
        if pace.waiting_chunks and now - pace.since_s >= self.patience_s(peer, size_bytes):
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
        gone_s = now - pace.since_s if pace.waiting_chunks else 0.0
        return max(0.0, size_bytes / pace.rate_bytes_per_s - gone_s)

    def forget(self, peer: PeerId) -> None:
        """Drop what is known of a peer that nothing is outstanding at."""
        pace = self._peers.get(peer)
        if pace is not None and pace.outstanding_chunks == 0:
            del self._peers[peer]

    def _pace(self, peer: PeerId) -> _Pace:
        pace = self._peers.get(peer)
        if pace is None:
            start = min(self._config.outstanding_start_bytes, self._config.outstanding_bytes_max)
            pace = self._peers[peer] = _Pace(window_bytes=start)
        return pace
