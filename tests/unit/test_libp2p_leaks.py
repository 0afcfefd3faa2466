"""A thousand calls leave nothing behind, whichever way they end; an idle node does next to nothing."""

import contextlib
import logging

import pytest
import trio
from libp2p.abc import INetStream
from trio.lowlevel import current_statistics

from node.errors import UsageError
from node.ports import Stream, TransportError
from protocols.errors import RemoteProtocolError
from tests.support_transport import (
    ECHO,
    MESH_KEY,
    Node,
    call,
    identity_of,
    libp2p,
    loopback_config,
    loopback_nodes,
    pair,
    until,
)

ODD = "/herd/odd/1"


async def serve_oddly(stream: Stream) -> None:
    """Every way a handler can end, chosen by the question."""
    question = await stream.receive(100)
    match question:
        case b"raise":
            raise ValueError("a bug")
        case b"blame":
            raise RemoteProtocolError("nonsense")
        case b"abort":
            await stream.abort()
        case b"answer and leave":
            await stream.send(b"answer")
        case _:
            await stream.finish()


async def ask_oddly(near: Node, far: Node, number: int) -> None:
    """Every way a caller can end."""
    questions = [b"raise", b"blame", b"abort", b"answer and leave", b"finish"]
    with trio.move_on_after(0.002 if number % 7 == 0 else 5):
        stream = await near.transport.open(far.peer, ODD, timeout_s=5)
        try:
            await stream.send(questions[number % len(questions)])
            if number % 3 == 0:
                await stream.finish()
            if number % 4:
                await stream.receive(100)
        except TransportError:
            pass
        finally:
            await stream.abort()


@pytest.mark.slow
async def test_thousand_calls_leave_no_stream_and_no_task(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    async with pair(loopback_nodes()) as (ann, bob):
        ann.transport.serve(ODD, serve_oddly)
        bob.transport.serve(ODD, serve_oddly)
        await call(ann, bob.peer, b"connect")
        tasks = current_statistics().tasks_living

        async def ask(near: Node, far: Node, first: int) -> None:
            for number in range(first, 1000, 10):
                await ask_oddly(near, far, number)

        # A call that waits for a stream that nobody ended would take its five seconds, a hundred times over.
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                for first in range(10):
                    near, far = (ann, bob) if first % 2 else (bob, ann)
                    nursery.start_soon(ask, near, far, first)
        await until(lambda: libp2p(ann).statistics().streams == libp2p(bob).statistics().streams == 0)
        await until(lambda: current_statistics().tasks_living <= tasks)
        assert libp2p(ann).statistics().connections == 1
        assert await call(ann, bob.peer, b"still well") == b"still well"


async def test_handlers_of_the_library_leave_no_stream_either(caplog: pytest.LogCaptureFixture) -> None:
    """Whether they close what they were given, forget it or raise; the peer keeps its own end open."""

    async def close(stream: INetStream) -> None:
        await stream.read(1)
        await stream.close()

    async def forget(stream: INetStream) -> None:
        await stream.read(1)

    async def fail(stream: INetStream) -> None:
        await stream.read(1)
        raise ValueError("a bug of the library")

    caplog.set_level(logging.INFO)
    async with pair(loopback_nodes()) as (ann, bob):
        for name, handler in (("close", close), ("forget", forget), ("fail", fail)):
            libp2p(bob).host.set_stream_handler(f"/library/{name}/1", handler)
            with trio.fail_after(15):
                stream = await ann.transport.open(bob.peer, f"/library/{name}/1", timeout_s=5)
                await stream.send(b"go")
                with contextlib.suppress(TransportError):
                    assert await stream.receive(10) is None
                await stream.finish()
                await until(lambda: libp2p(ann).statistics().streams == libp2p(bob).statistics().streams == 0)
        assert "a stream of" in caplog.text
        assert "ValueError: a bug of the library" in caplog.text
        assert await call(ann, bob.peer, b"still well") == b"still well"


async def test_a_caller_that_forgets_its_stream_costs_one_stream_until_the_other_side_ends_it() -> None:
    async with pair(loopback_nodes()) as (ann, bob):
        stream = await ann.transport.open(bob.peer, ECHO, timeout_s=5)
        await stream.finish()
        assert await stream.receive(10) is None
        await until(lambda: libp2p(ann).statistics().streams == libp2p(bob).statistics().streams == 0)


async def test_a_closed_node_leaves_no_task_and_no_port() -> None:
    tasks = current_statistics().tasks_living
    async with pair(loopback_nodes()) as (ann, bob):
        await call(ann, bob.peer, b"hello")
        (address,) = bob.transport.addresses()
    await until(lambda: current_statistics().tasks_living <= tasks)
    with pytest.raises(OSError, match="connect"):
        await trio.open_tcp_stream("127.0.0.1", int(address.rsplit("/", 1)[1]))


async def test_a_port_in_use_is_named_with_the_remedy() -> None:
    async with loopback_nodes()("ann", MESH_KEY) as ann:
        port = int(ann.transport.addresses()[0].rsplit("/", 1)[1])
        with pytest.raises(UsageError, match=f"cannot listen on 127.0.0.1 port {port}: .* choose another with --host"):
            async with loopback_nodes(loopback_config(port=port))("bob", MESH_KEY):
                pass


async def test_the_error_of_a_nodes_block_comes_out_as_it_is() -> None:
    with pytest.raises(KeyError, match="ours"):
        async with loopback_nodes()("ann", MESH_KEY):
            raise KeyError("ours")


class CountSteps(trio.abc.Instrument):
    """How often any task ran."""

    def __init__(self) -> None:
        self.steps = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.steps += 1


async def steps_in(seconds: float) -> int:
    """How often the tasks of this run loop ran in so many seconds."""
    counter = CountSteps()
    trio.lowlevel.add_instrument(counter)
    await trio.sleep(seconds)  # real time: sockets know no other
    trio.lowlevel.remove_instrument(counter)
    return counter.steps


@pytest.mark.slow
async def test_an_idle_node_with_ten_connections_sleeps() -> None:
    async with loopback_nodes()("hub", MESH_KEY) as hub, trio.open_nursery() as nursery:
        ready = 0

        async def join(name: str) -> None:
            nonlocal ready
            async with loopback_nodes()(name, MESH_KEY) as node:
                node.transport.learn(hub.peer, hub.transport.addresses())
                with pytest.raises(TransportError, match="does not serve"):
                    await node.transport.open(hub.peer, ECHO, timeout_s=5)
                ready += 1
                await trio.sleep_forever()

        for number in range(10):
            nursery.start_soon(join, f"spoke {number}")
        await until(lambda: ready == 10)
        # On a busy machine the last handshakes may still echo in the first seconds; a poller never ends.
        steps = [await steps_in(2)]
        while steps[-1] >= 20 and len(steps) < 4:
            steps.append(await steps_in(2))
        # The test itself wakes once; a poller of 10 ms on one connection alone would be 200.
        assert steps[-1] < 20
        assert libp2p(hub).statistics().connections == 10
        nursery.cancel_scope.cancel()


async def test_a_stranger_to_the_address_book_is_not_dialed() -> None:
    async with loopback_nodes()("ann", MESH_KEY) as ann:
        ann.transport.learn(identity_of("bob").peer_id, [])
        with pytest.raises(TransportError, match="no address"):
            await ann.transport.open(identity_of("bob").peer_id, ECHO, timeout_s=1)
