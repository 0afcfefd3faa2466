"""What a start costs: CPU seconds of `herd up` from exec to its `ready` line. The goal is under 3 s."""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import trio

from scripts.herd_process import herd_process
from scripts.process_cost import cost_of

GOAL_CPU_S = 3.0


async def measure(folder: Path, rounds: int) -> dict[str, float | bool | int]:
    """Start nodes one after the other, each with a fresh home; medians, and the worst CPU time."""
    cpu_s, wall_s, resident_bytes = [], [], []
    for number in range(rounds):
        began = time.perf_counter()
        async with herd_process(folder / f"node-{number}") as node:
            wall_s.append(time.perf_counter() - began)
            cost = cost_of(node.process.pid)
            cpu_s.append(cost.cpu_s)
            resident_bytes.append(cost.resident_bytes)
    return {
        "rounds": rounds,
        "cpu_s": statistics.median(cpu_s),
        "cpu_s_max": max(cpu_s),
        "wall_s": statistics.median(wall_s),
        "resident_bytes": statistics.median(resident_bytes),
        "goal_cpu_s": GOAL_CPU_S,
        "reached": max(cpu_s) < GOAL_CPU_S,
    }


def main() -> int:
    """Measure and print; exit code 1 when the goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="how many starts (default 5)")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="herd-bench-") as folder:
        figures = trio.run(measure, Path(folder), options.rounds)
    if options.json:
        print(json.dumps(figures))
    else:
        print(
            f"start to ready: {figures['cpu_s']:.2f} s of CPU, worst of {options.rounds} {figures['cpu_s_max']:.2f} s"
        )
        print(f"(goal under {GOAL_CPU_S:g} s); {figures['wall_s']:.2f} s by the clock")
        print(f"{figures['resident_bytes'] / 1e6:.0f} MB resident")
    return 0 if figures["reached"] else 1


if __name__ == "__main__":
    sys.exit(main())
