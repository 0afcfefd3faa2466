"""`herd sim`: what a mesh does under faults, simulated on this machine. Registered by an entry point of herd.

Worlds, tables and pictures are imported by the command that needs them, so that `herd --help` stays instant.
"""

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from node.cli.options import HerdGroup
from node.cli.output import document, table, visible
from node.errors import HerdError, UsageError

if TYPE_CHECKING:
    from simnet.report import Report
    from simnet.scenario import Scenario
    from simnet.soaking import Outcome
    from simnet.trace import Trace

PLOT_ENDINGS = (".png", ".svg", ".html")
FAULTS_PATTERN = re.compile(r"[1-9]\d*(?:,[1-9]\d*)*")
PEER_PATTERN = re.compile(r"12D3KooW\w+")
SEEDS_PATTERN = re.compile(r"(\d+)(?:\.\.(\d+))?")
JOBS_MAX = 64

as_json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")


@click.group("sim", cls=HerdGroup)
def sim() -> None:
    """Try a mesh under faults, simulated on this machine.

    Whole nodes run in one process over a simulated network, with simulated disks and a clock that jumps: an hour
    passes in moments, and the same seed is the same run. No node of this host is asked or touched.
    """


@sim.command("list")
@as_json_option
def list_scenarios(as_json: bool) -> None:
    """The scenarios that come with herd.

    A file of your own is run by its path: `herd sim run ./mine.toml`.
    """
    from simnet.scenario import load_scenario, scenario_names

    scenarios = [load_scenario(name) for name in scenario_names()]
    if as_json:
        rows = [{"name": one.name, "nodes": one.nodes, "shows": _shows(one)} for one in scenarios]
        document({"scenarios": rows})
        return
    table(("NAME", "NODES", "SHOWS"), [(one.name, str(one.nodes), _shows(one)) for one in scenarios], right=("NODES",))


def _shows(scenario: "Scenario") -> str:
    return " ".join(scenario.description.split())


@sim.command()
@click.argument("scenario", metavar="SCENARIO")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="What chance is made of.")
@click.option("--nodes", type=click.IntRange(min=1), metavar="K", help="How many hosts (default: the scenario's).")
@click.option("--only", metavar="N,N", help="Of the faults of the plan only these, from 1 (`0`: none).")
@click.option("--plot", type=click.Path(path_type=Path), metavar="FILE", help="Draw the run: .png, .svg or .html.")
@click.option("--trace", type=click.Path(path_type=Path), metavar="FILE", help="Write all that happened, as lines.")
@click.option("--shrink", is_flag=True, help="When it fails, find the few faults it takes, by more runs.")
@as_json_option
@click.pass_context
def run(
    context: click.Context,
    scenario: str,
    seed: int,
    nodes: int | None,
    only: str | None,
    plot: Path | None,
    trace: Path | None,
    shrink: bool,
    as_json: bool,
) -> None:
    """Run one SCENARIO: a name of `herd sim list`, or a file of your own.

    Exit 0 when every invariant held and every expectation was met, else 1.
    """
    from simnet.running import run_scenario
    from simnet.scenario import load_scenario
    from simnet.showing.progress import ProgressLine, keep_nodes_quiet
    from simnet.showing.tables import show_report
    from simnet.trace import Trace

    _check_files(plot, trace)
    loaded = load_scenario(scenario)
    kept = fault_numbers(only)
    _show_options(loaded, seed, nodes, only, to_stderr=as_json)
    told = Trace()
    keep_nodes_quiet()
    with ProgressLine() as progress:
        report = run_scenario(
            loaded,
            seed,
            nodes=nodes,
            only=kept,
            on_progress=lambda virtual_s, text: progress.show(f"{virtual_s:.0f} virtual seconds, {text}"),
            trace=told,
        )
    if as_json:
        from simnet.report import report_document

        document(report_document(report))
    else:
        show_report(report, report.replay)
    if trace is not None:
        _write_trace(told, trace, seed, report.nodes)
    if plot is not None:
        _plot(report, plot)
    if shrink and not report.passed and not only:
        _show_shortest(loaded, seed, nodes)
    context.exit(0 if report.passed else 1)


def _check_files(plot: Path | None, trace: Path | None) -> None:
    """Before the run: what cannot be written after it is said at once."""
    if plot is not None:
        from simnet.showing.drawing import require_matplotlib

        if plot.suffix not in PLOT_ENDINGS:
            raise UsageError(f"--plot {plot}: the name must end with {', '.join(PLOT_ENDINGS)}")
        require_matplotlib()
    for option, path in (("--plot", plot), ("--trace", trace)):
        if path is not None and not path.absolute().parent.is_dir():
            raise UsageError(f"{option} {path}: there is no folder {path.parent}; make it first")


def fault_numbers(text: str | None) -> list[int] | None:
    """`2,5` as numbers, `0` as none of them. UsageError for anything else."""
    if text is None or text == "0":
        return None if text is None else []
    if not FAULTS_PATTERN.fullmatch(text):
        raise UsageError(f"--only {text!r} is not allowed: numbers of faults, such as 2,5, or 0 for none")
    return sorted({int(number) for number in text.split(",")})


def _show_options(scenario: "Scenario", seed: int, nodes: int | None, only: str | None, *, to_stderr: bool) -> None:
    """First of all, so that even a run that never ends can be made again."""
    from simnet.running import options_shown

    given = {"nodes": str(scenario.nodes if nodes is None else nodes), **({"only": only} if only else {})}
    shown = {"scenario": scenario.name, "seed": str(seed), **given, **options_shown(scenario)}
    width = max(map(len, shown))
    for name, value in shown.items():
        click.echo(visible(f"{name:<{width}}  {value}"), err=to_stderr)
    click.echo(err=to_stderr)


def _write_trace(trace: "Trace", path: Path, seed: int, nodes: int) -> None:
    from simnet.world import identity_of

    # Who reads it knows the hosts by their numbers.
    names = {str(identity_of(seed, number).peer_id): f"h{number}" for number in range(1, nodes + 1)}
    try:
        with path.open("w", encoding="utf-8") as file:
            for one in trace.lines:
                text = PEER_PATTERN.sub(lambda match: names.get(match[0], match[0]), one.text)
                file.write(f"{one.at_s:12.6f}  {one.host or '-':<6} {text}\n")
    except OSError as error:
        raise HerdError(f"--trace {path}: {error.strerror}") from error
    click.echo(visible(f"trace: {path} ({len(trace.lines)} lines)"), err=True)


def _show_shortest(scenario: "Scenario", seed: int, nodes: int | None) -> None:
    from simnet.shrinking import shrink_run

    shorter = shrink_run(scenario, seed, nodes=nodes)
    faults = ", ".join(f"{fault.kind} at {fault.at_s:.1f} s" for fault in shorter.faults) or "no fault at all"
    click.echo(visible(f"it takes {faults}: {shorter.replay}"), err=True)


def _plot(report: "Report", path: Path) -> None:
    from simnet.showing.drawing import draw
    from simnet.showing.page import write_page

    try:
        if path.suffix == ".html":
            write_page(report, path, report.replay)
        else:
            draw(report, path)
    except OSError as error:
        raise HerdError(f"--plot {path}: {error.strerror}") from error
    click.echo(f"plot: {visible(str(path))}", err=True)


@sim.command()
@click.option("--seeds", metavar="A..B", required=True, help="The seeds, both ends included.")
@click.option("--jobs", type=click.IntRange(1, JOBS_MAX), default=2, show_default=True, help="Worker processes.")
@click.option("--scenario", "scenarios", metavar="SCENARIO", multiple=True, help="Which (repeatable; default: all).")
@click.option("--nodes", type=click.IntRange(min=1), metavar="K", help="How many hosts (default: each scenario's).")
@click.option("--for", "minutes", type=click.FloatRange(min=0, min_open=True), metavar="MINUTES", help="Begin no more.")
@click.option(
    "--patience",
    "patience_s",
    type=click.FloatRange(min=0, min_open=True),
    default=900.0,
    show_default=True,
    metavar="SECONDS",
    help="What one run may take; a longer one is ended and has failed.",
)
@as_json_option
@click.pass_context
def soak(
    context: click.Context,
    seeds: str,
    jobs: int,
    scenarios: tuple[str, ...],
    nodes: int | None,
    minutes: float | None,
    patience_s: float,
    as_json: bool,
) -> None:
    """Run many seeds over many scenarios in worker processes.

    Each failure is one line with the command that replays it. Ctrl-C ends the workers and shows what was done.
    """
    from simnet.scenario import scenario_names
    from simnet.showing.soaks import follow, show_outcomes
    from simnet.soaking import Soak, check_scenarios, jobs_of

    names = list(dict.fromkeys(scenarios)) or scenario_names()
    check_scenarios(names)
    wanted = jobs_of(names, seeds_range(seeds), nodes)
    click.echo(f"seeds {seeds}, {len(names)} scenarios, {len(wanted)} runs in {jobs} processes", err=as_json)
    until_s = time.monotonic() + minutes * 60 if minutes is not None else None
    outcomes: list[Outcome] = []
    interrupted = False
    began_s = time.monotonic()
    try:
        with Soak(wanted, workers=jobs, patience_s=patience_s, until_s=until_s) as working:
            follow(working, outcomes, len(wanted), quiet=as_json)
    except KeyboardInterrupt:
        interrupted = True
    show_outcomes(outcomes, len(wanted), time.monotonic() - began_s, as_json=as_json)
    if interrupted:
        raise KeyboardInterrupt
    context.exit(1 if any(one.problems for one in outcomes) else 0)


def seeds_range(text: str) -> range:
    """`1..50` or `7`. UsageError for anything else."""
    match = SEEDS_PATTERN.fullmatch(text)
    first = int(match[1]) if match else 0
    last = int(match[2] or first) if match else -1
    if last < first:
        raise UsageError(f"--seeds {text!r} is not allowed: A..B with A not above B, such as 1..50")
    return range(first, last + 1)
