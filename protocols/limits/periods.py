"""Named parts of the week in a host's own time: `night=22:00-06:00`, `office=mon-fri 09:00-18:00`, `weekend=sat-sun`.

A period over midnight belongs to the day it begins on: `fri 22:00-06:00` ends on Saturday morning.
"""

import re

import attrs

from protocols.limits.wording import refused

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
MINUTES_A_DAY = 24 * 60
PERIOD_WANTED = "NAME=[DAYS] [HH:MM-HH:MM] such as night=22:00-06:00, office=mon-fri 09:00-18:00 or weekend=sat-sun"

_NAME = re.compile(r"[a-z][a-z0-9_-]{0,31}")
_TIMES = re.compile(r"([0-9]{1,2}):([0-5][0-9])-([0-9]{1,2}):([0-5][0-9])")


@attrs.frozen
class LocalTime:
    """A moment of the week on a host's wall clock: `weekday` 0 is Monday, `minute_of_day` counts from midnight."""

    weekday: int = attrs.field(validator=[attrs.validators.ge(0), attrs.validators.lt(len(DAYS))])
    minute_of_day: int = attrs.field(validator=[attrs.validators.ge(0), attrs.validators.lt(MINUTES_A_DAY)])

    def __str__(self) -> str:
        return f"{DAYS[self.weekday]} {self.minute_of_day // 60:02d}:{self.minute_of_day % 60:02d}"


@attrs.frozen
class Period:
    """A part of every week: from a minute of each of its days until before another, maybe of the day after."""

    name: str
    days: frozenset[int]
    begin_minute: int
    end_minute: int

    def holds(self, local_time: LocalTime) -> bool:
        """Whether the moment is in the period."""
        today = local_time.weekday in self.days
        if self.begin_minute < self.end_minute:
            return today and self.begin_minute <= local_time.minute_of_day < self.end_minute
        yesterday = (local_time.weekday - 1) % len(DAYS) in self.days
        return (today and local_time.minute_of_day >= self.begin_minute) or (
            yesterday and local_time.minute_of_day < self.end_minute
        )


def parse_period(text: str) -> Period:
    """A period from its text. ValueError naming the text and what is wanted."""
    name, _, rest = text.partition("=")
    *day_words, last = rest.split() or [""]
    times = _minutes(last)
    if times is None:
        day_words.append(last)
        times = (0, MINUTES_A_DAY)
    days = [_days(word.lower()) for word in day_words]
    if _NAME.fullmatch(name.strip()) is None or not all(days):
        raise refused(text, PERIOD_WANTED)
    if times[0] == times[1] or max(times) > MINUTES_A_DAY or times[0] == MINUTES_A_DAY:
        raise refused(text, "two different times of 00:00 to 24:00, or only days for all their hours")
    named = frozenset(day for some in days for day in some)
    return Period(name.strip(), named or frozenset(range(len(DAYS))), *times)


def _minutes(word: str) -> tuple[int, int] | None:
    match = _TIMES.fullmatch(word)
    if match is None:
        return None
    begin_hour, begin_minute, end_hour, end_minute = map(int, match.groups())
    return begin_hour * 60 + begin_minute, end_hour * 60 + end_minute


def _days(word: str) -> frozenset[int]:
    """`tue` or `fri-mon`; empty when it is neither."""
    first, dash, last = word.partition("-")
    if first not in DAYS or (dash and last not in DAYS):
        return frozenset()
    begin = DAYS.index(first)
    count = (DAYS.index(last) - begin) % len(DAYS) if dash else 0
    return frozenset((begin + ahead) % len(DAYS) for ahead in range(count + 1))
