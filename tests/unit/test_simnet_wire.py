"""Limited links of the simulated network: what bytes cost, who shares with whom, and what waits behind them."""

import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import trio
from trio.testing import MockClock

from node.ports import Stream, TransportError
from node.trust.mesh_key import MeshKeyDoor
from simnet.network import SimNetwork, SimTransport
from tests.support_transport import MESH_KEY, identity_of

KIB = 1024
MIB = 1024 * KIB
SINK = "/herd/sink/1"


class World:
    """Hosts by name; each notes when which frame came, and its size."""

    def __init__(self, stack: AsyncExitStack, network: SimNetwork) -> None:
        self.came: dict[str, list[tuple[float, int]]] = {}
        self.hosts: dict[str, SimTransport] = {}
        self._stack = stack
        self._network = network

    async def add(self, name: str, *, up: float | None = None, down: float | None = None) -> None:
        host = await self._stack.enter_async_context(
            self._network.transport(
                identity_of(name).peer_id, MeshKeyDoor(MESH_KEY), up_bytes_per_s=up, down_bytes_per_s=down
            )
        )
        for other in self.hosts.values():
            other.learn(host.peer_id, host.addresses())
            host.learn(other.peer_id, other.addresses())
        self.hosts[name] = host
        self.came[name] = []

        async def note(stream: Stream) -> None:
            while (frame := await stream.receive(16 * MIB)) is not None:
                self.came[name].append((trio.current_time(), len(frame)))

        host.serve(SINK, note)

    async def stream(self, one: str, other: str) -> Stream:
        return await self.hosts[one].open(self.hosts[other].peer_id, SINK, timeout_s=5)


@asynccontextmanager
async def world(*, latency_s: float = 0.0) -> AsyncIterator[World]:
    network = SimNetwork(random.Random(1), latency_s=latency_s, window_size_bytes=4 * MIB, send_buffer_bytes=4 * MIB)
    async with AsyncExitStack() as stack:
        yield World(stack, network)


async def bulk(stream: Stream, frames: int) -> None:
    for _ in range(frames):
        await stream.send(bytes(MIB))
    await stream.finish()


async def test_a_frame_takes_its_size_over_the_slower_rate_and_the_latency(autojump_clock: MockClock) -> None:
    async with world(latency_s=0.1) as it:
        await it.add("ann", up=10 * MIB)
        await it.add("bob", down=2 * MIB)
        stream = await it.stream("ann", "bob")
        began_s = trio.current_time()
        await bulk(stream, 4)
        await trio.sleep(5)
        times = [at_s - began_s for at_s, _ in it.came["bob"]]
        assert times == pytest.approx([0.6, 1.1, 1.6, 2.1], abs=0.01)
        assert it.hosts["ann"].wire.sent_bytes == 4 * MIB


async def test_streams_share_an_uplink_evenly_and_a_slow_receiver_takes_only_its_part(
    autojump_clock: MockClock,
) -> None:
    async with world() as it:
        await it.add("ann", up=10 * MIB)
        for name, down in [("bob", None), ("cat", None), ("slow", 1 * MIB)]:
            await it.add(name, down=down)
        streams = {name: await it.stream("ann", name) for name in ("bob", "cat", "slow")}
        began_s = trio.current_time()
        async with trio.open_nursery() as nursery:
            for stream in streams.values():
                nursery.start_soon(bulk, stream, 9)
        await trio.sleep(10)
        ended_s = {name: it.came[name][-1][0] - began_s for name in streams}
        assert ended_s["bob"] == pytest.approx(2.0, abs=0.1)
        assert ended_s["cat"] == pytest.approx(2.0, abs=0.1)
        assert ended_s["slow"] == pytest.approx(9.0, abs=0.2)


async def test_many_senders_fill_one_downlink_evenly(autojump_clock: MockClock) -> None:
    async with world() as it:
        await it.add("ann", down=10 * MIB)
        names = ["bob", "cat", "dan"]
        for name in names:
            await it.add(name, up=10 * MIB)
        ended_s = {}

        async def fill(name: str) -> None:
            await bulk(await it.stream(name, "ann"), 10)
            ended_s[name] = trio.current_time()

        began_s = trio.current_time()
        async with trio.open_nursery() as nursery:
            for name in names:
                nursery.start_soon(fill, name)
        await trio.sleep(5)
        assert it.came["ann"][-1][0] - began_s == pytest.approx(3.0, abs=0.1)
        assert max(ended_s.values()) - min(ended_s.values()) < 0.8, "none was shut out by the others"


async def test_a_send_returns_when_most_of_it_has_left_the_host(autojump_clock: MockClock) -> None:
    async with AsyncExitStack() as stack:
        it = World(stack, SimNetwork(random.Random(1), send_buffer_bytes=MIB // 4))
        await it.add("ann", up=1 * MIB)
        await it.add("bob")
        stream = await it.stream("ann", "bob")
        began_s = trio.current_time()
        await stream.send(bytes(MIB))
        assert trio.current_time() - began_s == pytest.approx(0.75)


async def test_a_small_message_waits_behind_the_queue_and_no_longer(autojump_clock: MockClock) -> None:
    async with world() as it:
        await it.add("ann", up=1 * MIB)
        await it.add("bob")
        await it.add("cat")
        large, small = await it.stream("ann", "bob"), await it.stream("ann", "cat")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bulk, large, 2)
            await trio.sleep(1)
            sent_s = trio.current_time()
            await small.send(b"?")
        await trio.sleep(3)
        [(came_s, _)] = it.came["cat"]
        assert 0.05 < came_s - sent_s < 0.25


async def test_what_a_host_finished_but_had_not_sent_dies_with_it(autojump_clock: MockClock) -> None:
    heard: list[str] = []

    async def listen(stream: Stream) -> None:
        try:
            while await stream.receive(MIB) is not None:
                heard.append("frame")
            heard.append("end")
        except TransportError:
            heard.append("broken")

    async with world() as it:
        await it.add("bob")
        it.hosts["bob"].serve(SINK, listen)
        async with world() as brief:
            brief._network = it._network
            brief.hosts.update(it.hosts)
            await brief.add("ann", up=1 * MIB)
            stream = await brief.stream("ann", "bob")
            await bulk(stream, 3)
            await trio.sleep(1.5)
        await trio.sleep(5)
        assert heard == ["frame", "broken"]
