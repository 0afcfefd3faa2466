"""Chunks of declared sizes: small in memory, as heavy on the wire and in windows as they are declared to be."""

import random

import pytest
import trio
from trio.testing import MockClock

from node.background import open_background
from node.ports import CarriedChunk, ChunkLink
from node.trust.mesh_key import MeshKeyDoor
from protocols.errors import LocalProtocolError
from protocols.exchange.config import ExchangeConfig
from protocols.ids import PeerId
from simnet.carrier import SimCarrier, scaled
from simnet.determinism import run_world
from simnet.network import SimNetwork
from simnet.world import World, WorldOptions
from tests.support_bulk import BLOB, SESSION
from tests.support_transport import MESH_KEY, identity_of

KIB = 1024
MIB = 1024 * KIB
ANN, BOB = identity_of("ann").peer_id, identity_of("bob").peer_id
DOOR = MeshKeyDoor(MESH_KEY)


async def test_a_chunk_takes_the_time_of_its_declared_size_and_its_header_that_of_its_own(
    autojump_clock: MockClock,
) -> None:
    frames: list[int] = []

    def note(_sender: PeerId, _receiver: PeerId, size_bytes: int) -> None:
        frames.append(size_bytes)

    network = SimNetwork(random.Random(1), segment_size_bytes=2 * MIB, window_size_bytes=64 * MIB)
    async with (
        network.transport(ANN, DOOR, down_bytes_per_s=16.0 * MIB) as ann,
        network.transport(BOB, DOOR) as bob,
    ):
        ann.learn(BOB, bob.addresses())
        asker, giver = SimCarrier(ann, 1024), SimCarrier(bob, 1024)

        async def give(link: ChunkLink) -> None:
            for index in range(4):
                assert await link.send(CarriedChunk(BLOB, index, bytes(16 * KIB)), lambda: True)
            assert not await link.send(CarriedChunk(BLOB, 4, bytes(16 * KIB)), lambda: False)
            await trio.sleep_forever()

        giver.serve(give)
        link = await asker.connect(BOB, SESSION, timeout_s=5)
        network.on_frame = note
        began_s = trio.current_time()
        for index in range(4):
            chunk = await link.receive()
            assert chunk is not None
            assert (chunk.index, len(chunk.data)) == (index, 16 * KIB)
            assert trio.current_time() - began_s == pytest.approx(index + 1, abs=0.01)
        assert [size for size in frames if size > KIB] == [16 * MIB] * 4
        assert sum(size for size in frames if size <= KIB) < 4 * KIB
        assert bob.wire.sent_bytes == sum(frames)


def test_bounds_in_bytes_are_scaled_below_what_an_operator_may_set() -> None:
    usual = ExchangeConfig()
    small = scaled(usual, 1024)
    assert small.outstanding_start_bytes * 1024 == usual.outstanding_start_bytes
    assert small.serve_buffer_bytes * 1024 == usual.serve_buffer_bytes
    assert small.partners_max == usual.partners_max
    assert scaled(usual, 1) == usual


def test_a_chunk_that_weighs_less_than_it_is_is_refused() -> None:
    async def main() -> None:
        async with SimNetwork(random.Random(1)).transport(ANN, DOOR) as ann:
            SimCarrier(ann, 0)

    with pytest.raises(LocalProtocolError, match="under 1"):
        trio.run(main)


def test_a_model_of_four_gigabytes_crosses_a_world_in_its_declared_time_and_a_quarter_megabyte() -> None:
    """256 chunks declared as 16 MiB, over links of 10 Gbit/s, from one to three nodes one after another."""

    async def main() -> list[float]:
        options = WorldOptions(rate_bytes_per_s=1.25e9, chunk_size_bytes=KIB, bytes_scale=16 * KIB, latency_s=0.0005)
        took_s = []
        async with open_background() as nursery:
            world = World(nursery, options)
            for _ in range(4):
                await world.start(world.add_host().number)
            await world.hold(1, "large", random.Random(1).randbytes(256 * KIB))
            await world.wait(5)
            for number in (2, 3, 4):
                began_s = trio.current_time()
                assert (await world.pull(number, "large")).verified
                took_s.append(trio.current_time() - began_s)
        return took_s

    ideal_s = 256 * 16 * MIB / 1.25e9
    assert all(ideal_s < took_s < 1.4 * ideal_s for took_s in run_world(main, 1)), f"T* is {ideal_s:.2f} s"
