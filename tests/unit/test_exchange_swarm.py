"""A swarm of dozens, in virtual time: everybody gets the blob with a few sessions each, and no mesh of connections."""

import random

import pytest
import trio
import trio.testing

from protocols.exchange.config import ExchangeConfig
from simnet.blobs import MemoryBlobs
from tests.support_exchange import CHUNK, Peer, open_swarm, some_bytes

CONFIG = ExchangeConfig(
    outstanding_start_bytes=2 * CHUNK, outstanding_bytes_max=4 * CHUNK, partners_max=6, idle_timeout_s=5.0
)
NODES = 40


@pytest.mark.slow
async def test_forty_nodes_get_a_blob_with_a_few_partners_each(autojump_clock: trio.testing.MockClock) -> None:
    async with open_swarm(latency_s=0.002, config=CONFIG) as swarm:
        seed = await swarm.add("seed", slow_disk())
        receivers = [await swarm.add(f"node{number}", slow_disk()) for number in range(NODES)]
        data = some_bytes(48 * CHUNK)
        digest = seed.blobs.add(data)
        givers_most: dict[str, int] = dict.fromkeys((peer.id for peer in receivers), 0)
        ended = trio.Event()

        async def watch() -> None:
            while not ended.is_set():
                for peer in receivers:
                    givers_most[peer.id] = max(givers_most[peer.id], peer.exchange.statistics().givers)
                await trio.sleep(0.1)

        async def fetch(peer: Peer) -> None:
            report = await peer.fetch(digest, len(data), [seed, *receivers])
            from_seed.append(report.sources.get(seed.id, 0))

        from_seed: list[int] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            async with trio.open_nursery() as fetches:
                for peer in receivers:
                    fetches.start_soon(fetch, peer)
            ended.set()

        assert all(peer.blobs.whole(digest) == data for peer in receivers)
        sessions = sorted(givers_most.values())
        print(f"most givers at a time: {sessions}, bytes from the seed: {sum(from_seed) / len(data):.1f} blobs,")
        print(
            f"{trio.current_time():.1f} s; askers {[peer.exchange.statistics().askers for peer in [seed, *receivers]]}"
        )


def slow_disk() -> MemoryBlobs:
    return MemoryBlobs(chunk_size_bytes=CHUNK, read_delay_s=0.02, reads_at_once=1)
