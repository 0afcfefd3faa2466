"""Peers that lie, flood, stall or vanish in the middle: each is found out, and nobody else pays for it."""

from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import MockClock

from node.errors import TransferFailed, VerificationFailed
from node.ports import Stream
from protocols.exchange.config import ExchangeConfig
from protocols.exchange.messages import (
    CHUNKS_CODEC,
    CHUNKS_PROTOCOL,
    EXCHANGE_PROTOCOL,
    WANTS_MAX,
    Attach,
    Bitfield,
    ChunkHeader,
    Hello,
    Open,
    Want,
    Welcome,
)
from protocols.ids import digest_of
from protocols.recipe.recipe import Recipe
from simnet.blobs import MemoryBlobs, cut
from tests.support_exchange import CHUNK, LIMIT, Peer, hear, open_swarm, say, some_bytes


def offers(recipe: Recipe) -> Bitfield:
    bits = b"\xff" * (len(recipe) // 8)
    return Bitfield(recipe.digest, len(recipe), bits, recipe.id(), recipe.to_bytes())


class Links:
    """The chunk links that askers have attached to a giver that is played by hand."""

    def __init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel[Stream](100)

    async def keep(self, stream: Stream) -> None:
        """The handler."""
        await stream.receive(256)
        self._send.send_nowait(stream)
        await trio.sleep_forever()

    async def push(self, header: ChunkHeader, data: bytes) -> None:
        """Send a chunk over the next link that comes."""
        link = await self._receive.receive()
        await link.send(CHUNKS_CODEC.encode(header))
        await link.send(data)


def serve_by_hand(peer: Peer, answer: Callable[[Stream], Awaitable[None]]) -> Links:
    """Replace a node's giving side."""
    links = Links()
    peer.transport.serve(EXCHANGE_PROTOCOL, answer)
    peer.transport.serve(CHUNKS_PROTOCOL, links.keep)
    return links


async def test_a_chunk_nobody_wanted_ends_the_session_and_bans(autojump_clock: MockClock) -> None:
    data = some_bytes(8 * CHUNK)
    recipe = cut(data, CHUNK)
    async with open_swarm() as swarm:
        pushy, asker = await swarm.add("pushy"), await swarm.add("asker")

        async def push(stream: Stream) -> None:
            await hear(stream)
            await say(stream, Welcome())
            await links.push(ChunkHeader(recipe.digest, 1, 4), b"junk")
            await trio.sleep_forever()

        links = serve_by_hand(pushy, push)
        with pytest.raises(TransferFailed, match=r"was lost .sent chunk 1 .* which nobody wanted"):
            await asker.fetch(recipe.digest, len(data), [pushy])
        assert asker.blame.view(pushy.id).counts == {"protocol": 1}
        assert asker.blame.banned(pushy.id)


async def test_a_header_that_promises_other_bytes_is_an_offence(autojump_clock: MockClock) -> None:
    data = some_bytes(8 * CHUNK)
    recipe = cut(data, CHUNK)
    async with open_swarm() as swarm:
        liar, asker = await swarm.add("liar"), await swarm.add("asker")

        async def answer(stream: Stream) -> None:
            await hear(stream)
            await hear(stream)
            await say(stream, Welcome(), offers(recipe))
            want = await hear(stream)
            assert isinstance(want, Want)
            first = want.ranges[0][0]
            await links.push(ChunkHeader(recipe.digest, first, CHUNK - 1), bytes(CHUNK - 1))
            await trio.sleep_forever()

        links = serve_by_hand(liar, answer)
        with pytest.raises(TransferFailed):
            await asker.fetch(recipe.digest, len(data), [liar])
        assert asker.blame.view(liar.id).counts == {"protocol": 1}
        assert asker.exchange.statistics().outstanding_bytes == 0


async def test_a_recipe_that_is_not_the_offered_one_bans_its_giver(autojump_clock: MockClock) -> None:
    data = some_bytes(8 * CHUNK)
    recipe = cut(data, CHUNK)
    other = cut(some_bytes(8 * CHUNK, seed=5), CHUNK)
    async with open_swarm() as swarm:
        liar, asker = await swarm.add("liar"), await swarm.add("asker")

        async def answer(stream: Stream) -> None:
            await hear(stream)
            await hear(stream)
            await say(stream, Welcome(), Bitfield(recipe.digest, 8, b"\xff", recipe.id(), other.to_bytes()))
            await trio.sleep_forever()

        serve_by_hand(liar, answer)
        with pytest.raises(VerificationFailed, match="sent a wrong recipe"):
            await asker.fetch(recipe.digest, len(data), [liar])
        assert asker.blame.view(liar.id).counts == {"recipe": 1}


async def test_a_giver_that_never_answers_is_given_up(autojump_clock: MockClock) -> None:
    data = some_bytes(8 * CHUNK)
    async with open_swarm() as swarm:
        mute, sound, asker = await swarm.add("mute"), await swarm.add("sound"), await swarm.add("asker")
        digest = sound.blobs.add(data)
        conversations = []

        async def answer(stream: Stream) -> None:
            conversations.append(stream)
            await trio.sleep_forever()

        serve_by_hand(mute, answer)
        report = await asker.fetch(digest, len(data), [mute, sound])
        assert report.sources == {sound.id: len(data)}
        assert report.seconds < 1
        with pytest.raises(TransferFailed, match="did not answer"):
            await asker.fetch(digest_of(b"other"), 5, [mute])
        assert len(conversations) >= 2, "it was tried again"


async def test_an_asker_that_wants_too_much_is_blamed(autojump_clock: MockClock) -> None:
    async with open_swarm() as swarm:
        seed, greedy = await swarm.add("seed"), await swarm.add("greedy")
        data = some_bytes(2 * CHUNK)
        digest = seed.blobs.add(data)
        stream = await greedy.transport.open(seed.id, EXCHANGE_PROTOCOL, timeout_s=5)
        await say(stream, Hello(b"t" * 16), Open(digest))
        assert isinstance(await hear(stream), Welcome)
        offer = await hear(stream)
        assert isinstance(offer, Bitfield)
        await say(stream, Want(digest, offer.recipe_id, ((0, WANTS_MAX),)))
        await trio.sleep(1)
        assert seed.blame.view(greedy.id).counts == {"protocol": 1}
        assert seed.exchange.statistics().askers == 0


async def test_a_link_with_a_foreign_ticket_gets_nothing(autojump_clock: MockClock) -> None:
    async with open_swarm() as swarm:
        seed, thief = await swarm.add("seed"), await swarm.add("thief")
        link = await thief.transport.open(seed.id, CHUNKS_PROTOCOL, timeout_s=5)
        await link.send(CHUNKS_CODEC.encode(Attach(b"x" * 16)))
        assert await link.receive(LIMIT) is None
        assert seed.exchange.statistics().askers == 0


async def test_an_asker_that_reads_no_chunks_loses_its_session_and_holds_no_memory(autojump_clock: MockClock) -> None:
    config = ExchangeConfig(serve_timeout_s=5)
    async with open_swarm(config=config) as swarm:
        big = 4 * 1024 * 1024
        seed, lazy = await swarm.add("seed", MemoryBlobs(chunk_size_bytes=big)), await swarm.add("lazy")
        asker = await swarm.add("asker")
        data = some_bytes(4 * big)
        digest = seed.blobs.add(data)
        stream = await lazy.transport.open(seed.id, EXCHANGE_PROTOCOL, timeout_s=5)
        await say(stream, Hello(b"t" * 16), Open(digest))
        await hear(stream)
        offer = await hear(stream)
        assert isinstance(offer, Bitfield)
        link = await lazy.transport.open(seed.id, CHUNKS_PROTOCOL, timeout_s=5)
        await link.send(CHUNKS_CODEC.encode(Attach(b"t" * 16)))
        await say(stream, Want(digest, offer.recipe_id, ((0, 4),)))
        await trio.sleep(1)
        assert 0 < seed.exchange.statistics().serve_buffered_bytes <= 2 * big

        report = await asker.fetch(digest, len(data), [seed])
        assert report.seconds < 2, "the others are served meanwhile"
        await trio.sleep(10)
        assert seed.exchange.statistics().serve_buffered_bytes == 0


async def test_memory_for_serving_is_bounded_and_shared_fairly(autojump_clock: MockClock) -> None:
    big = 4 * 1024 * 1024
    config = ExchangeConfig(serve_buffer_bytes=16 * 1024 * 1024)
    async with open_swarm(config=config) as swarm:
        seed = await swarm.add("seed", MemoryBlobs(chunk_size_bytes=big, read_delay_s=0.1))
        askers = [await swarm.add(name) for name in ("ann", "bob", "cat", "dan")]
        data = some_bytes(8 * big)
        digest = seed.blobs.add(data)
        most, done = [0], []
        seed.blobs.on_read = lambda _digest, _index: most.append(seed.exchange.statistics().serve_buffered_bytes)

        async def fetch(peer: Peer) -> None:
            await peer.fetch(digest, len(data), [seed])
            done.append(trio.current_time())

        async with trio.open_nursery() as nursery:
            for peer in askers:
                nursery.start_soon(fetch, peer)

        assert max(most) == 16 * 1024 * 1024
        assert max(done) - min(done) <= 0.3, "nobody is served last"


async def test_an_idle_session_is_closed_and_opened_again(autojump_clock: MockClock) -> None:
    async with open_swarm(config=ExchangeConfig(idle_timeout_s=20)) as swarm:
        seed, asker = await swarm.add("seed"), await swarm.add("asker")
        first, second = seed.blobs.add(b"first"), seed.blobs.add(b"second")
        await asker.fetch(first, 5, [seed])
        assert (asker.exchange.statistics().givers, seed.exchange.statistics().askers) == (1, 1)
        await trio.sleep(31)  # What was owed at the start is looked at after 10 s, then idleness counts.
        assert (asker.exchange.statistics().givers, seed.exchange.statistics().askers) == (0, 0)
        await asker.fetch(second, 6, [seed])
        assert asker.blobs.whole(second) == b"second"


@pytest.mark.parametrize("after_s", [0.01, 0.5], ids=["as-the-transfer-begins", "in-its-middle"])
@pytest.mark.parametrize("count", [8, 128])
async def test_a_bitfield_of_another_length_than_the_recipe_bans_its_giver_alone(
    autojump_clock: MockClock, count: int, after_s: float
) -> None:
    """The right recipe's id with another number of chunks: the liar is found out, and the transfer goes on."""
    data = some_bytes(64 * CHUNK)
    recipe = cut(data, CHUNK)
    async with open_swarm() as swarm:
        sound = await swarm.add("sound", MemoryBlobs(chunk_size_bytes=CHUNK, read_delay_s=0.05, reads_at_once=1))
        liar, asker = await swarm.add("liar"), await swarm.add("asker")
        sound.blobs.add(data)

        async def answer(stream: Stream) -> None:
            await hear(stream)
            await say(stream, Welcome())
            await hear(stream)
            await trio.sleep_until(after_s + 0.1)
            await say(stream, Bitfield(recipe.digest, count, b"\xff" * (count // 8), recipe.id()))
            await trio.sleep_forever()

        serve_by_hand(liar, answer)
        report = await asker.fetch(recipe.digest, len(data), [sound, liar])
        assert report.sources == {sound.id: len(data)}
        assert asker.blame.view(liar.id).counts == {"protocol": 1}
        assert asker.blame.banned(liar.id)
        assert asker.exchange.statistics().outstanding_bytes == 0
