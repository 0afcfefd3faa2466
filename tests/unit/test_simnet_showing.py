"""A report as people look at it: tables, pictures, a page, a line of progress. The report itself is made by hand."""

import io
import sys
from pathlib import Path

import pytest

from node.errors import UsageError
from simnet.report import Convergence, FaultShown, Finish
from simnet.showing import drawing, progress
from simnet.showing.curves import LANES_MAX, fault_lanes, finish_curves
from simnet.showing.drawing import draw, panels_of
from simnet.showing.page import write_page
from simnet.showing.progress import ProgressLine
from simnet.showing.summaries import Spread, by_subject, problems, time_text
from simnet.showing.tables import show_report
from tests.support_report import failed_report, report_of

PNG = b"\x89PNG\r\n\x1a\n"
REPLAY = "herd sim run region-cut --seed 7"


def test_a_spread_is_made_of_values_that_were_seen() -> None:
    assert Spread.of([5.0]) == Spread(5.0, 5.0, 5.0)
    assert Spread.of([3.0, 1.0, 2.0, 4.0]) == Spread(2.0, 4.0, 4.0)
    assert Spread.of(range(1, 101)) == Spread(50, 90, 100)


@pytest.mark.parametrize(("seconds", "text"), [(0.346, "0.35 s"), (12.34, "12.3 s"), (187.0, "3:07")])
def test_small_times_have_decimals(seconds: float, text: str) -> None:
    assert time_text(seconds) == text


def test_convergences_are_grouped_whichever_host_it_was() -> None:
    told = (Convergence("h3 crashed", 1, 2), Convergence("h14 crashed", 5, None), Convergence("cut over", 9, 1))
    assert {what: len(group) for what, group in by_subject(told).items()} == {"a host crashed": 2, "cut over": 1}


def test_the_tables_have_the_figures_of_the_report(capsys: pytest.CaptureFixture[str]) -> None:
    show_report(report_of(), REPLAY)
    shown = " ".join(capsys.readouterr().out.split())
    assert "detection within 15 s 11.5 s met" in shown
    assert "a host started 2 0.60 s 0.90 s 0.90 s 0" in shown
    assert "llama:latest 11 6.0 s 8.2 s 10.1 s 10.5 s 8.2 s 78 %" in shown
    assert "false positives 0 of the failure detector" in shown
    assert "datagrams sent 900 900 900 h1 10800" in shown
    assert shown.endswith("passed: region-cut with seed 7")


def test_a_failed_run_names_what_failed_and_how_to_see_it_again(capsys: pytest.CaptureFixture[str]) -> None:
    report = failed_report()
    assert problems(report) == [
        "no wrong byte: h4 served chunk 3 with wrong bytes",
        "detection: wanted within 10 s, seen 11.5 s",
    ]
    show_report(report, REPLAY)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-3:] == [*(f"FAILED  {problem}" for problem in problems(report)), f"replay with: {REPLAY}"]


def test_a_report_with_nothing_in_it_has_no_empty_tables(capsys: pytest.CaptureFixture[str]) -> None:
    show_report(report_of(convergences=(), finishes=(), traffic={}, faults=(), checks=(), expectations=()), REPLAY)
    assert capsys.readouterr().out.splitlines()[0] == "faults           none"


def test_a_finish_curve_counts_hosts_and_has_one_line_a_model() -> None:
    finishes = (Finish("h2", "a", 4.0, 3.0), Finish("h3", "a", 2.0, 3.0), Finish("h4", "b", 1.0))
    first, second = finish_curves(finishes)
    assert (first.model, first.points, first.ideal_s) == ("a", ((0.0, 0), (2.0, 1), (4.0, 2)), 3.0)
    assert (second.model, second.points, second.ideal_s) == ("b", ((0.0, 0), (1.0, 1)), None)


def test_lanes_are_in_the_order_of_the_hosts_and_bounded() -> None:
    everywhere = FaultShown(1.0, 2.0, "loss", (), "")
    crashes = [FaultShown(float(n), 0.0, "crash", (f"h{n}",), "") for n in range(50, 0, -1)]
    lanes, left_out = fault_lanes((*crashes, everywhere))
    assert [lane.label for lane in lanes[:3]] == ["all hosts", "h1", "h2"]
    assert (len(lanes), left_out) == (LANES_MAX, 51 - LANES_MAX)


def test_a_picture_has_all_its_marks(tmp_path: Path) -> None:
    draw(report_of(), tmp_path / "run.svg")
    drawn = (tmp_path / "run.svg").read_text(encoding="utf-8")
    for mark in (
        "T* 8.2 s",
        "llama:latest: 11 hosts",
        "slowest: h3 crashed, 11.5 s",
        "region cut",
        ">h12<",
        "all hosts",
    ):
        assert mark in drawn
    draw(report_of(), tmp_path / "again.svg")
    assert (tmp_path / "again.svg").read_text(encoding="utf-8") == drawn


def test_a_png_is_one_and_has_only_panels_with_something_in_them(tmp_path: Path) -> None:
    whole, small = report_of(), report_of(finishes=(), faults=())
    assert panels_of(whole) == ["finishes", "agreement", "faults"]
    assert panels_of(small) == ["agreement"]
    for name, report in (("whole.png", whole), ("small.png", small)):
        draw(report, tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(PNG)
    with pytest.raises(UsageError, match="nothing to draw"):
        draw(report_of(finishes=(), faults=(), agreement=()), tmp_path / "none.png")


def test_a_page_stands_alone_and_escapes_what_it_shows(tmp_path: Path) -> None:
    failed = failed_report()
    write_page(report_of(checks=failed.checks, failure="<script>h1</script> died"), tmp_path / "run.html", REPLAY)
    page = (tmp_path / "run.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 1
    assert "&lt;script&gt;h1&lt;/script&gt; died" in page
    assert "h4 served chunk 3 with wrong bytes" in page
    assert f"<code>{REPLAY}</code>" in page
    # Nothing is fetched: the only addresses are the names of SVG's own vocabularies.
    assert "<script" not in page
    assert "src=" not in page
    assert "<link" not in page


def test_a_page_of_a_run_with_nothing_to_draw_has_its_tables(tmp_path: Path) -> None:
    write_page(report_of(finishes=(), faults=(), agreement=()), tmp_path / "run.html", REPLAY)
    page = (tmp_path / "run.html").read_text(encoding="utf-8")
    assert "<svg" not in page
    assert "<h2>Traffic</h2>" in page


def test_without_matplotlib_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UsageError, match=r"pip install 'matplotlib>=3\.10'"):
        drawing.require_matplotlib()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_the_line_is_live_and_gone_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(progress, "LIVE_INTERVAL_S", 0.0)
    with ProgressLine() as shown:
        shown.show("12 of 12 alive\x1b[31m")
    assert terminal.getvalue() == "\r0 s: 12 of 12 alive\\x1b[31m\x1b[K\r\x1b[K"


def test_in_a_log_there_is_a_plain_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([100.0, 101.0, 106.0, 107.0])
    monkeypatch.setattr("simnet.showing.progress.time.monotonic", lambda: next(clock))
    with ProgressLine() as shown:
        for text in ("one", "two", "three"):
            shown.show(text)
    assert capsys.readouterr().err == "6 s: two\n"
