"""What herd's memory of a store weighs (index and recipes beside a sparse model of 10 GB), and what a look at it costs.

The model is a GGUF header and holes, so it takes no disk; its recipe has as many chunks as any other of the size.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import attrs
import trio

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from node.events import EventBus  # noqa: E402
from node.store.config import StoreConfig  # noqa: E402
from node.store.store import Store, open_store  # noqa: E402
from protocols.manifest import parse_manifest  # noqa: E402
from protocols.names import ModelName  # noqa: E402
from scripts.make_gguf import write_sparse_gguf  # noqa: E402

SHARE_MAX = 0.001
"""Index and recipes must stay under this part of the stored bytes."""

SCANS = 50


@attrs.frozen
class Figures:
    """What was measured; `share` is index bytes by stored bytes."""

    stored_bytes: int
    chunk_size_bytes: int
    chunks: int
    index_bytes: int
    share: float
    add_s: float
    models: int
    idle_scan_s: float
    idle_scan_cpu_s: float


def index_bytes(models: Path) -> int:
    """What herd keeps beside the blobs, the write-ahead log included."""
    return sum(path.stat().st_size for path in (models / ".herd").rglob("*") if path.is_file())


async def measure(directory: Path, config: StoreConfig, size_bytes: int, names: int) -> Figures:
    """Add the model, give it further names as `ollama cp` does, and look at the store while nothing changes."""
    source, models = directory / "model.gguf", Path(config.models_path)
    write_sparse_gguf(source, size_bytes)
    name = ModelName.parse("bench/model:0")
    async with open_store(config, EventBus()) as store:
        started = time.perf_counter()
        await store.add_gguf(source, name)
        add_s = time.perf_counter() - started
        first = models.joinpath("manifests", *name.path_parts())
        for number in range(1, names):
            shutil.copy(first, first.with_name(str(number)))
        await store.scan()
        scan_s, scan_cpu_s = await idle_scan(store)
        found = len(await store.models())
        layer = parse_manifest(store.manifest(name)).blobs()[0]
        chunks = len(await store.blobs.recipe(layer.digest))
        weight, stored = index_bytes(models), store.stored_bytes()
    return Figures(stored, config.chunk_size_bytes, chunks, weight, weight / stored, add_s, found, scan_s, scan_cpu_s)


async def idle_scan(store: Store) -> tuple[float, float]:
    """Seconds and CPU seconds of one scan of a store in which nothing changes."""
    # Directories count as settled two seconds after their last change; before, a scan lists them again.
    await trio.sleep(2.5)
    await store.scan()
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(SCANS):
        await store.scan()
    return (time.perf_counter() - wall) / SCANS, (time.process_time() - cpu) / SCANS


def show(figures: Figures) -> None:
    """The figures as a person reads them."""
    print(
        f"stored        {figures.stored_bytes:>15,} bytes in {figures.chunks:,} chunks, added in {figures.add_s:.1f} s"
    )
    print(f"index         {figures.index_bytes:>15,} bytes: {100 * figures.share:.5f} % (limit {100 * SHARE_MAX} %)")
    print(
        f"idle scan     {1000 * figures.idle_scan_s:>15.2f} ms for {figures.models} models"
        f" ({1000 * figures.idle_scan_cpu_s:.2f} ms of CPU)"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 when the index is within its limit, else 1."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size-gb", type=float, default=10.0, help="size of the model in 10^9 bytes (default 10)")
    parser.add_argument("--models", type=int, default=100, help="names in the store while idle scans are timed")
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="herd-bench-") as directory:
        config = StoreConfig(models_path=str(Path(directory) / "models"), reserve_free_bytes=0, sweep_interval_s=3600)
        figures = trio.run(measure, Path(directory), config, int(given.size_gb * 1e9), given.models)
    if given.json:
        print(json.dumps(attrs.asdict(figures)))
    else:
        show(figures)
    return 0 if figures.share < SHARE_MAX else 1


if __name__ == "__main__":
    sys.exit(main())
