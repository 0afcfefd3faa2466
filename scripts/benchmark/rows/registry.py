"""Every row: what it measures, what it has to be, and who measures it."""

from collections.abc import Awaitable, Callable, Collection

import attrs

from scripts.benchmark.bench import Bench
from scripts.benchmark.figures import RowResult
from scripts.benchmark.rows import dedup, memory, pair, resume, sources, swarm, verify

Measure = Callable[[Bench, Collection[str]], Awaitable[list[RowResult]]]


@attrs.frozen
class Row:
    """One row. Rows with the same `measure` are measured together, in one series."""

    name: str
    what: str
    goal: str
    measure: Measure


ROWS = (
    Row("pair-libtorrent", "one sender, one receiver, to disk, against libtorrent", "at least 1.5x", pair.measure),
    Row("pair-nginx", "the same against nginx, curl and sha256sum", "at least 1.25x", pair.measure),
    Row("pair-rsync", "the same against rsync -a from a daemon", "at least 3x", pair.measure),
    Row("cpu", "CPU seconds a GB of both ends, herd and each of them", "lower than libtorrent", pair.measure),
    Row("memory", "peak resident memory while a small and a large model move", "under 300 MiB, alike", memory.measure),
    Row("swarm-100", "1 seed, 8 receivers, links of 100 Mbit/s", "last 85 % of T*, median 90 % of S/B", swarm.measure),
    Row("swarm-200", "1 seed, 8 receivers, links of 200 Mbit/s", "last 85 % of T*, median 90 % of S/B", swarm.measure),
    Row("sources", "10 sources against 1, each a tenth of the receiver's link", "at least 8x", sources.measure),
    Row("verify", "verify 10 GB in the page cache, and again", "90 % of BLAKE3, 10 ms", verify.measure),
    Row("dedup", "a fine-tune with 10 % of its tensors changed", "at most 11 % fetched", dedup.measure),
    Row("resume", "after kill -9 of the receiver at half", "under 1 % fetched again", resume.measure),
)


def groups(wanted: Collection[str]) -> list[tuple[Measure, list[str]]]:
    """The wanted rows in the table's order, those that are measured together side by side."""
    together: dict[Measure, list[str]] = {}
    for row in ROWS:
        if row.name in wanted:
            together.setdefault(row.measure, []).append(row.name)
    return list(together.items())
