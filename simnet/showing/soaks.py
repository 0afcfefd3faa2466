"""A soak as people look at it: a line of progress, a line a failure, and a table at the end."""

import attrs
import click

from node.cli.output import document, line, seconds_text, table, visible
from simnet.showing.progress import ProgressLine
from simnet.soaking import Outcome, Soak, tallies, tally


def follow(working: Soak, outcomes: list[Outcome], count: int, *, quiet: bool) -> None:
    """Show a soak while it works and add what comes to `outcomes`; failures go to stderr when `quiet`."""
    with ProgressLine() as progress:
        failures = 0
        for outcome in working.outcomes():
            if outcome is not None:
                outcomes.append(outcome)
                failures += bool(outcome.problems)
                if outcome.problems:
                    progress.clear()
                    show_failure(outcome, to_stderr=quiet)
            virtual_s = sum(one.virtual_s for one in outcomes)
            failed = f"{failures} failed" if failures else "none failed"
            progress.show(f"{len(outcomes)} of {count} runs, {seconds_text(virtual_s)} simulated, {failed}")


def show_failure(outcome: Outcome, *, to_stderr: bool = False) -> None:
    """One line: what failed, and how to see it again."""
    more = f" (and {len(outcome.problems) - 1} more)" if len(outcome.problems) > 1 else ""
    click.echo(visible(f"FAILED  {outcome.job.replay}  {outcome.problems[0]}{more}"), err=to_stderr)


def show_outcomes(outcomes: list[Outcome], wanted: int, wall_s: float, *, as_json: bool) -> None:
    """What a soak came to: one row a scenario, and the whole."""
    rows, whole = tallies(outcomes), tally("all", outcomes)
    if as_json:
        failures = [
            {**attrs.asdict(one.job), "replay": one.job.replay, "problems": one.problems}
            for one in outcomes
            if one.problems
        ]
        totals = {"runs": whole.runs, "virtual_s": whole.virtual_s, "faults": whole.faults, "wall_s": wall_s}
        scenarios = [attrs.asdict(row) for row in rows]
        document({**totals, "complete": len(outcomes) == wanted, "scenarios": scenarios, "failures": failures})
        return
    click.echo()
    table(
        ("SCENARIO", "RUNS", "FAILED", "SIMULATED", "FAULTS", "CPU TIME"),
        [
            (
                row.scenario,
                str(row.runs),
                str(row.failures),
                seconds_text(row.virtual_s),
                str(row.faults),
                seconds_text(row.wall_s),
            )
            for row in [*rows, whole]
        ],
        right=("RUNS", "FAILED", "SIMULATED", "FAULTS", "CPU TIME"),
    )
    if len(outcomes) < wanted:
        line(f"{wanted - len(outcomes)} of {wanted} runs were not made")
    line(f"{whole.failures} of {whole.runs} runs failed, in {seconds_text(wall_s)}")
