"""What a benchmark says: figures with their goals, and the arithmetic behind them. Pure: no clock, file or process."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import attrs

GIB = 1024**3
MIB = 1024**2

Direction = Literal["at least", "at most"]


@attrs.frozen
class Goal:
    """What a figure has to be, in the figure's own unit."""

    direction: Direction
    limit: float

    def reached(self, value: float) -> bool:
        """Whether the value is on the right side of the limit; on the limit counts."""
        return value >= self.limit if self.direction == "at least" else value <= self.limit

    def share(self, value: float) -> float:
        """How much of the goal the value is: 1 on the limit, more than 1 beyond it, for either direction."""
        better, worse = (value, self.limit) if self.direction == "at least" else (self.limit, value)
        if worse <= 0:
            return math.inf
        return better / worse


@attrs.frozen
class Figure:
    """One number of a row; without a goal it stands beside the others to compare."""

    name: str
    value: float
    unit: str
    goal: Goal | None = None

    @property
    def reached(self) -> bool:
        """Whether the goal is met; a figure without a goal misses none."""
        return self.goal is None or self.goal.reached(self.value)


@attrs.frozen
class RowResult:
    """What became of one row: its figures, or in one line why there are none.

    `samples` are the single measurements behind the medians, `note` what a reader must know to judge them;
    `failed` tells a row that broke from one that this machine cannot measure.
    """

    row: str
    figures: tuple[Figure, ...] = ()
    rounds: int = 0
    seconds: float = 0.0
    samples: Mapping[str, Sequence[float]] = attrs.field(factory=dict)
    note: str = ""
    why_not: str = ""
    failed: bool = False

    @property
    def reached(self) -> bool:
        """Whether the row was measured and misses no goal."""
        return not self.why_not and all(figure.reached for figure in self.figures)


def at_least(limit: float) -> Goal:
    """A goal that larger values meet."""
    return Goal("at least", limit)


def at_most(limit: float) -> Goal:
    """A goal that smaller values meet."""
    return Goal("at most", limit)


def times_faster(ours_s: Sequence[float], theirs_s: Sequence[float]) -> float:
    """How many times as fast we are: the ratio of the medians of seconds."""
    return statistics.median(theirs_s) / statistics.median(ours_s)


def optimal_last_s(size_bytes: int, link_bytes_per_s: float, receivers: int, pieces: int) -> float:
    """T* = (S/B)(1 + floor(log2 n)/k): when the last of n receivers can be done, each link carrying B both ways.

    The pieces double in number of holders a step, and the last one still has to reach everybody.
    """
    if min(size_bytes, receivers, pieces) < 1 or link_bytes_per_s <= 0:
        raise ValueError("a swarm has a size, a link, at least one receiver and one piece")
    return size_bytes / link_bytes_per_s * (1 + math.floor(math.log2(receivers)) / pieces)


def bytes_per_s(mbit_per_s: float) -> float:
    """A link's rate as `tc` counts it (10^6 bits) in bytes a second."""
    return mbit_per_s * 1e6 / 8


def percent(part: float, whole: float) -> float:
    """A part of a whole as a percentage; of nothing, nothing."""
    return 100.0 * part / whole if whole else 0.0


def in_turn(names: Sequence[str], round_number: int) -> list[str]:
    """The order in which the peers take their turn: each round another one begins, so that drift hits all alike."""
    start = round_number % len(names) if names else 0
    return [*names[start:], *names[:start]]


def row_document(result: RowResult) -> dict[str, Any]:
    """A row as plain JSON data."""
    figures = [
        {
            "name": figure.name,
            "value": round(figure.value, 4),
            "unit": figure.unit,
            "goal": None if figure.goal is None else {"direction": figure.goal.direction, "limit": figure.goal.limit},
            "reached": None if figure.goal is None else figure.reached,
        }
        for figure in result.figures
    ]
    return {
        "row": result.row,
        "figures": figures,
        "rounds": result.rounds,
        "seconds": round(result.seconds, 1),
        "samples": {name: [round(sample, 4) for sample in samples] for name, samples in result.samples.items()},
        "note": result.note,
        "why_not": result.why_not,
        "failed": result.failed,
    }


def row_of(document: Mapping[str, Any]) -> RowResult:
    """A row from JSON data that `row_document` made. KeyError or TypeError when it is something else."""
    figures = tuple(
        Figure(
            figure["name"],
            float(figure["value"]),
            figure["unit"],
            None if figure["goal"] is None else Goal(figure["goal"]["direction"], float(figure["goal"]["limit"])),
        )
        for figure in document["figures"]
    )
    return RowResult(
        row=document["row"],
        figures=figures,
        rounds=document["rounds"],
        seconds=document["seconds"],
        samples=document["samples"],
        note=document["note"],
        why_not=document["why_not"],
        failed=document["failed"],
    )
