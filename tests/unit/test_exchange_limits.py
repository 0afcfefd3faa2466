"""Limits of an operator's, seen in how long transfers take under virtual time."""

from typing import Any

import pytest
import trio
from trio.testing import MockClock

from protocols.exchange.config import ExchangeConfig
from protocols.ids import Digest
from protocols.limits.config import LimitsConfig, Purpose
from tests.support_exchange import CHUNK, Peer, open_swarm, some_bytes

RATE = 10 * CHUNK
"""In words of the limits: 640 KiB/s, ten chunks a second."""
LIMIT = f"{RATE // 1024}KiB/s"


def limited(key: str, rate: str) -> LimitsConfig:
    """No limit but this one."""
    changes: dict[str, Any] = {key: rate}
    return LimitsConfig(**changes)


async def seconds_of(asker: Peer, digest: Digest, data: bytes, seeds: list[Peer], purpose: Purpose) -> float:
    began_s = trio.current_time()
    await asker.fetch(digest, len(data), seeds, purpose=purpose)
    return trio.current_time() - began_s


@pytest.mark.parametrize("key", ["up", "peer_up", "pull_up"])
async def test_a_giver_sends_what_its_limit_leaves(autojump_clock: MockClock, key: str) -> None:
    async with open_swarm(latency_s=0.001) as swarm:
        seed = await swarm.add("seed", limits=limited(key, LIMIT))
        asker = await swarm.add("asker")
        data = some_bytes(100 * CHUNK)
        digest = seed.blobs.add(data)
        assert await seconds_of(asker, digest, data, [seed], Purpose.PULL) == pytest.approx(10, rel=0.1)


@pytest.mark.parametrize("key", ["down", "pull_down"])
async def test_an_asker_asks_what_its_limit_leaves_from_all_together(autojump_clock: MockClock, key: str) -> None:
    async with open_swarm(latency_s=0.001) as swarm:
        seeds = [await swarm.add(name) for name in ("one", "two")]
        asker = await swarm.add("asker", limits=limited(key, LIMIT))
        data = some_bytes(100 * CHUNK)
        for seed in seeds:
            digest = seed.blobs.add(data)
        assert await seconds_of(asker, digest, data, seeds, Purpose.PULL) == pytest.approx(10, rel=0.1)
        assert asker.exchange.statistics().duplicate_bytes == 0


async def test_what_moves_for_another_purpose_has_its_own_limit(autojump_clock: MockClock) -> None:
    async with open_swarm(latency_s=0.001) as swarm:
        seed = await swarm.add("seed", limits=LimitsConfig(repair_up=LIMIT))
        asker = await swarm.add("asker", limits=LimitsConfig(replicate_down=LIMIT))
        seconds = {}
        for number, purpose in enumerate(Purpose):
            data = some_bytes(50 * CHUNK, seed=number)
            digest = seed.blobs.add(data)
            seconds[purpose] = await seconds_of(asker, digest, data, [seed], purpose)
        assert seconds[Purpose.PULL] < 1
        assert seconds[Purpose.REPAIR] == pytest.approx(5, rel=0.15), "the giver's limit"
        assert seconds[Purpose.REPLICATE] == pytest.approx(5, rel=0.15), "the asker's limit"


@pytest.mark.parametrize("side", ["giver", "asker"])
async def test_a_limit_far_below_a_chunk_a_while_is_no_stall(autojump_clock: MockClock, side: str) -> None:
    # One chunk in 40 s, where a transfer gives up after 30 s without progress.
    slow, none = LimitsConfig(up="1.6KiB/s", down="1.6KiB/s"), LimitsConfig()
    config = ExchangeConfig(stall_timeout_s=30)
    async with open_swarm(latency_s=0.001, config=config) as swarm:
        seed = await swarm.add("seed", limits=slow if side == "giver" else none)
        asker = await swarm.add("asker", limits=slow if side == "asker" else none)
        data = some_bytes(4 * CHUNK)
        digest = seed.blobs.add(data)
        assert await seconds_of(asker, digest, data, [seed], Purpose.PULL) > 100
        assert asker.blobs.whole(digest) == data


@pytest.mark.parametrize("key", ["up", "down"])
async def test_a_limit_lifted_in_the_middle_is_felt_at_once(autojump_clock: MockClock, key: str) -> None:
    async with open_swarm(latency_s=0.001) as swarm:
        slow = limited(key, "4KiB/s")
        seed = await swarm.add("seed", limits=slow if key == "up" else None)
        asker = await swarm.add("asker", limits=slow if key == "down" else None)
        data = some_bytes(100 * CHUNK)
        digest = seed.blobs.add(data)
        async with trio.open_nursery() as nursery:

            async def lift() -> None:
                await trio.sleep(20)
                (seed if key == "up" else asker).limits.change({key: "unlimited"})

            nursery.start_soon(lift)
            assert 20 < await seconds_of(asker, digest, data, [seed], Purpose.PULL) < 25
