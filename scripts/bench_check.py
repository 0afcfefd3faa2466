"""Measure checking a file against its recipe, against BLAKE3 itself with all threads, and an answer from the record.

The peer is `blake3(max_threads=AUTO).update_mmap`; the two take turns over the same cached file, and the ratio is the
median of the ratios of the turns, so that whatever else the machine does hits both. herd's time is that of the whole
call, the start of the worker process included. The second time is `Store.verify` of a model of that file, unchanged.
"""

import argparse
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

import trio
from blake3 import blake3

from node.events import EventBus
from node.store.chunk_check import ChunkChecker
from node.store.config import StoreConfig
from node.store.files import FileKey
from node.store.store import Store, open_store
from node.store.verify import hash_file
from protocols.ids import blob_file_name
from protocols.names import ModelName
from protocols.recipe.recipe import Recipe
from protocols.recipe.rules import DEFAULT_TARGET_SIZE_BYTES

DEFAULT_SIZE_BYTES = 2_000_000_000
WRITE_SIZE_BYTES = 16 * 1024 * 1024
RATIO_MIN = 0.9
SECOND_TIME_S_MAX = 0.010


def measure(path: Path, rounds: int) -> dict[str, float | int]:
    """Medians over `rounds`: both rates in GB/s (10^9 bytes), their ratio, seconds of CPU, and the second time.

    The folder of `path` gets a store of its own for the while, whose one blob is a hard link of the file.
    """
    _, recipe = hash_file(path, DEFAULT_TARGET_SIZE_BYTES)
    herd_s: list[float] = []
    peer_s: list[float] = []
    herd_cpu_s: list[float] = []
    peer_cpu_s: list[float] = []
    for turn in range(rounds):
        # Who begins takes turns too.
        for own in (turn % 2 == 0, turn % 2 == 1):
            if own:
                before_s = _cpu_s(resource.RUSAGE_SELF) + _cpu_s(resource.RUSAGE_CHILDREN)
                herd_s.append(trio.run(_check, path, recipe))
                herd_cpu_s.append(_cpu_s(resource.RUSAGE_SELF) + _cpu_s(resource.RUSAGE_CHILDREN) - before_s)
            else:
                before_s, started = _cpu_s(resource.RUSAGE_SELF), time.perf_counter()
                blake3(max_threads=blake3.AUTO).update_mmap(path).digest()
                peer_s.append(time.perf_counter() - started)
                peer_cpu_s.append(_cpu_s(resource.RUSAGE_SELF) - before_s)
    with tempfile.TemporaryDirectory(prefix="herd-bench-", dir=path.parent) as directory:
        second_s = trio.run(_second_time, path, Path(directory), recipe, rounds)
    gigabytes = recipe.size_bytes / 1e9
    return {
        "size_bytes": recipe.size_bytes,
        "chunks": len(recipe),
        "processors": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "rounds": rounds,
        "herd_gb_per_s": round(gigabytes / statistics.median(herd_s), 3),
        "blake3_gb_per_s": round(gigabytes / statistics.median(peer_s), 3),
        "ratio": round(statistics.median(peer / own for own, peer in zip(herd_s, peer_s, strict=True)), 3),
        "herd_cpu_s": round(statistics.median(herd_cpu_s), 3),
        "blake3_cpu_s": round(statistics.median(peer_cpu_s), 3),
        "second_time_s": round(second_s, 5),
    }


def _cpu_s(whose: int) -> float:
    used = resource.getrusage(whose)
    return used.ru_utime + used.ru_stime


async def _check(path: Path, recipe: Recipe) -> float:
    started = time.perf_counter()
    wrong = await ChunkChecker(0).check(path, FileKey.at(path), recipe)
    if wrong:
        raise SystemExit(f"{path}: {len(wrong)} chunks do not match the recipe made a moment ago")
    return time.perf_counter() - started


async def _second_time(path: Path, directory: Path, recipe: Recipe, rounds: int) -> float:
    """The median time of asking again about a model of this file that nobody touched."""
    blob = directory / "blobs" / blob_file_name(recipe.digest)
    manifest = directory.joinpath("manifests", *ModelName.parse("bench").path_parts())
    for parent in (blob.parent, manifest.parent):
        parent.mkdir(parents=True)
    blob.hardlink_to(path)
    layer = {"mediaType": "application/vnd.ollama.image.model", "digest": recipe.digest, "size": recipe.size_bytes}
    manifest.write_text(json.dumps({"schemaVersion": 2, "layers": [layer]}), encoding="utf-8")
    async with open_store(StoreConfig(models_path=str(directory)), EventBus()) as store:
        await _read_once(store)
        times_s = []
        for _ in range(rounds):
            started = time.perf_counter()
            report = await store.verify([ModelName.parse("bench")])
            times_s.append(time.perf_counter() - started)
            if not report.verified or report.read_bytes:
                raise SystemExit(f"{path}: asked again, {report.read_bytes} bytes were read")
    return statistics.median(times_s)


async def _read_once(store: Store) -> None:
    report = await store.verify()
    if not report.verified:
        raise SystemExit(f"the model is not verified: {report.models}")


def write_random(path: Path, size_bytes: int) -> None:
    """A file of random bytes."""
    with path.open("wb") as file:
        for offset in range(0, size_bytes, WRITE_SIZE_BYTES):
            file.write(os.urandom(min(WRITE_SIZE_BYTES, size_bytes - offset)))


def main() -> int:
    """The command line; exit 1 when a figure misses its goal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, nargs="?", help="the file to check (default: random bytes written for it)")
    parser.add_argument("--size-mb", type=float, default=DEFAULT_SIZE_BYTES / 1e6, help="size of those, 10^6 bytes")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    # Not in /tmp, which may be memory.
    with tempfile.TemporaryDirectory(prefix="herd-bench-", dir="/var/tmp") as directory:
        path = arguments.path
        if path is None:
            path = Path(directory) / "random"
            write_random(path, int(arguments.size_mb * 1e6))
        result = measure(path, arguments.rounds)
    if arguments.json:
        print(json.dumps(result))
    else:
        print(f"{result['size_bytes']} bytes, {result['chunks']} chunks, {result['processors']} processors")
        print(f"blake3, all threads   {result['blake3_gb_per_s']:.2f} GB/s")
        print(f"herd                  {result['herd_gb_per_s']:.2f} GB/s")
        print(f"ratio                 {result['ratio']:.2f} (at least {RATIO_MIN})")
        print(f"seconds of CPU        {result['herd_cpu_s']:.2f} herd, {result['blake3_cpu_s']:.2f} blake3")
        print(f"second time           {1000 * result['second_time_s']:.1f} ms (under {1000 * SECOND_TIME_S_MAX:.0f})")
    return 0 if result["ratio"] >= RATIO_MIN and result["second_time_s"] < SECOND_TIME_S_MAX else 1


if __name__ == "__main__":
    sys.exit(main())
