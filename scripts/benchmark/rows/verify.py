"""Row `verify`: a large model in the page cache is checked again, and an unchanged one is answered from the record."""

from collections.abc import Collection

import trio

from scripts.bench_check import measure as measure_check
from scripts.benchmark.bench import Bench, warm
from scripts.benchmark.figures import Figure, RowResult, at_least, at_most
from scripts.benchmark.machine import memory_available_bytes
from scripts.benchmark.programs import CannotMeasure
from scripts.make_gguf import write_sparse_gguf

TIME_SHARE = 0.05


async def measure(bench: Bench, wanted: Collection[str]) -> list[RowResult]:
    """Both readers in turn over the same file, then the record is asked."""
    file = bench.folder / "verify.gguf"
    if memory_available_bytes() < bench.sizes.verify * 1.1:
        raise CannotMeasure(
            f"needs {bench.sizes.verify * 1.1 / 1e9:.0f} GB of free memory to keep the file in the page cache,"
            f" there are {memory_available_bytes() / 1e9:.0f}"
        )
    await trio.to_thread.run_sync(lambda: write_sparse_gguf(file, bench.sizes.verify, marked=True))
    await trio.to_thread.run_sync(warm, file)
    bench.say(f"verify: {file.stat().st_size / 1e9:.1f} GB in the page cache, {bench.rounds_wanted} rounds")
    found = await trio.to_thread.run_sync(measure_check, file, bench.rounds_wanted)
    file.unlink()
    figures = (
        Figure("of BLAKE3 with all threads", 100 * float(found["ratio"]), "%", at_least(90)),
        Figure("unchanged, second time", 1e3 * float(found["second_time_s"]), "ms", at_most(10)),
        Figure("herd verify --again", float(found["herd_gb_per_s"]), "GB/s"),
        Figure("BLAKE3", float(found["blake3_gb_per_s"]), "GB/s"),
    )
    note = (
        f"{found['size_bytes'] / 1e9:.1f} GB of a marked sparse file; every chunk against its recipe, the start of the"
        " reading process included, against one BLAKE3 of the mapped file"
    )
    return [RowResult("verify", figures, bench.rounds_wanted, samples={}, note=note)]
