"""Whole fetches over the bulk plane: with many connections, under attack from the wire, and from a hostile giver."""

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import attrs
import pytest
import trio

from node.errors import TransferFailed
from node.events import EventBus
from node.ports import ChunkLink, Stream
from node.services.exchange.carrier import StreamCarrier
from node.services.exchange.planes import Planes
from node.services.exchange.service import ExchangeService, FetchReport
from protocols.bulk.config import BulkConfig
from protocols.exchange.config import ExchangeConfig
from protocols.exchange.messages import EXCHANGE_PROTOCOL, Bitfield, Welcome
from protocols.recipe.recipe import Recipe
from simnet.blobs import MemoryBlobs, cut
from tests.support_bulk import BulkPair, TamperingWire, bulk_pair, chunks_of, give, tampering, untouched
from tests.support_exchange import hear, say, some_bytes
from tests.support_transport import Node

KIB = 1024
CHUNK = 128 * KIB
DATA = some_bytes(40 * CHUNK + 77)


@attrs.frozen
class Exchanges:
    """Ann's and Bob's exchange over the bulk plane with streams behind it; Bob holds DATA."""

    world: BulkPair
    ann: ExchangeService
    ann_blobs: MemoryBlobs
    ann_planes: Planes
    recipe: Recipe

    async def fetch(self) -> FetchReport:
        """Ann fetches DATA from Bob, and has it."""
        report = await self.ann.fetch(self.recipe.digest, len(DATA), sources=lambda: [self.world.bob.peer])
        assert self.ann_blobs.whole(self.recipe.digest) == DATA
        return report


@asynccontextmanager
async def exchanges(**changes: Any) -> AsyncIterator[Exchanges]:
    async with bulk_pair(serving=False, **changes) as world, trio.open_nursery() as nursery:
        held: list[MemoryBlobs] = []
        made: list[ExchangeService] = []
        planes: list[Planes] = []
        for node, bulk in ((world.ann, world.asker), (world.bob, world.giver)):
            held.append(MemoryBlobs(chunk_size_bytes=CHUNK))
            planes.append(Planes(bulk, StreamCarrier(node.transport), BulkConfig(connect_timeout_s=3.0)))
            made.append(_exchange(node, held[-1], planes[-1]))
            await nursery.start(made[-1].run)
        held[1].add(DATA)
        yield Exchanges(world, made[0], held[0], planes[0], cut(DATA, CHUNK))
        nursery.cancel_scope.cancel()


def _exchange(node: Node, blobs: MemoryBlobs, planes: Planes) -> ExchangeService:
    rng = random.Random(node.peer)
    return ExchangeService(
        node.transport, blobs, node.blame, EventBus(), ExchangeConfig(), node.peer, rng, carrier=planes
    )


async def test_a_fetch_passes_through_many_connections_whole() -> None:
    async with exchanges(connection_bytes_max=1024 * KIB) as fetching:
        report = await fetching.fetch()
        assert report.fetched_bytes == len(DATA), "every chunk once"
        assert fetching.world.asker.counters.connections_opened >= 5
        assert fetching.ann.statistics().duplicate_bytes == 0
        assert fetching.world.blames() == [{}, {}]


async def test_a_wire_that_flips_a_bit_now_and_then_costs_time_and_nothing_else() -> None:
    seen = 0

    def now_and_then(_number: int, frame: bytes) -> bytes:
        nonlocal seen
        seen += 1
        if seen != 20:
            return frame
        return frame[:-1] + bytes([frame[-1] ^ 1])

    async with exchanges() as fetching:
        world = fetching.world
        world.route = "127.0.0.2"
        async with tampering(world, TamperingWire(from_giver=now_and_then)):
            report = await fetching.fetch()
        assert report.sources == {world.bob.peer: report.fetched_bytes}
        assert world.asker.counters.broken_frames == 1
        assert world.blames() == [{}, {}]
        assert not world.ann.blame.banned(world.bob.peer), "an attacker on the way cannot have a member banned"


async def test_an_opening_that_never_goes_through_leaves_it_to_the_streams() -> None:
    def no_greeting(number: int, frame: bytes) -> bytes:
        return bytes(len(frame)) if number == 0 else untouched(number, frame)

    async with exchanges() as fetching:
        world = fetching.world
        world.route = "127.0.0.2"
        async with tampering(world, TamperingWire(from_giver=no_greeting)):
            await fetching.fetch()
        plane = fetching.ann_planes.plane_of(world.bob.peer)
        assert plane is not None
        assert (plane.name, "is not it" in plane.reason) == ("streams", True)
        assert world.blames() == [{}, {}]


async def test_a_chunk_nobody_wanted_is_the_givers_offence_over_this_plane_too() -> None:
    async with exchanges() as fetching:
        world, recipe = fetching.world, fetching.recipe

        async def push(stream: Stream) -> None:
            await hear(stream)
            bits = b"\xff" * (len(recipe) // 8) + b"\x80"
            await say(stream, Welcome(), Bitfield(recipe.digest, len(recipe), bits, recipe.id(), recipe.to_bytes()))
            await trio.sleep_forever()

        async def unasked(link: ChunkLink) -> None:
            await give(link, chunks_of([100]))
            await trio.sleep_forever()

        world.bob.transport.serve(EXCHANGE_PROTOCOL, push)
        world.giver.serve(unasked)
        with pytest.raises(TransferFailed, match="which nobody wanted"):
            await fetching.fetch()
        assert world.ann.blame.view(world.bob.peer).counts == {"protocol": 1}
        assert world.ann.blame.banned(world.bob.peer)
        assert world.asker.counters.broken_frames == 0
