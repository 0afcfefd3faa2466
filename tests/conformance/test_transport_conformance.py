"""One contract: libp2p on loopback sockets, and the simulated network, unlimited and limited, on a virtual clock."""

from functools import partial

import pytest
import trio
from trio.testing import MockClock

from node.ports import AdmissionError, Stream, TransportError
from protocols.errors import LocalProtocolError, RemoteProtocolError
from protocols.framing import FRAME_SIZE_BYTES_MAX
from tests.support_transport import (
    ECHO,
    MESH_KEY,
    Node,
    OpenNode,
    call,
    echo,
    identity_of,
    loopback_config,
    loopback_nodes,
    pair,
    simulated_nodes,
    until,
)

MIB = 1024 * 1024
ASK = "/herd/ask/1"


@pytest.fixture(params=["simulated", "limited", "libp2p"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def clock(kind: str) -> MockClock | None:
    """Virtual time for the simulation; real sockets need the real clock."""
    return MockClock(autojump_threshold=0) if kind != "libp2p" else None


@pytest.fixture
def open_node(kind: str, clock: MockClock | None) -> OpenNode:
    if kind == "libp2p":
        return loopback_nodes()
    return simulated_nodes(bytes_per_s=None if kind == "simulated" else 200 * MIB)


async def test_frames_of_every_size_come_back_whole_and_in_order(open_node: OpenNode) -> None:
    sizes = [0, 1, 65_502, 65_503, 65_504, 65_507, 65_508, 256 * 1024, 0, MIB + 1, 16 * MIB, 3]
    async with pair(open_node) as (ann, bob):
        stream = await ann.transport.open(bob.peer, ECHO, timeout_s=5)
        assert stream.peer == bob.peer
        for number, size_bytes in enumerate(sizes):
            payload = bytes([number]) * size_bytes
            await stream.send(memoryview(payload) if number % 2 else payload)
            assert await stream.receive(FRAME_SIZE_BYTES_MAX) == payload
        await stream.finish()
        assert await stream.receive(1) is None
        assert await stream.receive(1) is None


async def test_many_frames_keep_their_order_while_nobody_waits_for_answers(open_node: OpenNode) -> None:
    async with pair(open_node) as (ann, bob):
        stream = await ann.transport.open(bob.peer, ECHO, timeout_s=5)

        async def ask() -> None:
            for number in range(2000):
                await stream.send(number.to_bytes(4, "big"))
            await stream.finish()

        heard = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            while (frame := await stream.receive(4)) is not None:
                heard.append(int.from_bytes(frame, "big"))
        assert heard == list(range(2000))


async def test_a_finished_side_still_hears_the_other(open_node: OpenNode) -> None:
    async def sum_up(stream: Stream) -> None:
        total = 0
        while (frame := await stream.receive(8)) is not None:
            total += int.from_bytes(frame, "big")
        await stream.send(total.to_bytes(8, "big"))
        await stream.send(b"done")

    async with pair(open_node) as (ann, bob):
        bob.transport.serve(ASK, sum_up)
        stream = await ann.transport.open(bob.peer, ASK, timeout_s=5)
        for number in range(10):
            await stream.send(bytes([number]))
        await stream.finish()
        assert await stream.receive(8) == (45).to_bytes(8, "big")
        assert await stream.receive(8) == b"done"
        assert await stream.receive(8) is None
        with pytest.raises(TransportError):
            await stream.send(b"too late")


async def test_what_was_finished_arrives_even_when_the_sender_aborts_at_once(open_node: OpenNode) -> None:
    heard: list[bytes | None] = []

    async def listen(stream: Stream) -> None:
        await trio.sleep(0.05)  # real time: only the simulated twin has a virtual clock
        while (frame := await stream.receive(MIB)) is not None:
            heard.append(frame)
        heard.append(None)

    async with pair(open_node) as (ann, bob):
        bob.transport.serve(ASK, listen)
        stream = await ann.transport.open(bob.peer, ASK, timeout_s=5)
        await stream.send(b"first")
        await stream.send(b"last" * 1000)
        await stream.finish()
        await stream.abort()
        await until(lambda: len(heard) == 3)
        assert heard == [b"first", b"last" * 1000, None]


async def test_an_aborted_stream_fails_at_both_ends_and_may_be_aborted_again(open_node: OpenNode) -> None:
    errors: list[Exception] = []

    async def listen(stream: Stream) -> None:
        try:
            await stream.receive(10)
        except TransportError as error:
            errors.append(error)

    async with pair(open_node) as (ann, bob):
        bob.transport.serve(ASK, listen)
        stream = await ann.transport.open(bob.peer, ASK, timeout_s=5)
        await stream.abort()
        await stream.abort()
        with pytest.raises(TransportError):
            await stream.receive(10)
        with pytest.raises(TransportError):
            await stream.send(b"x")
        await until(lambda: bool(errors))
        assert await call(ann, bob.peer, b"the connection lives") == b"the connection lives"


async def test_who_cannot_be_reached_is_named(open_node: OpenNode) -> None:
    stranger = identity_of("stranger").peer_id
    async with pair(open_node) as (ann, bob):
        with pytest.raises(TransportError, match=f"no address of peer {stranger}"):
            await ann.transport.open(stranger, ECHO, timeout_s=5)
        with pytest.raises(TransportError, match="this node itself"):
            await ann.transport.open(ann.peer, ECHO, timeout_s=5)
        with pytest.raises(TransportError, match=f"peer {bob.peer} does not serve /herd/other/1"):
            await ann.transport.open(bob.peer, "/herd/other/1", timeout_s=5)
        # Somebody listens there, but not the one we look for.
        ann.transport.learn(stranger, bob.transport.addresses())
        with pytest.raises(TransportError, match=stranger):
            await ann.transport.open(stranger, ECHO, timeout_s=5)
        assert await call(ann, bob.peer, b"still here") == b"still here"


async def test_learning_replaces_what_was_known(open_node: OpenNode) -> None:
    async with pair(open_node) as (ann, bob):
        ann.transport.learn(bob.peer, ["/ip4/127.0.0.1/tcp/1"])
        with pytest.raises(TransportError):
            await ann.transport.open(bob.peer, ECHO, timeout_s=2)
        ann.transport.learn(bob.peer, ["/ip4/127.0.0.1/tcp/1", "nonsense", *bob.transport.addresses()])
        assert await call(ann, bob.peer, b"found") == b"found"


async def test_addresses_can_be_dialed(open_node: OpenNode) -> None:
    async with pair(open_node) as (ann, _bob):
        for address in ann.transport.addresses():
            kind, host, tcp, port = address.strip("/").split("/")
            assert (kind, tcp) == ("ip4", "tcp")
            assert host != "0.0.0.0"
            assert int(port) > 0


@pytest.mark.parametrize("dialer", ["member", "stranger"])
async def test_another_mesh_key_opens_no_door(open_node: OpenNode, dialer: str) -> None:
    served: list[Stream] = []

    async def serve(stream: Stream) -> None:
        served.append(stream)

    async with open_node("ann", MESH_KEY) as ann, open_node("eve", b"e" * 32) as eve:
        near, far = (ann, eve) if dialer == "member" else (eve, ann)
        far.transport.serve(ASK, serve)
        near.transport.learn(far.peer, far.transport.addresses())
        for _ in range(3):
            with pytest.raises(AdmissionError, match=f"{far.peer} does not admit this node: the mesh keys differ"):
                await near.transport.open(far.peer, ASK, timeout_s=5)
        await until(lambda: far.blame.view(near.peer).counts.get("admission") == 3)
        assert not served


def blame_count_is(judge: Node, peer: Node, count: int) -> bool:
    return judge.blame.view(peer.peer).counts.get("protocol") == count


async def test_a_failing_handler_ends_its_stream_and_nothing_else(open_node: OpenNode) -> None:
    failures: list[Exception] = [
        RemoteProtocolError("nonsense from ann"),
        ValueError("a bug of ours"),
        ExceptionGroup("a nursery", [RemoteProtocolError("nonsense in a nursery"), KeyError("x")]),
        TransportError("the peer went away"),
    ]

    async def fail(stream: Stream) -> None:
        await stream.receive(10)
        raise failures.pop(0)

    async with pair(open_node) as (ann, bob):
        bob.transport.serve(ASK, fail)
        for blamed in (1, 1, 2, 2):
            stream = await ann.transport.open(bob.peer, ASK, timeout_s=5)
            await stream.send(b"hello")
            with pytest.raises(TransportError):
                await stream.receive(10)
            await until(partial(blame_count_is, bob, ann, blamed))
        assert await call(ann, bob.peer, b"alive") == b"alive"
        assert ann.blame.statistics() == {}


async def test_a_handler_that_returns_has_said_all(open_node: OpenNode) -> None:
    async def greet(stream: Stream) -> None:
        await stream.send(b"hello")

    async with pair(open_node) as (ann, bob):
        bob.transport.serve(ASK, greet)
        stream = await ann.transport.open(bob.peer, ASK, timeout_s=5)
        await stream.send(b"a question nobody reads")
        assert await stream.receive(10) == b"hello"
        assert await stream.receive(10) is None
        await stream.abort()


async def test_hundred_streams_at_once_do_not_mix(open_node: OpenNode) -> None:
    async with pair(open_node) as (ann, bob):
        ann.transport.serve(ECHO, echo)
        answers: dict[int, bytes | None] = {}

        async def ask(number: int) -> None:
            near, far = (ann, bob) if number % 2 else (bob, ann)
            answers[number] = await call(near, far.peer, bytes([number]) * (number * 1000))

        async with trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(ask, number)
        assert answers == {number: bytes([number]) * (number * 1000) for number in range(100)}


async def test_a_cancelled_receive_loses_nothing(open_node: OpenNode) -> None:
    async def dribble(stream: Stream) -> None:
        for number in range(40):
            await stream.send(bytes([number]) * 300_000)
            await trio.sleep(0.002)  # real time: only the simulated twin has a virtual clock

    async with pair(open_node) as (ann, bob):
        bob.transport.serve(ASK, dribble)
        stream = await ann.transport.open(bob.peer, ASK, timeout_s=5)
        heard: list[bytes] = []
        cancelled = 0
        while len(heard) < 40:
            with trio.move_on_after(0.001) as scope:
                frame = await stream.receive(MIB)
                assert frame is not None
                heard.append(frame)
            cancelled += scope.cancelled_caught
        assert heard == [bytes([number]) * 300_000 for number in range(40)]
        assert cancelled > 5
        assert await stream.receive(MIB) is None


@pytest.mark.slow
async def test_a_cancelled_send_ends_its_stream_but_not_the_connection(open_node: OpenNode) -> None:
    ended: list[Exception] = []

    async def refuse_to_read(stream: Stream) -> None:
        await trio.sleep(0.3)  # real time: only the simulated twin has a virtual clock
        try:
            while await stream.receive(FRAME_SIZE_BYTES_MAX) is not None:
                pass
        except TransportError as error:
            ended.append(error)

    async with pair(open_node) as (ann, bob):
        bob.transport.serve(ASK, refuse_to_read)
        steady = await ann.transport.open(bob.peer, ECHO, timeout_s=5)
        stream = await ann.transport.open(bob.peer, ASK, timeout_s=5)
        with trio.move_on_after(0.1) as scope:
            for _ in range(100):
                await stream.send(bytes(MIB))
        assert scope.cancelled_caught
        with pytest.raises(TransportError):
            await stream.send(b"more")
        await until(lambda: bool(ended))
        await steady.send(b"steady")
        assert await steady.receive(10) == b"steady"


@pytest.mark.slow
async def test_a_sender_waits_for_a_slow_reader(open_node: OpenNode) -> None:
    async def read_slowly(stream: Stream) -> None:
        count = 0
        while (frame := await stream.receive(MIB)) is not None:
            assert len(frame) == MIB
            count += 1
            await trio.sleep(0.01)  # real time: only the simulated twin has a virtual clock
        await stream.send(bytes([count]))

    async with pair(open_node) as (ann, bob):
        bob.transport.serve(ASK, read_slowly)
        stream = await ann.transport.open(bob.peer, ASK, timeout_s=5)
        began_at_s = trio.current_time()
        for _ in range(50):
            await stream.send(bytes(MIB))
        # At most a window and what is under way are ahead of the reader.
        assert trio.current_time() - began_at_s > 0.3
        await stream.finish()
        assert await stream.receive(1) == bytes([50])


async def test_a_dropped_peer_is_cut_off_and_can_be_called_again(open_node: OpenNode) -> None:
    async with pair(open_node) as (ann, bob):
        stream = await ann.transport.open(bob.peer, ECHO, timeout_s=5)
        await ann.transport.drop(bob.peer)
        await ann.transport.drop(bob.peer)
        with pytest.raises(TransportError):
            await stream.receive(10)
        assert await call(ann, bob.peer, b"again") == b"again"


async def test_a_peer_that_goes_breaks_its_streams(open_node: OpenNode) -> None:
    async with open_node("ann", MESH_KEY) as ann:
        async with open_node("bob", MESH_KEY) as bob:
            bob.transport.serve(ECHO, echo)
            ann.transport.learn(bob.peer, bob.transport.addresses())
            stream = await ann.transport.open(bob.peer, ECHO, timeout_s=5)
        with pytest.raises(TransportError):
            await stream.receive(10)
        with pytest.raises(TransportError, match=bob.peer):
            await ann.transport.open(bob.peer, ECHO, timeout_s=5)


async def test_a_frame_over_the_readers_limit_is_refused_and_blamed(open_node: OpenNode) -> None:
    async def read_little(stream: Stream) -> None:
        await stream.receive(100)

    async with pair(open_node) as (ann, bob):
        bob.transport.serve(ASK, read_little)
        stream = await ann.transport.open(bob.peer, ASK, timeout_s=5)
        await stream.send(bytes(101))
        with pytest.raises(TransportError):
            await stream.receive(10)
        await until(lambda: bob.blame.view(ann.peer).counts == {"protocol": 1})
        stream = await ann.transport.open(bob.peer, ECHO, timeout_s=5)
        with pytest.raises(LocalProtocolError):
            await stream.send(bytes(FRAME_SIZE_BYTES_MAX + 1))
        # Nothing of it went, so the stream is as it was.
        await stream.send(b"a frame of a fair size")
        assert await stream.receive(100) == b"a frame of a fair size"


async def test_a_protocol_id_begins_with_a_slash(open_node: OpenNode) -> None:
    async with pair(open_node) as (ann, _):
        with pytest.raises(LocalProtocolError, match="begins with /"):
            ann.transport.serve("herd/echo/1", echo)


async def test_both_ends_dial_at_once_and_both_are_served(open_node: OpenNode) -> None:
    async with pair(open_node) as (ann, bob):
        ann.transport.serve(ECHO, echo)
        answers: list[bytes | None] = []

        async def ask(near: str) -> None:
            dialer, listener = (ann, bob) if near == "ann" else (bob, ann)
            answers.append(await call(dialer, listener.peer, near.encode()))

        for _ in range(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask, "ann")
                nursery.start_soon(ask, "bob")
            await ann.transport.drop(bob.peer)
        assert sorted(answers, key=str) == [b"ann"] * 5 + [b"bob"] * 5


@pytest.mark.slow
async def test_a_reader_that_stops_for_good_breaks_the_stream_at_both_ends(kind: str, clock: MockClock | None) -> None:
    told: list[Exception] = []

    async def never_read(stream: Stream) -> None:
        # Within the patience of the sender nothing happens; after it the stream is over, not the connection.
        await trio.sleep(90 if kind != "libp2p" else 1.5)  # real time: only the simulated twin has a virtual clock
        try:
            while await stream.receive(FRAME_SIZE_BYTES_MAX) is not None:
                pass
        except TransportError as error:
            told.append(error)

    impatient = loopback_config(stall_timeout_s=1)
    async with pair(simulated_nodes() if kind != "libp2p" else loopback_nodes(impatient)) as (ann, bob):
        bob.transport.serve(ASK, never_read)
        stream = await ann.transport.open(bob.peer, ASK, timeout_s=5)

        async def send_without_end() -> None:
            while True:
                await stream.send(bytes(MIB))

        with pytest.raises(TransportError, match="nothing"):
            await send_without_end()
        await until(lambda: bool(told), timeout_s=100)
        assert await call(ann, bob.peer, b"the connection lives") == b"the connection lives"


@pytest.mark.slow
async def test_an_open_ends_at_its_deadline(kind: str, clock: MockClock | None, open_node: OpenNode) -> None:
    async with open_node("ann", MESH_KEY) as ann, trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1") if kind == "libp2p" else []
        silent = identity_of("silent").peer_id
        port = listeners[0].socket.getsockname()[1] if listeners else 4701
        for listener in listeners:
            nursery.start_soon(trio.serve_listeners, _hold, [listener])
        ann.transport.learn(silent, [f"/ip4/127.0.0.1/tcp/{port}"])
        began_at_s = trio.current_time()
        with pytest.raises(TransportError, match=silent):
            await ann.transport.open(silent, ECHO, timeout_s=0.3)
        assert trio.current_time() - began_at_s < 3
        nursery.cancel_scope.cancel()


async def _hold(stream: trio.SocketStream) -> None:
    await trio.sleep_forever()
