"""Row `dedup`: what a fine-tune costs a host that holds its base."""

from collections.abc import Collection

import trio

from scripts.benchmark.bench import Bench
from scripts.benchmark.figures import MIB, Figure, RowResult, at_most, percent
from scripts.benchmark.peers.herd import mesh
from scripts.make_gguf import write_fine_tune

BASE, TUNED = "base:latest", "tuned:latest"
CHANGED_SHARE = 0.10


async def measure(bench: Bench, wanted: Collection[str]) -> list[RowResult]:
    """Pull the base, then the fine-tune, and see how much of it travelled."""
    base = await bench.model(bench.sizes.dedup)
    bench.require_disk(3 * bench.sizes.dedup)
    tuned = bench.folder / "tuned.gguf"
    changed = await trio.to_thread.run_sync(write_fine_tune, base, tuned, CHANGED_SHARE)
    bench.say(f"dedup: a fine-tune with {changed:.1%} of its bytes changed")
    async with mesh(bench.folder / "dedup", ["sender", "receiver"]) as (sender, receiver):
        for path, name in ((base, BASE), (tuned, TUNED)):
            await sender.add(path, name)
            await receiver.wait_holders(name, 1)
        await receiver.pull(BASE)
        report = (await receiver.pull(TUNED)).report
    fetched = percent(report.fetched_bytes, report.size_bytes)
    figures = (Figure("fetched, of the model", fetched, "%", at_most(11)), Figure("changed", 100 * changed, "%"))
    note = f"{report.size_bytes / MIB:.0f} MiB; whole tensors changed, all over the model; counted, so one round"
    return [RowResult("dedup", figures, 1, samples={"fetched_percent": [fetched]}, note=note)]
