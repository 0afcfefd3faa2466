"""A report as one HTML page that needs nothing else: the pictures as inline SVG, the tables below."""

import html
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from node.cli.output import size_text
from simnet.report import Report
from simnet.showing.drawing import draw, panels_of
from simnet.showing.summaries import Spread, by_subject, problems, time_text

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1a202c; max-width: 1000px; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem; margin-bottom: 0 } h2 { font-size: 1.1rem; margin-top: 2rem }
.passed { color: #3a7d44 } .failed { color: #c8553d } svg { width: 100%; height: auto }
table { border-collapse: collapse; width: 100% } td.number, th.number { text-align: right }
th, td { text-align: left; padding: .25rem .75rem .25rem 0; border-bottom: 1px solid #e2e8f0; vertical-align: top }
code { background: #edf2f7; padding: .1rem .3rem; border-radius: 3px; overflow-wrap: anywhere }
"""


def write_page(report: Report, path: Path, replay: str) -> None:
    """Write the page; `replay` is the one command that repeats the run."""
    outcome = "passed" if report.passed else "failed"
    title = html.escape(f"{report.scenario}, seed {report.seed}")
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><style>{STYLE}</style>",
        f"<h1>{title}: <span class={outcome}>{outcome}</span></h1>",
        f"<p>{report.nodes} nodes, {time_text(report.virtual_s)} simulated, {report.false_positives} false positives"
        f" of the failure detector. Again: <code>{html.escape(replay)}</code></p>",
        *(f"<p class=failed>{html.escape(one)}</p>" for one in problems(report)),
        *([_picture(report)] if panels_of(report) else []),
        _table(
            "Expectations",
            ("expected", "wanted", "seen", ""),
            ((one.name, one.wanted, one.seen, "met" if one.met else "missed") for one in report.expectations),
        ),
        _table(
            "Invariants",
            ("invariant", "", "violation"),
            ((one.name, "held" if one.held else "broken", one.violation) for one in report.checks),
        ),
        _table("Convergence", ("what", "times", "median", "longest", "never"), _convergence_rows(report), numbers=True),
        _table("Traffic", ("host", "sent", "received", "chunks sent", "received"), _traffic_rows(report), numbers=True),
        _table("Faults", ("at", "kind", "what"), _fault_rows(report)),
        _table("Options", ("option", "value"), report.options.items()),
        f"<p>Digest of all that happened: <code>{report.digest}</code></p></html>\n",
    ]
    path.write_text("\n".join(part for part in parts if part), encoding="utf-8")


def _picture(report: Report) -> str:
    with tempfile.TemporaryDirectory() as folder:
        drawn = Path(folder) / "picture.svg"
        draw(report, drawn)
        text = drawn.read_text(encoding="utf-8")
    # The XML prologue has no place inside a page.
    return text[text.index("<svg") :]


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: bool = False) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        marks = (" class=number" if numbers and place else "" for place in range(len(cells)))
        inside = "".join(f"<{tag}{mark}>{html.escape(cell)}" for cell, mark in zip(cells, marks, strict=True))
        return f"<tr>{inside}"

    made = [row(cells, "td") for cells in rows]
    return "\n".join([f"<h2>{title}</h2>", "<table>", row(columns, "th"), *made, "</table>"]) if made else ""


def _convergence_rows(report: Report) -> Iterable[Sequence[str]]:
    for what, group in by_subject(report.convergences).items():
        times = [one.took_s for one in group if one.took_s is not None]
        spread = Spread.of(times) if times else None
        numbers = (time_text(spread.median), time_text(spread.largest)) if spread else ("-", "-")
        yield what, str(len(group)), *numbers, str(len(group) - len(times))


def _traffic_rows(report: Report) -> Iterable[Sequence[str]]:
    for host, traffic in report.traffic.items():
        chunks = (traffic.chunk_sent_bytes, traffic.chunk_received_bytes)
        yield host, *map(size_text, (traffic.sent_bytes, traffic.received_bytes, *chunks))


def _fault_rows(report: Report) -> Iterable[Sequence[str]]:
    for fault in report.faults:
        lasting = f" for {time_text(fault.for_s)}" if fault.for_s > 0 else ""
        yield time_text(fault.at_s) + lasting, fault.kind.replace("_", " "), fault.text
