"""`herd sim` as people and programs meet it: over a tiny world of their own file, in this process and in real ones."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from node.cli.root import run
from scripts import simulate_many
from simnet.commands import fault_numbers, seeds_range
from simnet.replaying import replay_command
from simnet.scenario import scenario_names
from simnet.soaking import Job, Soak, jobs_of, tallies

ROOT = Path(__file__).parents[2]
TINY = """
description = "Three hosts share a model, one of them crashes for a moment"
nodes = 3
for_s = 12
settle_s = 60

[[models]]
name = "llama"
size_bytes = 100_000
at_s = 1

[[pulls]]
model = "llama"
at_s = 3

[[faults]]
kind = "crash"
hosts = "last"
at_s = 6
for_s = 3

[expect]
pulled_within_s = {within_s}
"""


@pytest.fixture
def tiny(tmp_path: Path) -> str:
    path = tmp_path / "tiny.toml"
    path.write_text(TINY.format(within_s=60))
    return str(path)


@pytest.fixture
def impossible(tmp_path: Path) -> str:
    """The same, with an expectation that nothing can meet."""
    path = tmp_path / "impossible.toml"
    path.write_text(TINY.format(within_s=0.000001))
    return str(path)


def herd(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Run a command in this process: exit code, standard output, standard error."""
    code = run(["sim", *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def herd_process(*arguments: str, **options: Any) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "node.cli", "sim", *arguments],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "120"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def gone(group: int) -> bool:
    """Whether a group's processes end soon: multiprocessing's tracker follows when it sees its parent end."""
    for _ in range(100):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)  # real time: processes end when they do
    return False


def test_the_list_names_every_scenario_and_what_it_shows(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = herd(capsys, "list", "--json")
    listed = json.loads(out)["scenarios"]
    assert code == 0
    assert [row["name"] for row in listed] == scenario_names()
    assert all(row["nodes"] > 0 and row["shows"] for row in listed)
    code, out, _ = herd(capsys, "list")
    assert [line.split()[0] for line in out.splitlines() if not line.startswith(" ")] == ["NAME", *scenario_names()]


def test_a_run_says_its_options_first_and_then_what_was_found(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = herd(capsys, "run", tiny, "--seed", "5")
    assert (code, err) == (0, "")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert lines[:3] == ["scenario tiny", "seed 5", "nodes 3"]
    assert "latency_s 0.002" in lines
    assert "faults crash 1" in lines
    assert any(line.startswith("a host started 4 ") for line in lines)
    assert lines[-1] == "passed: tiny with seed 5"


def test_a_run_for_a_program_is_one_document(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = herd(capsys, "run", tiny, "--seed", "5", "--nodes", "4", "--only", "0", "--json")
    told = json.loads(out)
    assert (code, told["passed"], told["failure"]) == (0, True, "")
    assert (told["scenario"], told["seed"], told["nodes"], told["faults"]) == ("tiny", 5, 4, [])
    assert sorted(told["traffic"]) == ["h1", "h2", "h3", "h4"]
    assert len(told["finishes"]) == 3
    assert told["replay"] == f"herd sim run {tiny} --seed 5 --nodes 4 --only 0"
    assert err.splitlines()[0].split() == ["scenario", "tiny"]


def test_what_was_run_is_drawn_and_told(tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture, page, trace = tmp_path / "run.png", tmp_path / "run.html", tmp_path / "run.txt"
    code, _, err = herd(capsys, "run", tiny, "--plot", str(picture), "--trace", str(trace))
    assert code == 0
    assert picture.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert [line.split()[0] for line in err.splitlines()] == ["trace:", "plot:"]
    told = trace.read_text()
    assert [line.split()[1:] for line in told.splitlines() if line.endswith(" crash")] == [["h3", "crash"]]
    # Members are named as the hosts they run on.
    assert "h1     MemberChanged peer=h3 state=alive" in told
    assert herd(capsys, "run", tiny, "--plot", str(page))[0] == 0
    assert "<svg" in page.read_text()
    assert "llama: 2 hosts" in page.read_text()


def test_a_run_that_missed_something_fails_and_says_how_to_see_it_again(
    impossible: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = herd(capsys, "run", impossible, "--seed", "2", "--shrink")
    assert code == 1
    # It fails whatever happens, so it takes none of its faults.
    assert err == f"it takes no fault at all: herd sim run {impossible} --seed 2 --only 0\n"
    assert out.splitlines()[-1] == f"replay with: herd sim run {impossible} --seed 2"
    assert any(line.startswith("FAILED  ") for line in out.splitlines())


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["run", "regon-cut"], "did you mean region-cut"),
        (["run", "./no-such.toml"], "no-such.toml: cannot read the scenario"),
        (["run", "region-cut", "--plot", "x.gif"], "--plot x.gif: the name must end with .png, .svg, .html"),
        (["run", "region-cut", "--plot", "no/such/x.png"], "--plot no/such/x.png: there is no folder no/such"),
        (["run", "region-cut", "--trace", "no/such/x"], "--trace no/such/x: there is no folder no/such"),
        (["run", "region-cut", "--only", "a"], "--only 'a' is not allowed"),
        (["run", "region-cut", "--nodes", "0"], "0 is not in the range"),
        (["soak", "--seeds", "9..3"], "--seeds '9..3' is not allowed: A..B with A not above B"),
        (["soak", "--seeds", "1", "--scenario", "regon-cut"], "did you mean region-cut"),
        (["sock"], "did you mean soak"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = herd(capsys, *arguments)
    assert code == 2
    assert err.count("\n") == 1
    assert told in err


def test_numbers_of_seeds_and_faults() -> None:
    assert seeds_range("3..5") == range(3, 6)
    assert seeds_range("7") == range(7, 8)
    assert (fault_numbers(None), fault_numbers("0"), fault_numbers("5,2,5")) == (None, [], [2, 5])
    assert replay_command("my world.toml", 3, 9, [2, 5]) == "herd sim run 'my world.toml' --seed 3 --nodes 9 --only 2,5"


@pytest.mark.processes
def test_a_process_of_its_own_finds_the_same(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    with herd_process("run", tiny, "--seed", "7", "--json") as process:
        out, _ = process.communicate(timeout=120)
    here = json.loads(herd(capsys, "run", tiny, "--seed", "7", "--json")[1])
    assert process.returncode == 0
    assert json.loads(out)["digest"] == here["digest"]


@pytest.mark.processes
def test_a_soak_in_two_processes_names_each_failure(
    tiny: str, impossible: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["soak", "--seeds", "1..2", "--jobs", "2", "--scenario", tiny, "--scenario", impossible]
    code, out, _ = herd(capsys, *arguments)
    failed = sorted(line for line in out.splitlines() if line.startswith("FAILED"))
    assert code == 1
    assert [line.split("  ")[1] for line in failed] == [f"herd sim run {impossible} --seed {n}" for n in (1, 2)]
    assert "2 of 4 runs failed" in out.splitlines()[-1]

    code, out, err = herd(capsys, *arguments, "--json")
    told = json.loads(out)
    assert (code, told["runs"], told["complete"], told["faults"]) == (1, 4, True, 4)
    assert [row["failures"] for row in told["scenarios"]] == [2, 0]
    assert sorted(failure["seed"] for failure in told["failures"]) == [1, 2]
    assert err.count("FAILED") == 2


@pytest.mark.processes
def test_a_run_that_takes_too_long_is_ended_and_its_worker_replaced(tiny: str) -> None:
    with Soak(jobs_of([tiny], range(1, 3)), workers=1, patience_s=0.0) as soak:
        outcomes = [outcome for outcome in soak.outcomes() if outcome is not None]
    assert [outcome.job for outcome in outcomes] == [Job(tiny, 1), Job(tiny, 2)]
    assert all("was not over after 0 s" in outcome.problems[0] for outcome in outcomes)
    assert [row.failures for row in tallies(outcomes)] == [2]


@pytest.mark.processes
def test_when_the_time_is_over_no_more_runs_begin(tiny: str) -> None:
    with Soak(jobs_of([tiny], range(1, 50)), workers=1, patience_s=60, until_s=time.monotonic() - 1) as soak:
        assert [outcome for outcome in soak.outcomes() if outcome is not None] == []
        assert soak.left == 49


@pytest.mark.processes
def test_ctrl_c_ends_the_workers_and_shows_what_was_done(tiny: str) -> None:
    with herd_process("soak", "--seeds", "1..100000", "--scenario", tiny, start_new_session=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().startswith("seeds 1..100000")
        process.stderr.readline()
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "herd: interrupted"
    assert "of 100000 runs were not made" in out
    assert gone(process.pid)


@pytest.mark.processes
def test_the_nightly_soak_keeps_a_record(
    tiny: str, impossible: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record = tmp_path / "RECORD.md"
    record.write_text((ROOT / "simnet" / "RECORD.md").read_text().split("|---")[0] + "|---|\n")
    monkeypatch.setattr(simulate_many, "RECORD", record)
    assert simulate_many.main(["--count", "2", "--scenario", tiny]) == 0
    assert simulate_many.main(["--count", "1", "--scenario", impossible]) == 1
    first, second = record.read_text().splitlines()[-2:]
    assert first.split(" | ")[2:] == ["1..2", tiny, "2", "0.1", "2", "0 |"]
    assert second.split(" | ")[2:] == ["3..3", impossible, "1", "0.0", "1", f"1: {impossible} 3 |"]
    assert f'    assert passes("{impossible}", 3)' in capsys.readouterr().out
