"""The picture of the history: the newest figures against their goals, and how the pair's speed went over the runs."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scripts.benchmark.figures import Figure, row_of
from scripts.benchmark.history import Run, latest_rows
from scripts.benchmark.report import shown, shown_goal

SHARE_SHOWN_MAX = 2.0
REACHED, MISSED, PEER = "#3a7d44", "#c8553d", "#555555"
OURS = "herd"
SPEED_UNIT = "GB/s"


def goal_bars(runs: Sequence[Run]) -> list[tuple[str, Figure]]:
    """Every figure with a goal, under its row's name, as it was last seen."""
    bars = []
    for name, document in latest_rows(runs).items():
        for figure in row_of(document).figures:
            if figure.goal is not None:
                bars.append((f"{name}: {figure.name}", figure))
    return bars


def speed_lines(runs: Sequence[Run]) -> dict[str, list[tuple[int, float]]]:
    """Who -> (number of the run, GB/s) of the pair rows; one who is in several rows of a run counts as their median."""
    lines: dict[str, list[tuple[int, float]]] = {}
    for number, run in enumerate(runs):
        seen: dict[str, list[float]] = {}
        for row in run["rows"]:
            for figure in row["figures"] if row["row"].startswith("pair-") else ():
                if figure["unit"] == SPEED_UNIT:
                    seen.setdefault(figure["name"], []).append(figure["value"])
        for name, values in seen.items():
            lines.setdefault(name, []).append((number, statistics.median(values)))
    return lines


def draw(runs: Sequence[Run], path: Path) -> None:
    """Write the picture, replacing what is there. ImportError without matplotlib (`scripts/setup bench` brings it)."""
    # Imported here, because only this needs it and it takes a second.
    import matplotlib

    matplotlib.use("svg")
    # The same history must give the same file, or every run would change it in every line.
    matplotlib.rcParams.update({"svg.hashsalt": "herd", "svg.fonttype": "none", "font.size": 9})
    from matplotlib import pyplot

    bars = goal_bars(runs)
    height = max(3.0, 0.32 * len(bars) + 1.2)
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, height), width_ratios=(3, 2), layout="constrained")
    _draw_goals(left, bars)
    _draw_speeds(right, speed_lines(runs), len(runs))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def _draw_goals(axes: Any, bars: Sequence[tuple[str, Figure]]) -> None:
    axes.set_title("last seen, as a share of the goal")
    for row, (_, figure) in enumerate(reversed(bars)):
        assert figure.goal is not None
        share = min(figure.goal.share(figure.value), SHARE_SHOWN_MAX)
        axes.barh(row, share, color=REACHED if figure.reached else MISSED)
        text = f"{shown(figure.value, figure.unit)} ({shown_goal(figure.goal, figure.unit)})"
        axes.text(
            0.02, row, text, va="center", fontsize=8, bbox={"facecolor": "white", "alpha": 0.8, "pad": 1, "lw": 0}
        )
    axes.set_yticks(range(len(bars)), [label for label, _ in reversed(bars)])
    axes.axvline(1.0, color="black", linewidth=1)
    axes.set_xlim(0, SHARE_SHOWN_MAX)


def _draw_speeds(axes: Any, lines: dict[str, list[tuple[int, float]]], runs: int) -> None:
    axes.set_title("one sender, one receiver, to disk")
    names = sorted(lines, key=lambda name: lines[name][-1][1])
    for row, name in enumerate(names):
        color = REACHED if name == OURS else PEER
        for number, speed in lines[name]:
            newest = number == runs - 1
            axes.scatter(speed, row, s=90 if newest else 22, color=color, alpha=1.0 if newest else 0.4)
        axes.annotate(
            f"{lines[name][-1][1]:.2f}", (lines[name][-1][1], row), (0, 8), textcoords="offset points", ha="center"
        )
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(-0.5, len(names) - 0.2)
    axes.set_xlim(0, 1.12 * max((speed for points in lines.values() for _, speed in points), default=1.0))
    axes.set_xlabel(f"{SPEED_UNIT}, a dot a run, the newest large")
    axes.grid(axis="x", alpha=0.3)
