"""The section `[limits]` of herd.toml, and the words its keys are made of: directions and purposes."""

from collections.abc import Mapping
from enum import Enum

import attrs

from protocols.limits.periods import Period, parse_period
from protocols.limits.rates import UNLIMITED, ScheduledRate, parse_scheduled_rate
from protocols.options import option


class Direction(Enum):
    """Which way chunks go, as this node sees it."""

    UP = "up"
    DOWN = "down"


class Purpose(Enum):
    """What chunks move for; each purpose has limits of its own beside those of the node and of each peer."""

    PULL = "pull"
    REPLICATE = "replicate"
    REPAIR = "repair"


def peer_key(direction: Direction) -> str:
    """The key of the limit that holds for each peer."""
    return f"peer_{direction.value}"


def purpose_key(purpose: Purpose, direction: Direction) -> str:
    """The key of the limit of one purpose."""
    return f"{purpose.value}_{direction.value}"


@attrs.frozen
class LimitsConfig:
    """Rates of the chunks that go out and come in. A chunk goes when the node's, the peer's and the purpose's allow."""

    up: str = option(
        UNLIMITED,
        help="Most bytes a second given to all peers together: unlimited, or a rate such as 50MB/s, 50MiB/s or"
        " 400Mbit/s. After it may stand other rates for periods, as in '50MB/s, night=unlimited, office=10MB/s': of the"
        " periods that hold now, the one written first counts. Every rate of this section is written so.",
    )
    down: str = option(UNLIMITED, help="Most bytes a second taken from all peers together.")
    peer_up: str = option(UNLIMITED, help="Most bytes a second given to each peer.")
    peer_down: str = option(UNLIMITED, help="Most bytes a second taken from each peer.")
    pull_up: str = option(UNLIMITED, help="Most bytes a second given to pulls of others.")
    pull_down: str = option(UNLIMITED, help="Most bytes a second taken by pulls of this node.")
    replicate_up: str = option(UNLIMITED, help="Most bytes a second given to make copies of models elsewhere.")
    replicate_down: str = option(UNLIMITED, help="Most bytes a second taken to make copies of models here.")
    repair_up: str = option(UNLIMITED, help="Most bytes a second given to repair damaged models elsewhere.")
    repair_down: str = option(UNLIMITED, help="Most bytes a second taken to repair damaged models here.")
    periods: tuple[str, ...] = option(
        ("night=22:00-06:00",),
        help="The periods that rates may name, in this host's own time: night=22:00-06:00 (over midnight),"
        " office=mon-fri 09:00-18:00, weekend=sat-sun.",
    )

    def __attrs_post_init__(self) -> None:
        names = [period.name for period in self.parsed_periods()]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"periods: {name} stands there twice")
        for key, rate in self.scheduled_rates().items():
            for period in rate.periods:
                if period.period not in names:
                    known = "known are " + ", ".join(names) if names else "limits.periods has none"
                    raise ValueError(f"{key}: no period is named {period.period[:40]!r}; {known}")

    def parsed_periods(self) -> tuple[Period, ...]:
        """The periods, in the order written. ValueError as `periods: reason`."""
        try:
            return tuple(parse_period(text) for text in self.periods)
        except ValueError as error:
            raise ValueError(f"periods: {error}") from None

    def scheduled_rates(self) -> Mapping[str, ScheduledRate]:
        """The rate of every key. ValueError as `key: reason`."""
        rates = {}
        for key in LIMIT_KEYS:
            try:
                rates[key] = parse_scheduled_rate(getattr(self, key))
            except ValueError as error:
                raise ValueError(f"{key}: {error}") from None
        return rates


LIMIT_KEYS = tuple(field.name for field in attrs.fields(LimitsConfig) if field.name != "periods")
