"""Row `sources`: ten sources against one, each capped to a tenth of the receiver's link."""

from collections.abc import Collection

from scripts.benchmark.bench import Bench, settle
from scripts.benchmark.figures import MIB, Figure, RowResult, at_least, in_turn, times_faster
from scripts.benchmark.links import wire
from scripts.benchmark.peers.herd import Node, mesh

TIME_SHARE = 0.12
GOAL_SHARE = 0.8
"""Of ten sources at least eight must count."""

HELD_BY_ALL, HELD_BY_ONE = "many:latest", "single:latest"
CHUNK_SIZE_BYTES = MIB


async def measure(bench: Bench, wanted: Collection[str]) -> list[RowResult]:
    """Pull a model that every source holds, and one of the same size that one source holds, in turn."""
    count, link = bench.sizes.sources, bench.sizes.sources_link_mbit_per_s
    with wire() as links:
        receiver_host, *source_hosts = hosts = links.plug(count + 1)
        links.cap(receiver_host, link)
        for host in source_hosts:
            links.cap(host, link / count)
        many = await bench.model(bench.sizes.sources_model, seed=1)
        single = await bench.model(bench.sizes.sources_model, seed=2)
        bench.say(f"sources: starting {count + 1} nodes")
        names = ["receiver", *(f"source-{number}" for number in range(count))]
        settings = {"HERD_STORE_CHUNK_SIZE_BYTES": str(CHUNK_SIZE_BYTES)}
        insides = [host.inside for host in hosts]
        async with mesh(bench.folder / "sources", names, insides=insides, settings=settings) as nodes:
            receiver, *sources = nodes
            for node in sources:
                await node.add(many, HELD_BY_ALL)
            await sources[0].add(single, HELD_BY_ONE)
            seconds = await _alternate(bench, receiver, count)
    speedup = times_faster(seconds[HELD_BY_ALL], seconds[HELD_BY_ONE])
    figures = (Figure(f"{count} sources against one", speedup, "x", at_least(GOAL_SHARE * count)),)
    note = (
        f"{many.stat().st_size / MIB:.0f} MiB in chunks of {CHUNK_SIZE_BYTES // MIB} MiB, receiver {link:g} Mbit/s,"
        f" each source {link / count:g}"
    )
    samples = {"many_s": seconds[HELD_BY_ALL], "single_s": seconds[HELD_BY_ONE]}
    return [RowResult("sources", figures, len(samples["many_s"]), samples=samples, note=note)]


async def _alternate(bench: Bench, receiver: Node, count: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {HELD_BY_ALL: [], HELD_BY_ONE: []}
    for number in bench.rounds(TIME_SHARE):
        for name in in_turn(list(seconds), number):
            holders = count if name == HELD_BY_ALL else 1
            await receiver.wait_holders(name, holders)
            await settle()
            pull = await receiver.pull(name)
            seconds[name].append(pull.seconds)
            bench.say(f"sources, round {number + 1}: from {holders} in {pull.seconds:.2f} s")
            await receiver.remove(name)
    return seconds
