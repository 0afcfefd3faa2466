"""A climber against simple worlds: a link that one fills, one that three fill, one that changes."""

import itertools
from collections.abc import Callable

from protocols.climber import Climber, ClimberConfig


def climbed(climber: Climber, rate_of: Callable[[int, int], float], samples: int, start_s: int = 0) -> list[int]:
    """The level after each of so many samples, one a second."""
    return [
        climber.sample(rate_of(climber.level, second), float(second)) for second in range(start_s, start_s + samples)
    ]


def test_one_that_fills_the_link_stays_alone_and_is_asked_ever_more_rarely() -> None:
    levels = climbed(Climber(ClimberConfig(maximum=4)), lambda level, _now: 100.0, 1000)
    assert max(levels) == 2
    trials = [second for second in range(1, 1000) if levels[second] == 2 and levels[second - 1] == 1]
    pauses = [later - earlier for earlier, later in itertools.pairwise(trials)]
    assert pauses == sorted(pauses)
    assert len(trials) <= 8
    assert levels.count(2) / 1000 < 0.05


def test_as_many_as_fill_the_link_are_found_within_seconds() -> None:
    levels = climbed(Climber(ClimberConfig(maximum=8)), lambda level, _now: min(level, 3) * 50.0, 60)
    assert levels[20] >= 3
    assert levels.count(3) > 30
    assert max(levels) == 4, "one too many was tried, and given back"


def test_a_link_that_grows_is_noticed_later() -> None:
    climber = Climber(ClimberConfig(maximum=4, pause_max_s=60))
    climbed(climber, lambda level, _now: 100.0, 300)
    assert climber.level == 1
    levels = climbed(climber, lambda level, _now: level * 100.0, 200, start_s=300)
    assert levels[-1] == 4


def test_time_without_work_decides_nothing() -> None:
    climber = Climber(ClimberConfig(judged_samples=3))
    for second in range(30):
        climber.sample(100.0, second)
        climber.idle()
    assert climber.level == 1
