"""Hybrid logical clock (Kulkarni, Demirbas, Madappa, Avva, Leone: "Logical Physical Clocks", 2014).

A timestamp stays close to wall-clock time and still never runs backwards along a chain of records: what was
made after seeing something is dated after it, even where the hosts' clocks disagree.
"""

import attrs

PHYSICAL_MS_MAX = 2**48 - 1
LOGICAL_MAX = 2**16 - 1


@attrs.frozen(order=True)
class Clock:
    """One timestamp: milliseconds since 1970 as far as known, then a counter among equal milliseconds.

    Ordered as the pair. Raises ValueError outside 48 and 16 bits, the widths the paper gives the two parts.
    """

    physical_ms: int
    logical: int = 0

    def __attrs_post_init__(self) -> None:
        if not 0 <= self.physical_ms <= PHYSICAL_MS_MAX:
            raise ValueError(f"a clock of {self.physical_ms} ms does not fit 48 bits")
        if not 0 <= self.logical <= LOGICAL_MAX:
            raise ValueError(f"a logical clock of {self.logical} does not fit 16 bits")


def after(latest: Clock, wall_ms: int) -> Clock:
    """The timestamp of a new local event: later than `latest` (all this node made or saw), and at least `wall_ms`.

    When the counter would overflow, the physical part moves on a millisecond instead, which keeps the order.
    """
    if wall_ms > latest.physical_ms:
        return Clock(wall_ms)
    if latest.logical < LOGICAL_MAX:
        return Clock(latest.physical_ms, latest.logical + 1)
    return Clock(latest.physical_ms + 1)


def too_far_ahead(clock: Clock, wall_ms: int, drift_max_s: float) -> bool:
    """Whether a peer's timestamp is further ahead of our wall clock than we accept.

    The paper's bound: without it one host with a wrong clock would drag every clock of the mesh along for good.
    """
    return clock.physical_ms > wall_ms + drift_max_s * 1000
