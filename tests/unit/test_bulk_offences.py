"""What a giver itself seals and may not: its link ends, and it is the giver's offence; other links go on."""

import resource
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import msgpack
import pytest
import trio

from node.ports import ChunkLink, Stream, TransportError
from protocols.bulk.frames import FRAMES_MAX, BrokenFrame, FrameKind, FrameOpener, FrameSealer, asker_ends, giver_ends
from protocols.bulk.tickets import BULK_PROTOCOL, CODEC, Ticket
from protocols.errors import LocalProtocolError, RemoteProtocolError
from tests import reference_frames as reference
from tests.support_bulk import BLOB, HOST, BulkPair, bulk_pair, take_all, told

KEY, CONNECTION = b"k" * 32, b"c" * 16
CIPHER = "chacha20-poly1305"
MIB = 1024 * 1024


def header(size_bytes: int, digest: str = BLOB) -> bytes:
    """The message that announces chunk 0."""
    return bytes(msgpack.packb([2, digest, 0, size_bytes]))


@asynccontextmanager
async def hostile_giver(
    world: BulkPair, says: Callable[[reference.Direction], bytes], bytes_max: int = 1 << 40
) -> AsyncIterator[ChunkLink]:
    """A link to a giver that greets, says this, and waits."""
    [listener] = await trio.open_tcp_listeners(0, host=HOST)
    ticket = Ticket(CONNECTION, KEY, CIPHER, listener.socket.getsockname()[1], 10.0, bytes_max)

    async def issue(stream: Stream) -> None:
        await stream.send(CODEC.encode(ticket))

    async def serve() -> None:
        async with listener:
            while True:
                nursery.start_soon(talk, await listener.accept())

    async def talk(stream: trio.SocketStream) -> None:
        mine = reference.direction(reference.GIVER, CIPHER, KEY, CONNECTION)
        async with stream:
            await stream.send_all(mine.greeting() + says(mine))
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        world.bob.transport.serve(BULK_PROTOCOL, issue)
        nursery.start_soon(serve)
        link = await world.asker.connect(world.bob.peer, b"h" * 16, timeout_s=5)
        yield link
        nursery.cancel_scope.cancel()


OFFENCES: dict[str, Callable[[reference.Direction], bytes]] = {
    "a body without a header": lambda mine: mine.seal(reference.BODY, b"x" * 1000),
    "a body of a whole frame without a header": lambda mine: mine.seal(reference.BODY, bytes(MIB)),
    "a header with no message in it": lambda mine: mine.seal(reference.MESSAGE, b"\xc1"),
    "an empty header": lambda mine: mine.seal(reference.MESSAGE, b""),
    "a header too long": lambda mine: mine.seal(reference.MESSAGE, bytes(257)),
    "another message": lambda mine: mine.seal(reference.MESSAGE, msgpack.packb([1, bytes(16)])),
    "a chunk of no bytes": lambda mine: mine.seal(reference.MESSAGE, header(0)),
    "a chunk over the limit": lambda mine: mine.seal(reference.MESSAGE, header(16 * MIB + 1)),
    "more than the header says": lambda mine: (
        mine.seal(reference.MESSAGE, header(5)) + mine.seal(reference.BODY, b"sixsix")
    ),
    "more in a second piece": lambda mine: (
        mine.seal(reference.MESSAGE, header(5)) + mine.seal(reference.BODY, b"123") + mine.seal(reference.BODY, b"456")
    ),
    "less than the header says, then the next": lambda mine: (
        mine.seal(reference.MESSAGE, header(5)) + mine.seal(reference.BODY, b"123") + mine.chunk(BLOB, 1, b"next")
    ),
    "an end inside a chunk": lambda mine: mine.seal(reference.MESSAGE, header(5)) + mine.seal(reference.END, b""),
    "pieces of nothing": lambda mine: mine.seal(reference.MESSAGE, header(5)) + mine.seal(reference.BODY, b""),
    "an end with something in it": lambda mine: mine.seal(reference.END, b"bye"),
}


@pytest.mark.parametrize("offence", OFFENCES)
async def test_what_a_giver_sealed_wrongly_is_its_offence(offence: str) -> None:
    async with bulk_pair() as world, hostile_giver(world, OFFENCES[offence]) as link:
        with pytest.raises(RemoteProtocolError) as raised:
            await link.receive()
        assert not isinstance(raised.value, BrokenFrame)
        assert world.asker.counters.broken_frames == 0, "nobody tampered with it"
        assert link.lanes == 0


async def test_a_giver_that_goes_on_over_its_tickets_limit_is_found_out() -> None:
    def too_much(mine: reference.Direction) -> bytes:
        return b"".join(mine.chunk(BLOB, n, bytes(MIB // 2)) for n in range(3))

    async with bulk_pair() as world, hostile_giver(world, too_much, bytes_max=MIB) as link:
        assert [told(await link.receive())[0] for _ in range(2)] == [0, 1]
        with pytest.raises(RemoteProtocolError, match="has carried its 1048576 bytes"):
            await take_all(link)


async def test_a_giver_that_announces_much_and_sends_nothing_costs_no_memory() -> None:
    async with bulk_pair() as world:
        before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for _ in range(20):
            async with hostile_giver(world, lambda mine: mine.seal(reference.MESSAGE, header(16 * MIB))) as link:
                with trio.move_on_after(0.02) as waiting:
                    await link.receive()
                assert waiting.cancelled_caught, "it is for the session to lose patience"
                await link.close()
                assert link.lanes == 0
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 64 * 1024
        assert world.asker.statistics().links == 0


async def test_a_giver_that_answers_a_request_for_a_ticket_with_something_else() -> None:
    async with bulk_pair() as world:
        for answer, error in ((b"\xff", RemoteProtocolError), (b"", TransportError)):

            async def say(stream: Stream, answer: bytes = answer) -> None:
                if answer:
                    await stream.send(answer)

            world.bob.transport.serve(BULK_PROTOCOL, say)
            with pytest.raises(error):
                await world.asker.connect(world.bob.peer, b"h" * 16, timeout_s=5)


def test_a_connection_ends_before_its_nonces_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("protocols.bulk.frames.FRAMES_MAX", 3)
    assert FRAMES_MAX == 1 << 32
    (seal, _), (_, opened) = giver_ends(CIPHER, KEY, CONNECTION), asker_ends(CIPHER, KEY, CONNECTION)
    frame = memoryview(bytearray(100))
    for _ in range(3):
        size_bytes = seal.seal_into(FrameKind.BODY, b"x", frame)
        opened.open_into(bytes(frame[:4]), frame[4:size_bytes], memoryview(bytearray(1)))
    with pytest.raises(LocalProtocolError):
        seal.seal_into(FrameKind.BODY, b"x", frame)
    with pytest.raises(BrokenFrame, match="after the 3"):
        opened.open_into(bytes(frame[:4]), frame[4:size_bytes], memoryview(bytearray(1)))


def test_each_direction_and_each_connection_has_its_own_key() -> None:
    """A frame opens nowhere but where it belongs: not reflected, not on another connection, not under another key."""
    frame = memoryview(bytearray(100))
    size_bytes = giver_ends(CIPHER, KEY, CONNECTION)[0].seal_into(FrameKind.BODY, b"x", frame)

    def opens(opener: FrameOpener) -> bool:
        try:
            opener.open_into(bytes(frame[:4]), frame[4:size_bytes], memoryview(bytearray(1)))
        except BrokenFrame:
            return False
        return True

    assert opens(asker_ends(CIPHER, KEY, CONNECTION)[1])
    assert not opens(giver_ends(CIPHER, KEY, CONNECTION)[1]), "reflected"
    assert not opens(asker_ends(CIPHER, KEY, b"d" * 16)[1]), "another connection"
    assert not opens(asker_ends(CIPHER, b"l" * 32, CONNECTION)[1]), "another key"
    assert isinstance(giver_ends(CIPHER, KEY, CONNECTION)[0], FrameSealer)
