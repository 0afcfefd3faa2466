"""What a member, or a full table, can cost a node: connections, handlers, descriptors, addresses."""

import contextlib
import errno
import logging
import resource
from collections.abc import Awaitable, Callable
from functools import partial

import pytest
import trio
import trio.testing
from libp2p.peer.id import ID
from trio.testing import MockClock

from node.blame import BlameLedger
from node.cli.up import raise_open_files_limit
from node.events import EventBus
from node.ports import Stream, TransportError
from node.transport import host as host_module
from node.transport import libp2p as libp2p_module
from node.transport import multistream
from node.transport import network as network_module
from node.transport import streams as streams_module
from node.transport import yamux as yamux_module
from node.transport.config import NetworkConfig
from node.transport.network import CONNECTIONS_PER_PEER_MAX, Network
from node.transport.streams import FramedStream
from node.transport.upgrade import make_credentials
from node.transport.yamux import YamuxConnection
from node.transport.yamux_stream import YamuxStream
from node.trust.mesh_key import MeshKeyDoor
from protocols.framing import frame_header
from tests.support_libp2p import PipeEnd, Target, dial, echoes, herd_target
from tests.support_transport import MESH_KEY, identity_of, libp2p, loopback_config, loopback_nodes, until

MALLORY = identity_of("mallory")
WAIT = "/herd/wait/1"
MIB = 1024 * 1024


async def use_until_broken(use: Callable[[], Awaitable[object]]) -> None:
    while True:
        await use()


async def write_while_it_stands(stream: YamuxStream, data: bytes) -> None:
    with contextlib.suppress(TransportError):
        await stream.write(data)


async def ignore_stream(connection: YamuxConnection, stream: YamuxStream) -> None:
    pass


def network(nursery: trio.Nursery) -> Network:
    """Ann's connections, without a listener."""
    credentials = make_credentials(identity_of("ann"), MeshKeyDoor(MESH_KEY))
    return Network(credentials, NetworkConfig(), BlameLedger(EventBus()), nursery, ignore_stream)


async def test_a_burst_of_connections_of_one_peer_leaves_four(autojump_clock: MockClock) -> None:
    """The surplus takes a moment to say goodbye; what comes meanwhile must not stay for ever."""
    async with trio.open_nursery() as nursery:
        ann = network(nursery)
        for _ in range(10):
            near, _far = trio.testing.memory_stream_pair()
            ann._register(PipeEnd(near, MALLORY.peer_id, dialed_here=False))
        assert len(ann.connections_of(MALLORY.peer_id)) == CONNECTIONS_PER_PEER_MAX
        await trio.sleep(5)
        assert ann.connection_count() == CONNECTIONS_PER_PEER_MAX
        nursery.cancel_scope.cancel()


async def test_a_member_that_resets_what_it_opens_piles_up_no_handlers() -> None:
    """Handlers wait for disks and turns; the streams behind them may be long gone."""
    release, waiting = trio.Event(), 0

    async def wait(stream: Stream) -> None:
        nonlocal waiting
        waiting += 1
        await release.wait()
        waiting -= 1

    async with loopback_nodes(loopback_config(streams_per_peer_max=8))("node", MESH_KEY) as node:
        node.transport.serve(WAIT, wait)
        target = Target(node.transport.addresses()[0], node.peer, MeshKeyDoor(MESH_KEY))
        with trio.fail_after(10):
            async with dial(target, MALLORY) as one, dial(target, MALLORY) as other:
                for connection in (one, other):
                    for _ in range(25):
                        stream = connection.open_stream()
                        with contextlib.suppress(TransportError):
                            await multistream.propose(stream, WAIT)
                        await stream.reset()
                # Of both connections together, however many streams were opened on them.
                assert waiting == 8
                release.set()
                await until(lambda: waiting == 0)
                stream = one.open_stream()
                await multistream.propose(stream, WAIT)
        assert libp2p(node)._network._streams_served.total() <= 1


async def test_frames_that_never_end_are_held_within_a_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """A member may begin 256 frames of 16 MiB on one connection; it may not have us hold 4 GiB."""
    monkeypatch.setattr(yamux_module, "_FRAME_BUDGET_BYTES", 4 * MIB)
    served: list[FramedStream] = []
    whole = 0

    async def take(stream: Stream) -> None:
        nonlocal whole
        assert isinstance(stream, FramedStream)
        served.append(stream)
        if await stream.receive(MIB) is not None:
            whole += 1

    async with herd_target() as target:
        assert target.node is not None
        node = target.node
        node.transport.serve(WAIT, take)
        async with dial(target, MALLORY) as connection, trio.open_nursery() as nursery:
            begun = []
            for _ in range(12):
                begun.append(connection.open_stream())
                await multistream.propose(begun[-1], WAIT)
                nursery.start_soon(write_while_it_stands, begun[-1], frame_header(MIB) + bytes(MIB - 1))
            await until(lambda: sum(len(each._buffer) for each in served) == 4 * (MIB - 1))
            await trio.sleep(0.1)  # real time: sockets know no other
            assert sum(len(each._buffer) for each in served) == 4 * (MIB - 1)
            # Small frames wait for nobody, and a frame given up or come to its end lets the next one in.
            small = connection.open_stream()
            await multistream.propose(small, WAIT)
            await small.write(frame_header(2) + b"hi")
            await until(lambda: whole == 1)
            await small.reset()
            held = [stream for stream, there in zip(begun, served, strict=False) if len(there._buffer) == MIB - 1]
            await held[0].reset()
            await held[1].write(b".")
            await until(lambda: whole == 2)
            await until(lambda: sum(len(each._buffer) for each in served) == 4 * (MIB - 1))
            # Whoever waits for room learns at once when its stream is over, and no room is lost by it.
            for stream in begun:
                await stream.reset()
            await until(lambda: libp2p(node).statistics().streams == 0)
            last = connection.open_stream()
            await multistream.propose(last, WAIT)
            await last.write(frame_header(MIB) + bytes(MIB))
            await until(lambda: whole == 3)
            assert libp2p(node)._network.connections_of(MALLORY.peer_id)[0].frame_budget._free_bytes == 4 * MIB
            nursery.cancel_scope.cancel()


async def test_a_stream_that_says_nothing_or_never_ends_is_reset_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    async def answer(stream: Stream) -> None:
        await stream.send(b"that is all")

    monkeypatch.setattr(libp2p_module, "NEGOTIATION_TIMEOUT_S", 0.2)
    monkeypatch.setattr(streams_module, "LINGER_S", 0.2)
    async with herd_target() as target:
        assert target.node is not None
        target.node.transport.serve("/herd/answer/1", answer)
        async with dial(target, MALLORY) as connection:
            mute, endless = connection.open_stream(), connection.open_stream()
            await multistream.propose(endless, "/herd/answer/1")
            with trio.fail_after(5):
                with pytest.raises(TransportError, match="reset the stream"):
                    await use_until_broken(mute.read)
                with pytest.raises(TransportError, match="reset the stream"):
                    await use_until_broken(partial(endless.write, bytes(1000)))
        assert libp2p(target.node).statistics().streams == 0


async def test_a_defect_in_one_handshake_is_not_the_end_of_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: object) -> None:
        raise KeyError("a defect")

    async with herd_target() as target:
        with monkeypatch.context() as broken, trio.fail_after(5):
            broken.setattr(network_module, "upgrade_accepted", fail)
            host, port = target.address.split("/")[2], int(target.address.split("/")[4])
            stream = await trio.open_tcp_stream(host, port)
            assert await stream.receive_some(1) == b""
            await stream.aclose()
        assert await echoes(target, identity_of("ann"))


class ExhaustedListener(trio.abc.Listener[trio.SocketStream]):
    """A listener of a process without a free descriptor."""

    def __init__(self) -> None:
        self.asked = 0

    async def accept(self) -> trio.SocketStream:
        """Fail as the kernel does."""
        self.asked += 1
        await trio.lowlevel.checkpoint()
        raise OSError(errno.EMFILE, "Too many open files")

    async def aclose(self) -> None:
        """Nothing is open."""


async def test_a_node_out_of_descriptors_says_so_once_and_goes_on(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    listener = ExhaustedListener()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(network(nursery).accept, listener)
        await trio.sleep(60)
        nursery.cancel_scope.cancel()
    assert listener.asked > 100
    errors = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert errors == ["cannot accept connections for now: Too many open files; `ulimit -n` may be too low"]


async def test_a_full_address_book_forgets_the_oldest_and_never_this_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's forgets its own key first, at the thousandth peer; without it the node signs nothing more."""
    monkeypatch.setattr(host_module, "PEERS_MAX", 20)
    async with loopback_nodes()("ann", MESH_KEY) as ann:
        peers = [identity_of(f"peer {number}").peer_id for number in range(50)]
        for peer in [*peers, ann.peer]:
            ann.transport.learn(peer, ["/ip4/10.0.0.1/tcp/4701"])
        ann.transport.learn(ann.peer, [])
        host = libp2p(ann).host
        assert host.get_private_key() is not None
        kept = host.get_peerstore().peer_ids()
        assert len(kept) == 20
        assert ID.from_base58(peers[-1]) in kept
        ann.transport.learn(peers[-1], [])
        assert ID.from_base58(peers[-1]) not in host.get_peerstore().peer_ids()


def test_a_node_takes_the_descriptors_it_may_have() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
        raise_open_files_limit()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        assert soft > 256
        assert soft in (hard, 65536)
        assert hard == before[1]
        raise_open_files_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (soft, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
