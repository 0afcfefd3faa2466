"""One blob, one seed, many receivers on limited links: how near the exchange comes to what the links allow.

The figures are those of virtual links with a tenth of a second of queue. Each test prints what it reached (`-s`).
"""

import pytest
import trio
from trio.testing import MockClock

from simnet.blobs import MemoryBlobs
from tests.support_exchange import Peer, open_swarm, some_bytes
from tests.support_swarm import Links, distribute, gather


@pytest.mark.slow
@pytest.mark.parametrize("mbit_per_s", [100.0, 200.0])
async def test_eight_receivers_come_near_the_bound(autojump_clock: MockClock, mbit_per_s: float) -> None:
    figures = await distribute(8, Links(mbit_per_s=mbit_per_s, segments_per_chunk=8))
    print(figures)
    assert figures.last >= 0.82  # 0.84 to 0.90 by chance; 0.44 before places, paces and first copies first.
    assert figures.median >= 0.80
    assert figures.seed_copies <= 1.25
    assert figures.duplicates < 0.01


async def test_alone_a_receiver_gets_what_its_link_carries_from_the_front_on(autojump_clock: MockClock) -> None:
    links = Links(segments_per_chunk=4)
    figures = await distribute(1, links, chunks=64)
    assert figures.last >= 0.85
    assert figures.seed_bytes == 64 * links.chunk_size_bytes
    assert figures.duplicate_bytes == 0


async def test_ten_sources_of_a_tenth_each_give_nearly_ten_times_as_much_as_one(autojump_clock: MockClock) -> None:
    links, chunks = Links(), 128

    async def take(count: int) -> float:
        async with open_swarm(config=links.config(), network=links.network(1)) as swarm:
            data = some_bytes(chunks * links.chunk_size_bytes)
            givers: list[Peer] = []
            for number in range(count):
                blobs = MemoryBlobs(chunk_size_bytes=links.chunk_size_bytes)
                digest = blobs.add(data)
                tenth = links.bytes_per_s / 10
                givers.append(await swarm.add(f"giver{number}", blobs, up_bytes_per_s=tenth, down_bytes_per_s=tenth))
            taker = await swarm.add(
                "taker",
                MemoryBlobs(chunk_size_bytes=links.chunk_size_bytes),
                up_bytes_per_s=links.bytes_per_s,
                down_bytes_per_s=links.bytes_per_s,
            )
            return await gather(taker, digest, len(data), givers)

    one_s, ten_s = await take(1), await take(10)
    assert one_s / ten_s >= 8


async def test_the_higher_priority_is_through_first_and_equals_share(autojump_clock: MockClock) -> None:
    links, chunks = Links(segments_per_chunk=2), 32
    ended_s: dict[str, float] = {}
    async with open_swarm(config=links.config(), network=links.network(1)) as swarm:
        rate = links.bytes_per_s
        small = links.chunk_size_bytes
        seed = await swarm.add("seed", MemoryBlobs(chunk_size_bytes=small), up_bytes_per_s=rate, down_bytes_per_s=rate)
        taker = await swarm.add("taker", MemoryBlobs(chunk_size_bytes=small))

        async def fetch(name: str, number: int, priority: int) -> None:
            data = some_bytes(chunks * small, seed=number)
            await taker.exchange.fetch(seed.blobs.add(data), len(data), sources=lambda: [seed.id], priority=priority)
            ended_s[name] = trio.current_time()

        began_s = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fetch, "low", 1, 0)
            nursery.start_soon(fetch, "other low", 2, 0)
            await trio.sleep(1)
            nursery.start_soon(fetch, "urgent", 3, 1)
    one_s = chunks * small / rate
    assert ended_s["urgent"] - began_s < 1 + 1.6 * one_s, "what was asked before comes first, and nothing else"
    assert abs(ended_s["low"] - ended_s["other low"]) < one_s / 2
    assert min(ended_s["low"], ended_s["other low"]) > ended_s["urgent"]
