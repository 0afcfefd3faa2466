"""Row `memory`: the most memory that each end ever has resident while a small and while a large model move."""

import shutil
from collections.abc import Collection
from pathlib import Path

import trio

from scripts.benchmark.bench import Bench, settle, warm
from scripts.benchmark.figures import GIB, MIB, Figure, RowResult, at_most
from scripts.benchmark.peers.pair import Transfer, herd_pair
from scripts.make_gguf import write_sparse_gguf

RESIDENT_MIB_MAX = 300.0
GROWTH_MAX = 1.15
"""`The same` for both sizes, but for what two runs of one size differ."""


async def measure(bench: Bench, wanted: Collection[str]) -> list[RowResult]:
    """One transfer of each size, by new processes."""
    sizes = (bench.sizes.pair, bench.sizes.memory_large)
    bench.require_disk(sizes[1] + sizes[0])
    small_file = await bench.model(sizes[0])
    large_file = bench.folder / "sparse.gguf"
    await trio.to_thread.run_sync(lambda: write_sparse_gguf(large_file, sizes[1], marked=True))
    transfers = []
    for file in (small_file, large_file):
        bench.say(f"memory: {file.stat().st_size / GIB:.1f} GiB from one node to another")
        transfers.append(await _move_once(bench.folder / f"memory-{file.stem}", file))
    large_file.unlink()
    await settle()
    return [_row(transfers, sizes)]


async def _move_once(folder: Path, file: Path) -> Transfer:
    await trio.to_thread.run_sync(warm, file)
    async with herd_pair(folder, file) as pair:
        transfer = await pair.receive()
    # Twenty GiB, which the next row's disk wants back.
    await trio.to_thread.run_sync(shutil.rmtree, folder)
    return transfer


def _row(transfers: list[Transfer], sizes: tuple[int, int]) -> RowResult:
    figures = []
    for end in ("sender", "receiver"):
        peaks = [getattr(transfer, end).resident_bytes_peak / MIB for transfer in transfers]
        for size_bytes, peak in zip(sizes, peaks, strict=True):
            name = f"{end}, {size_bytes / GIB:.2g} GiB"
            figures.append(Figure(name, peak, "MiB", at_most(RESIDENT_MIB_MAX)))
        figures.append(Figure(f"{end}, large by small", peaks[1] / peaks[0], "x", at_most(GROWTH_MAX)))
    note = (
        f"VmHWM of new processes, begun anew before each pull; {sizes[1] / GIB:.2g} GiB"
        f" took {transfers[1].seconds:.1f} s, all but sparse at the sender, written out in full by the receiver"
    )
    return RowResult("memory", tuple(figures), 1, note=note)
