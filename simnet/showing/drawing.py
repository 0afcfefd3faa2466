"""The pictures of a report, drawn with matplotlib: who finished when, who agreed when, what befell whom."""

from pathlib import Path
from typing import Any

from node.errors import UsageError
from simnet.report import Report
from simnet.showing.curves import FinishCurve, Lane, fault_kinds, fault_lanes, finish_curves, last_s
from simnet.showing.summaries import time_text

COLOURS = ("#2b6cb0", "#c8553d", "#3a7d44", "#8e5ea2", "#d69e2e", "#4a5568", "#0f8b8d", "#b83280")
INK, FAINT = "#1a202c", "#718096"
CURVES_MAX = len(COLOURS)
PANEL_INCHES = {"finishes": 3.4, "agreement": 2.6}
WIDTH_INCHES = 10.0
LANE_INCHES, LANES_INCHES_MIN = 0.2, 1.1
PATCH = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 1.5}
"""Behind a text that stands among lines."""
SETTINGS = {
    "font.size": 10,
    "font.family": "sans-serif",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": FAINT,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e2e8f0",
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "svg.fonttype": "none",
    # The same report gives the same file.
    "svg.hashsalt": "herd",
}


def require_matplotlib() -> None:
    """UsageError with the remedy when there is none: better before a long run than after it."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UsageError("--plot needs matplotlib: `pip install 'matplotlib>=3.10'`, or herd's extra [sim]") from error


def panels_of(report: Report) -> list[str]:
    """Which panels a report has anything for, from above to below."""
    present = {"finishes": bool(report.finishes), "agreement": bool(report.agreement), "faults": bool(report.faults)}
    return [name for name, has_content in present.items() if has_content]


def draw(report: Report, path: Path) -> None:
    """Write the picture; the ending says the format (png, svg). UsageError when the report has nothing to draw."""
    require_matplotlib()
    import matplotlib

    names = panels_of(report)
    if not names:
        raise UsageError(f"{report.scenario} has nothing to draw: no finishes, no members' agreement, no faults")
    lanes, left_out = fault_lanes(report.faults)
    inches = {**PANEL_INCHES, "faults": max(LANES_INCHES_MIN, LANE_INCHES * len(lanes) + 0.7)}
    heights = [inches[name] for name in names]
    with matplotlib.rc_context(SETTINGS):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(WIDTH_INCHES, sum(heights) + 0.5 + 0.3 * len(names)), layout="constrained")
        FigureCanvasAgg(figure)
        made = figure.subplots(len(names), 1, height_ratios=heights, squeeze=False)
        axes = dict(zip(names, made[:, 0], strict=True))
        _title(figure, report)
        if "finishes" in axes:
            _draw_finishes(axes["finishes"], finish_curves(report.finishes))
        if "agreement" in axes:
            _draw_agreement(axes["agreement"], report)
        if "faults" in axes:
            _draw_faults(axes["faults"], report, lanes, left_out)
        figure.savefig(path, dpi=130, metadata={"Date": None} if path.suffix == ".svg" else None)


def _title(figure: Any, report: Report) -> None:
    outcome = "passed" if report.passed else "FAILED"
    figure.suptitle(
        f"{report.scenario}   {report.nodes} nodes, seed {report.seed}, {outcome}",
        x=0.01,
        ha="left",
        fontsize=13,
        color=INK if report.passed else COLOURS[1],
    )


def _draw_finishes(axes: Any, curves: list[FinishCurve]) -> None:
    shown = curves[:CURVES_MAX]
    more = f" ({len(shown)} of {len(curves)} models)" if len(curves) > len(shown) else ""
    axes.set_title(f"Hosts that have the whole model, since their pull began{more}")
    hosts = max(curve.hosts for curve in shown)
    ends = [curve.points[-1][0] for curve in shown] + [curve.ideal_s or 0.0 for curve in shown]
    right_s = max(ends) * 1.04 or 1.0
    for curve, colour in zip(shown, COLOURS, strict=False):
        times, counts = zip(*curve.points, strict=True)
        share = f", T* is {100 * curve.ideal_s / times[-1]:.0f} % of that" if curve.ideal_s and times[-1] else ""
        label = f"{curve.model}: {curve.hosts} host{'s' * (curve.hosts != 1)}, last after {time_text(times[-1])}{share}"
        axes.plot(times, counts, drawstyle="steps-post", color=colour, linewidth=2, label=label)
        axes.plot(times[-1], curve.hosts, marker="o", color=colour, markersize=5, clip_on=False, zorder=3)
    for ideal_s in sorted({curve.ideal_s for curve in shown if curve.ideal_s}):
        # The ideal: the last cannot have all of it before, and all have it then.
        axes.plot(
            [0, ideal_s, ideal_s, right_s], [0, 0, hosts, hosts], color=INK, linestyle="--", linewidth=1, zorder=1
        )
        before = ideal_s > right_s / 8
        axes.annotate(
            f"T* {time_text(ideal_s)}",
            (ideal_s, hosts * 0.12),
            xytext=(-6 if before else 6, 0),
            textcoords="offset points",
            ha="right" if before else "left",
            va="center",
            bbox=PATCH,
        )
    axes.set_xlim(0, right_s)
    axes.set_ylim(0, hosts * 1.04)
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.set_ylabel("hosts")
    axes.set_xlabel("seconds since the pull began")
    axes.legend(loc="upper left", frameon=False, fontsize=9)


def _colours(report: Report) -> dict[str, str]:
    return {kind: COLOURS[number % len(COLOURS)] for number, kind in enumerate(fault_kinds(report))}


def _draw_agreement(axes: Any, report: Report) -> None:
    axes.set_title("Members that agree on who is alive")
    colours = _colours(report)
    for fault in report.faults:
        if fault.for_s > 0:
            axes.axvspan(fault.at_s, fault.at_s + fault.for_s, color=colours[fault.kind], alpha=0.12, linewidth=0)
        axes.axvline(fault.at_s, color=colours[fault.kind], alpha=0.6, linewidth=1)
    times, shares = zip(*report.agreement, strict=True)
    axes.plot(times, shares, drawstyle="steps-post", color=INK, linewidth=1.8)
    axes.fill_between(times, shares, step="post", color=INK, alpha=0.05)
    converged = [(one.took_s, one) for one in report.convergences if one.took_s]
    if converged:
        took_s, slowest = max(converged, key=lambda pair: pair[0])
        what = slowest.what.replace("_", " ")
        axes.set_title(f"slowest: {what}, {time_text(took_s)}", loc="right", fontsize=9, fontweight="normal")
        if took_s > last_s(report) / 50:
            ends = (slowest.since_s, slowest.since_s + took_s)
            axes.plot(ends, (0.5, 0.5), color=INK, linewidth=1.2, marker="|", markersize=9)
    axes.set_xlim(0, last_s(report))
    axes.set_ylim(0, 1.04)
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    axes.set_xlabel("virtual seconds")


def _draw_faults(axes: Any, report: Report, lanes: list[Lane], left_out: int) -> None:
    axes.set_title("Faults" + (f" (the first {len(lanes)} hosts of {len(lanes) + left_out})" if left_out else ""))
    colours = _colours(report)
    right_s = last_s(report)
    for row, lane in enumerate(lanes):
        for fault in lane.faults:
            colour = colours[fault.kind]
            if fault.for_s > 0:
                # A short fault of a long run is still to be seen.
                shown_s = max(fault.for_s, right_s / 300)
                axes.barh(row, shown_s, left=fault.at_s, height=0.7, color=colour, alpha=0.85, linewidth=0)
            else:
                axes.plot(fault.at_s, row, marker="D", color=colour, markersize=5, clip_on=False)
    axes.set_yticks(range(len(lanes)), [lane.label for lane in lanes], fontsize=8)
    axes.set_ylim(len(lanes) - 0.4, -0.6)
    axes.set_xlim(0, right_s)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("virtual seconds")
    for kind in fault_kinds(report):
        axes.plot([], [], color=colours[kind], linewidth=6, label=kind.replace("_", " "))
    columns = min(len(colours), 8)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=columns, frameon=False, fontsize=9, borderaxespad=0.1)
