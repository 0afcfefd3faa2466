"""The multiplexer against peers that break its rules, take nothing, send nothing or go in the middle; virtual time."""

import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
import pytest
import trio
import trio.testing
from trio.testing import MockClock

from node.ports import TransportError
from node.transport.yamux import YamuxConnection, YamuxLimits
from node.transport.yamux_stream import WINDOW_SIZE_BYTES, YamuxStream
from tests.support_libp2p import PipeEnd
from tests.support_transport import identity_of

DATA, WINDOW_UPDATE, PING, GO_AWAY = range(4)
SYN, ACK, FIN, RST = 1, 2, 4, 8
ANN, BOB = identity_of("ann").peer_id, identity_of("bob").peer_id

STORY_S = 10_000.0
"""No story takes longer on its virtual clock: what waits for ever is a failure at once, not a hang."""


def frame(kind: int, flags: int, stream_id: int, value: int, body: bytes = b"") -> bytes:
    return struct.pack(">BBHII", 0, kind, flags, stream_id, value) + body


def data(stream_id: int, body: bytes, flags: int = 0) -> bytes:
    return frame(DATA, flags, stream_id, len(body), body)


@attrs.define
class World:
    """Our connection, and the raw far end of it."""

    connection: YamuxConnection
    far: PipeEnd
    opened: list[YamuxStream]
    violations: list[str]

    async def heard(self) -> tuple[int, int, int, int, bytes]:
        """The next frame that we sent."""
        header = await self.far.read_exactly(12)
        assert header is not None
        _, kind, flags, stream_id, value = struct.unpack(">BBHII", header)
        body = await self.far.read_exactly(value) if kind == DATA and value else b""
        return kind, flags, stream_id, value, body or b""


@asynccontextmanager
async def listening(limits: YamuxLimits | None = None) -> AsyncIterator[World]:
    """Ann listens, Bob dialed (odd stream ids) and speaks raw frames."""
    near_stream, far_stream = trio.testing.memory_stream_pair()
    opened: list[YamuxStream] = []
    violations: list[str] = []
    connection = YamuxConnection(
        PipeEnd(near_stream, BOB, dialed_here=False),
        limits or YamuxLimits(),
        opened.append,
        lambda peer, detail: violations.append(detail),
    )
    with trio.fail_after(STORY_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.run)
            yield World(connection, PipeEnd(far_stream, ANN, dialed_here=True), opened, violations)
            connection.fail("the test is over")


@asynccontextmanager
async def both_ends(limits: YamuxLimits | None = None) -> AsyncIterator[tuple[YamuxConnection, list[YamuxStream]]]:
    """Our multiplexer at both ends: the dialer's connection, and the streams the listener was given."""
    near_stream, far_stream = trio.testing.memory_stream_pair()
    opened: list[YamuxStream] = []
    used = limits or YamuxLimits()
    near = YamuxConnection(PipeEnd(near_stream, BOB, dialed_here=True), used, opened.append, _no_violation)
    far = YamuxConnection(PipeEnd(far_stream, ANN, dialed_here=False), used, opened.append, _no_violation)
    with trio.fail_after(STORY_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(near.run)
            nursery.start_soon(far.run)
            yield near, opened
            near.fail("the test is over")
            far.fail("the test is over")


def _no_violation(peer: str, detail: str) -> None:
    raise AssertionError(f"{peer} is said to have broken a rule: {detail}")


VIOLATIONS: dict[str, list[bytes]] = {
    "another version": [b"\x01" + bytes(11)],
    "an unknown type": [frame(4, 0, 0, 0)],
    "a stream id of ours": [frame(WINDOW_UPDATE, SYN, 2, 0)],
    "a stream opened twice": [frame(WINDOW_UPDATE, SYN, 1, 0), frame(WINDOW_UPDATE, SYN, 1, 0)],
    "a stream id that goes back": [frame(WINDOW_UPDATE, SYN, 5, 0), frame(WINDOW_UPDATE, SYN, 3, 0)],
    "stream zero": [frame(WINDOW_UPDATE, SYN, 0, 0)],
    "more than the window in one frame": [frame(DATA, SYN, 1, WINDOW_SIZE_BYTES + 1)],
    "more than the window in many frames": [data(1, bytes(60_000), SYN), *[data(1, bytes(60_000))] * 4],
    "data after the end": [data(1, b"x", SYN | FIN), frame(WINDOW_UPDATE, SYN, 3, 0), data(1, b"y")],
    "a huge frame for no stream": [frame(DATA, 0, 7, 1 << 31)],
    "a window over 4 GiB": [frame(WINDOW_UPDATE, SYN, 1, 0), *[frame(WINDOW_UPDATE, 0, 1, 0xFFFFFFFF)] * 2],
    "a flood of pings": [frame(PING, SYN, 0, 1)] * 65,
}


@pytest.mark.parametrize("name", VIOLATIONS)
async def test_a_broken_rule_ends_the_connection_and_is_blamed_once(name: str, autojump_clock: MockClock) -> None:
    async with listening() as world:
        standing = world.connection.open_stream()
        for each in VIOLATIONS[name]:
            await world.far.write(each)
        with trio.fail_after(1):
            with pytest.raises(TransportError):
                await standing.read()
            await trio.testing.wait_all_tasks_blocked()
        assert world.connection.is_closed
        assert len(world.violations) == 1


async def test_pings_are_answered_and_a_patient_pinger_is_fine(autojump_clock: MockClock) -> None:
    async with listening() as world:
        for number in range(200):
            await world.far.write(frame(PING, SYN, 0, number))
            assert await world.heard() == (PING, ACK, 0, number, b"")
            await trio.sleep(1)
        assert not world.violations


async def test_a_peer_that_asks_without_reading_the_answers_is_given_up(autojump_clock: MockClock) -> None:
    limits = YamuxLimits(control_frames_max=50)
    async with deaf_peer(limits) as world:
        for number in range(400):
            await world.far.write(frame(WINDOW_UPDATE, SYN, 2 * number + 1, 0))
        await trio.testing.wait_all_tasks_blocked()
        assert world.violations == ["it left 50 control frames unread"]


async def test_a_peer_that_takes_nothing_is_given_up_after_the_write_timeout(autojump_clock: MockClock) -> None:
    async with deaf_peer(YamuxLimits(write_timeout_s=7)) as world:
        stream = world.connection.open_stream()
        began_at_s = trio.current_time()
        with pytest.raises(TransportError, match="took nothing for 7 s"):
            await write_without_end(stream)
        assert trio.current_time() - began_at_s == pytest.approx(7)
        assert not world.violations


async def test_a_silent_peer_is_asked_and_then_given_up(autojump_clock: MockClock) -> None:
    async with listening(YamuxLimits(keepalive_interval_s=30, keepalive_timeout_s=15)) as world:
        stream = world.connection.open_stream()
        await world.far.write(frame(PING, ACK, 0, 0))
        began_at_s = trio.current_time()
        with pytest.raises(TransportError, match="silent for 45 s"):
            await stream.read()
        assert trio.current_time() - began_at_s == pytest.approx(75)


async def test_a_peer_that_answers_pings_stays(autojump_clock: MockClock) -> None:
    async with both_ends() as (near, _):
        await trio.sleep(3600)
        assert not near.is_closed
        assert near.rtt_s == 0


async def test_a_reader_that_pauses_for_a_minute_loses_nothing(autojump_clock: MockClock) -> None:
    """The stock muxer resets the writer after 5 s."""
    async with both_ends(YamuxLimits(stall_timeout_s=90)) as (near, opened):
        stream = near.open_stream()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.write, bytes(1_000_000))
            await trio.sleep(60)
            received = 0
            while received < 1_000_000:
                received += len(await opened[0].read())
        assert received == 1_000_000


async def test_a_writer_gives_up_a_reader_that_pauses_for_ever_and_both_learn(autojump_clock: MockClock) -> None:
    async with both_ends(YamuxLimits(stall_timeout_s=90)) as (near, opened):
        stream, other = near.open_stream(), near.open_stream()
        began_at_s = trio.current_time()
        with pytest.raises(TransportError, match="read nothing of the stream for 90 s"):
            await write_without_end(stream)
        assert trio.current_time() - began_at_s == pytest.approx(90)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(TransportError, match="reset the stream"):
            await opened[0].read()
        await other.write(b"the connection lives")
        assert await opened[1].read() == b"the connection lives"


async def test_writes_cancelled_anywhere_never_tear_the_connection(autojump_clock: MockClock) -> None:
    async with both_ends() as (near, opened):
        steady = near.open_stream()
        await trio.testing.wait_all_tasks_blocked()
        for number in range(200):
            victim = near.open_stream()
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(victim.write, bytes(300_000))
                    nursery.start_soon(cancel_after_steps, scope, number % 40)
            await victim.reset()
            await steady.write(number.to_bytes(2, "big"))
            assert await opened[0].read(2) == number.to_bytes(2, "big")
        assert near.stream_count() == 1


async def test_streams_over_the_limit_are_reset_and_the_others_live(autojump_clock: MockClock) -> None:
    async with listening(YamuxLimits(streams_max=2)) as world:
        for stream_id in (1, 3, 5):
            await world.far.write(frame(WINDOW_UPDATE, SYN, stream_id, 0))
        answers = [(await world.heard())[:3] for _ in range(3)]
        assert answers == [(WINDOW_UPDATE, ACK, 1), (WINDOW_UPDATE, ACK, 3), (WINDOW_UPDATE, RST, 5)]
        await world.far.write(frame(WINDOW_UPDATE, RST, 1, 0) + frame(WINDOW_UPDATE, SYN, 7, 0))
        assert (await world.heard())[:3] == (WINDOW_UPDATE, ACK, 7)
        assert [stream.stream_id for stream in world.opened] == [1, 3, 7]
        # And we keep to the same number ourselves.
        world.connection.open_stream()
        world.connection.open_stream()
        with pytest.raises(TransportError, match="2 streams"):
            world.connection.open_stream()


async def test_what_a_finished_peer_sent_survives_its_leaving(autojump_clock: MockClock) -> None:
    async with listening() as world:
        await world.far.write(data(1, b"all of it", SYN) + frame(WINDOW_UPDATE, FIN, 1, 0))
        await world.far.write(data(3, b"half of i", SYN) + frame(GO_AWAY, 0, 0, 0))
        await trio.testing.wait_all_tasks_blocked()
        whole, half = world.opened
        assert await whole.read() == b"all of it"
        assert await whole.read() == b""
        with pytest.raises(TransportError, match="the peer closed it"):
            await half.read()
        with pytest.raises(TransportError, match="closed"):
            world.connection.open_stream()


async def test_windows_grow_under_load_within_the_budget_and_give_it_back(autojump_clock: MockClock) -> None:
    async with both_ends() as (near, opened):
        for _ in range(3):
            stream = near.open_stream()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(write_and_finish, stream, 20_000_000)
                await trio.testing.wait_all_tasks_blocked()
                received = 0
                while part := await opened[-1].read(100_000):
                    received += len(part)
            assert received == 20_000_000
            assert opened[-1].window_growth_bytes > 1_000_000
            opened[-1].finish()
            await trio.testing.wait_all_tasks_blocked()
        far = opened[-1].muxed_conn
        assert far.stream_count() == near.stream_count() == 0
        assert far._window_growth_bytes == 0


async def test_a_reader_may_take_any_sizes(autojump_clock: MockClock) -> None:
    async with both_ends() as (near, opened):
        stream = near.open_stream()
        sent = bytes(range(256)) * 2000
        async with trio.open_nursery() as nursery:
            nursery.start_soon(write_and_finish, stream, sent)
            await trio.testing.wait_all_tasks_blocked()
            heard = b""
            for size_bytes in [1, 2, 3, 65_507, 65_508, 10, 1_000_000] * 20:
                part = await opened[0].read(size_bytes)
                assert len(part) <= size_bytes
                heard += part
        assert heard == sent


@asynccontextmanager
async def deaf_peer(limits: YamuxLimits) -> AsyncIterator[World]:
    """Like `listening`, but what we send stays in a small pipe that nobody empties."""
    async with listening(limits) as world:
        near = world.connection._secured
        assert isinstance(near, PipeEnd)
        block_writes(near)
        yield world


def block_writes(end: PipeEnd) -> None:
    async def write(data: bytes) -> None:
        await trio.sleep_forever()

    end.write = write  # type: ignore[method-assign]


async def write_without_end(stream: YamuxStream) -> None:
    while True:
        await stream.write(bytes(100_000))


async def write_and_finish(stream: YamuxStream, what: bytes | int) -> None:
    await stream.write(bytes(what) if isinstance(what, int) else what)
    stream.finish()


async def cancel_after_steps(scope: trio.CancelScope, steps: int) -> None:
    for _ in range(steps):
        await trio.lowlevel.checkpoint()
    scope.cancel()


async def test_finishing_under_a_write_that_waits_ends_the_write_not_the_connection(autojump_clock: MockClock) -> None:
    """A frame behind the end of its stream would be our broken rule, and cost every stream of the connection."""
    async with both_ends() as (near, opened):
        stream, other = near.open_stream(), near.open_stream()
        await trio.testing.wait_all_tasks_blocked()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(expect_finished, stream)
            while not near._data:
                await trio.lowlevel.checkpoint()
            stream.finish()
        await other.write(b"the connection lives")
        assert await opened[1].read() == b"the connection lives"
        while await opened[0].read():
            pass


async def test_what_we_ask_ourselves_of_a_stalled_peer_is_not_its_fault(autojump_clock: MockClock) -> None:
    async with deaf_peer(YamuxLimits(control_frames_max=50)) as world:
        for _ in range(100):
            if not world.connection.is_closed:
                await world.connection.open_stream().reset()
        assert world.connection.closed_why == "the peer left 50 control frames unread"
        assert not world.violations


async def test_two_readers_of_one_stream_both_see_its_end(autojump_clock: MockClock) -> None:
    async with both_ends() as (near, opened):
        stream = near.open_stream()
        await trio.testing.wait_all_tasks_blocked()
        with trio.fail_after(1):
            async with trio.open_nursery() as nursery:
                for _ in range(2):
                    nursery.start_soon(expect_end, opened[0])
                await trio.testing.wait_all_tasks_blocked()
                stream.finish()


async def test_a_window_of_crumbs_costs_little_more_than_its_bytes(autojump_clock: MockClock) -> None:
    async with listening() as world:
        await world.far.write(data(1, b"ab", SYN) + data(1, b"cd") * 20_000)
        await trio.testing.wait_all_tasks_blocked()
        (stream,) = world.opened
        assert len(stream._chunks) < 20
        assert await stream.read(3) == b"abc"
        await world.far.write(data(1, b"ef"))
        heard = b""
        while len(heard) < 40_001:
            heard += await stream.read()
        assert heard == b"d" + b"cd" * 19_999 + b"ef"


async def expect_finished(stream: YamuxStream) -> None:
    with pytest.raises(TransportError, match="finished on this side"):
        await stream.write(bytes(200_000))


async def expect_end(stream: YamuxStream) -> None:
    assert await stream.read() == b""
