"""A report as tables on standard output."""

from collections import Counter

from node.cli.output import line, size_text, table
from simnet.report import Report
from simnet.showing.summaries import Spread, by_model, by_subject, problems, time_text

CONVERGENCES_SHOWN = 15
"""Of more, the slowest: `--json` has all."""


def show_report(report: Report, replay: str) -> None:
    """Everything a run found; `replay` is the one command that repeats it."""
    _show_verdicts(report)
    _show_convergences(report)
    _show_finishes(report)
    _show_traffic(report)
    kinds = Counter(fault.kind for fault in report.faults)
    line("faults           " + (", ".join(f"{kind} {count}" for kind, count in kinds.items()) or "none"))
    line(f"false positives  {report.false_positives} of the failure detector")
    line(f"digest           {report.digest}")
    speed = f", {report.virtual_s / report.wall_s:.1f} times as fast as real" if report.wall_s > 0 else ""
    line(f"time             {time_text(report.virtual_s)} simulated in {time_text(report.wall_s)}{speed}")
    line()
    found = problems(report)
    for one in found:
        line(f"FAILED  {one}")
    line(f"replay with: {replay}" if found else f"passed: {report.scenario} with seed {report.seed}")


def _heading(text: str) -> None:
    line(text)
    line("-" * len(text))


def _show_verdicts(report: Report) -> None:
    if report.expectations:
        _heading("Expectations")
        rows = [(one.name, one.wanted, one.seen, "met" if one.met else "MISSED") for one in report.expectations]
        table(("EXPECTED", "WANTED", "SEEN", ""), rows)
        line()
    if report.checks:
        _heading("Invariants")
        table(
            ("INVARIANT", "", "VIOLATION"),
            [(one.name, "held" if one.held else "BROKEN", one.violation) for one in report.checks],
        )
        line()


def _show_convergences(report: Report) -> None:
    rows = []
    for what, group in by_subject(report.convergences).items():
        times = [one.took_s for one in group if one.took_s is not None]
        spread = Spread.of(times) if times else None
        numbers = [time_text(value) for value in spread.columns()] if spread else ["-", "-", "never"]
        slowness = float("inf") if len(times) < len(group) else spread.largest if spread else 0.0
        rows.append((slowness, (what, str(len(group)), *numbers, str(len(group) - len(times)))))
    if not rows:
        return
    _heading("Convergence")
    shown = {id(row) for row in sorted(rows, key=lambda row: -row[0])[:CONVERGENCES_SHOWN]}
    columns = ("WHAT", "TIMES", "MEDIAN", "P90", "MAX", "NEVER")
    table(columns, [row[1] for row in rows if id(row) in shown], right=columns[1:])
    if len(rows) > CONVERGENCES_SHOWN:
        line(f"the {CONVERGENCES_SHOWN} slowest of {len(rows)}; --json has all")
    line()


def _show_finishes(report: Report) -> None:
    rows = []
    for model, finishes in by_model(report.finishes).items():
        spread = Spread.of(one.took_s for one in finishes)
        ideals = [one.ideal_s for one in finishes if one.ideal_s is not None]
        ideal_s = max(ideals, default=0.0)
        share = f"{100 * ideal_s / spread.largest:.0f} %" if ideals and spread.largest > 0 else "-"
        numbers = (finishes[0].took_s, spread.median, spread.p90, spread.largest)
        ideal = time_text(ideal_s) if ideals else "-"
        rows.append((model, str(len(finishes)), *map(time_text, numbers), ideal, share))
    if rows:
        _heading("Pulls, from their start to the whole model")
        columns = ("MODEL", "HOSTS", "FIRST", "MEDIAN", "P90", "LAST", "T*", "T*/LAST")
        table(columns, rows, right=columns[1:])
        line()


def _show_traffic(report: Report) -> None:
    if not report.traffic:
        return
    _heading("Traffic per node")
    rows = []
    for label, field in (
        ("sent", "sent_bytes"),
        ("received", "received_bytes"),
        ("chunks sent", "chunk_sent_bytes"),
        ("chunks received", "chunk_received_bytes"),
        ("datagrams sent", "datagrams_sent"),
    ):
        values = {host: getattr(traffic, field) for host, traffic in report.traffic.items()}
        shown = str if field == "datagrams_sent" else size_text
        most = max(values, key=lambda host: values[host])
        total = sum(values.values())
        rows.append((label, *map(shown, map(int, Spread.of(values.values()).columns())), most, shown(total)))
    columns = ("", "MEDIAN", "P90", "MAX", "BY", "ALL")
    table(columns, rows, right=("MEDIAN", "P90", "MAX", "ALL"))
    line()
