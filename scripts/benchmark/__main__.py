"""`scripts/bench`: herd as real processes against the programs people use today, in turn on the same machine."""

import argparse
import json
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from pathlib import Path

import attrs
import trio
from rich.console import Console

from scripts.benchmark.agents import AgentFailed
from scripts.benchmark.bench import FULL, QUICK, Bench
from scripts.benchmark.figures import RowResult, row_document
from scripts.benchmark.history import HistoryUnreadable, add_run, read_history, run_document
from scripts.benchmark.machine import describe
from scripts.benchmark.plot import draw
from scripts.benchmark.programs import CannotMeasure, ProgramFailed
from scripts.benchmark.report import print_report
from scripts.benchmark.rows.registry import ROWS, Measure, groups
from scripts.herd_process import HerdProcessFailed

ROOT = Path(__file__).resolve().parents[2]
HISTORY_NAME, PLOT_NAME = "history.json", "bench.svg"
TABLE_WIDTH = 120
"""In a file or a pipe, which has no width of its own."""

# What a row can break on without a mistake of ours: then the line says all.
ROW_FAILURES = (AgentFailed, ProgramFailed, HerdProcessFailed, OSError)


@attrs.frozen
class Options:
    """What the command line asked for; `results` is where history and plot are kept, if anywhere."""

    rows: tuple[str, ...]
    rounds: int
    quick: bool
    json: bool
    strict: bool
    minutes: float
    results: Path | None
    keep: bool


def parse_options(arguments: Sequence[str]) -> Options | None:
    """The command line, None when it only asks for the list, which is printed; argparse ends a wrong one with 2."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    add = parser.add_argument
    add("--list", action="store_true", help="print every row with its goal, and end")
    add("--only", metavar="ROW[,ROW]", action="append", default=[], help="measure these rows; may be repeated")
    add("--rounds", type=int, help="how many rounds a row takes its median of (default 5; 1 with --quick)")
    add("--minutes", type=float, default=11, help="rows share this; a slow one ends with 3 rounds or more (default 11)")
    add("--quick", action="store_true", help="tiny sizes: shows that it works, and nothing about speed")
    add("--json", action="store_true", help="print one JSON document instead of the table")
    add("--strict", action="store_true", help="exit code 1 when a goal is missed or a row cannot be measured")
    add("--results", type=Path, default=ROOT / "benchmarks", help="folder of the history and the plot")
    add("--no-history", action="store_true", help="leave history and plot as they are (so does --quick)")
    add("--keep", action="store_true", help="leave homes, stores and logs where they are")
    given = parser.parse_args(arguments)
    if given.list:
        for row in ROWS:
            print(f"{row.name:16} {row.what}: {row.goal}")
        return None
    known = [row.name for row in ROWS]
    chosen = [name for names in given.only for name in names.split(",")] or known
    for name in chosen:
        if name not in known:
            parser.error(f"no row {name!r}: one of {', '.join(known)}")
    rounds = given.rounds if given.rounds is not None else 1 if given.quick else 5
    if not 1 <= rounds <= 100:
        parser.error("--rounds must be 1 to 100")
    results = None if given.no_history or given.quick else given.results
    return Options(tuple(chosen), rounds, given.quick, given.json, given.strict, given.minutes, results, given.keep)


async def measure_rows(bench: Bench, wanted: Collection[str]) -> list[RowResult]:
    """Every wanted row, each with its figures or the reason why it has none."""
    results: list[RowResult] = []
    for measure, names in groups(wanted):
        began = time.monotonic()
        measured = await _measure_group(bench, measure, names)
        seconds = time.monotonic() - began
        bench.say(f"{', '.join(names)}: done in {seconds:.0f} s")
        results += [attrs.evolve(result, seconds=seconds) for result in measured]
    order = [row.name for row in ROWS]
    return sorted(results, key=lambda result: order.index(result.row))


async def until_signal(bench: Bench, wanted: Collection[str]) -> tuple[list[RowResult], int]:
    """The rows, and 0; or none, and the number of the signal that ended them, once all processes are ended in order."""
    results: list[RowResult] = []
    ended_by = 0
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                nonlocal ended_by
                async for number in signals:
                    ended_by = number
                    bench.say("ending what runs; nothing is kept")
                    nursery.cancel_scope.cancel()

            nursery.start_soon(watch)
            results = await measure_rows(bench, wanted)
            nursery.cancel_scope.cancel()
    return results, ended_by


async def _measure_group(bench: Bench, measure: Measure, names: list[str]) -> list[RowResult]:
    try:
        return await measure(bench, names)
    except* CannotMeasure as group:
        why, failed = _first(group), False
    except* Exception as group:  # boundary: a row that breaks must not cost what the others measured
        why, failed = _first(group), True
        if not isinstance(why, ROW_FAILURES):
            traceback.print_exception(group)
    bench.say(f"{', '.join(names)}: {why}")
    line = (str(why) or type(why).__name__).splitlines()[0]
    return [RowResult(name, why_not=line, failed=failed) for name in names]


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def keep_results(options: Options, machine: dict[str, object], results: list[RowResult]) -> None:
    """Add the run to the history and draw the picture anew."""
    if options.results is None:
        return
    at = datetime.now(UTC).isoformat(timespec="seconds")
    runs = add_run(options.results / HISTORY_NAME, run_document(at, machine, results))
    try:
        draw(runs, options.results / PLOT_NAME)
    except ImportError:
        print("bench: no plot without matplotlib: run `scripts/setup bench`", file=sys.stderr)


def show(options: Options, machine: dict[str, object], results: list[RowResult]) -> None:
    """The results as asked for, on stdout."""
    if options.json:
        print(json.dumps({"machine": machine, "rows": [row_document(result) for result in results]}))
        return
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = TABLE_WIDTH
    console.print(", ".join(f"{name} {value}" for name, value in machine.items()), soft_wrap=True)
    print_report(console, results)


def main() -> int:
    """Measure; exit code 1 when a row broke, or with --strict when a goal is missed or a row could not be measured."""
    options = parse_options(sys.argv[1:])
    if options is None:
        return 0
    folder = Path(tempfile.mkdtemp(prefix="herd-bench-"))
    bench = Bench(folder, QUICK if options.quick else FULL, options.rounds, options.minutes * 60)
    try:
        if options.results is not None:
            # Before a quarter of an hour is spent on what could not be kept.
            read_history(options.results / HISTORY_NAME)
        machine = describe(ROOT, folder)
        results, ended_by = trio.run(until_signal, bench, options.rows)
        if ended_by:
            return 128 + ended_by
        keep_results(options, machine, results)
    except HistoryUnreadable as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    finally:
        if options.keep:
            print(f"bench: kept {folder}", file=sys.stderr)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    show(options, machine, results)
    if any(result.failed for result in results):
        return 1
    return 1 if options.strict and not all(result.reached for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
