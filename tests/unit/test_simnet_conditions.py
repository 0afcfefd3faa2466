"""Every verb of the network's conditions, on datagrams and on streams, in virtual time."""

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
import pytest
import trio
from trio.testing import MockClock

from node.identity import Identity
from node.ports import Stream, TransportError
from node.trust.mesh_key import MeshKeyDoor
from protocols.errors import LocalProtocolError
from simnet.conditions import Conditions, Quality
from simnet.datagrams import SimDatagramNetwork, SimDatagrams
from simnet.network import SimNetwork, SimTransport
from tests.support_transport import ECHO, MESH_KEY, echo

ALICE, BOB = (Identity(bytes([number]) * 32) for number in (1, 2))
ANN, BEN = ALICE.peer_id, BOB.peer_id
DOOR = MeshKeyDoor(MESH_KEY)
MIB = 1024 * 1024


@attrs.frozen
class Two:
    """Two hosts under the same conditions, with sockets and transports; both echo streams."""

    conditions: Conditions
    alice: SimDatagrams
    bob: SimDatagrams
    ann: SimTransport
    ben: SimTransport
    heard: dict[str, list[tuple[float, bytes]]] = attrs.field(factory=lambda: {"alice": [], "bob": []})

    def send(self, payload: bytes, *, back: bool = False) -> None:
        """A datagram from Alice to Bob, or back."""
        if back:
            self.bob.send(ANN, self.alice.address(), payload)
        else:
            self.alice.send(BEN, self.bob.address(), payload)

    def payloads(self, who: str = "bob") -> list[bytes]:
        """What somebody heard, in order."""
        return [payload for _, payload in self.heard[who]]

    async def listen(self, who: str, socket: SimDatagrams) -> None:
        """Note when what came."""
        while True:
            _, payload = await socket.receive()
            self.heard[who].append((round(trio.current_time(), 6), payload))

    async def stream(self, timeout_s: float = 5) -> Stream:
        """A stream from Ann to Ben, who sends everything back."""
        return await self.ann.open(BEN, ECHO, timeout_s=timeout_s)


@asynccontextmanager
async def two(usual: Quality | None = None, *, sealed: bool = True, seed: int = 1) -> AsyncIterator[Two]:
    conditions = Conditions(usual)
    streams = SimNetwork(random.Random(seed), conditions=conditions)
    datagrams = SimDatagramNetwork(random.Random(seed), conditions=conditions, sealed=sealed)
    async with (
        streams.transport(ANN, DOOR) as ann,
        streams.transport(BEN, DOOR) as ben,
        datagrams.datagrams(ALICE, DOOR) as alice,
        datagrams.datagrams(BOB, DOOR) as bob,
        trio.open_nursery() as nursery,
    ):
        ann.learn(BEN, ben.addresses())
        ben.learn(ANN, ann.addresses())
        ann.serve(ECHO, echo)
        ben.serve(ECHO, echo)
        it = Two(conditions, alice, bob, ann, ben)
        nursery.start_soon(it.listen, "alice", alice)
        nursery.start_soon(it.listen, "bob", bob)
        yield it
        nursery.cancel_scope.cancel()


async def ask(stream: Stream, payload: bytes = b"?") -> float:
    """How long an echo takes."""
    began_s = trio.current_time()
    await stream.send(payload)
    assert await stream.receive(MIB) == payload
    return trio.current_time() - began_s


async def test_regions_are_as_far_as_the_matrix_says_and_the_rest_as_usual(autojump_clock: MockClock) -> None:
    async with two(Quality(latency_s=0.001)) as it:
        it.conditions.distances({("eu", "us"): 0.04, ("us", "asia"): 0.08})
        stream = await it.stream()
        assert await ask(stream) == pytest.approx(0.002)
        it.conditions.place(ANN, "eu")
        it.conditions.place(BEN, "us")
        assert await ask(stream) == pytest.approx(0.08)
        it.send(b"far")
        await trio.sleep(0.039)
        assert it.payloads() == []
        await trio.sleep(0.002)
        assert it.payloads() == [b"far"]
        it.conditions.place(ANN, "moon")
        assert await ask(stream) == pytest.approx(0.002)


async def test_a_changed_direction_is_changed_that_way_only_until_it_is_as_usual_again(
    autojump_clock: MockClock,
) -> None:
    async with two(Quality(latency_s=0.01)) as it:
        stream = await it.stream()
        it.conditions.change([ANN], [BEN], latency_s=0.5, loss=1.0)
        it.send(b"lost")
        it.send(b"comes", back=True)
        await trio.sleep(1)
        assert (it.payloads("bob"), it.payloads("alice")) == ([], [b"comes"])
        it.conditions.change([ANN], [BEN], loss=0.0)
        assert await ask(stream) == pytest.approx(0.51)
        it.conditions.change([ANN], [BEN])
        assert await ask(stream) == pytest.approx(0.02)


async def test_a_stream_loses_nothing_and_takes_longer_for_it(autojump_clock: MockClock) -> None:
    async with two(Quality(latency_s=0.01, loss=0.3)) as it:
        stream = await it.stream()
        took_s = [await ask(stream) for _ in range(50)]
        assert min(took_s) == pytest.approx(0.02)
        late = [each for each in took_s if each > 0.2]
        assert 12 < len(late) < 38, "about half of all questions lose a frame one way or the other"


@pytest.mark.parametrize("sealed", [True, False])
async def test_a_datagram_that_comes_twice_is_heard_once(autojump_clock: MockClock, sealed: bool) -> None:
    async with two(Quality(duplication=1.0, jitter_s=0.01), sealed=sealed) as it:
        for number in range(10):
            it.send(bytes([number]))
        await trio.sleep(1)
        assert sorted(it.payloads()) == [bytes([number]) for number in range(10)]
        assert it.bob.statistics()["replayed"] == 10


async def test_reordered_datagrams_are_overtaken(autojump_clock: MockClock) -> None:
    async with two(Quality(latency_s=0.01)) as it:
        it.conditions.usual = Quality(latency_s=0.01, reordering=0.3, reordering_s=0.1)
        for number in range(20):
            it.send(bytes([number]))
        await trio.sleep(1)
        came = it.payloads()
        assert sorted(came) == [bytes([number]) for number in range(20)]
        assert came != sorted(came)
        assert max(at_s for at_s, _ in it.heard["bob"]) <= 0.11


async def test_partition_stops_both_ways_and_repair_mends_both(autojump_clock: MockClock) -> None:
    async with two(Quality(latency_s=0.01)) as it:
        stream = await it.stream()
        it.conditions.partition([ANN], [BEN])
        it.send(b"lost")
        it.send(b"lost too", back=True)
        with trio.move_on_after(5) as waiting:
            await ask(stream)
        assert waiting.cancelled_caught
        with pytest.raises(TransportError, match="within 2 s"):
            await it.stream(2)
        it.conditions.repair([BEN], [ANN])
        assert await stream.receive(MIB) == b"?", "what a stream had sent arrives at the repair"
        it.send(b"through")
        await trio.sleep(1)
        assert (it.payloads("bob"), it.payloads("alice")) == ([b"through"], [])


async def test_partition_oneway_lets_the_other_way_through_until_streams_miss_their_answers(
    autojump_clock: MockClock,
) -> None:
    async with two(Quality(latency_s=0.01)) as it:
        stream = await it.stream()
        await stream.send(b"before")
        await trio.sleep(0.015)
        it.conditions.partition_oneway([ANN], [BEN])
        began_s = trio.current_time()
        assert await stream.receive(MIB) == b"before", "the echo comes back the way that is open"
        it.send(b"lost")
        it.send(b"comes", back=True)
        await stream.send(b"into the void")
        with pytest.raises(TransportError, match="did not answer for 30 s"):
            await stream.receive(MIB)
        assert trio.current_time() - began_s == pytest.approx(30)
        assert (it.payloads("bob"), it.payloads("alice")) == ([], [b"comes"])


async def test_a_partition_of_one_plane_leaves_the_other(autojump_clock: MockClock) -> None:
    async with two(Quality(latency_s=0.01)) as it:
        stream = await it.stream()
        it.conditions.partition([ANN], [BEN], streams=False)
        it.send(b"lost")
        assert await ask(stream) == pytest.approx(0.02)
        it.conditions.repair([ANN], [BEN])
        it.send(b"through")
        await trio.sleep(1)
        assert it.payloads() == [b"through"]


async def test_held_messages_come_in_order_at_the_release_and_no_stream_breaks(autojump_clock: MockClock) -> None:
    async with two(Quality(latency_s=0.01, jitter_s=0.01)) as it:
        stream = await it.stream()
        it.conditions.hold([ANN], [BEN])
        for number in range(10):
            it.send(bytes([number]))
            await stream.send(bytes([number]))
        await trio.sleep(50)
        assert it.payloads() == []
        it.conditions.release([ANN], [BEN])
        released_s = trio.current_time()
        assert [await stream.receive(MIB) for _ in range(10)] == [bytes([number]) for number in range(10)]
        assert it.payloads() == [bytes([number]) for number in range(10)]
        assert [at_s for at_s, _ in it.heard["bob"]] == [pytest.approx(released_s)] * 10
        assert trio.current_time() - released_s < 0.05


async def test_a_slow_node_is_slow_in_all_it_sends_and_receives(autojump_clock: MockClock) -> None:
    async with two(Quality(latency_s=0.01)) as it:
        stream = await it.stream()
        it.conditions.slow([BEN], 3, 0.1)
        assert await ask(stream) == pytest.approx(2 * (0.03 + 0.1))
        it.send(b"late")
        await trio.sleep(0.12)
        assert it.payloads() == []
        await trio.sleep(0.02)
        assert it.payloads() == [b"late"]
        it.conditions.slow([BEN])
        assert await ask(stream) == pytest.approx(0.02)


async def test_rates_change_while_a_host_sends_and_a_slow_host_has_a_slower_link(autojump_clock: MockClock) -> None:
    async with two() as it:
        stream = await it.stream()
        assert await ask(stream, bytes(MIB // 2)) == 0
        it.ann.limit(up_bytes_per_s=MIB, down_bytes_per_s=None)
        assert await ask(stream, bytes(MIB // 2)) == pytest.approx(0.5)
        it.conditions.slow([ANN], 4)
        assert await ask(stream, bytes(MIB // 2)) == pytest.approx(2)
        it.conditions.calm()
        it.ann.limit(up_bytes_per_s=None, down_bytes_per_s=MIB // 4)
        assert await ask(stream, bytes(MIB // 2)) == pytest.approx(2)
        it.ann.limit(up_bytes_per_s=None, down_bytes_per_s=None)
        assert await ask(stream, bytes(MIB // 2)) == 0


async def test_frames_keep_their_order_when_a_limit_goes_while_they_wait(autojump_clock: MockClock) -> None:
    async with two() as it:
        stream = await it.stream()
        it.ann.limit(up_bytes_per_s=MIB, down_bytes_per_s=None)
        await stream.send(b"1" * (MIB // 4))
        it.ann.limit(up_bytes_per_s=None, down_bytes_per_s=None)
        await stream.send(b"2")
        came = [await stream.receive(MIB), await stream.receive(MIB)]
        assert came == [b"1" * (MIB // 4), b"2"]


async def test_calm_ends_every_fault_at_once(autojump_clock: MockClock) -> None:
    async with two(Quality(latency_s=0.01)) as it:
        stream = await it.stream()
        it.conditions.partition([ANN], [BEN], streams=False)
        it.conditions.hold([ANN], [BEN])
        it.conditions.slow([ANN, BEN], 10)
        it.conditions.change([ANN], [BEN], loss=1.0)
        it.conditions.calm()
        it.send(b"through")
        assert await ask(stream) == pytest.approx(0.02)
        assert it.payloads() == [b"through"]


async def test_the_same_seed_is_the_same_fate_and_another_is_not(autojump_clock: MockClock) -> None:
    async def run(seed: int) -> list[tuple[float, bytes]]:
        began_s = trio.current_time()
        usual = Quality(latency_s=0.01, jitter_s=0.01, loss=0.2, duplication=0.2, reordering=0.2)
        async with two(usual, seed=seed) as it:
            for number in range(100):
                it.send(bytes([number]))
            await trio.sleep(1)
            return [(round(at_s - began_s, 4), payload) for at_s, payload in it.heard["bob"]]

    first, again, other = await run(1), await run(1), await run(2)
    assert first == again
    assert first != other


async def test_impossible_conditions_are_refused() -> None:
    with pytest.raises(LocalProtocolError, match="shares"):
        Quality(loss=1.5)
    with pytest.raises(LocalProtocolError, match="not negative"):
        Conditions().change([ANN], [BEN], latency_s=-1)
    with pytest.raises(LocalProtocolError, match="slower"):
        Conditions().slow([ANN], 0.5)
