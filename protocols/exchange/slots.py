"""How many chunks a giver sends at a time, over all askers: few, and more only when that fills its link better.

Few at a time, so that a chunk is over soon and can be given on; more when that brings more in total, because askers are
slow or far. So the total rate is measured while askers wait. Now and then one step more is tried: it stays when it
brings clearly more, else it is taken back and tried again after a pause that doubles. As rarely, one step fewer is
tried, which stays when it brings as much. When nothing at all gets through, one is added at once.
"""

import attrs

WINDOW_MIN_S = 0.05
WINDOW_MAX_S = 0.5
"""A measurement takes at least so long; when nothing at all was sent in the longer time, a slot is added."""
WINDOW_CHUNKS = 6
"""And so many chunks for each slot and six more, or chance would decide."""
SLOTS_MIN = 3
"""With fewer, what waits for one asker's busy link leaves this one idle: 8 receivers in turn got 30 % less from one."""
PATIENCE = 3.0
"""Nothing gets through when no chunk was sent in so many times as long as one takes."""
_WEIGHT = 0.3
IDLE_S = 2.0
FIRST_CHUNKS = 3
"""After a pause it begins with one at a time, and one more for each so many sent: the first are to be given on soon."""
GAIN_MIN = 1.2
LOSS_MAX = 0.97
PAUSE_WINDOWS_MAX = 32


@attrs.define
class _Window:
    since_s: float
    sent_bytes: int = 0
    sent_chunks: int = 0


class SendSlots:
    """`count` chunks may be sent at a time. Tell it of every chunk that was `sent`, and `look` while askers wait."""

    def __init__(self, slots_max: int) -> None:
        self.count = 1
        self._first_chunks = 0
        self._last_s = float("-inf")
        self._chunk_s = 0.0
        self._slots_max = slots_max
        self._window: _Window | None = None
        self._rate_bytes_per_s = 0.0
        self._settled = self.count
        self._pause_windows = 1
        self._windows_left = 0
        self._up_next = True

    def sent(self, size_bytes: int, took_s: float, now: float, *, waiting: bool, others: int = 0) -> None:
        """A chunk was sent in so long, while so many others were and are; whether one waited for its slot.

        Without waiting ones no rate is known.
        """
        self._begin(now, others)
        self._chunk_s += _WEIGHT * (took_s - self._chunk_s)
        if not waiting:
            self._window = None
            return
        if self._window is None:
            self._window = _Window(now)
            return
        self._window.sent_bytes += size_bytes
        self._window.sent_chunks += 1
        self.look(now)

    def look(self, now: float) -> None:
        """Somebody waits for a slot: end the measurement when it is due."""
        window = self._window
        if window is None:
            self._window = _Window(now)
            return
        elapsed_s = now - window.since_s
        missing_chunks = WINDOW_CHUNKS + self.count - window.sent_chunks
        stuck = not window.sent_chunks and elapsed_s >= max(WINDOW_MAX_S, PATIENCE * self._chunk_s)
        if not stuck and (missing_chunks > 0 or elapsed_s < WINDOW_MIN_S):
            return
        self._window = _Window(now)
        if not window.sent_chunks:
            self.count = self._settled = min(self._slots_max, self.count + 1)
            self._rate_bytes_per_s = 0.0
        else:
            self._judge(window.sent_bytes / elapsed_s)

    def _begin(self, now: float, others: int) -> None:
        if now - self._last_s > IDLE_S:
            self.count = self._settled = min(self.count, 1 + others)
            self._first_chunks, self._rate_bytes_per_s, self._window = 0, 0.0, None
        self._last_s = now
        if self.count < min(SLOTS_MIN, self._slots_max):
            self._first_chunks += 1
            self.count = self._settled = max(self.count, 1 + self._first_chunks // FIRST_CHUNKS)

    def _judge(self, rate: float) -> None:
        if self.count > self._settled:
            self._end_trial(rate > GAIN_MIN * self._rate_bytes_per_s, rate)
        elif self.count < self._settled:
            self._end_trial(rate > LOSS_MAX * self._rate_bytes_per_s, rate)
        else:
            self._rate_bytes_per_s = rate
            self._windows_left -= 1
            if self._windows_left <= 0:
                self._begin_trial()

    def _begin_trial(self) -> None:
        up = self._up_next or self._settled <= SLOTS_MIN
        self._up_next = not up
        step = max(1, self._settled // 2) if up else -1
        self.count = min(self._slots_max, self._settled + step)

    def _end_trial(self, better: bool, rate: float) -> None:
        if better:
            # What helped once may help again, at once and in the same direction.
            self._up_next = self.count > self._settled
            self._settled, self._rate_bytes_per_s = self.count, rate
            self._pause_windows, self._windows_left = 1, 0
        else:
            self.count = self._settled
            self._windows_left = self._pause_windows
            self._pause_windows = min(PAUSE_WINDOWS_MAX, 2 * self._pause_windows)
