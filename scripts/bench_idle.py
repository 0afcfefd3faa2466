"""What an idle node costs: the CPU share of every node of a mesh in which nothing happens. The goal is under 1 %."""

import argparse
import json
import statistics
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import trio

from scripts.herd_process import herd_process, mesh_key_of
from scripts.process_cost import cost_of

GOAL_SHARE = 0.01


async def measure(folder: Path, node_count: int, settle_s: float, seconds: float) -> dict[str, Any]:
    """Bring up a mesh, let it settle, then watch it: the share of one core that each node used."""
    async with AsyncExitStack() as stack:
        nodes = [await stack.enter_async_context(herd_process(folder / "node-0"))]
        mesh_key = await mesh_key_of(nodes[0])
        for number in range(1, node_count):
            joining = herd_process(folder / f"node-{number}", bootstrap=[nodes[0].multiaddr], mesh_key=mesh_key)
            nodes.append(await stack.enter_async_context(joining))
        for node in nodes:
            await node.wait_members(node_count)
        await trio.sleep(settle_s)
        before, began = [cost_of(node.process.pid) for node in nodes], time.perf_counter()
        await trio.sleep(seconds)
        after, elapsed_s = [cost_of(node.process.pid) for node in nodes], time.perf_counter() - began
        for node in nodes:
            node.process.terminate()
    shares = [(late.cpu_s - early.cpu_s) / elapsed_s for early, late in zip(before, after, strict=True)]
    return {
        "nodes": node_count,
        "seconds": round(elapsed_s, 3),
        "cpu_share": statistics.mean(shares),
        "cpu_share_max": max(shares),
        "cpu_shares": shares,
        "resident_bytes_max": max(cost.resident_bytes for cost in after),
        "goal_share": GOAL_SHARE,
        "reached": max(shares) < GOAL_SHARE,
    }


def main() -> int:
    """Measure and print; exit code 1 when the goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=10, help="how many nodes (default 10)")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long to watch (default 60)")
    parser.add_argument("--settle", type=float, default=15.0, help="how long to wait before watching (default 15)")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="herd-bench-") as folder:
        figures = trio.run(measure, Path(folder), options.nodes, options.settle, options.seconds)
    if options.json:
        print(json.dumps(figures))
    else:
        shares = " ".join(f"{share:.2%}" for share in figures["cpu_shares"])
        print(f"idle in a mesh of {options.nodes}, watched for {figures['seconds']:.0f} s, share of one core a node:")
        print(f"mean {figures['cpu_share']:.2%}, worst {figures['cpu_share_max']:.2%} (goal under {GOAL_SHARE:.0%})")
        print(f"each: {shares}; at most {figures['resident_bytes_max'] / 1e6:.0f} MB resident")
    return 0 if figures["reached"] else 1


if __name__ == "__main__":
    sys.exit(main())
