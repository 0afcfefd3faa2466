"""Rates as a person writes them: `50MB/s`, `400Mbit/s`, `unlimited`, or `50MB/s, night=unlimited`.

A rate is a whole number of bytes a second; None is unlimited.
"""

import re
from collections.abc import Collection

import attrs

from protocols.limits.wording import refused

UNLIMITED = "unlimited"
RATE_WANTED = "a rate such as 50MB/s, 50MiB/s, 400Mbit/s, 1.5GB/s or unlimited"
SCHEDULE_WANTED = f"{RATE_WANTED}; then, if it changes, PERIOD=RATE for each period, as in 50MB/s, night=unlimited"
BYTES_PER_S_MIN = 1000
"""A chunk of 4 MiB takes over an hour at this rate; less is rather a mistake than a wish."""

_RATE = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,12})?) ?([kKMGT]?)(iB|B|bit)/s")
_EXPONENTS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
_BYTE_UNITS = {
    "B": 1,
    **{f"{prefix}B": 1000**exponent for prefix, exponent in _EXPONENTS.items() if prefix},
    **{f"{prefix}iB": 1024**exponent for prefix, exponent in _EXPONENTS.items() if prefix},
}


def parse_rate(text: str) -> int | None:
    """Bytes a second, None for `unlimited`. ValueError naming the text and what is wanted.

    `MB` is 1000 * 1000 bytes, `MiB` 1024 * 1024, `Mbit` 1000 * 1000 / 8. `Mb` is refused: some read it as bits.
    """
    stripped = text.strip()
    if stripped == UNLIMITED:
        return None
    match = _RATE.fullmatch(stripped)
    if match is None or (match[3] == "iB" and not match[2]):
        raise refused(text, RATE_WANTED)
    factor: int = (1024 if match[3] == "iB" else 1000) ** _EXPONENTS[match[2].upper()]
    bytes_per_s = round(float(match[1]) * factor / (8 if match[3] == "bit" else 1))
    if bytes_per_s < BYTES_PER_S_MIN:
        raise refused(text, f"a rate of at least {rate_text(BYTES_PER_S_MIN)}, or unlimited")
    return bytes_per_s


def rate_text(bytes_per_s: int | None) -> str:
    """The rate in the largest unit that shows all of it in three decimals; `parse_rate` reads it back."""
    if bytes_per_s is None:
        return UNLIMITED
    for unit, factor in sorted(_BYTE_UNITS.items(), key=lambda one: -one[1]):
        if bytes_per_s >= factor and bytes_per_s * 1000 % factor == 0:
            whole, thousandths = divmod(bytes_per_s * 1000 // factor, 1000)
            return f"{whole}.{thousandths:03d}".rstrip("0").rstrip(".") + f"{unit}/s"
    return f"{bytes_per_s}B/s"


@attrs.frozen
class RateInForce:
    """What a limit is at one moment: its rate, and the period that decides it (empty: the rate of all other times)."""

    bytes_per_s: int | None
    period: str = ""


@attrs.frozen
class ScheduledRate:
    """A rate, and others for named periods; of the periods that hold, the one written first decides."""

    otherwise: int | None
    periods: tuple[RateInForce, ...] = ()

    def at(self, holding: Collection[str]) -> RateInForce:
        """What is in force while the periods of these names hold."""
        return next((one for one in self.periods if one.period in holding), RateInForce(self.otherwise))


def parse_scheduled_rate(text: str) -> ScheduledRate:
    """`RATE[, PERIOD=RATE]...`. ValueError naming the text and what is wanted; whether a period exists is not asked."""
    first, *others = text.split(",")
    if "=" in first:
        raise refused(text, f"first the rate of all other times, as in {f'50MB/s, {first.strip()}'[:60]!r}")
    periods: list[RateInForce] = []
    for other in others:
        name, equals, rate = other.partition("=")
        if not equals or not name.strip():
            raise refused(text, SCHEDULE_WANTED)
        if name.strip() in {one.period for one in periods}:
            raise refused(text, f"each period once, and {name.strip()[:40]!r} stands there twice")
        periods.append(RateInForce(parse_rate(rate), name.strip()))
    return ScheduledRate(parse_rate(first), tuple(periods))
