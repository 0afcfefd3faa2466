"""What simulated worlds say of membership, gossip and catalog, and what a busy world costs.

Each row is a world on a virtual clock: times and bytes are virtual, CPU is this process's. `--nodes` and `--only` make
it shorter; a goal counts as reached at the size it is meant for, and not in a smaller world.
"""

import argparse
import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import trio

from node.background import open_background
from protocols.ids import PeerId
from protocols.names import ModelName
from simnet.determinism import part_rng, run_world
from simnet.world import World, WorldOptions

Figures = dict[str, Any]
Story = Callable[[World], Awaitable[Figures]]

LOSS = 0.05
LOOK_S = 0.1
JOIN_AT_ONCE = 25
"""Hosts that start together, so that a thousand are there within a virtual minute."""
OBSERVED_S = 120.0
CRASHES = 5
GOSSIP_S = 60.0
SIZES = (10, 100, 1000)
BUSY_NODES, BUSY_S = 100, 600.0


def in_world(options: WorldOptions, story: Story) -> Figures:
    """Let a story happen; its figures, and what the whole cost."""
    began_s = time.process_time()

    async def main() -> Figures:
        async with open_background() as nursery:
            return await story(World(nursery, options))

    figures = run_world(main, options.seed)
    return {**figures, "cpu_s": round(time.process_time() - began_s, 1)}


async def populate(world: World, nodes: int) -> None:
    """Start that many nodes, and wait until all know all."""
    while len(world.hosts) < nodes:
        # The first host is alone at first: the others join through it.
        batch = [
            world.add_host().number for _ in range(min(JOIN_AT_ONCE if world.hosts else 1, nodes - len(world.hosts)))
        ]
        async with trio.open_nursery() as nursery:
            for number in batch:
                nursery.start_soon(world.start, number)
    complete_s = await until(world, lambda: all(len(alive(world, each)) == nodes - 1 for each in world.running()), 600)
    if complete_s is None:
        raise RuntimeError(f"{nodes} nodes did not all find each other within ten virtual minutes")


def alive(world: World, number: int) -> list[PeerId]:
    """Whom a node takes for alive."""
    node = world.hosts[number].node
    return node.services.membership.alive() if node is not None else []


async def until(world: World, holds: Callable[[], bool], within_s: float) -> float | None:
    """Virtual seconds until a condition holds, None when it does not within so many."""
    waited_s = 0.0
    while not holds():
        if waited_s >= within_s:
            return None
        await world.wait(LOOK_S)
        waited_s += LOOK_S
    return round(waited_s, 1)


class Counts:
    """Datagrams and stream frames by sender, from now on."""

    def __init__(self, world: World) -> None:
        self.bytes: Counter[PeerId] = Counter()
        before_frame, before_datagram = world.network.on_frame, world.datagrams.on_datagram

        def count(sender: PeerId, receiver: PeerId, size_bytes: int) -> None:
            self.bytes[sender] += size_bytes

        for network, name, before in (
            (world.network, "on_frame", before_frame),
            (world.datagrams, "on_datagram", before_datagram),
        ):

            def both(sender: PeerId, receiver: PeerId, size_bytes: int, before: Any = before) -> None:
                count(sender, receiver, size_bytes)
                if before is not None:
                    before(sender, receiver, size_bytes)

            setattr(network, name, both)


def wrongly_dead(world: World, since_s: float, gone: Sequence[PeerId]) -> int:
    """How often anybody declared a node dead that ran. RuntimeError when the trace no longer goes back so far."""
    lines = world.trace.lines
    if world.trace.lines_dropped and lines[0].at_s > since_s:
        raise RuntimeError("too much happened for the trace to keep: what was wrong cannot be counted")
    return sum(
        1
        for line in lines
        if line.at_s >= since_s
        and line.text.startswith("MemberChanged")
        and "state=dead" in line.text
        and not any(peer in line.text for peer in gone)
    )


def membership(nodes: int, seed: int) -> Figures:
    """A lossy mesh is watched for false deaths; then nodes crash one after the other."""

    async def story(world: World) -> Figures:
        await populate(world, nodes)
        await world.wait(30)
        began_s = trio.current_time()
        await world.wait(OBSERVED_S)
        first_s: list[float | None] = []
        all_s: list[float | None] = []
        gone: list[PeerId] = []
        for number in part_rng(seed, "crashes").sample(range(2, nodes + 1), CRASHES):
            peer = world.hosts[number].peer
            gone.append(peer)
            await world.crash(number)
            one_s = await until(world, lambda: any(peer not in alive(world, each) for each in world.running()), 120)  # noqa: B023
            more_s = await until(world, lambda: all(peer not in alive(world, each) for each in world.running()), 120)  # noqa: B023
            first_s.append(one_s)
            all_s.append(None if one_s is None or more_s is None else round(one_s + more_s, 1))
        hours = (trio.current_time() - began_s) / 3600
        known_s = [each for each in all_s if each is not None]
        slowest_s = max(known_s) if len(known_s) == CRASHES else None
        false_positives = wrongly_dead(world, began_s, gone)
        return {
            "nodes": nodes,
            "loss": LOSS,
            "first_knows_s": first_s,
            "all_know_s": all_s,
            "all_know_s_max": slowest_s,
            "false_positives": false_positives,
            "simulated_hours": round(hours, 3),
            "reached": nodes >= SIZES[-1] and slowest_s is not None and slowest_s < 15 and not false_positives,
        }

    return in_world(WorldOptions(seed=seed, loss=LOSS), story)


def gossip(nodes: int, seed: int) -> Figures:
    """What a quiet mesh of each size costs a node: bytes sent and CPU a second, median and most of all nodes."""
    rows = []
    for size in [size for size in SIZES if size <= nodes]:

        async def story(world: World, size: int = size) -> Figures:
            await populate(world, size)
            await world.wait(GOSSIP_S)
            counts, began_s = Counts(world), time.process_time()
            await world.wait(GOSSIP_S)
            cpu_s = time.process_time() - began_s
            sent = [counts.bytes[host.peer] / GOSSIP_S for host in world.hosts.values()]
            return {
                "nodes": size,
                "bytes_per_s_median": round(statistics.median(sent)),
                "bytes_per_s_max": round(max(sent)),
                "cpu_ms_per_s": round(1000 * cpu_s / size / GOSSIP_S, 3),
            }

        rows.append(in_world(WorldOptions(seed=seed), story))
    flat = {
        name: round(max(row[name] for row in rows) / min(row[name] for row in rows), 2)
        for name in ("bytes_per_s_median", "cpu_ms_per_s")
    }
    return {
        "sizes": rows,
        "largest_by_smallest": flat,
        "reached": nodes >= SIZES[-1] and all(ratio <= 2 for ratio in flat.values()),
    }


def catalog(nodes: int, seed: int) -> Figures:
    """One new version in a mesh at rest: how long until 99 % and until all know it."""

    async def story(world: World) -> Figures:
        await populate(world, nodes)
        await world.wait(30)
        await world.hold(2, "news", part_rng(seed, "weights").randbytes(1024))
        name = ModelName.parse("news").full()

        def know() -> int:
            return sum(node.services.catalog.head(name) is not None for node in world.running().values())

        most_s = await until(world, lambda: know() >= 0.99 * nodes, 120)
        rest_s = await until(world, lambda: know() == nodes, 120)
        all_s = None if most_s is None or rest_s is None else round(most_s + rest_s, 1)
        reached = nodes >= SIZES[-1] and most_s is not None and all_s is not None and most_s < 10 and all_s < 30
        return {"nodes": nodes, "99_percent_s": most_s, "all_s": all_s, "reached": reached}

    return in_world(WorldOptions(seed=seed), story)


def speed(nodes: int, seed: int) -> Figures:
    """Ten virtual minutes of a mesh where every quarter of a minute a model appears and five others pull it."""

    async def story(world: World) -> Figures:
        rng = part_rng(seed, "busy")
        count = min(nodes, BUSY_NODES)
        await populate(world, count)
        began_s, began_cpu_s, pulls = trio.current_time(), time.process_time(), 0
        while trio.current_time() < began_s + BUSY_S:
            holder, name = rng.randrange(1, count + 1), f"m{pulls}"
            await world.hold(holder, name, rng.randbytes(16 * world.options.chunk_size_bytes))
            await world.wait(5)
            async with trio.open_nursery() as nursery:
                for number in rng.sample([each for each in world.hosts if each != holder], 5):
                    nursery.start_soon(world.pull, number, name)
            pulls += 5
            await world.wait(10)
        cpu_s = time.process_time() - began_cpu_s
        return {
            "nodes": count,
            "virtual_s": round(trio.current_time() - began_s),
            "pulls": pulls,
            "busy_cpu_s": round(cpu_s, 1),
            "reached": count == BUSY_NODES and cpu_s < 60,
        }

    return in_world(WorldOptions(seed=seed), story)


ROWS: dict[str, Callable[[int, int], Figures]] = {
    "membership": membership,
    "gossip": gossip,
    "catalog": catalog,
    "speed": speed,
}


def main() -> int:
    """Run the rows and print them; exit code 1 when a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="ROWS", default=",".join(ROWS), help=f"some of {', '.join(ROWS)}")
    parser.add_argument("--nodes", type=int, default=1000, help="the largest world (default 1000)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args()
    wanted = options.only.split(",")
    if unknown := [row for row in wanted if row not in ROWS]:
        parser.error(f"--only: {unknown[0]!r} is no row; there are {', '.join(ROWS)}")
    document = {}
    for row in wanted:
        document[row] = ROWS[row](options.nodes, options.seed)
        if not options.json:
            print(f"{row}: {json.dumps(document[row])}", flush=True)
    if options.json:
        print(json.dumps(document))
    return 0 if all(figures["reached"] for figures in document.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
