"""The table a person reads."""

import math
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from scripts.benchmark.figures import Figure, Goal, RowResult


def shown(value: float, unit: str) -> str:
    """A number with as many digits as mean something, and its unit."""
    if not math.isfinite(value):
        return f"{value} {unit}"
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:.{digits}f} {unit}"


def shown_goal(goal: Goal | None, unit: str) -> str:
    """The goal in words; empty for none."""
    return "" if goal is None else f"{goal.direction} {goal.limit:g} {unit}"


def verdict(figure: Figure) -> str:
    """`yes`, or what share of the goal was reached; empty without a goal."""
    if figure.goal is None:
        return ""
    return "yes" if figure.reached else f"no ({figure.goal.share(figure.value):.0%} of it)"


def table_of(results: Sequence[RowResult]) -> Table:
    """One line a figure, and one for each row that has none."""
    table = Table("row", "figure", "seen", "goal", "reached", "rounds", box=box.SIMPLE)
    for result in results:
        if result.why_not:
            table.add_row(result.row, "failed" if result.failed else "not measured", "", "", "", "")
        for number, figure in enumerate(result.figures):
            first = number == 0
            table.add_row(
                result.row if first else "",
                figure.name,
                shown(figure.value, figure.unit),
                shown_goal(figure.goal, figure.unit),
                verdict(figure),
                str(result.rounds) if first else "",
            )
    return table


def print_report(console: Console, results: Sequence[RowResult]) -> None:
    """The table, then why rows are missing, then what must be known to read it."""
    console.print(table_of(results))
    for result in results:
        for text in (result.why_not, result.note):
            if text:
                console.print(f"{result.row}: {text}", markup=False, soft_wrap=True)
