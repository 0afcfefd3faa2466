"""Row `memory`: the most memory that each end ever has resident while a small and while a large model move."""

import shutil
from collections.abc import Collection
from pathlib import Path

import attrs
import trio

from scripts.benchmark.bench import Bench, settle, warm
from scripts.benchmark.figures import GIB, MIB, Figure, RowResult, at_most
from scripts.benchmark.peers.pair import herd_pair
from scripts.make_gguf import write_sparse_gguf
from scripts.process_cost import cost_of

TIME_SHARE = 0.08
RESIDENT_MIB_MAX = 300.0
GROWTH_MAX = 1.15
"""`The same` for both sizes, but for what two runs of one size differ."""


@attrs.frozen
class Moved:
    """One transfer of a size: how much of it came in, in how many seconds, and the peak of each end in bytes."""

    size_bytes: int
    held_bytes: int
    seconds: float
    peaks_bytes: dict[str, int]


async def measure(bench: Bench, wanted: Collection[str]) -> list[RowResult]:
    """One transfer of each size, by new processes."""
    bench.require_disk(bench.sizes.pair + bench.sizes.memory_large)
    small_file = await bench.model(bench.sizes.pair)
    large_file = bench.folder / "sparse.gguf"
    await trio.to_thread.run_sync(lambda: write_sparse_gguf(large_file, bench.sizes.memory_large, marked=True))
    moved = []
    for file in (small_file, large_file):
        bench.say(f"memory: {file.stat().st_size / GIB:.1f} GiB from one node to another")
        moved.append(await _move(bench.folder / f"memory-{file.stem}", file, TIME_SHARE * bench.time_s))
    large_file.unlink()
    await settle()
    return [_row(*moved)]


async def _move(folder: Path, file: Path, time_s: float) -> Moved:
    """Pull the file, but no longer than `time_s`: memory that grows has grown by then."""
    await trio.to_thread.run_sync(warm, file)
    size_bytes = held_bytes = (await trio.Path(file).stat()).st_size
    async with herd_pair(folder, file) as pair:
        pids = {"sender": pair.sender.pid, "receiver": pair.receiver.pid}
        began = trio.current_time()
        with trio.move_on_after(time_s) as limited:
            await pair.receive()
        seconds = trio.current_time() - began
        peaks_bytes = {end: cost_of(pid).resident_bytes_peak for end, pid in pids.items()}
        if limited.cancelled_caught:
            held_bytes = sum(transfer.held_bytes for transfer in (await pair.receiver.process.status()).transfers)
    # Twenty GiB, which the next row's disk wants back.
    await trio.to_thread.run_sync(shutil.rmtree, folder)
    return Moved(size_bytes, held_bytes, seconds, peaks_bytes)


def _row(small: Moved, large: Moved) -> RowResult:
    figures = []
    for end in ("sender", "receiver"):
        for moved in (small, large):
            part = "" if moved.held_bytes == moved.size_bytes else f"{moved.held_bytes / GIB:.2g} of "
            name = f"{end}, {part}{moved.size_bytes / GIB:.2g} GiB"
            figures.append(Figure(name, moved.peaks_bytes[end] / MIB, "MiB", at_most(RESIDENT_MIB_MAX)))
        growth = large.peaks_bytes[end] / small.peaks_bytes[end]
        figures.append(Figure(f"{end}, large by small", growth, "x", at_most(GROWTH_MAX)))
    note = (
        f"VmHWM of new processes, begun anew before each pull; of {large.size_bytes / GIB:.2g} GiB, sparse at the"
        f" sender and written out in full by the receiver, {large.held_bytes / GIB:.2g} came in {large.seconds:.0f} s"
    )
    if large.held_bytes < large.size_bytes:
        note += ", when the time for it was over"
    return RowResult("memory", tuple(figures), 1, note=note)
