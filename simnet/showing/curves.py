"""What the pictures of a report draw, as plain points: no drawing here, so that it can be tested without any."""

import re

import attrs

from simnet.report import FaultShown, Finish, Report
from simnet.showing.summaries import by_model

LANES_MAX = 40
EVERYWHERE = "all hosts"


@attrs.frozen
class FinishCurve:
    """How many hosts had a model whole: (seconds since their pull began, hosts) in steps; T* where it is known."""

    model: str
    hosts: int
    points: tuple[tuple[float, int], ...]
    ideal_s: float | None


@attrs.frozen
class Lane:
    """The faults of one host."""

    label: str
    faults: tuple[FaultShown, ...]


def finish_curves(finishes: tuple[Finish, ...]) -> list[FinishCurve]:
    """One curve a model, the one with most hosts first."""
    curves = []
    for model, group in by_model(finishes).items():
        # Hosts and not shares: who never had it is not among those who finished, and the curve must not hide that.
        points = [(0.0, 0), *((one.took_s, rank) for rank, one in enumerate(group, 1))]
        ideals = [one.ideal_s for one in group if one.ideal_s is not None]
        curves.append(FinishCurve(model, len(group), tuple(points), max(ideals, default=None)))
    return sorted(curves, key=lambda curve: (-curve.hosts, curve.model))


def fault_lanes(faults: tuple[FaultShown, ...]) -> tuple[list[Lane], int]:
    """A lane a host that had faults, in the order of their numbers, and how many lanes are left out beyond the first.

    What befalls no host in particular has a lane of its own, above the others.
    """
    lanes: dict[str, list[FaultShown]] = {}
    for fault in faults:
        for host in fault.hosts or (EVERYWHERE,):
            lanes.setdefault(host, []).append(fault)
    ordered = sorted(lanes, key=lambda host: (host != EVERYWHERE, _number(host), host))
    shown = [Lane(host, tuple(lanes[host])) for host in ordered[:LANES_MAX]]
    return shown, len(ordered) - len(shown)


def _number(host: str) -> int:
    digits = re.search(r"\d+", host)
    return int(digits[0]) if digits else 0


def fault_kinds(report: Report) -> list[str]:
    """The kinds of fault in a run, sorted, so that each keeps its colour from run to run of a scenario."""
    return sorted({fault.kind for fault in report.faults})


def last_s(report: Report) -> float:
    """The end of the time axis of a run: of its quiet end, while the checkers wait, there is nothing to see."""
    seen_s = report.agreement[-1][0] if report.agreement else report.virtual_s
    return max([seen_s, *(min(fault.at_s + fault.for_s, report.virtual_s) for fault in report.faults)]) or 1.0
