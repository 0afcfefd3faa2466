"""What somebody on the way may do to a bulk connection: it ends that connection, and nothing and nobody else."""

from collections.abc import Callable

import attrs
import pytest
import trio

from node.ports import ChunkLink, TransportError
from tests.support_bulk import (
    WIRE_HOST,
    Alteration,
    BulkPair,
    CutHere,
    TamperingWire,
    bulk_pair,
    chunks_of,
    give,
    hangs_up,
    tampering,
    told,
    untouched,
)
from tests.support_transport import until

SIZES_BYTES = [300_000] * 12
"""Each is a message and one frame of body, so frame 0 is the greeting and chunk n begins with frame 2n + 1."""
A_MESSAGE, A_BODY = 5, 6


def flip(number: int, position: int, bit: int = 1) -> Alteration:
    """Flip one bit of one frame."""

    def altered(seen: int, frame: bytes) -> bytes:
        if seen != number:
            return frame
        wrong = bytearray(frame)
        wrong[position] ^= bit
        return bytes(wrong)

    return altered


def repeat(number: int) -> Alteration:
    """Send one frame twice."""
    return lambda seen, frame: frame + frame if seen == number else frame


def leave_out(number: int) -> Alteration:
    """Let one frame vanish."""
    return lambda seen, frame: b"" if seen == number else frame


def swap(number: int) -> Alteration:
    """Send a frame after the one that follows it."""
    held = bytearray()

    def altered(seen: int, frame: bytes) -> bytes:
        if seen == number:
            held[:] = frame
            return b""
        return frame + bytes(held) if seen == number + 1 else frame

    return altered


def replay(number: int, earlier: int) -> Alteration:
    """Send an earlier frame in the place of a later one of the same kind."""
    kept = bytearray()

    def altered(seen: int, frame: bytes) -> bytes:
        if seen == earlier:
            kept[:] = frame
        return bytes(kept) if seen == number else frame

    return altered


def cut(number: int, kept_bytes: int) -> Alteration:
    """End the connection in a frame, or before it where nothing of it is kept."""

    def altered(seen: int, frame: bytes) -> bytes:
        if seen == number:
            raise CutHere(frame[:kept_bytes])
        return frame

    return altered


def insert(number: int, junk: bytes) -> Alteration:
    """Send bytes of one's own before a frame."""
    return lambda seen, frame: junk + frame if seen == number else frame


TAMPERED: dict[str, Callable[[], Alteration]] = {
    "a frame repeated": lambda: repeat(A_BODY),
    "a chunk's header repeated": lambda: repeat(A_MESSAGE),
    "an earlier frame in the place of a later": lambda: replay(A_BODY + 4, A_BODY),
    "a frame left out": lambda: leave_out(A_BODY),
    "two frames swapped": lambda: swap(A_BODY),
    "a bit of the kind flipped to another kind": lambda: flip(A_BODY, 0, bit=2 ^ 3),
    "a bit of the kind flipped to no kind": lambda: flip(A_BODY, 0, bit=0x80),
    "a bit of the size flipped": lambda: flip(A_BODY, 3),
    "a bit of the size flipped to over the limit": lambda: flip(A_BODY, 1, bit=0x80),
    "a bit of the size of a message flipped": lambda: flip(A_MESSAGE, 2),
    "a bit of the ciphertext flipped": lambda: flip(A_BODY, 1000),
    "a bit of the tag flipped": lambda: flip(A_BODY, -1),
    "a made-up end": lambda: insert(A_MESSAGE, b"\x03\x00\x00\x00" + bytes(16)),
}
CUT: dict[str, Callable[[], Alteration]] = {
    "cut in a header": lambda: cut(A_BODY, 2),
    "cut in a ciphertext": lambda: cut(A_BODY, 5000),
    "cut in a tag": lambda: cut(A_MESSAGE, -1),
    "cut between a header and its body": lambda: cut(A_BODY, 0),
    "cut between two chunks, without an end": lambda: cut(A_MESSAGE, 0),
}


@attrs.define
class Ending:
    """How a link ended, and which chunks came before."""

    came: list[int] = attrs.field(factory=list)
    failure: Exception | None = None

    async def follow(self, link: ChunkLink) -> None:
        """Receive until the end; every chunk that comes is right."""
        try:
            while (chunk := await link.receive()) is not None:
                index, data = told(chunk)
                assert data == bytes([index % 251 + 1]) * len(data)
                self.came.append(index)
        except TransportError as error:
            self.failure = error


async def undisturbed(world: BulkPair, spoil: Callable[[Ending], object]) -> Ending:
    """Run one transfer over the wire and one beside it; the other is whole, and the carriers work on afterwards."""
    ending, beside = Ending(), Ending()
    async with trio.open_nursery() as nursery:
        other_asker, other_giver = await world.link(b"o" * 16)
        nursery.start_soon(beside.follow, other_asker)
        nursery.start_soon(give, other_giver, chunks_of(SIZES_BYTES))
        asker, giver = await world.link(route=WIRE_HOST)
        nursery.start_soon(give, giver, chunks_of(SIZES_BYTES))
        await ending.follow(asker)
        await until(lambda: beside.came == list(range(len(SIZES_BYTES))))
        await until(lambda: giver.lanes == 0)
        assert (asker.lanes, other_asker.lanes, other_giver.lanes) == (0, 1, 1)
        spoil(ending)

        after, its_giver = await world.link(b"a" * 16)
        await its_giver.send(chunks_of([100])[0], lambda: True)
        assert told(await after.receive())[0] == 0
        assert world.blames() == [{}, {}], "what an attacker on the way can do is nobody's offence"
        nursery.cancel_scope.cancel()
    return ending


@pytest.mark.parametrize("fault", TAMPERED)
async def test_what_was_tampered_with_ends_its_connection_and_nothing_else(fault: str) -> None:
    async with bulk_pair() as world, tampering(world, TamperingWire(from_giver=TAMPERED[fault]())):

        def ended_by_the_fault(ending: Ending) -> None:
            assert isinstance(ending.failure, TransportError)
            assert "tampered" in str(ending.failure)
            assert ending.came in ([0, 1], [0, 1, 2], [0, 1, 2, 3]), "what came before it was whole, nothing after it"
            assert world.asker.counters.broken_frames == 1

        await undisturbed(world, ended_by_the_fault)


@pytest.mark.parametrize("fault", CUT)
async def test_what_was_cut_off_is_no_end_in_order(fault: str) -> None:
    async with bulk_pair() as world, tampering(world, TamperingWire(from_giver=CUT[fault]())):

        def cut_off(ending: Ending) -> None:
            assert isinstance(ending.failure, TransportError)
            assert ending.came == [0, 1]
            assert world.asker.counters.broken_frames == 0

        await undisturbed(world, cut_off)


async def test_an_untouched_wire_carries_all(capsys: pytest.CaptureFixture[str]) -> None:
    """The harness itself: without an alteration nothing ends."""
    async with bulk_pair() as world, tampering(world, TamperingWire()), trio.open_nursery() as nursery:
        asker, giver = await world.link(route=WIRE_HOST)
        nursery.start_soon(give, giver, chunks_of(SIZES_BYTES))
        assert [told(await asker.receive())[0] for _ in SIZES_BYTES] == list(range(len(SIZES_BYTES)))
        assert (asker.lanes, world.asker.counters.broken_frames) == (1, 0)


async def test_bytes_made_up_in_the_askers_name_end_the_givers_lane() -> None:
    wire = TamperingWire()
    async with bulk_pair() as world, tampering(world, wire), trio.open_nursery() as nursery:
        asker, giver = await world.link(route=WIRE_HOST)
        beside, its_giver = await world.link(b"o" * 16)
        await wire.say_to_giver(b"\x01\x00\x00\x00" + bytes(16))
        with pytest.raises(TransportError):
            await asker.receive()
        await until(lambda: giver.lanes == 0)
        assert world.giver.counters.broken_frames == 1
        nursery.start_soon(give, its_giver, chunks_of(SIZES_BYTES))
        assert [told(await beside.receive())[0] for _ in SIZES_BYTES] == list(range(len(SIZES_BYTES)))
        assert world.blames() == [{}, {}]


@pytest.mark.parametrize(
    ("from_giver", "from_asker"),
    [
        (flip(0, 5), untouched),
        (flip(0, 0, bit=3), untouched),
        (cut(0, 0), untouched),
        (untouched, flip(-1, 0)),
        (untouched, flip(-1, 20)),
        (untouched, flip(0, 7)),
        (untouched, flip(0, 3)),
        (untouched, cut(0, 3)),
    ],
)
async def test_an_opening_that_was_tampered_with_is_no_connection_and_nobodys_offence(
    from_giver: Alteration, from_asker: Alteration
) -> None:
    async with bulk_pair(connect_timeout_s=0.5, opening_timeout_s=0.3) as world:
        async with tampering(world, TamperingWire(from_giver, from_asker)):
            with pytest.raises(TransportError):
                await world.link(route=WIRE_HOST)
            assert world.asker.counters.connections_failed == 1
            assert world.asker.statistics().links == world.asker.statistics().lanes == 0
        await until(lambda: world.giver.statistics().lanes == 0)
        asker, giver = await world.link(b"n" * 16, route="127.0.0.1")
        await giver.send(chunks_of([100])[0], lambda: True)
        assert told(await asker.receive())[0] == 0
        assert world.blames() == [{}, {}]


async def test_a_recorded_opening_opens_nothing() -> None:
    wire = TamperingWire()
    async with bulk_pair() as world, tampering(world, wire):
        asker, giver = await world.link(route=WIRE_HOST)
        recorded = bytes(wire.seen_from_asker)
        assert len(recorded) == 24 + 20
        async with await world.dial() as stream:
            await stream.send_all(recorded)
            assert await hangs_up(stream)
        assert world.giver.counters.connections_refused == 1
        await giver.send(chunks_of([100])[0], lambda: True)
        assert told(await asker.receive())[0] == 0, "the connection it was recorded from stands"
