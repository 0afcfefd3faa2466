"""Row `resume`: what a receiver that is killed in the middle fetches a second time."""

import statistics
from collections.abc import Collection
from contextlib import AsyncExitStack
from pathlib import Path

import attrs

from scripts.benchmark.bench import Bench, settle
from scripts.benchmark.figures import MIB, Figure, RowResult, at_most, percent
from scripts.benchmark.peers.herd import Node, node
from scripts.herd_process import mesh_key_of

TIME_SHARE = 0.04
MODEL = "resume:latest"
KILL_AT_SHARE = 0.5


@attrs.frozen
class Resumed:
    """One receiver's story, in bytes: stored before the kill, kept over it, fetched after it, sent by the sender."""

    stored: int
    kept: int
    fetched: int
    served: int
    size: int

    @property
    def fetched_again_percent(self) -> float:
        """What had been stored and had to come again."""
        return percent(max(0, self.stored + self.fetched - self.size), self.size)

    @property
    def sent_again_percent(self) -> float:
        """What the sender sent beyond one model: also what was on its way when the receiver died."""
        return percent(self.served - self.size, self.size)


async def measure(bench: Bench, wanted: Collection[str]) -> list[RowResult]:
    """A new receiver a round: pulled to half, killed with kill -9, started again, pulled to the end."""
    file = await bench.model(bench.sizes.resume)
    bench.require_disk(bench.sizes.resume)
    resumed: list[Resumed] = []
    async with node(bench.folder / "resume" / "sender") as sender:
        await sender.add(file, MODEL)
        mesh_key = await mesh_key_of(sender.process)
        for number in bench.rounds(TIME_SHARE):
            await settle()
            home = bench.folder / "resume" / f"receiver-{number}"
            resumed.append(await _interrupted(sender, mesh_key, home))
            again = resumed[-1]
            bench.say(
                f"resume, round {number + 1}: {again.fetched_again_percent:.2f} % fetched again,"
                f" {again.sent_again_percent:.2f} % sent again"
            )
    samples = {
        "fetched_again_percent": [one.fetched_again_percent for one in resumed],
        "sent_again_percent": [one.sent_again_percent for one in resumed],
    }
    fetched, sent = (statistics.median(values) for values in samples.values())
    figures = (Figure("fetched again", fetched, "%", at_most(1)), Figure("sent again", sent, "%"))
    note = (
        f"{file.stat().st_size / MIB:.0f} MiB, killed at {KILL_AT_SHARE:.0%}; `fetched again` was stored before"
        " by the receiver's own count, `sent again` is all that the sender sent beyond one model"
    )
    return [RowResult("resume", figures, len(resumed), samples=samples, note=note)]


async def _interrupted(sender: Node, mesh_key: str, home: Path) -> Resumed:
    served_before = (await sender.counters())["herd_exchange_served_bytes_total"]
    async with AsyncExitStack() as stack:
        receiver = await stack.enter_async_context(node(home, first=sender, mesh_key=mesh_key))
        await receiver.wait_holders(MODEL, 1)
        killed = await receiver.asker.ask("pull_and_kill", name=MODEL, share=KILL_AT_SHARE, pid=receiver.pid)
        # An interrupted node leaves its half of the model for the next one, so only the process is gone here.
        await receiver.process.kill9()
    async with node(home, first=sender) as receiver:
        await receiver.wait_holders(MODEL, 1)
        report = (await receiver.pull(MODEL)).report
        served = (await sender.counters())["herd_exchange_served_bytes_total"] - served_before
        await receiver.remove(MODEL)
    return Resumed(killed["stored_bytes"], report.resumed_bytes, report.fetched_bytes, int(served), report.size_bytes)
