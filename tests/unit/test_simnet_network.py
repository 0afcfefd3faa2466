"""What the simulated network can do that loopback cannot: latency, jitter, cuts, all in virtual time."""

import random

import pytest
import trio
from trio.testing import MockClock

from node.ports import Stream, TransportError
from node.trust.mesh_key import MeshKeyDoor
from simnet.network import SimNetwork
from tests.support_transport import ECHO, MESH_KEY, echo, identity_of

ANN, BOB = identity_of("ann").peer_id, identity_of("bob").peer_id
DOOR = MeshKeyDoor(MESH_KEY)


async def test_a_message_takes_its_latency(autojump_clock: MockClock) -> None:
    network = SimNetwork(random.Random(1), latency_s=0.1)
    async with network.transport(ANN, DOOR) as ann, network.transport(BOB, DOOR) as bob:
        bob.serve(ECHO, echo)
        ann.learn(BOB, bob.addresses())
        stream = await ann.open(BOB, ECHO, timeout_s=5)
        assert trio.current_time() == pytest.approx(0.6)
        await stream.send(b"x")
        assert await stream.receive(1) == b"x"
        assert trio.current_time() == pytest.approx(0.8)


async def test_jitter_keeps_the_order_and_the_seed_keeps_the_times(autojump_clock: MockClock) -> None:
    async def run(seed: int) -> list[float]:
        began_at_s = trio.current_time()
        times = []
        network = SimNetwork(random.Random(seed), latency_s=0.01, jitter_s=1.0)
        async with network.transport(ANN, DOOR) as ann, network.transport(BOB, DOOR) as bob:
            bob.serve(ECHO, echo)
            ann.learn(BOB, bob.addresses())
            stream = await ann.open(BOB, ECHO, timeout_s=50)
            for number in range(20):
                await stream.send(bytes([number]))
            for number in range(20):
                assert await stream.receive(1) == bytes([number])
                times.append(round(trio.current_time() - began_at_s, 6))
        return times

    first, again, other = await run(1), await run(1), await run(2)
    assert first == pytest.approx(again)
    assert first != pytest.approx(other)
    assert first == sorted(first)


async def test_a_short_cut_delays_and_a_long_one_breaks(autojump_clock: MockClock) -> None:
    network = SimNetwork(random.Random(1), latency_s=0.01)
    ended: list[float] = []

    async def listen(stream: Stream) -> None:
        try:
            await echo(stream)
        finally:
            ended.append(trio.current_time())

    async with network.transport(ANN, DOOR) as ann, network.transport(BOB, DOOR) as bob:
        bob.serve(ECHO, listen)
        ann.learn(BOB, bob.addresses())
        stream = await ann.open(BOB, ECHO, timeout_s=5)
        network.cut(BOB, ANN)
        cut_at_s = trio.current_time()
        await stream.send(b"held")
        with pytest.raises(TransportError, match="within 3 s"):
            await ann.open(BOB, ECHO, timeout_s=3)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_mend_later, network, 10.0)
            assert await stream.receive(10) == b"held"
        assert trio.current_time() - cut_at_s == pytest.approx(13.02, abs=0.1)

        network.cut(ANN, BOB)
        cut_at_s = trio.current_time()
        with pytest.raises(TransportError, match="did not answer for 30 s"):
            await stream.receive(10)
        assert trio.current_time() - cut_at_s == pytest.approx(30)
        await trio.testing.wait_all_tasks_blocked()
        assert ended == [trio.current_time()]
        network.mend(ANN, BOB)
        again = await ann.open(BOB, ECHO, timeout_s=5)
        await again.send(b"well")
        assert await again.receive(10) == b"well"


async def _mend_later(network: SimNetwork, delay_s: float) -> None:
    await trio.sleep(delay_s)
    network.mend(ANN, BOB)
