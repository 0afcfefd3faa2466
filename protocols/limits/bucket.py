"""A token bucket that lets whole chunks through: who finds it not in debt may go, and may leave it in debt.

So over any window at most `rate * window + burst + one chunk` bytes go, however chunks and rate compare.
"""

BURST_S = 0.25
"""An idle bucket gathers the bytes of this long: enough to keep its rate over a late wake-up."""

WAIT_S_MIN = 0.001
"""No wait is shorter: what rounding leaves of a debt would else be waited for in steps too small for a clock."""


class Bucket:
    """One limit in bytes a second; None lets everything go. `now` is any clock that does not run backwards."""

    def __init__(self, bytes_per_s: int | None, now: float) -> None:
        self._bytes_per_s = bytes_per_s
        self._level_bytes = burst_bytes(bytes_per_s)
        self._at_s = now

    def wait_s(self, now: float) -> float:
        """How long until the next chunk may go, if none goes before; 0.0 when it may go now."""
        self._fill(now)
        if self._bytes_per_s is None or self._level_bytes >= 0:
            return 0.0
        return max(-self._level_bytes / self._bytes_per_s, WAIT_S_MIN)

    def take(self, size_bytes: int, now: float) -> None:
        """A chunk goes. Never refused: who did not ask `wait_s` before makes those after it wait for longer."""
        self._fill(now)
        if self._bytes_per_s is not None:
            self._level_bytes -= size_bytes

    def change(self, bytes_per_s: int | None, now: float) -> None:
        """Another rate from now on. A debt stays and is paid at the new rate; unlimited pays any debt at once."""
        self._fill(now)
        self._bytes_per_s = bytes_per_s
        # Nothing is gathered while there is no limit, so that switching it on and off lets no burst go.
        self._level_bytes = 0.0 if bytes_per_s is None else min(self._level_bytes, burst_bytes(bytes_per_s))

    def _fill(self, now: float) -> None:
        elapsed_s = max(0.0, now - self._at_s)
        self._at_s = max(self._at_s, now)
        if self._bytes_per_s is not None:
            filled = self._level_bytes + elapsed_s * self._bytes_per_s
            self._level_bytes = min(filled, burst_bytes(self._bytes_per_s))


def burst_bytes(bytes_per_s: int | None) -> float:
    """How many bytes an idle bucket of this rate gathers at most."""
    return 0.0 if bytes_per_s is None else max(1.0, bytes_per_s * BURST_S)
