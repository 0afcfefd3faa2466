"""Whatever bytes a peer sends: negotiation and multiplexer end in one of the two errors, and nothing else happens."""

import contextlib
import struct

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from node.ports import TransportError
from node.transport import multistream
from node.transport.yamux import YamuxConnection, YamuxLimits
from node.transport.yamux_stream import YamuxStream
from protocols.errors import RemoteProtocolError
from tests.support_libp2p import PipeEnd
from tests.support_transport import identity_of

ANN, BOB = identity_of("ann").peer_id, identity_of("bob").peer_id

FRAMES = st.builds(
    lambda kind, flags, stream_id, value, body: struct.pack(">BBHII", 0, kind, flags, stream_id, value) + body,
    st.integers(0, 4),
    st.integers(0, 15),
    st.integers(0, 9),
    st.one_of(st.integers(0, 40), st.integers(0, 2**32 - 1)),
    st.binary(max_size=40),
)


@given(st.binary(max_size=200), st.booleans())
def test_a_negotiation_survives_any_bytes(said: bytes, greets: bool) -> None:
    async def story() -> None:
        near, far = trio.testing.memory_stream_pair()
        await far.send_all((b"\x13/multistream/1.0.0\n" if greets else b"") + said)
        await far.send_eof()
        channel = PipeEnd(near, BOB, dialed_here=False)
        with contextlib.suppress(RemoteProtocolError, TransportError):
            assert await multistream.answer(channel, lambda protocol: protocol == "/herd/echo/1") == "/herd/echo/1"

    trio.run(story, clock=MockClock(autojump_threshold=0))


@given(st.binary(max_size=200))
def test_a_proposal_survives_any_answer(said: bytes) -> None:
    async def story() -> None:
        near, far = trio.testing.memory_stream_pair()
        await far.send_all(said)
        await far.send_eof()
        with pytest.raises((RemoteProtocolError, TransportError)):
            await multistream.propose(PipeEnd(near, BOB, dialed_here=True), "/herd/never/1")

    trio.run(story, clock=MockClock(autojump_threshold=0))


@given(st.lists(st.one_of(FRAMES, st.binary(max_size=30)), max_size=30))
def test_a_connection_survives_any_frames(frames: list[bytes]) -> None:
    """It closes when the peer has gone, every stream of it ends, at most one violation is told, and it never raises."""

    async def story() -> None:
        near, far = trio.testing.memory_stream_pair()
        opened: list[YamuxStream] = []
        violations: list[str] = []
        connection = YamuxConnection(
            PipeEnd(near, BOB, dialed_here=False),
            YamuxLimits(streams_max=3),
            opened.append,
            lambda _peer, detail: violations.append(detail),
        )
        opened.append(connection.open_stream())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.run)
            await far.send_all(b"".join(frames))
            await far.send_eof()
        assert connection.is_closed
        assert connection.stream_count() == 0
        assert len(violations) <= 1
        for stream in opened:
            await read_until_over(stream)

    trio.run(story, clock=MockClock(autojump_threshold=0))


async def read_until_over(stream: YamuxStream) -> None:
    try:
        while await stream.read():
            pass
    except TransportError:
        pass
