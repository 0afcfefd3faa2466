"""Rows `swarm-*`: one seed, n receivers that begin together, links capped both ways; herd and libtorrent in turn."""

import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import attrs
import trio

from scripts.benchmark.agents import Agent, agent
from scripts.benchmark.bench import Bench, settle
from scripts.benchmark.figures import (
    MIB,
    Figure,
    RowResult,
    at_least,
    at_most,
    bytes_per_s,
    in_turn,
    optimal_last_s,
    percent,
)
from scripts.benchmark.links import Host, Wire, wire
from scripts.benchmark.peers.herd import Node, mesh
from scripts.benchmark.peers.pair import require_libtorrent
from scripts.benchmark.programs import CannotMeasure

T = TypeVar("T")

RATES_MBIT_PER_S = {"swarm-100": 100.0, "swarm-200": 200.0}
TIME_SHARES = {"swarm-100": 0.31, "swarm-200": 0.15}
PIECE_SIZE_BYTES = MIB
LIBTORRENT_PORT = 6881
MODEL = "swarm:latest"
COMMON_START_S = 1.0
"""How far ahead the common start lies: every helper must have heard of it by then."""


@attrs.frozen
class Swarmed:
    """One round of one swarm: every receiver's seconds from the common start, and the share that came for nothing.

    `seed_copies` is what left the seed's link, headers included, as a multiple of the model.
    """

    seconds: list[float]
    wasted_percent: float
    seed_copies: float = 0.0


@attrs.frozen
class HerdSwarm:
    """Nodes, the first of which holds the model."""

    nodes: list[Node]

    async def spread(self) -> Swarmed:
        """Pull everywhere at once."""
        receivers = self.nodes[1:]
        for node in receivers:
            await node.wait_holders(MODEL, 1)
        before = [await node.counters() for node in receivers]
        at = time.monotonic() + COMMON_START_S
        pulls = await at_once([partial(node.pull, MODEL, at) for node in receivers])
        after = [await node.counters() for node in receivers]
        name = "herd_exchange_duplicate_bytes_total"
        wasted = sum(late[name] - early[name] for early, late in zip(before, after, strict=True))
        size_bytes = sum(pull.report.size_bytes for pull in pulls)
        return Swarmed([pull.seconds for pull in pulls], percent(wasted, size_bytes))

    async def clear(self) -> None:
        """Remove the model from all but the first."""
        for node in self.nodes[1:]:
            await node.remove(MODEL)


@attrs.frozen
class LibtorrentSwarm:
    """Sessions, the first of which seeds."""

    sessions: list[Agent]
    addresses: list[str]
    torrent: Path
    file: Path

    async def spread(self) -> Swarmed:
        """Connect everybody to everybody at once; the receivers wait until they seed.

        Each pair connects from one end only: when both do at the same instant, both connections may be closed as
        the second one, and libtorrent tries again after a minute.
        """
        for number, session in enumerate(self.sessions):
            folder = self.torrent.with_name(f"received-{number}") if number else self.file.parent
            await session.ask("add", torrent=str(self.torrent), folder=str(folder), seed=number == 0)
        at = time.monotonic() + COMMON_START_S
        asks: list[Callable[[], Awaitable[Any]]] = []
        for number, session in enumerate(self.sessions[1:], 1):
            peers = [(address, LIBTORRENT_PORT) for address in self.addresses[:number]]
            asks.append(partial(session.ask, "receive", peers=peers, at=at, timeout_s=1000))
        answers = await at_once(asks)
        wasted = sum(answer["wasted_bytes"] for answer in answers)
        size_bytes = self.file.stat().st_size * len(answers)
        return Swarmed([answer["seconds"] for answer in answers], percent(wasted, size_bytes))

    async def clear(self) -> None:
        """Let go of the torrent everywhere; the seed's file stays."""
        for session in self.sessions:
            await session.ask("forget")


async def at_once(asks: Sequence[Callable[[], Awaitable[T]]]) -> list[T]:
    """Ask all at the same time; their answers in order."""
    answers: dict[int, T] = {}

    async def one(number: int, ask: Callable[[], Awaitable[T]]) -> None:
        answers[number] = await ask()

    async with trio.open_nursery() as nursery:
        for number, ask in enumerate(asks):
            nursery.start_soon(one, number, ask)
    return [answers[number] for number in range(len(asks))]


Swarm = HerdSwarm | LibtorrentSwarm


@asynccontextmanager
async def herd_swarm(folder: Path, hosts: Sequence[Host], file: Path) -> AsyncIterator[HerdSwarm]:
    """A node a host, with chunks as small as libtorrent's pieces."""
    names = [f"host-{number}" for number in range(len(hosts))]
    settings = {"HERD_STORE_CHUNK_SIZE_BYTES": str(PIECE_SIZE_BYTES)}
    async with mesh(folder, names, insides=[host.inside for host in hosts], settings=settings) as nodes:
        await nodes[0].add(file, MODEL)
        yield HerdSwarm(nodes)


@asynccontextmanager
async def libtorrent_swarm(folder: Path, hosts: Sequence[Host], file: Path) -> AsyncIterator[LibtorrentSwarm]:
    """A session a host, on the same hosts."""
    require_libtorrent()
    await trio.Path(folder).mkdir(parents=True)
    torrent = folder / "file.torrent"
    async with AsyncExitStack() as stack:
        sessions = []
        for number, host in enumerate(hosts):
            name, listen = f"libtorrent-{number}", f"{host.address}:{LIBTORRENT_PORT}"
            log = folder / f"{name}.log"
            opened = agent("libtorrent_agent", log, listen, "swarm", name=name, inside=host.inside)
            sessions.append(await stack.enter_async_context(opened))
        await sessions[0].ask("make", file=str(file), torrent=str(torrent), piece_size_bytes=PIECE_SIZE_BYTES)
        yield LibtorrentSwarm(sessions, [host.address for host in hosts], torrent, file)


async def measure(bench: Bench, wanted: Collection[str]) -> list[RowResult]:
    """The rows of `wanted` that are about swarms, one after the other over the same hosts and processes."""
    rows = [row for row in RATES_MBIT_PER_S if row in wanted]
    count = bench.sizes.swarm_receivers
    with wire() as links:
        hosts = links.plug(count + 1)
        links.cap(hosts[0], RATES_MBIT_PER_S[rows[0]])
        file = await bench.model(bench.sizes.swarm)
        bench.require_disk(2 * count * bench.sizes.swarm)
        async with AsyncExitStack() as stack:
            bench.say(f"swarm: starting herd and libtorrent on {len(hosts)} hosts")
            herd = await stack.enter_async_context(herd_swarm(bench.folder / "swarm-herd", hosts, file))
            swarms: dict[str, Swarm] = {"herd": herd}
            missing = ""
            try:
                beside = libtorrent_swarm(bench.folder / "swarm-libtorrent", hosts, file)
                swarms["libtorrent"] = await stack.enter_async_context(beside)
            except CannotMeasure as reason:
                missing = f"; libtorrent: {reason}"
            return [await _measure_row(bench, row, links, swarms, file.stat().st_size, missing) for row in rows]


async def _measure_row(
    bench: Bench, row: str, links: Wire, swarms: dict[str, Swarm], size_bytes: int, missing: str
) -> RowResult:
    for host in links.hosts:
        links.cap(host, RATES_MBIT_PER_S[row])
    series: dict[str, list[Swarmed]] = {name: [] for name in swarms}
    for number in bench.rounds(TIME_SHARES[row]):
        for name in in_turn(list(swarms), number):
            await settle()
            sent_before = links.sent_bytes(links.hosts[0])
            swarmed = await swarms[name].spread()
            seed_copies = (links.sent_bytes(links.hosts[0]) - sent_before) / size_bytes
            swarmed = attrs.evolve(swarmed, seed_copies=seed_copies)
            series[name].append(swarmed)
            bench.say(
                f"{row}, round {number + 1}: {name} last {max(swarmed.seconds):.2f} s,"
                f" median {statistics.median(swarmed.seconds):.2f} s, {swarmed.wasted_percent:.2f} % came twice,"
                f" the seed sent {seed_copies:.2f} copies"
            )
            await swarms[name].clear()
    receivers = len(links.hosts) - 1
    figures, samples = swarm_figures(series, size_bytes, bytes_per_s(RATES_MBIT_PER_S[row]), receivers)
    pieces = size_bytes // PIECE_SIZE_BYTES
    note = (
        f"1 seed, {receivers} receivers, {size_bytes / MIB:.0f} MiB, k = {pieces}, tbf both ways; B is the raw rate,"
        f" of which headers take 5 %; herd verifies and makes durable{missing}"
    )
    return RowResult(row, figures, len(series["herd"]), samples=samples, note=note)


def swarm_figures(
    series: dict[str, list[Swarmed]], size_bytes: int, link_bytes_per_s: float, receivers: int
) -> tuple[tuple[Figure, ...], dict[str, list[float]]]:
    """The medians over the rounds as shares of the optimum, and the samples; only herd has goals."""
    best_last_s = optimal_last_s(size_bytes, link_bytes_per_s, receivers, max(1, size_bytes // PIECE_SIZE_BYTES))
    best_median_s = size_bytes / link_bytes_per_s
    figures: list[Figure] = []
    samples: dict[str, list[float]] = {}
    for name, swarmed in series.items():
        last = samples[f"{name}_last_s"] = [max(one.seconds) for one in swarmed]
        median = samples[f"{name}_median_s"] = [statistics.median(one.seconds) for one in swarmed]
        wasted = statistics.median(one.wasted_percent for one in swarmed)
        ours = name == "herd"
        last_share = percent(best_last_s, statistics.median(last))
        median_share = percent(best_median_s, statistics.median(median))
        figures += [
            Figure(f"{name}, last, of T*", last_share, "%", at_least(85) if ours else None),
            Figure(f"{name}, median, of S/B", median_share, "%", at_least(90) if ours else None),
            Figure(f"{name}, came twice", wasted, "%", at_most(1) if ours else None),
            Figure(f"{name}, sent by the seed", statistics.median(one.seed_copies for one in swarmed), "copies"),
        ]
    return tuple(figures), samples
