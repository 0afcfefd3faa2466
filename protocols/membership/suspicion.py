"""Lifeguard's two dampers: suspicion timeouts that independent accusers shorten, and local health awareness.

Dadgar, Phillips, Currey: "Lifeguard: Local Health Awareness for More Accurate Failure Detection",
arXiv 1707.00788, sections IV-A (LHA-Probe) and IV-B (LHA-Suspicion).
"""

import math

from protocols.ids import PeerId


def suspicion_bounds_s(alpha: float, beta: float, probe_interval_s: float, member_count: int) -> tuple[float, float]:
    """The shortest and the longest suspicion in a group of `member_count` (this node included)."""
    shortest_s = alpha * max(1.0, math.log10(max(1, member_count))) * probe_interval_s
    return shortest_s, beta * shortest_s


def confirmations_wanted(alpha: float, member_count: int) -> int:
    """Lifeguard's K: how many independent accusers, beside the first, bring a suspicion down to the shortest.

    None when the group is too small for so many: then the shortest suspicion is used from the start.
    """
    wanted = max(0, int(alpha) - 2)
    return wanted if member_count - 2 >= wanted else 0


class Suspicion:
    """One suspicion: who accuses, and when the suspicion runs out."""

    def __init__(
        self,
        accuser: PeerId,
        began_at: float,
        *,
        shortest_s: float,
        longest_s: float,
        wanted: int,
    ) -> None:
        self.accuser = accuser
        self._began_at = began_at
        self._shortest_s = shortest_s
        self._longest_s = longest_s
        self._wanted = wanted
        self._accusers: dict[PeerId, None] = {accuser: None}
        self.extended = False

    def confirm(self, accuser: PeerId) -> bool:
        """Another accuser; True when it is a new one and still shortens the suspicion."""
        if accuser in self._accusers or len(self._accusers) > self._wanted:
            return False
        self._accusers[accuser] = None
        return True

    def runs_out_at(self) -> float:
        """max - (max - min) * log(C + 1) / log(K + 1) after its beginning, with C further accusers."""
        if self._wanted < 1:
            return self._began_at + self._shortest_s
        confirmed = len(self._accusers) - 1
        share = math.log(confirmed + 1) / math.log(self._wanted + 1)
        return self._began_at + max(self._shortest_s, self._longest_s - share * (self._longest_s - self._shortest_s))


class LocalHealth:
    """Lifeguard's local health multiplier: 0 when all is well, at most `score_max`; periods stretch by score + 1."""

    def __init__(self, score_max: int) -> None:
        self._score_max = score_max
        self.score = 0

    def add(self, change: int) -> None:
        """Note that this member itself does better (negative) or worse (positive)."""
        self.score = min(self._score_max, max(0, self.score + change))

    def stretch(self, seconds: float) -> float:
        """A period or timeout under the present health."""
        return seconds * (self.score + 1)
