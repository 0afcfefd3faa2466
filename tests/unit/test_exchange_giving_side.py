"""The giving half over streams, met by askers that are played by hand, and by a disk that fails."""

import pytest
import trio
from trio.testing import MockClock

from node.errors import HerdError, TransferFailed
from node.events import StoreChanged
from node.ports import StoreError, Stream, TransportError
from protocols.exchange.config import ExchangeConfig
from protocols.exchange.messages import (
    CHUNKS_CODEC,
    CHUNKS_PROTOCOL,
    EXCHANGE_PROTOCOL,
    Attach,
    Bitfield,
    Hello,
    Open,
    Want,
    Welcome,
)
from protocols.ids import Digest
from simnet.blobs import MemoryBlobs
from tests.support_exchange import CHUNK, LIMIT, Peer, hear, open_swarm, say, some_bytes

TICKET = b"t" * 16


async def greeted(asker: Peer, giver: Peer) -> Stream:
    """A session that stands, with nothing open."""
    stream = await asker.transport.open(giver.id, EXCHANGE_PROTOCOL, timeout_s=5)
    await say(stream, Hello(TICKET))
    assert isinstance(await hear(stream), Welcome)
    return stream


async def opened(stream: Stream, digest: Digest) -> Bitfield:
    """What the giver offers of a blob."""
    await say(stream, Open(digest))
    offer = await hear(stream)
    assert isinstance(offer, Bitfield)
    return offer


async def attach(asker: Peer, giver: Peer, ticket: bytes) -> Stream:
    """A chunk link under this ticket."""
    link = await asker.transport.open(giver.id, CHUNKS_PROTOCOL, timeout_s=5)
    await link.send(CHUNKS_CODEC.encode(Attach(ticket)))
    return link


async def ended(stream: Stream) -> bool:
    """Whether the other side ends the stream within a second."""
    with trio.move_on_after(1):
        try:
            return await stream.receive(LIMIT) is None
        except TransportError:
            return True
    return False


async def test_chunks_ride_only_the_link_that_shows_the_sessions_ticket(autojump_clock: MockClock) -> None:
    async with open_swarm() as swarm:
        seed, asker = await swarm.add("seed"), await swarm.add("asker")
        digest = seed.blobs.add(some_bytes(CHUNK))
        session = await greeted(asker, seed)
        offer = await opened(session, digest)
        await say(session, Want(digest, offer.recipe_id, ((0, 1),)))
        assert await ended(await attach(asker, seed, b"x" * 16)), "another ticket is no ticket"
        assert seed.exchange.statistics().served_bytes == 0
        link = await attach(asker, seed, TICKET)
        assert CHUNKS_CODEC.decode(await link.receive(LIMIT) or b"")
        assert await link.receive(LIMIT) == some_bytes(CHUNK)
        assert await ended(await attach(asker, seed, TICKET)), "a session has one link"


async def test_a_second_session_of_an_asker_takes_the_place_of_the_first(autojump_clock: MockClock) -> None:
    async with open_swarm() as swarm:
        seed, asker = await swarm.add("seed"), await swarm.add("asker")
        first = await greeted(asker, seed)
        await greeted(asker, seed)
        assert await ended(first)
        assert seed.exchange.statistics().askers == 1


async def test_a_session_in_which_nothing_is_open_is_not_kept_for_ever(autojump_clock: MockClock) -> None:
    async with open_swarm(config=ExchangeConfig(idle_timeout_s=10)) as swarm:
        seed, asker = await swarm.add("seed"), await swarm.add("asker")
        digest = seed.blobs.add(some_bytes(CHUNK))
        session = await greeted(asker, seed)
        await trio.sleep(15)
        assert seed.exchange.statistics().askers == 1, "an asker that is in order ends it first"
        await opened(session, digest)
        await trio.sleep(60)
        assert seed.exchange.statistics().askers == 1, "what is open may take its time"
        idle = await greeted(asker, seed)
        await trio.sleep(25)
        assert seed.exchange.statistics().askers == 0
        assert await ended(idle)


@pytest.mark.parametrize("fault", ["short", "unreadable"])
async def test_a_chunk_that_the_disk_does_not_give_is_not_the_givers_lie(autojump_clock: MockClock, fault: str) -> None:
    class Rotting(MemoryBlobs):
        async def read(self, digest: Digest, index: int, buffer: memoryview) -> int:
            size_bytes = await super().read(digest, index, buffer)
            if index != 2:
                return size_bytes
            if fault == "short":
                return size_bytes - 1
            raise StoreError("input/output error")

    async with open_swarm() as swarm:
        seed, asker = await swarm.add("seed", Rotting(chunk_size_bytes=CHUNK)), await swarm.add("asker")
        digest = seed.blobs.add(some_bytes(4 * CHUNK))
        told = []
        with seed.bus.subscribe() as events:
            with pytest.raises(TransferFailed):
                await asker.fetch(digest, 4 * CHUNK, [seed])
            with trio.move_on_after(0.01):
                async for event in events:
                    told.append(event)
        assert asker.exchange.statistics().stored_bytes == 3 * CHUNK
        assert asker.blame.statistics() == {}
        damaged = [event for event in told if isinstance(event, StoreChanged) and event.change == "damaged"]
        assert bool(damaged) == (fault == "unreadable")


async def test_two_who_disagree_about_a_blobs_size_do_not_share_a_transfer(autojump_clock: MockClock) -> None:
    async with open_swarm() as swarm:
        slow = MemoryBlobs(chunk_size_bytes=CHUNK, read_delay_s=1)
        seed, asker = await swarm.add("seed", slow), await swarm.add("asker")
        digest = seed.blobs.add(some_bytes(4 * CHUNK))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(asker.fetch, digest, 4 * CHUNK, [seed])
            await trio.sleep(0.5)
            with pytest.raises(HerdError, match=f"comes in with {4 * CHUNK} bytes, not 5"):
                await asker.fetch(digest, 5, [seed])
        assert asker.blobs.whole(digest) == some_bytes(4 * CHUNK)
