"""Rates, schedules and periods as a person writes them, and what each wrong one is told."""

from typing import Any

import pytest

from protocols.limits.config import LIMIT_KEYS, Direction, LimitsConfig, Purpose, peer_key, purpose_key
from protocols.limits.periods import DAYS, LocalTime, parse_period
from protocols.limits.rates import RateInForce, parse_rate, parse_scheduled_rate, rate_text
from protocols.limits.wording import SHOWN_LENGTH_MAX, refused


def moment(text: str) -> LocalTime:
    day, time = text.split()
    return LocalTime(DAYS.index(day), int(time[:2]) * 60 + int(time[3:]))


@pytest.mark.parametrize(
    ("text", "bytes_per_s", "printed"),
    [
        ("unlimited", None, "unlimited"),
        ("50MB/s", 50_000_000, "50MB/s"),
        (" 50 MB/s ", 50_000_000, "50MB/s"),
        ("50MiB/s", 52_428_800, "50MiB/s"),
        ("400Mbit/s", 50_000_000, "50MB/s"),
        ("1.5GB/s", 1_500_000_000, "1.5GB/s"),
        ("10Gbit/s", 1_250_000_000, "1.25GB/s"),
        ("0.5MiB/s", 524_288, "512KiB/s"),
        ("2TB/s", 2_000_000_000_000, "2TB/s"),
        ("1kB/s", 1000, "1KB/s"),
        ("1000B/s", 1000, "1KB/s"),
        ("1234567B/s", 1_234_567, "1234.567KB/s"),
        ("1073741827B/s", 1_073_741_827, "1073741.827KB/s"),
    ],
)
def test_a_rate_is_read_and_printed(text: str, bytes_per_s: int | None, printed: str) -> None:
    assert parse_rate(text) == bytes_per_s
    assert rate_text(bytes_per_s) == printed
    assert parse_rate(printed) == bytes_per_s


@pytest.mark.parametrize(
    "text",
    ["", "fast", "50", "50MB", "MB/s", "50Mb/s", "50mb/s", "1,5GB/s", "-1MB/s", "5iB/s", "5 5MB/s", "1e9B/s", "٥MB/s"],
)
def test_what_is_no_rate_is_told_what_one_looks_like(text: str) -> None:
    with pytest.raises(ValueError, match="a rate such as 50MB/s, 50MiB/s, 400Mbit/s,") as told:
        parse_rate(text)
    assert str(told.value).startswith(f"{text!r} is not allowed")


@pytest.mark.parametrize("text", ["0MB/s", "999B/s", "0.1KB/s", "7Kbit/s"])
def test_a_rate_that_would_stop_everything_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="a rate of at least 1KB/s, or unlimited"):
        parse_rate(text)


def test_of_the_periods_that_hold_the_one_written_first_decides() -> None:
    rate = parse_scheduled_rate("50MB/s, night=unlimited,office = 10MB/s")
    assert rate.at([]) == RateInForce(50_000_000)
    assert rate.at(["office"]) == RateInForce(10_000_000, "office")
    assert rate.at(["office", "night"]) == RateInForce(None, "night")
    assert rate.at(["weekend"]) == RateInForce(50_000_000)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("night=1MB/s", "first the rate of all other times, as in '50MB/s, night=1MB/s'"),
        ("50MB/s,", "then, if it changes, PERIOD=RATE for each period, as in 50MB/s, night=unlimited"),
        ("50MB/s, =1MB/s", "then, if it changes, PERIOD=RATE for each period"),
        ("50MB/s, night=5", "'5' is not allowed: a rate such as"),
        ("5MB/s, n=1MB/s, n=2MB/s", "each period once, and 'n' stands there twice"),
    ],
)
def test_what_is_no_schedule_is_told_why(text: str, told: str) -> None:
    with pytest.raises(ValueError, match="is not allowed") as error:
        parse_scheduled_rate(text)
    assert told in str(error.value)


def test_a_long_text_is_not_repeated_whole() -> None:
    assert len(str(refused("x" * 10_000, ""))) < SHOWN_LENGTH_MAX + 30


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("night=22:00-06:00", ["mon 22:00", "mon 23:59", "tue 00:00", "sun 05:59"], ["mon 06:00", "mon 21:59"]),
        ("office=mon-fri 09:00-18:00", ["mon 09:00", "fri 17:59"], ["fri 18:00", "sat 12:00", "mon 08:59"]),
        ("weekend=sat-sun", ["sat 00:00", "sun 23:59"], ["fri 23:59", "mon 00:00"]),
        ("late=fri 22:00-02:00", ["fri 22:00", "sat 01:59"], ["fri 01:59", "sat 02:00", "sat 22:00"]),
        ("late=sun 22:00-02:00", ["sun 23:00", "mon 01:00"], ["sun 01:00", "mon 23:00"]),
        ("some=fri-mon 8:00-24:00", ["fri 08:00", "sun 23:59", "mon 12:00"], ["tue 12:00", "mon 07:59"]),
        ("some=Mon wed-thu", ["mon 00:00", "wed 12:00", "thu 12:00"], ["tue 12:00", "fri 00:00"]),
        ("always=00:00-24:00", ["mon 00:00", "sun 23:59"], []),
    ],
)
def test_a_period_holds_in_its_part_of_the_week(text: str, inside: list[str], outside: list[str]) -> None:
    period = parse_period(text)
    assert [one for one in inside if not period.holds(moment(one))] == []
    assert [one for one in outside if period.holds(moment(one))] == []


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("night", "NAME=[DAYS] [HH:MM-HH:MM] such as night=22:00-06:00"),
        ("night=", "NAME=[DAYS] [HH:MM-HH:MM]"),
        ("=22:00-06:00", "NAME=[DAYS] [HH:MM-HH:MM]"),
        ("Night time=22:00-06:00", "NAME=[DAYS] [HH:MM-HH:MM]"),
        ("x=moon", "NAME=[DAYS] [HH:MM-HH:MM]"),
        ("x=mon-moon", "NAME=[DAYS] [HH:MM-HH:MM]"),
        ("x=9-18", "NAME=[DAYS] [HH:MM-HH:MM]"),
        ("x=22:00-06:60", "NAME=[DAYS] [HH:MM-HH:MM]"),
        ("x=22:00-25:00", "two different times of 00:00 to 24:00"),
        ("x=24:00-06:00", "two different times of 00:00 to 24:00"),
        ("x=09:00-09:00", "or only days for all their hours"),
    ],
)
def test_what_is_no_period_is_told_why(text: str, told: str) -> None:
    with pytest.raises(ValueError, match="is not allowed") as error:
        parse_period(text)
    assert str(error.value).startswith(repr(text))
    assert told in str(error.value)


def test_the_configuration_has_a_key_for_each_limit_and_none_limits_anything_at_first() -> None:
    made = [peer_key(way) for way in Direction] + [purpose_key(one, way) for one in Purpose for way in Direction]
    assert sorted(LIMIT_KEYS) == sorted([*made, "up", "down"])
    assert {rate.at([]).bytes_per_s for rate in LimitsConfig().scheduled_rates().values()} == {None}


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"repair_up": "5"}, "repair_up: '5' is not allowed: a rate such as"),
        ({"up": "1MB/s, evening=2MB/s"}, "up: no period is named 'evening'; known are night"),
        ({"up": "1MB/s, night=2MB/s", "periods": ()}, "up: no period is named 'night'; limits.periods has none"),
        ({"periods": ("night=22",)}, "periods: 'night=22' is not allowed: NAME="),
        ({"periods": ("a=sat", "a=sun")}, "periods: a stands there twice"),
    ],
)
def test_the_configuration_is_refused_as_a_whole_by_field_and_reason(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match="^" + told.split(":")[0]) as error:
        LimitsConfig(**settings)
    assert str(error.value).startswith(told)
