"""What every row of a run shares: sizes, rounds, the folder, the time it has, and the line that says what goes on."""

import os
import shutil
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import attrs
import trio

from scripts.benchmark.figures import GIB, MIB
from scripts.benchmark.programs import CannotMeasure
from scripts.make_gguf import write_llama_gguf

ROUNDS_MIN = 3
SPARE_BYTES = 2 * GIB
"""Free disk that is left alone: a node itself leaves 1 GiB free, and the machine needs some too."""

READ_SIZE_BYTES = 8 * MIB


@attrs.frozen
class Sizes:
    """How much each row moves. Sizes are bytes, rates Mbit/s."""

    pair: int
    memory_large: int
    swarm: int
    swarm_receivers: int
    sources: int
    sources_model: int
    sources_link_mbit_per_s: float
    verify: int
    dedup: int
    resume: int


FULL = Sizes(
    pair=2 * GIB,
    memory_large=20 * GIB,
    swarm=128 * MIB,
    swarm_receivers=8,
    sources=10,
    sources_model=96 * MIB,
    sources_link_mbit_per_s=500,
    verify=10_000_000_000,
    dedup=512 * MIB,
    resume=2 * GIB,
)
QUICK = Sizes(
    pair=24 * MIB,
    memory_large=96 * MIB,
    swarm=8 * MIB,
    swarm_receivers=3,
    sources=3,
    sources_model=8 * MIB,
    sources_link_mbit_per_s=120,
    verify=100_000_000,
    dedup=48 * MIB,
    resume=256 * MIB,
)
"""Small enough for a test: shows that every row works, says nothing about speed."""


@attrs.define
class Bench:
    """One run. `time_s` is what all rows together should take; a row is told its share of it."""

    folder: Path
    sizes: Sizes
    rounds_wanted: int
    time_s: float

    def say(self, text: str) -> None:
        """One progress line, on stderr, so that the output stays the table or the JSON."""
        print(f"bench: {text}", file=sys.stderr, flush=True)

    def rounds(self, share: float) -> Iterator[int]:
        """The numbers of a row's rounds. A round that would not end within its share is left out, but for three."""
        began = time.monotonic()
        for number in range(self.rounds_wanted):
            needed_s = (time.monotonic() - began) * (number + 1) / max(1, number)
            if number >= ROUNDS_MIN and needed_s > share * self.time_s:
                self.say(f"the time of this row is over after {number} of {self.rounds_wanted} rounds")
                return
            yield number

    def require_disk(self, needed_bytes: int) -> None:
        """CannotMeasure when the folder's disk has no room for what a row writes."""
        free = shutil.disk_usage(self.folder).free
        if free < needed_bytes + SPARE_BYTES:
            raise CannotMeasure(
                f"needs {(needed_bytes + SPARE_BYTES) / 1e9:.0f} GB of free disk in {self.folder.parent},"
                f" there are {free / 1e9:.0f}: make room, or set TMPDIR to a folder elsewhere"
            )

    async def model(self, size_bytes: int, seed: int = 0) -> Path:
        """A llama of random weights of about this size, written once a run, durable, and in the page cache."""
        path = self.folder / f"llama-{size_bytes}-{seed}.gguf"
        if not path.exists():
            self.require_disk(size_bytes)
            self.say(f"writing a model of {size_bytes / 1e6:.0f} MB")
            await trio.to_thread.run_sync(partial(write_llama_gguf, path, size_bytes, seed=seed))
            await trio.to_thread.run_sync(os.sync)
        await trio.to_thread.run_sync(warm, path)
        return path


def warm(path: Path) -> None:
    """Read a file once, so that no sender waits for the disk."""
    buffer = bytearray(READ_SIZE_BYTES)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


async def settle() -> None:
    """Have everything written that was to be written, so that the next one does not pay for the last one."""
    await trio.to_thread.run_sync(os.sync)
