"""Peers that speak to a node from outside its own code path, and stock py-libp2p hosts to show what the cures cure.

A test that runs against both kinds of target passes for ours and must fail for the stock one (a strict xfail): that
is the proof, repeated in every run, that it would notice if a cure were taken out.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import attrs
import pytest
import trio
from libp2p import new_host
from libp2p.abc import IHost, INetStream
from libp2p.crypto.x25519 import create_new_key_pair
from libp2p.network.config import ConnectionConfig
from libp2p.peer.id import ID
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as NoiseTransport
from multiaddr import Multiaddr

from node.identity import Identity
from node.ports import Door, Stream, TransportError
from node.transport import multistream
from node.transport.addresses import tcp_target
from node.transport.admission import admit_as_dialer
from node.transport.secured import SecuredConnection, TcpConnection
from node.transport.upgrade import NOISE_PROTOCOL_ID, authenticate, make_credentials
from node.transport.yamux import PROTOCOL_ID as YAMUX
from node.transport.yamux import YamuxConnection, YamuxLimits
from node.transport.yamux_stream import YamuxStream
from node.trust.mesh_key import MeshKeyDoor
from protocols.ids import PeerId
from tests.support_transport import MESH_KEY, Node, identity_of, loopback_nodes

ECHO5 = "/herd/echo5/1"
"""Answers five bytes with the same five."""

FAIL = "/herd/fail/1"
"""Reads five bytes and raises."""


@attrs.frozen
class Target:
    """A listening host and what a dialer must bring."""

    address: str
    peer: PeerId
    door: Door | None
    node: Node | None = None


OpenTarget = Callable[[], AbstractAsyncContextManager[Target]]


@asynccontextmanager
async def herd_target() -> AsyncIterator[Target]:
    """Our node with the two protocols."""
    async with loopback_nodes()("target", MESH_KEY) as node:
        node.transport.serve(ECHO5, _echo5)
        node.transport.serve(FAIL, _fail)
        yield Target(node.transport.addresses()[0], node.peer, MeshKeyDoor(MESH_KEY), node)


@asynccontextmanager
async def stock_target(with_noise_only: bool = True) -> AsyncIterator[Target]:
    """A py-libp2p host with the same two protocols."""
    async with stock_host("target", with_noise_only=with_noise_only) as host:
        host.set_stream_handler(ECHO5, _stock_echo5)
        host.set_stream_handler(FAIL, _stock_fail)
        yield Target(stock_address(host), identity_of("target").peer_id, None)


@asynccontextmanager
async def stock_host(
    name: str, with_noise_only: bool = True, make_noise: Callable[..., NoiseTransport] = NoiseTransport
) -> AsyncIterator[IHost]:
    """A running py-libp2p host that dials nobody by itself."""
    key_pair = make_credentials(identity_of(name), MeshKeyDoor(MESH_KEY)).key_pair
    security = {NOISE: make_noise(key_pair, noise_privkey=create_new_key_pair().private_key)}
    listen = [Multiaddr("/ip4/127.0.0.1/tcp/0")]
    host = new_host(
        key_pair=key_pair,
        listen_addrs=listen,
        sec_opt=security if with_noise_only else None,
        connection_config=ConnectionConfig(min_connections=0, low_watermark=0),
    )
    async with host.run(listen_addrs=listen):
        try:
            yield host
        finally:
            with trio.CancelScope(deadline=trio.current_time() + 2, shield=True):
                await host.close()


def stock_address(host: IHost) -> str:
    """Where a stock host listens."""
    (listener,) = host.get_network().listeners.values()
    return str(listener.get_addrs()[0])


targets = pytest.mark.parametrize(
    "open_target",
    [
        pytest.param(herd_target, id="herd"),
        pytest.param(stock_target, id="stock", marks=pytest.mark.xfail(strict=True, reason="the fault as it ships")),
    ],
)


ANSWER_S = 10.0
"""How long a target may take to let a peer in or to answer it: one that never does fails the test, not the run."""


async def dial_tcp(address: str) -> TcpConnection:
    """A bare connection."""
    host, port = tcp_target(address)
    return TcpConnection(await trio.open_tcp_stream(host, port), dialed_here=True, remote_host=host)


async def dial_noise(target: Target, identity: Identity) -> SecuredConnection:
    """An authenticated connection that is not admitted yet."""
    raw = await dial_tcp(target.address)
    try:
        with trio.fail_after(ANSWER_S):
            await multistream.propose(raw, NOISE_PROTOCOL_ID)
            return await authenticate(raw, make_credentials(identity, MeshKeyDoor(MESH_KEY)), target.peer)
    except BaseException:
        await raw.close()
        raise


async def dial_admitted(target: Target, identity: Identity) -> SecuredConnection:
    """An admitted connection on which yamux is agreed but does not run."""
    channel = await dial_noise(target, identity)
    try:
        with trio.fail_after(ANSWER_S):
            if target.door is not None:
                await admit_as_dialer(channel, target.door, identity.peer_id)
            await multistream.propose(channel, YAMUX)
    except BaseException:
        await channel.close()
        raise
    return channel


@asynccontextmanager
async def dial(target: Target, identity: Identity) -> AsyncIterator[YamuxConnection]:
    """A running connection of a peer that is not a node."""

    def ignore_stream(stream: YamuxStream) -> None:
        pass

    def ignore_violation(peer: PeerId, detail: str) -> None:
        pass

    channel = await dial_admitted(target, identity)
    connection = YamuxConnection(channel, YamuxLimits(), ignore_stream, ignore_violation)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.run)
        try:
            yield connection
        finally:
            await connection.close()


async def echoes(target: Target, identity: Identity) -> bool:
    """Whether the target serves a new peer."""
    async with dial(target, identity) as connection:
        stream = connection.open_stream()
        answer = b""
        with trio.fail_after(ANSWER_S):
            await multistream.propose(stream, ECHO5)
            await stream.write(b"hello")
            while len(answer) < 5 and (part := await stream.read(5)):
                answer += part
        stream.finish()
        return answer == b"hello"


async def _echo5(stream: Stream) -> None:
    raw = stream._stream  # type: ignore[attr-defined]  # the peers of these tests speak bytes, not frames
    await raw.write(await raw.read(5))


async def _fail(stream: Stream) -> None:
    await stream._stream.read(5)  # type: ignore[attr-defined]
    raise ValueError("a handler of this test fails")


async def _stock_echo5(stream: INetStream) -> None:
    await stream.write(await stream.read(5))
    await stream.close()


async def _stock_fail(stream: INetStream) -> None:
    await stream.read(5)
    raise ValueError("a handler of this test fails")


class PipeEnd(SecuredConnection):
    """An encrypted channel without encryption and socket: what door and multiplexer see of one, under any clock."""

    def __init__(self, stream: trio.StapledStream[Any, Any], peer: PeerId, *, dialed_here: bool) -> None:
        self.peer = peer
        self.remote_peer = ID.from_base58(peer)
        self.dialed_here = dialed_here
        self.remote_host = "127.0.0.1"
        self._stream = stream

    async def read(self, n: int | None = None) -> bytes:
        """1 to `n` bytes."""
        try:
            return bytes(await self._stream.receive_some(n))
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise TransportError("broken") from error

    async def write(self, data: bytes) -> None:
        """All bytes."""
        try:
            await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise TransportError("broken") from error

    async def finish(self) -> None:
        """Half-close."""
        await self._stream.send_eof()

    async def close(self) -> None:
        """Close both ways."""
        await self._stream.aclose()
