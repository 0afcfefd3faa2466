"""What is left of a run: the table, the history file, the picture."""

import json
from pathlib import Path
from typing import Any

import attrs
import pytest
from rich.console import Console

from scripts.benchmark import __main__ as command_line
from scripts.benchmark.__main__ import measure_rows, parse_options
from scripts.benchmark.agents import AgentFailed
from scripts.benchmark.bench import QUICK, Bench
from scripts.benchmark.figures import Figure, RowResult, at_least, at_most
from scripts.benchmark.history import HistoryUnreadable, Run, add_run, latest_rows, read_history, run_document
from scripts.benchmark.machine import commit, describe, memory_available_bytes
from scripts.benchmark.plot import draw, goal_bars, speed_lines
from scripts.benchmark.programs import CannotMeasure
from scripts.benchmark.report import print_report, shown, verdict
from scripts.benchmark.rows.registry import ROWS, Measure

PAIR = RowResult(
    "pair-x",
    (Figure("herd against x", 1.2, "x", at_least(1.5)), Figure("herd", 0.6, "GB/s"), Figure("x", 0.5, "GB/s")),
    rounds=5,
    note="what to know",
)
MEMORY = RowResult("memory", (Figure("sender", 120.4, "MiB", at_most(300)),), rounds=1)
SWARM = RowResult("swarm-100", why_not="may not make network namespaces: run it as root")


def run_of(*rows: RowResult, at: str = "2031-01-02T03:04:05+00:00") -> Run:
    return run_document(at, {"cores": 2}, rows)


def test_the_table_shows_what_was_seen_wanted_and_missed() -> None:
    console = Console(width=120, record=True, file=None, quiet=False, force_terminal=False)
    with console.capture() as captured:
        print_report(console, [PAIR, MEMORY, SWARM])
    lines = [" ".join(line.split()) for line in captured.get().splitlines()]
    assert "pair-x herd against x 1.20 x at least 1.5 x no (80% of it) 5" in lines
    assert "herd 0.60 GB/s" in lines
    assert "memory sender 120 MiB at most 300 MiB yes 1" in lines
    assert "swarm-100 not measured" in lines
    assert "swarm-100: may not make network namespaces: run it as root" in lines
    assert "pair-x: what to know" in lines


def test_numbers_have_as_many_digits_as_mean_something() -> None:
    assert [shown(value, "s") for value in (0.123, 12.34, 1234.5, float("inf"))] == [
        "0.12 s",
        "12.3 s",
        "1234 s",
        "inf s",
    ]
    assert verdict(Figure("beside", 1, "s")) == ""


def test_the_history_grows_by_a_line_a_run(tmp_path: Path) -> None:
    path = tmp_path / "results" / "history.json"
    assert read_history(path) == []
    add_run(path, run_of(PAIR))
    runs = add_run(path, run_of(MEMORY, at="2031-02-02T03:04:05+00:00"))
    assert read_history(path) == runs
    assert [run["at"][:10] for run in runs] == ["2031-01-02", "2031-02-02"]
    assert len(path.read_text().splitlines()) == 4
    assert [found.name for found in path.parent.iterdir()] == ["history.json"]


@pytest.mark.parametrize("text", ["[half", '{"rows": []}', "[1]", '[{"at": "x"}]'])
def test_a_history_that_is_none_is_named_and_left_alone(tmp_path: Path, text: str) -> None:
    path = tmp_path / "history.json"
    path.write_text(text)
    with pytest.raises(HistoryUnreadable, match=r"history\.json"):
        add_run(path, run_of(PAIR))
    assert path.read_text() == text


def test_the_newest_run_that_measured_a_row_speaks_for_it() -> None:
    runs = [run_of(PAIR, MEMORY), run_of(SWARM), run_of(RowResult("memory", (Figure("sender", 90, "MiB"),)))]
    latest = latest_rows(runs)
    assert list(latest) == ["pair-x", "memory"]
    assert latest["memory"]["figures"][0]["value"] == 90


def test_the_picture_has_every_goal_and_the_way_of_the_speed(tmp_path: Path) -> None:
    runs = [run_of(PAIR, MEMORY), run_of(SWARM), run_of(PAIR)]
    assert [label for label, _ in goal_bars(runs)] == ["pair-x: herd against x", "memory: sender"]
    assert speed_lines(runs) == {"herd": [(0, 0.6), (2, 0.6)], "x": [(0, 0.5), (2, 0.5)]}
    pytest.importorskip("matplotlib", reason="scripts/setup bench brings it")
    path = tmp_path / "bench.svg"
    draw(runs, path)
    first = path.read_bytes()
    assert b"herd against x" in first
    draw(runs, path)
    assert path.read_bytes() == first


def test_the_machine_tells_what_a_figure_depends_on(tmp_path: Path) -> None:
    machine = describe(tmp_path, tmp_path)
    assert machine["cores"] >= 1
    assert machine["disk_write_mb_per_s"] > 0
    assert machine["commit"] == commit(tmp_path) == "unknown"
    assert memory_available_bytes() > 0
    assert list(tmp_path.iterdir()) == []
    json.dumps(machine)


def options_of(*arguments: str) -> Any:
    options = parse_options(arguments)
    assert options is not None
    return options


def test_the_command_line_chooses_rows_rounds_and_where_results_go(capsys: pytest.CaptureFixture[str]) -> None:
    assert options_of().rows == tuple(row.name for row in ROWS)
    assert options_of("--only", "cpu,verify", "--only", "memory").rows == ("cpu", "verify", "memory")
    assert (options_of().rounds, options_of("--quick").rounds, options_of("--rounds", "7").rounds) == (5, 1, 7)
    assert options_of("--quick").results is None
    assert options_of().results.name == "benchmarks"
    assert parse_options(["--list"]) is None
    assert capsys.readouterr().out.count("\n") == len(ROWS)


@pytest.mark.parametrize("wrong", [["--only", "pair"], ["--rounds", "0"], ["--minutes", "x"]])
def test_a_wrong_command_line_ends_with_2(wrong: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_options(wrong)
    assert ended.value.code == 2


async def test_a_row_that_breaks_or_cannot_be_measured_leaves_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def raising(error: Exception) -> Measure:
        async def measure(bench: Bench, wanted: object) -> list[RowResult]:
            raise error

        return measure

    async def fine(bench: Bench, wanted: object) -> list[RowResult]:
        return [PAIR]

    monkeypatch.setattr(command_line, "ROWS", [attrs.evolve(ROWS[0], name=name) for name in ("a", "b", "c", "pair-x")])
    groups = [
        (raising(CannotMeasure("needs root")), ["a"]),
        (raising(AgentFailed("it ended\nwith a long log")), ["b"]),
        (raising(KeyError("herd_bytes")), ["c"]),
        (fine, ["pair-x"]),
    ]
    monkeypatch.setattr(command_line, "groups", lambda wanted: groups)
    results = await measure_rows(Bench(tmp_path, QUICK, 1, 60), ["a", "b", "c", "pair-x"])
    assert [(result.why_not, result.failed) for result in results] == [
        ("needs root", False),
        ("it ended", True),
        ("'herd_bytes'", True),
        ("", False),
    ]
    # Only what must be a mistake of ours is told with its traceback.
    assert capsys.readouterr().err.count("Traceback") == 1
