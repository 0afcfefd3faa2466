"""Rows `pair-*` and `cpu`: one file from one process to another through the disk, herd and its peers in turn."""

import statistics
from collections.abc import Collection, Mapping, Sequence
from contextlib import AsyncExitStack

from scripts.benchmark.bench import Bench, settle, warm
from scripts.benchmark.figures import MIB, Figure, Goal, RowResult, at_least, at_most, in_turn, times_faster
from scripts.benchmark.peers.pair import PAIRS, Pair, Transfer
from scripts.benchmark.programs import CannotMeasure

GOALS: dict[str, tuple[str, Goal]] = {
    "pair-libtorrent": ("libtorrent", at_least(1.5)),
    "pair-nginx": ("nginx", at_least(1.25)),
    "pair-rsync": ("rsync", at_least(3)),
}
NOTES = {
    "pair-libtorrent": "plaintext TCP and SHA-1 pieces; herd encrypts, checks BLAKE3 and SHA-256",
    "pair-nginx": "plaintext; curl to disk, then sha256sum of the file",
    "pair-rsync": "plaintext, rsync -a from a daemon, with rsync's own checksum",
}
DURABLE = "every file is durable when its time ends: an fsync is part of each, herd's own and one after the others"
TIME_SHARE = 0.25

Transfers = dict[str, list[Transfer]]


async def measure(bench: Bench, wanted: Collection[str]) -> list[RowResult]:
    """The rows of `wanted` that are about pairs, from one series of alternating transfers."""
    needed = ["herd", *(peer for row, (peer, _) in GOALS.items() if row in wanted or "cpu" in wanted)]
    transfers, missing, size_bytes = await _alternate(bench, needed)
    results = [_pair_row(row, transfers, missing, size_bytes) for row in GOALS if row in wanted]
    if "cpu" in wanted:
        results.append(_cpu_row(transfers, missing, size_bytes))
    return results


async def _alternate(bench: Bench, names: Sequence[str]) -> tuple[Transfers, dict[str, str], int]:
    """Let each move the file once a round; what they took, why somebody could not take part, and the file's size."""
    file = await bench.model(bench.sizes.pair)
    bench.require_disk(bench.sizes.pair)
    missing: dict[str, str] = {}
    async with AsyncExitStack() as stack:
        pairs: dict[str, Pair] = {}
        for name in names:
            try:
                pairs[name] = await stack.enter_async_context(PAIRS[name](bench.folder / f"pair-{name}", file))
            except CannotMeasure as reason:
                missing[name] = str(reason)
        transfers: Transfers = {name: [] for name in pairs}
        for number in bench.rounds(TIME_SHARE):
            for name in in_turn(list(pairs), number):
                warm(file)
                await settle()
                transfer = await pairs[name].receive()
                transfers[name].append(transfer)
                speed = file.stat().st_size / transfer.seconds / 1e9
                bench.say(f"pair, round {number + 1}: {name} {transfer.seconds:.2f} s ({speed:.2f} GB/s)")
                await pairs[name].clear()
    return transfers, missing, file.stat().st_size


def _pair_row(row: str, transfers: Transfers, missing: Mapping[str, str], size_bytes: int) -> RowResult:
    peer, goal = GOALS[row]
    if peer in missing:
        return RowResult(row, why_not=missing[peer])
    seconds = {name: [transfer.seconds for transfer in transfers[name]] for name in ("herd", peer)}
    figures = [Figure(f"herd against {peer}", times_faster(seconds["herd"], seconds[peer]), "x", goal)]
    figures += [
        Figure(name, size_bytes / statistics.median(samples) / 1e9, "GB/s") for name, samples in seconds.items()
    ]
    without_s = [transfer.seconds - transfer.sync_s for transfer in transfers[peer]]
    figures.append(Figure(f"{peer} but for that fsync", size_bytes / statistics.median(without_s) / 1e9, "GB/s"))
    samples = {f"{name}_s": series for name, series in seconds.items()} | {f"{peer}_without_fsync_s": without_s}
    return RowResult(row, tuple(figures), len(seconds["herd"]), samples=samples, note=f"{NOTES[row]}; {DURABLE}")


def _cpu_row(transfers: Transfers, missing: Mapping[str, str], size_bytes: int) -> RowResult:
    """CPU seconds a GB (10^9 bytes), both ends, user and system."""
    gigabytes = size_bytes / 1e9
    used = {name: [one.cpu_s / gigabytes for one in series] for name, series in transfers.items()}
    figures = []
    if "libtorrent" in used:
        ratio = statistics.median(used["herd"]) / statistics.median(used["libtorrent"])
        figures.append(Figure("herd's CPU by libtorrent's", ratio, "x", at_most(1)))
    ends, samples = [], {}
    for name, series in used.items():
        figures.append(Figure(name, statistics.median(series), "CPU s/GB"))
        samples[f"{name}_cpu_s_per_gb"] = series
        medians = []
        for end in ("sender", "receiver"):
            costs = [getattr(one, end) for one in transfers[name]]
            samples[f"{name}_{end}_cpu_s_per_gb"] = [cost.cpu_s / gigabytes for cost in costs]
            samples[f"{name}_{end}_peak_mib"] = [cost.resident_bytes_peak / MIB for cost in costs]
            medians.append(statistics.median(samples[f"{name}_{end}_cpu_s_per_gb"]))
        ends.append(f"{name} {medians[0]:.2f} + {medians[1]:.2f}")
    note = f"user and system time, sending + receiving: {', '.join(ends)}; nginx with curl and sha256sum"
    without = "".join(f"; {name}: {reason}" for name, reason in missing.items())
    return RowResult("cpu", tuple(figures), len(used["herd"]), samples=samples, note=note + without)
