"""Row `verify`: the verify pass over a large file in the page cache, and how soon an unchanged one is known again."""

import statistics
from collections.abc import Collection
from pathlib import Path

import trio

from node.events import EventBus
from node.store.config import StoreConfig
from node.store.store import open_store
from node.store.verify import hash_file
from protocols.names import ModelName
from protocols.recipe.rules import DEFAULT_TARGET_SIZE_BYTES
from scripts.bench_verify import blake3_all_threads, timed_s
from scripts.benchmark.bench import Bench, warm
from scripts.benchmark.figures import Figure, RowResult, at_least, at_most, percent
from scripts.benchmark.machine import memory_available_bytes
from scripts.benchmark.programs import CannotMeasure
from scripts.make_gguf import write_sparse_gguf

TIME_SHARE = 0.05
MODEL = ModelName.parse("verify")


async def measure(bench: Bench, wanted: Collection[str]) -> list[RowResult]:
    """Both passes in turn over the same file; then a store that has verified it is asked again."""
    file = bench.folder / "verify.gguf"
    if memory_available_bytes() < bench.sizes.verify * 1.1:
        raise CannotMeasure(
            f"needs {bench.sizes.verify * 1.1 / 1e9:.0f} GB of free memory to keep the file in the page cache,"
            f" there are {memory_available_bytes() / 1e9:.0f}"
        )
    await trio.to_thread.run_sync(lambda: write_sparse_gguf(file, bench.sizes.verify, marked=True))
    bench.say(f"verify: {file.stat().st_size / 1e9:.1f} GB in the page cache")
    passes: dict[str, list[float]] = {"verify_s": [], "blake3_s": []}
    for number in bench.rounds(TIME_SHARE):
        await trio.to_thread.run_sync(warm, file)
        raw_s = await trio.to_thread.run_sync(timed_s, lambda: blake3_all_threads(file))
        verify_s = await trio.to_thread.run_sync(timed_s, lambda: hash_file(file, DEFAULT_TARGET_SIZE_BYTES))
        passes["blake3_s"].append(raw_s)
        passes["verify_s"].append(verify_s)
        bench.say(f"verify, round {number + 1}: {verify_s:.2f} s, BLAKE3 alone {raw_s:.2f} s")
    again_s = await _ask_again(bench.folder / "verify-models", file, bench.rounds_wanted)
    size_bytes = file.stat().st_size
    file.unlink()
    return [_row(passes, again_s, size_bytes)]


async def _ask_again(models: Path, file: Path, times: int) -> list[float]:
    """Seconds until a store that verified the file once says again, after a look at the disk, that it is verified."""
    config = StoreConfig(models_path=str(models), reserve_free_bytes=0, sweep_interval_s=3600)
    seconds = []
    async with open_store(config, EventBus()) as store:
        await store.add_gguf(file, MODEL)
        # The look that finds the model settled; those after it are the second time and more.
        await store.scan()
        for _ in range(times):
            began = trio.current_time()
            await store.scan()
            [model] = await store.models()
            seconds.append(trio.current_time() - began)
            if model.state != "verified":
                raise AssertionError(f"the store says {model.state} of a model that it verified")
    return seconds


def _row(passes: dict[str, list[float]], again_s: list[float], size_bytes: int) -> RowResult:
    verify_s, raw_s = (statistics.median(passes[name]) for name in ("verify_s", "blake3_s"))
    figures = (
        Figure("of BLAKE3 with all threads", percent(raw_s, verify_s), "%", at_least(90)),
        Figure("unchanged, second time", statistics.median(again_s) * 1e3, "ms", at_most(10)),
        Figure("verify pass", size_bytes / verify_s / 1e9, "GB/s"),
        Figure("BLAKE3", size_bytes / raw_s / 1e9, "GB/s"),
    )
    note = (
        f"{size_bytes / 1e9:.1f} GB of a marked sparse file; the pass is the one that adopts a file, and computes the"
        " whole file's SHA-256 beside the chunks' BLAKE3"
    )
    return RowResult("verify", figures, len(passes["verify_s"]), samples={**passes, "again_s": again_s}, note=note)
