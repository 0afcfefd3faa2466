"""Swarms of dozens, in virtual time: everybody gets the blob from a few partners each, mostly near ones."""

from collections import Counter

import pytest
import trio
import trio.testing

from node.services.exchange.service import FetchReport
from protocols.exchange.config import ExchangeConfig
from protocols.ids import Digest, PeerId
from simnet.blobs import MemoryBlobs
from tests.support_exchange import CHUNK, Peer, open_swarm, some_bytes

PARTNERS_MAX = 6
CONFIG = ExchangeConfig(
    outstanding_start_bytes=2 * CHUNK, outstanding_bytes_max=4 * CHUNK, partners_max=PARTNERS_MAX, far_partners=1
)

pytestmark = pytest.mark.slow


def slow_disk(read_delay_s: float = 0.02) -> MemoryBlobs:
    return MemoryBlobs(chunk_size_bytes=CHUNK, read_delay_s=read_delay_s, reads_at_once=1)


class Pulls:
    """All receivers fetch one blob at once from everybody; the most givers that each had at a time are counted."""

    def __init__(self, seed: Peer, receivers: list[Peer], digest: Digest, size_bytes: int) -> None:
        self.reports: dict[PeerId, FetchReport] = {}
        self.givers_most: Counter[PeerId] = Counter()
        self._seed = seed
        self._receivers = receivers
        self._digest = digest
        self._size_bytes = size_bytes

    async def run(self) -> None:
        async with trio.open_nursery() as watching:
            watching.start_soon(self._watch)
            async with trio.open_nursery() as nursery:
                for peer in self._receivers:
                    nursery.start_soon(self._fetch, peer)
            watching.cancel_scope.cancel()

    def bytes_from(self, giver: Peer) -> int:
        return sum(report.sources.get(giver.id, 0) for report in self.reports.values())

    async def _fetch(self, peer: Peer) -> None:
        sources = [self._seed, *self._receivers]
        self.reports[peer.id] = await peer.fetch(self._digest, self._size_bytes, sources)

    async def _watch(self) -> None:
        while True:
            for peer in self._receivers:
                givers = peer.exchange.statistics().givers
                self.givers_most[peer.id] = max(self.givers_most[peer.id], givers)
            await trio.sleep(0.1)


@pytest.mark.parametrize(("seed_read_s", "most_s"), [(0.02, 10.0), (0.2, 60.0)], ids=["a quick seed", "a slow seed"])
async def test_forty_nodes_get_a_blob_with_a_few_partners_each(
    autojump_clock: trio.testing.MockClock, seed_read_s: float, most_s: float
) -> None:
    async with open_swarm(latency_s=0.002, config=CONFIG) as swarm:
        seed = await swarm.add("seed", slow_disk(seed_read_s))
        receivers = [await swarm.add(f"node{number}", slow_disk()) for number in range(40)]
        data = some_bytes(32 * CHUNK)
        digest = seed.blobs.add(data)
        pulls = Pulls(seed, receivers, digest, len(data))
        started_s = trio.current_time()
        await pulls.run()

        assert all(peer.blobs.whole(digest) == data for peer in receivers)
        # Over the set itself stand only sessions in which what was asked of a former partner has not ended yet.
        assert max(pulls.givers_most.values()) <= PARTNERS_MAX + 3
        assert pulls.bytes_from(seed) < 6 * len(data), "the others gave most of it to each other"
        took_s = trio.current_time() - started_s
        print(
            f"{took_s:.1f} s, {sorted(pulls.givers_most.values())[-1]} givers, {pulls.bytes_from(seed) / len(data):.1f}"
        )
        assert took_s < most_s, "about twice what a full mesh takes"


async def test_most_bytes_stay_in_the_zone_and_every_zone_is_served(autojump_clock: trio.testing.MockClock) -> None:
    zones: dict[PeerId, str] = {}
    async with open_swarm(latency_s=0.002, config=CONFIG) as swarm:

        async def add(name: str, zone: str) -> Peer:
            peer = await swarm.add(name, slow_disk(), nearness=lambda other: 0 if zones[other] == zone else 2)
            zones[peer.id] = zone
            return peer

        seed = await add("seed", "a")
        receivers = [await add(f"{zone}{number}", zone) for zone in "abc" for number in range(10)]
        data = some_bytes(32 * CHUNK)
        digest = seed.blobs.add(data)
        pulls = Pulls(seed, receivers, digest, len(data))
        await pulls.run()

        assert all(peer.blobs.whole(digest) == data for peer in receivers)
        across = sum(
            size_bytes
            for taker, report in pulls.reports.items()
            for giver, size_bytes in report.sources.items()
            if zones[giver] != zones[taker]
        )
        total = len(receivers) * len(data)
        print(f"{across / total:.0%} across zones")
        assert across < total * 0.4, "by chance it would be two thirds"
