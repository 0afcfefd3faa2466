"""The frames of the bulk plane between herd and a second reader and writer made from their description alone."""

import random

import pytest
import trio

from node.ports import ChunkLink, Stream
from protocols.bulk.frames import CIPHERS
from protocols.bulk.tickets import BULK_PROTOCOL, CODEC, MESSAGE_SIZE_BYTES_MAX, GetTicket, Ticket
from tests import reference_frames as reference
from tests.support_bulk import BLOB, HOST, SESSION, bulk_pair, chunks_of, give, told

SIZES_BYTES = [1, 70_000, 512 * 1024, 512 * 1024 + 1, 5_000_000, 16 * 1024 * 1024]


@pytest.fixture(params=list(CIPHERS))
def cipher(request: pytest.FixtureRequest) -> str:
    name = str(request.param)
    if not reference.works_here(name):
        pytest.skip(f"libsodium does not do {name} on this processor")
    return name


async def test_the_second_reader_reads_what_a_giver_sends(cipher: str) -> None:
    async with bulk_pair(connection_bytes_max=sum(SIZES_BYTES)) as world, trio.open_nursery() as nursery:
        ticket = await world.ticket(ciphers=(cipher,))
        assert ticket.cipher == cipher
        mine = reference.direction(reference.ASKER, cipher, ticket.key, ticket.connection_id)
        reader = reference.ChunkReader(reference.direction(reference.GIVER, cipher, ticket.key, ticket.connection_id))
        chunks = chunks_of(SIZES_BYTES)

        async def give_all() -> None:
            await give(await world.given(), chunks)

        nursery.start_soon(give_all)
        async with await world.dial() as stream:
            await stream.send_all(reference.opening(ticket.connection_id) + mine.greeting())
            # The last chunk uses the ticket up, so the giver ends in order; then so does the asker.
            while not reader.ended:
                reader.feed(await stream.receive_some())
            assert reader.chunks == [(BLOB, chunk.index, chunk.data) for chunk in chunks]
            await stream.send_all(mine.seal(reference.END, b""))
            assert await stream.receive_some() == b""
        assert world.giver.counters.broken_frames == 0


async def test_an_asker_reads_what_the_second_writer_sends(cipher: str) -> None:
    rng = random.Random(cipher)
    sent = [(n, rng.randbytes(size)) for n, size in enumerate(SIZES_BYTES)]
    async with bulk_pair() as world, trio.open_nursery() as nursery:
        [listener] = await trio.open_tcp_listeners(0, host=HOST)
        ticket = Ticket(rng.randbytes(16), rng.randbytes(32), cipher, listener.socket.getsockname()[1], 10.0, 1 << 40)

        async def issue(stream: Stream) -> None:
            assert isinstance(CODEC.decode(await stream.receive(MESSAGE_SIZE_BYTES_MAX) or b""), GetTicket)
            await stream.send(CODEC.encode(ticket))

        async def play_giver() -> None:
            mine = reference.direction(reference.GIVER, cipher, ticket.key, ticket.connection_id)
            theirs = reference.direction(reference.ASKER, cipher, ticket.key, ticket.connection_id)
            async with listener, await listener.accept() as stream:
                heard = b""
                while len(heard) < 24 + 20:
                    heard += await stream.receive_some()
                assert heard[:24] == reference.opening(ticket.connection_id)
                assert theirs.feed(heard[24:]) == [(reference.MESSAGE, b"")]
                await stream.send_all(mine.greeting())
                for index, data in sent:
                    await stream.send_all(mine.chunk(BLOB, index, data, piece_size_bytes=rng.randint(20_000, 1 << 20)))
                await stream.send_all(mine.seal(reference.END, b""))
                assert await stream.receive_some() == b"", "the asker hangs up at the end and says nothing before"

        world.bob.transport.serve(BULK_PROTOCOL, issue)
        nursery.start_soon(play_giver)
        link: ChunkLink = await world.asker.connect(world.bob.peer, SESSION, timeout_s=5)
        assert [told(await link.receive()) for _ in sent] == sent
        assert await link.receive() is None
        assert world.blames() == [{}, {}]


def test_the_second_reader_refuses_what_herd_refuses() -> None:
    """The harness itself: repeated, left out, changed and misplaced frames do not open here either."""
    name = "chacha20-poly1305"

    def reader() -> reference.ChunkReader:
        return reference.ChunkReader(reference.direction(reference.GIVER, name, b"k" * 32, b"c" * 16))

    writer = reference.direction(reference.GIVER, name, b"k" * 32, b"c" * 16)
    greeting, chunk, end = writer.greeting(), writer.chunk(BLOB, 3, b"abc"), writer.seal(reference.END, b"")
    whole = reader()
    whole.feed(greeting + chunk + end)
    assert (whole.chunks, whole.ended) == ([(BLOB, 3, b"abc")], True)
    flipped = bytearray(greeting + chunk)
    flipped[-1] ^= 1
    for wrong in (greeting + greeting, chunk, greeting + end, bytes(flipped)):
        with pytest.raises(reference.NotAFrame):
            reader().feed(wrong)
