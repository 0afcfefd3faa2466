"""The nightly soak: seeds nobody tried yet over every scenario, and one more row in simnet/RECORD.md.

Exit code 1 when a run failed: then it also prints the test that the failure is to become.
"""

import argparse
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from node.errors import HerdError
from simnet.commands import seeds_range
from simnet.scenario import scenario_names
from simnet.showing.soaks import follow, show_outcomes
from simnet.soaking import Outcome, Soak, check_scenarios, jobs_of, tally

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "simnet" / "RECORD.md"
SEEDS_IN_ROW = re.compile(r"^\| \d{4}-\d\d-\d\d \| [^|]+ \| (\d+)\.\.(\d+) \|", flags=re.MULTILINE)
FAILURES_SHOWN = 5


def seeds_after(record: str, count: int) -> range:
    """So many seeds after the highest that the record has."""
    first = max((int(last) for _, last in SEEDS_IN_ROW.findall(record)), default=0) + 1
    return range(first, first + count)


def row_of(outcomes: Sequence[Outcome], seeds: range, scenarios: Sequence[str], commit: str, date: str) -> str:
    """One row of the record."""
    whole = tally("all", outcomes)
    failed = [f"{outcome.job.scenario} {outcome.job.seed}" for outcome in outcomes if outcome.problems]
    more = f" and {len(failed) - FAILURES_SHOWN} more" if len(failed) > FAILURES_SHOWN else ""
    found = f"{len(failed)}: {', '.join(failed[:FAILURES_SHOWN])}{more}" if failed else "0"
    return (
        f"| {date} | {commit} | {seeds.start}..{seeds.stop - 1} | {', '.join(scenarios)} | {whole.runs:,} |"
        f" {whole.virtual_s / 3600:,.1f} | {whole.faults:,} | {found} |"
    )


def regression_of(outcome: Outcome) -> str:
    """The test that a failure becomes: its name is still to be given, by who knows the cause."""
    job = outcome.job
    nodes = f", nodes={job.nodes}" if job.nodes is not None else ""
    return (
        f"# {outcome.problems[0].splitlines()[-1]}\n"
        f"def test_name_what_went_wrong() -> None:\n"
        f'    assert passes("{job.scenario}", {job.seed}{nodes})\n'
    )


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="scripts/simulate_many", description=__doc__)
    parser.add_argument(
        "--count", type=int, default=100, help="how many seeds, after those of the record (default 100)"
    )
    parser.add_argument("--seeds", metavar="A..B", help="these seeds instead")
    parser.add_argument("--jobs", type=int, default=2, help="worker processes (default 2)")
    parser.add_argument("--for", dest="minutes", type=float, metavar="MINUTES", help="begin no run after that time")
    parser.add_argument("--scenario", action="append", metavar="X", help="only this one (repeatable)")
    parser.add_argument("--no-record", action="store_true", help="leave simnet/RECORD.md as it is")
    given = parser.parse_args(arguments)
    if given.count < 1 or given.jobs < 1:
        parser.error("--count and --jobs are at least 1")
    return given


def main(arguments: Sequence[str] | None = None) -> int:
    """Soak, show, record; the exit code."""
    given = parse(arguments)
    record = RECORD.read_text(encoding="utf-8")
    scenarios = list(dict.fromkeys(given.scenario or scenario_names()))
    try:
        seeds = seeds_range(given.seeds) if given.seeds else seeds_after(record, given.count)
        check_scenarios(scenarios)
    except HerdError as error:
        print(f"simulate_many: {error}", file=sys.stderr)
        return error.exit_code
    jobs = jobs_of(scenarios, seeds)
    print(f"seeds {seeds.start}..{seeds.stop - 1}, {len(jobs)} runs in {given.jobs} processes", flush=True)
    began_s = time.monotonic()
    until_s = began_s + given.minutes * 60 if given.minutes is not None else None
    outcomes: list[Outcome] = []
    interrupted = False
    try:
        with Soak(jobs, workers=given.jobs, patience_s=1800, until_s=until_s) as soak:
            follow(soak, outcomes, len(jobs), quiet=False)
    except KeyboardInterrupt:
        interrupted = True
    show_outcomes(outcomes, len(jobs), time.monotonic() - began_s, as_json=False)
    if outcomes and not given.no_record:
        tried = range(seeds.start, max(outcome.job.seed for outcome in outcomes) + 1)
        with RECORD.open("a", encoding="utf-8") as file:
            file.write(row_of(outcomes, tried, scenarios, commit(), f"{datetime.now(UTC):%Y-%m-%d}") + "\n")
    failed = [outcome for outcome in outcomes if outcome.problems]
    if failed:
        print("\nEach failure becomes a test of tests/sim/test_regressions.py, named for what went wrong:\n")
        print("\n\n".join(map(regression_of, failed)))
    return 130 if interrupted else 1 if failed else 0


def commit() -> str:
    """What was tried, as git names it."""
    described = subprocess.run(
        ["git", "-C", ROOT, "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    )
    return described.stdout.strip() or "unknown"


if __name__ == "__main__":
    sys.exit(main())
