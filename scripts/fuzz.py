"""Feeds made-up inputs to every decoder that faces peers, each in a process of its own, and shows what came of it.

Coverage leads the way where atheris is installed, else valid inputs are mutated by chance. Exit code 1 when anything
but a refusal came out of a decoder, or one took more memory than it may.
"""

import argparse
import json
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path

import attrs

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "tests" / "FUZZ.md"
MEMORY_MIB_MAX = 256
"""What a decoder's whole process may take under atheris; without any input it takes about 65."""
INPUT_MEMORY_MIB_MAX = 128
"""What the inputs may add to a process that was idle before, where the engine lets us see it."""
STATISTICS = {"inputs": r"stat::number_of_executed_units:\s+(\d+)", "peak_mib": r"stat::peak_rss_mb:\s+(\d+)"}


@attrs.frozen
class Outcome:
    """What one decoder went through; `problem` is empty when it held."""

    decoder: str
    engine: str
    inputs: int
    seed: int
    seconds: float
    peak_mib: int
    problem: str = ""


def feed_by_chance(decoder: str, runs: int, seed: int, seconds: float) -> dict[str, object]:
    """Mutate valid inputs until so many were fed or the time is over. An input that broke a decoder is in the error."""
    from scripts.fuzz_targets import REFUSALS, TARGETS, mutated

    target, rng = TARGETS[decoder], random.Random(f"{decoder} {seed}")
    for example in target.examples:
        target.feed(example)
    before_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    ends_s = time.monotonic() + seconds
    kept, inputs = list(target.examples), 0
    while inputs < runs and (inputs % 1000 or time.monotonic() < ends_s):
        data = mutated(rng.choice(kept), rng.choice(kept), rng, target.size_bytes_max)
        inputs += 1
        try:
            target.feed(data)
        except REFUSALS:
            continue
        except BaseException as error:
            raise SystemExit(f"{type(error).__name__}: {error} for input {data.hex()}") from error
        # What was understood leads further than what was not.
        if len(kept) < 2000:
            kept.append(data)
        else:
            kept[rng.randrange(len(target.examples), 2000)] = data
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    if peak_mib - before_mib > INPUT_MEMORY_MIB_MAX:
        raise SystemExit(f"the inputs took {peak_mib - before_mib} MiB of memory")
    return {"inputs": inputs, "peak_mib": peak_mib}


def feed_by_coverage(decoder: str, runs: int, seed: int, seconds: float) -> None:
    """Let atheris look for inputs; it ends the process itself, with its statistics on stderr."""
    import atheris

    with atheris.instrument_imports(include=["protocols", "node.transport", "scripts.fuzz_targets"]):
        from scripts.fuzz_targets import REFUSALS, TARGETS
    target = TARGETS[decoder]

    def feed(data: bytes) -> None:
        try:
            target.feed(data)
        except REFUSALS:
            return

    with tempfile.TemporaryDirectory() as corpus:
        for number, example in enumerate(target.examples):
            (Path(corpus) / str(number)).write_bytes(example)
        options = [f"-runs={runs}", f"-seed={seed}", f"-max_total_time={max(1, int(seconds))}", "-print_final_stats=1"]
        options += [f"-max_len={target.size_bytes_max}", f"-rss_limit_mb={MEMORY_MIB_MAX}", "-timeout=10"]
        options += [f"-artifact_prefix={tempfile.gettempdir()}/herd-fuzz-", "-close_fd_mask=1"]
        atheris.Setup([sys.argv[0], *options, corpus], feed)
        atheris.Fuzz()


def run_decoder(decoder: str, engine: str, runs: int, seed: int, seconds: float) -> Outcome:
    """One decoder in a process of its own."""
    began_s = time.monotonic()
    arguments = [f"--child={engine}", f"--only={decoder}", f"--runs={runs}", f"--seed={seed}", f"--seconds={seconds}"]
    child = subprocess.run(
        [sys.executable, "-m", "scripts.fuzz", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    took_s = time.monotonic() - began_s
    found: dict[str, int] = {"inputs": 0, "peak_mib": 0}
    if engine == "atheris":
        found |= {name: int(match[1]) for name, text in STATISTICS.items() if (match := re.search(text, child.stderr))}
    elif child.returncode == 0:
        found |= json.loads(child.stdout)
    problem = "" if child.returncode == 0 and found["inputs"] else child.stderr[-2000:] or f"exit {child.returncode}"
    return Outcome(decoder, engine, found["inputs"], seed, round(took_s, 1), found["peak_mib"], problem)


def shown(outcome: Outcome) -> str:
    """One row of the table."""
    result = "held" if not outcome.problem else "BROKE"
    return (
        f"| {outcome.decoder} | {outcome.engine} | {outcome.inputs:,} | {outcome.seed} | {outcome.seconds:.1f} |"
        f" {outcome.peak_mib} | {result} |"
    )


HEADINGS = (
    "| decoder | engine | inputs | seed | seconds | peak MiB of the process | outcome |\n|---|---|---|---|---|---|---|"
)


def record(outcomes: Sequence[Outcome]) -> None:
    """Add a dated table to the record."""
    commit = subprocess.run(
        ["git", "-C", ROOT, "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    ).stdout.strip()
    rows = "\n".join(map(shown, outcomes))
    inputs, seconds = sum(outcome.inputs for outcome in outcomes), sum(outcome.seconds for outcome in outcomes)
    title = f"## {datetime.now(UTC):%Y-%m-%d}, commit {commit}: {inputs:,} inputs in {seconds:.0f} s"
    with RECORD.open("a", encoding="utf-8") as file:
        file.write(f"\n{title}\n\n{HEADINGS}\n{rows}\n")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="scripts/fuzz", description=__doc__)
    parser.add_argument("--runs", type=int, default=1_000_000, help="inputs in all, spread over the decoders")
    parser.add_argument("--seconds", type=float, default=300.0, help="at most so long in all")
    parser.add_argument("--seed", type=int, default=None, help="for the same inputs again (default: one by chance)")
    parser.add_argument("--only", default="", help="this decoder alone")
    parser.add_argument("--engine", choices=["atheris", "chance"], default="", help="default: atheris if installed")
    parser.add_argument("--record", action="store_true", help="add the outcome to tests/FUZZ.md")
    parser.add_argument("--child", default="", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line says; exit code."""
    options = parse(arguments)
    if options.child == "chance":
        print(json.dumps(feed_by_chance(options.only, options.runs, options.seed, options.seconds)))
        return 0
    if options.child == "atheris":
        feed_by_coverage(options.only, options.runs, options.seed, options.seconds)
        return 0
    from scripts.fuzz_targets import TARGETS

    if options.only and options.only not in TARGETS:
        print(f"fuzz: no decoder {options.only!r}: one of {', '.join(TARGETS)}", file=sys.stderr)
        return 2
    decoders = [options.only] if options.only else list(TARGETS)
    engine = options.engine or ("atheris" if find_spec("atheris") else "chance")
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1 << 31)
    print(HEADINGS, flush=True)
    outcomes = []
    for decoder in decoders:
        runs, seconds = -(-options.runs // len(decoders)), options.seconds / len(decoders)
        outcomes.append(run_decoder(decoder, engine, runs, seed, seconds))
        print(shown(outcomes[-1]), flush=True)
    if options.record:
        record(outcomes)
    broken = [outcome for outcome in outcomes if outcome.problem]
    for outcome in broken:
        print(f"fuzz: {outcome.decoder}: {outcome.problem}", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
