"""How many of something bring the most: found by trying one more, and keeping it only if it brings more.

Used where nothing but trial tells the answer, such as how many connections fill a link. A trial that brought nothing is
repeated after a pause that doubles, so that a level which suits costs next to nothing.
"""

import attrs


@attrs.frozen
class ClimberConfig:
    """When one more is kept, and how often it is tried."""

    minimum: int = 1
    maximum: int = 4
    gain_min: float = 0.1
    """By what part the rate must rise for one more to stay."""
    settle_samples: int = 2
    """So many samples after a change say nothing yet."""
    judged_samples: int = 3
    """The rate of a level is the mean of so many samples."""
    pause_min_s: float = 10.0
    pause_max_s: float = 600.0


class Climber:
    """Fed with samples of the rate, about evenly spaced; `level` is how many to use now."""

    def __init__(self, config: ClimberConfig) -> None:
        self._config = config
        self.level = config.minimum
        self._samples: list[float] = []
        self._skip = 0
        self._rate_before: float | None = None
        self._pause_s = config.pause_min_s
        self._next_trial_s = float("-inf")

    def sample(self, rate: float, now: float) -> int:
        """Take the rate since the last sample, in which all of `level` were at work; the level from `now` on."""
        if self._skip:
            self._skip -= 1
            return self.level
        self._samples.append(rate)
        if len(self._samples) < self._config.judged_samples:
            return self.level
        mean = sum(self._samples) / len(self._samples)
        self._samples.clear()
        if self._rate_before is not None:
            self._judge(mean, self._rate_before, now)
        if self._rate_before is None and self.level < self._config.maximum and now >= self._next_trial_s:
            self._rate_before = mean
            self._move(self.level + 1)
        return self.level

    def idle(self) -> None:
        """Not all were at work since the last sample: what was measured says nothing of the level."""
        self._samples.clear()

    def _judge(self, mean: float, before: float, now: float) -> None:
        self._rate_before = None
        if mean >= before * (1 + self._config.gain_min):
            self._pause_s = self._config.pause_min_s
            return
        self._next_trial_s = now + self._pause_s
        self._pause_s = min(self._config.pause_max_s, 2 * self._pause_s)
        self._move(self.level - 1)

    def _move(self, level: int) -> None:
        self.level = level
        self._skip = self._config.settle_samples
