"""A stock py-libp2p host with nothing of ours but the door's exchange is a peer like any other: wire compatible."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from libp2p.abc import IHost, INetStream
from libp2p.network.stream.exceptions import StreamEOF, StreamReset
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from libp2p.security.noise.transport import Transport as NoiseTransport
from multiaddr import Multiaddr

from node.ports import Stream, TransportError
from node.transport.admission import admit_as_dialer, admit_as_listener
from node.transport.secured import SecuredConnection
from node.trust.mesh_key import MeshKeyDoor
from protocols.framing import frame_header
from protocols.ids import PeerId
from tests.support_libp2p import stock_address, stock_host
from tests.support_transport import ECHO, MESH_KEY, Node, call, echo, identity_of, libp2p, loopback_nodes, until

BREAK = "/herd/break/1"
STOCK = identity_of("stock").peer_id
SIZES = (0, 1, 65_507, 300_000, 5_000_000)


class StockChannel(SecuredConnection):
    """py-libp2p's own Noise channel, as the door's exchange sees one."""

    def __init__(self, session: Any, peer: PeerId) -> None:
        self.peer = peer
        self._session = session

    async def read(self, n: int | None = None) -> bytes:
        """1 to `n` bytes."""
        return bytes(await self._session.read(n))

    async def write(self, data: bytes) -> None:
        """All bytes."""
        await self._session.write(data)


class AdmittedNoise(NoiseTransport):  # type: ignore[misc]  # the library ships no types
    """The one wrapper a libp2p program needs: Noise as the library does it, then the door."""

    async def secure_outbound(self, conn: Any, peer_id: ID) -> Any:
        """Dial, and prove the mesh key."""
        session = await super().secure_outbound(conn, peer_id)
        peer = PeerId(session.get_remote_peer().to_base58())
        await admit_as_dialer(StockChannel(session, peer), MeshKeyDoor(MESH_KEY), STOCK)
        return session

    async def secure_inbound(self, conn: Any) -> Any:
        """Listen, and have the mesh key proven."""
        session = await super().secure_inbound(conn)
        peer = PeerId(session.get_remote_peer().to_base58())
        await admit_as_listener(StockChannel(session, peer), MeshKeyDoor(MESH_KEY), STOCK)
        return session


async def read_frame(stream: INetStream) -> bytes:
    """One frame, by the library's reads of any size."""
    size_bytes = int.from_bytes(await read_all(stream, 4), "big")
    return await read_all(stream, size_bytes)


async def read_all(stream: INetStream, size_bytes: int) -> bytes:
    data = bytearray()
    while len(data) < size_bytes:
        data += await stream.read(size_bytes - len(data))
    return bytes(data)


async def echo_as_stock(stream: INetStream) -> None:
    """Every frame comes back; the library tells the end by an exception."""
    try:
        while True:
            frame = await read_frame(stream)
            await stream.write(frame_header(len(frame)) + frame)
    except StreamEOF:
        await stream.close()


async def break_as_stock(stream: INetStream) -> None:
    await stream.read(1)
    await stream.reset()


async def break_off(stream: Stream) -> None:
    await stream.receive(10)
    await stream.abort()


@asynccontextmanager
async def connected(stock_dials: bool) -> AsyncIterator[tuple[Node, IHost]]:
    """Our node and the stock host, one connection between them, dialed from either end."""
    with trio.fail_after(30):
        async with (
            stock_host("stock", make_noise=AdmittedNoise) as stock,
            loopback_nodes()("ann", MESH_KEY) as ann,
        ):
            ann.transport.serve(ECHO, echo)
            ann.transport.serve(BREAK, break_off)
            stock.set_stream_handler(ECHO, echo_as_stock)
            stock.set_stream_handler(BREAK, break_as_stock)
            ann.transport.learn(STOCK, [stock_address(stock)])
            if stock_dials:
                addresses = [Multiaddr(each) for each in ann.transport.addresses()]
                await stock.connect(PeerInfo(ID.from_base58(ann.peer), addresses))
                await until(lambda: libp2p(ann).statistics().connections_accepted == 1)
            yield ann, stock
            assert libp2p(ann).statistics().connections == 1
            assert libp2p(ann).statistics().violations == 0
            assert libp2p(ann).statistics().connections_dialed == (0 if stock_dials else 1)


@pytest.mark.slow
@pytest.mark.parametrize("stock_dials", [True, False], ids=["it dials us", "we dial it"])
async def test_frames_of_every_size_pass_both_ways(stock_dials: bool) -> None:
    async with connected(stock_dials) as (ann, stock):
        for size_bytes in SIZES:
            payload = bytes(range(256)) * (size_bytes // 256) + bytes(size_bytes % 256)
            assert await call(ann, STOCK, payload) == payload
            stream = await stock.new_stream(ID.from_base58(ann.peer), [ECHO])
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stream.write, frame_header(size_bytes) + payload)
                assert await read_frame(stream) == payload
            # Each end sees the other's half-close.
            await stream.close_write()
            with pytest.raises(StreamEOF):
                await stream.read(1)
        await until(lambda: libp2p(ann).statistics().streams == 0)


@pytest.mark.slow
@pytest.mark.parametrize("stock_dials", [True, False], ids=["it dials us", "we dial it"])
async def test_resets_and_pings_are_understood_by_both(stock_dials: bool) -> None:
    async with connected(stock_dials) as (ann, stock):
        ours = await ann.transport.open(STOCK, BREAK, timeout_s=5)
        await ours.send(b"go")
        with pytest.raises(TransportError, match="reset the stream"):
            await ours.receive(10)
        theirs = await stock.new_stream(ID.from_base58(ann.peer), [BREAK])
        await theirs.write(frame_header(2) + b"go")
        # The library forgets a stream that was reset: an early reader hears of it, a late one of its end.
        with pytest.raises((StreamReset, StreamEOF)):
            await theirs.read(1)
        (connection,) = libp2p(ann)._network.connections_of(STOCK)
        connection.ping()
        await until(lambda: connection.rtt_s is not None)
        assert await call(ann, STOCK, b"and the connection lives") == b"and the connection lives"
