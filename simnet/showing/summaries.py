"""What a report says in few numbers: spreads of many values, groups of finishes, what went wrong."""

import math
import re
from collections.abc import Iterable, Sequence

import attrs

from node.cli.output import seconds_text
from simnet.report import Convergence, Finish, Report

SHORT_S = 120.0
HOST_NAME = re.compile(r"\bh\d+\b")


@attrs.frozen
class Spread:
    """Many values in three: each is one that was seen."""

    median: float
    p90: float
    largest: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread":
        """By the nearest rank. At least one value."""
        ordered = sorted(values)

        def at(share: float) -> float:
            return ordered[max(0, math.ceil(share * len(ordered)) - 1)]

        return cls(at(0.5), at(0.9), ordered[-1])

    def columns(self) -> tuple[float, float, float]:
        """As a table shows them."""
        return self.median, self.p90, self.largest


def time_text(seconds: float) -> str:
    """`0.35 s`, `12.3 s`, `3:07`: virtual times are compared, so the small ones have decimals."""
    if seconds >= SHORT_S:
        return seconds_text(seconds)
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds:.2f} s"


def by_model(finishes: Sequence[Finish]) -> dict[str, list[Finish]]:
    """The finishes of each model, first to last."""
    groups: dict[str, list[Finish]] = {}
    for one in sorted(finishes, key=lambda one: (one.model, one.took_s, one.host)):
        groups.setdefault(one.model, []).append(one)
    return groups


def by_subject(convergences: Sequence[Convergence]) -> dict[str, list[Convergence]]:
    """The convergences of each kind, whichever host it was, in the order in which kinds came up."""
    groups: dict[str, list[Convergence]] = {}
    for one in convergences:
        groups.setdefault(HOST_NAME.sub("a host", one.what), []).append(one)
    return groups


def problems(report: Report) -> list[str]:
    """What kept a run from passing, one line each, the gravest first; none when it passed."""
    found = [report.failure] if report.failure else []
    found += [f"{check.name}: {check.violation}" for check in report.checks if not check.held]
    found += [f"{one.name}: wanted {one.wanted}, seen {one.seen}" for one in report.expectations if not one.met]
    return [" ".join(one.split()) for one in found]
