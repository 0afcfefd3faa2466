"""Chunks over streams: frames in pairs, a ticket first, and nothing else."""

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock

from node.ports import CarriedChunk, ChunkLink, Stream, TransportError
from node.services.exchange.carrier import StreamCarrier
from protocols.errors import RemoteProtocolError
from protocols.exchange.messages import CHUNKS_CODEC, CHUNKS_PROTOCOL, Attach, ChunkHeader
from protocols.ids import digest_of
from tests.support_transport import MESH_KEY, Node, pair, simulated_nodes

TICKET = b"t" * 16
BLOB = digest_of(b"blob")


@asynccontextmanager
async def linked() -> AsyncIterator[tuple[Node, Node, ChunkLink, ChunkLink]]:
    """Ann has attached a link to Bob; both ends of it."""
    async with pair(simulated_nodes(), MESH_KEY) as (ann, bob):
        send, receive = trio.open_memory_channel[ChunkLink](1)

        async def keep(link: ChunkLink) -> None:
            await send.send(link)
            await trio.sleep_forever()

        StreamCarrier(bob.transport).serve(keep)
        asker = await StreamCarrier(ann.transport).connect(bob.peer, TICKET, timeout_s=5)
        yield ann, bob, asker, await receive.receive()


async def test_chunks_arrive_whole_and_in_order(autojump_clock: MockClock) -> None:
    async with linked() as (ann, bob, asker, giver):
        assert (giver.peer, giver.ticket, asker.peer) == (ann.peer, TICKET, bob.peer)
        sizes = [1, 70_000, 16 * 1024 * 1024]
        chunks = [CarriedChunk(BLOB, n, random.Random(n).randbytes(size)) for n, size in enumerate(sizes)]
        async with trio.open_nursery() as nursery:

            async def give() -> None:
                for chunk in chunks:
                    assert await giver.send(chunk, lambda: True)

            nursery.start_soon(give)
            assert [await asker.receive() for _ in chunks] == chunks


async def test_a_link_that_ends_is_noticed(autojump_clock: MockClock) -> None:
    async with linked() as (_ann, _bob, asker, giver):
        await giver.close()
        with pytest.raises(TransportError):
            await asker.receive()


async def test_no_link_to_who_serves_none(autojump_clock: MockClock) -> None:
    async with pair(simulated_nodes(), MESH_KEY) as (ann, bob):
        with pytest.raises(TransportError):
            await StreamCarrier(ann.transport).connect(bob.peer, TICKET, timeout_s=5)


@pytest.mark.parametrize(
    "frames",
    [
        [b"\xff"],
        [CHUNKS_CODEC.encode(Attach(TICKET))],
        [CHUNKS_CODEC.encode(ChunkHeader(BLOB, 0, 5)), b"four"],
        [CHUNKS_CODEC.encode(ChunkHeader(BLOB, 0, 5)), b"sixsix"],
        [b"x" * 1000],
    ],
)
async def test_anything_else_on_a_link_is_an_offence(autojump_clock: MockClock, frames: list[bytes]) -> None:
    async with pair(simulated_nodes(), MESH_KEY) as (ann, bob):

        async def send(stream: Stream) -> None:
            await stream.receive(256)
            for frame in frames:
                await stream.send(frame)
            await trio.sleep_forever()

        bob.transport.serve(CHUNKS_PROTOCOL, send)
        link = await StreamCarrier(ann.transport).connect(bob.peer, TICKET, timeout_s=5)
        with pytest.raises(RemoteProtocolError):
            await link.receive()


async def test_a_stream_without_a_ticket_is_no_link(autojump_clock: MockClock) -> None:
    async with pair(simulated_nodes(), MESH_KEY) as (ann, bob):
        links = []

        async def keep(link: ChunkLink) -> None:
            links.append(link)

        StreamCarrier(bob.transport).serve(keep)
        stream = await ann.transport.open(bob.peer, CHUNKS_PROTOCOL, timeout_s=5)
        await stream.send(CHUNKS_CODEC.encode(ChunkHeader(BLOB, 0, 5)))
        with pytest.raises(TransportError):
            await stream.receive(256)
        assert links == []
        assert bob.blame.view(ann.peer).counts == {"protocol": 1}
