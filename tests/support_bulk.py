"""Two nodes with bulk carriers on 127.0.0.1, and a wire between them that can be made to do what it should not.

The asker dials whatever `route` says. A `TamperingWire` listens on another loopback address, under the giver's own
port, so that a connection is led over it by its address alone.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import attrs
import trio
import trio.lowlevel

from node.ports import CarriedChunk, ChunkLink, TransportError
from node.transport.bulk import BulkCarrier, open_bulk_carrier
from protocols.bulk.config import BulkConfig
from protocols.bulk.frames import OPENING_SIZE_BYTES
from protocols.bulk.tickets import BULK_PROTOCOL, CODEC, MESSAGE_SIZE_BYTES_MAX, GetTicket, Ticket
from protocols.ids import PeerId, digest_of
from tests.support_transport import Node, OpenNode, pair, simulated_nodes, until

HOST, WIRE_HOST, SCANNER_HOST = "127.0.0.1", "127.0.0.2", "127.0.0.3"
SESSION = b"s" * 16
STORY_TIMEOUT_S = 30
BLOB = digest_of(b"blob")
BOTH_CIPHERS = ("aes-256-gcm", "chacha20-poly1305")


def chunks_of(sizes_bytes: list[int], first: int = 0) -> list[CarriedChunk]:
    """Chunks with bytes of their own."""
    return [CarriedChunk(BLOB, first + n, bytes([n % 251 + 1]) * size) for n, size in enumerate(sizes_bytes)]


def told(chunk: CarriedChunk | None) -> tuple[int, bytes]:
    """Index and bytes of a chunk that came, its memory given back."""
    assert chunk is not None, "the link ended"
    assert chunk.digest == BLOB
    data = bytes(chunk.data)
    chunk.release()
    return chunk.index, data


@attrs.define
class BulkPair:
    """Ann asks, Bob gives. `route` is the host under which Ann reaches Bob's bulk port."""

    ann: Node
    bob: Node
    asker: BulkCarrier
    giver: BulkCarrier
    route: str = HOST
    attached: dict[bytes, ChunkLink] = attrs.field(factory=dict)

    async def keep(self, link: ChunkLink) -> None:
        """Bob's handler: every session is known and stands for good."""
        self.attached[link.ticket] = link
        await trio.sleep_forever()

    async def link(self, session: bytes = SESSION, route: str | None = None) -> tuple[ChunkLink, ChunkLink]:
        """Ann attaches a link to Bob; her end and his."""
        self.route = route or self.route
        asker = await self.asker.connect(self.bob.peer, session, timeout_s=5)
        self.route = HOST
        return asker, await self.given(session)

    async def given(self, session: bytes = SESSION) -> ChunkLink:
        """Bob's end of a session's link, once it stands."""
        await until(lambda: session in self.attached)
        return self.attached[session]

    async def ticket(self, session: bytes = SESSION, ciphers: tuple[str, ...] = BOTH_CIPHERS) -> Ticket:
        """A ticket of Bob's for Ann, to be used by hand."""
        stream = await self.ann.transport.open(self.bob.peer, BULK_PROTOCOL, timeout_s=5)
        await stream.send(CODEC.encode(GetTicket(session, ciphers)))
        frame = await stream.receive(MESSAGE_SIZE_BYTES_MAX)
        assert frame is not None
        answer = CODEC.decode(frame)
        assert isinstance(answer, Ticket)
        await stream.abort()
        return answer

    async def dial(self, source: str = HOST) -> trio.SocketStream:
        """A plain connection to Bob's bulk port, from a loopback address of choice."""
        return await trio.open_tcp_stream(HOST, self.giver.port, local_address=source)

    def blames(self) -> list[dict[str, int]]:
        """What the two hold against anybody."""
        return [self.ann.blame.statistics(), self.bob.blame.statistics()]


@asynccontextmanager
async def bulk_pair(
    open_node: OpenNode | None = None, *, serving: bool = True, **changes: Any
) -> AsyncIterator[BulkPair]:
    """Ann and Bob; control streams over the simulated network with no delay, or over what `open_node` opens."""
    config = attrs.evolve(BulkConfig(connect_timeout_s=3.0), **changes)
    async with AsyncExitStack() as stack:
        ann, bob = await stack.enter_async_context(pair(open_node or simulated_nodes(latency_s=0)))
        made: list[BulkPair] = []

        def hosts_of(_peer: PeerId) -> list[str]:
            return made[0].route.split()

        asker = await stack.enter_async_context(open_bulk_carrier(ann.transport, hosts_of, config, HOST, 0))
        giver = await stack.enter_async_context(open_bulk_carrier(bob.transport, hosts_of, config, HOST, 0))
        made.append(BulkPair(ann, bob, asker, giver))
        if serving:
            giver.serve(made[0].keep)
        with trio.fail_after(STORY_TIMEOUT_S):
            yield made[0]


async def take_all(link: ChunkLink) -> list[int]:
    """The indices of all chunks that come until the giver ends in order; raises what ends the link otherwise."""
    came = []
    while (chunk := await link.receive()) is not None:
        came.append(told(chunk)[0])
    return came


async def give(link: ChunkLink, chunks: list[CarriedChunk]) -> None:
    """Send chunks one after the other until they are all sent or the link is gone."""
    with suppress(TransportError):
        for chunk in chunks:
            await link.send(chunk, lambda: True)
            await trio.lowlevel.checkpoint()


class CutHere(Exception):
    """An alteration raises it with the bytes that still go through; then the wire is cut."""


Alteration = Callable[[int, bytes], bytes]
"""Frame number and frame as it travels (the opening is number -1); what travels in its place."""


def untouched(_number: int, frame: bytes) -> bytes:
    """The wire as it should be."""
    return frame


class TamperingWire:
    """A relay that knows where frames begin, which everybody on the way does: their headers are no secret."""

    def __init__(self, from_giver: Alteration = untouched, from_asker: Alteration = untouched) -> None:
        self._from_giver = from_giver
        self._from_asker = from_asker
        self.seen_from_asker = bytearray()
        self._to_giver: trio.SocketStream | None = None

    async def say_to_giver(self, data: bytes) -> None:
        """Bytes in the asker's name, on the connection that came last."""
        assert self._to_giver is not None
        await self._to_giver.send_all(data)

    async def relay(self, near: trio.SocketStream, port: int) -> None:
        """Carry one connection until either end goes."""
        async with near, await trio.open_tcp_stream(HOST, port) as far, trio.open_nursery() as nursery:
            self._to_giver = far

            async def carry(
                source: trio.SocketStream, sink: trio.SocketStream, altered: Alteration, first: int
            ) -> None:
                frames = _FrameReader(source, first)
                with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                    try:
                        while (seen := await frames.next()) is not None:
                            if source is near:
                                self.seen_from_asker += seen[1]
                            await sink.send_all(altered(*seen))
                    except CutHere as cut:
                        await sink.send_all(cut.args[0])
                nursery.cancel_scope.cancel()

            nursery.start_soon(carry, near, far, self._from_asker, -1)
            nursery.start_soon(carry, far, near, self._from_giver, 0)


class _FrameReader:
    """Cuts what travels in one direction into frames."""

    def __init__(self, source: trio.SocketStream, first: int) -> None:
        self._source = source
        self._waiting = bytearray()
        self._number = first

    async def next(self) -> tuple[int, bytes] | None:
        """Number and bytes of the next frame, None at the end."""
        while True:
            size_bytes = 4 + int.from_bytes(self._waiting[1:4], "big") + 16 if self._number >= 0 else OPENING_SIZE_BYTES
            if len(self._waiting) >= max(4, size_bytes):
                frame, number = bytes(self._waiting[:size_bytes]), self._number
                del self._waiting[:size_bytes]
                self._number += 1
                return number, frame
            data = await self._source.receive_some()
            if not data:
                return None
            self._waiting += data


async def hangs_up(stream: trio.SocketStream) -> bool:
    """Whether the other end hangs up without a word."""
    try:
        return await stream.receive_some() == b""
    except trio.BrokenResourceError:
        return True  # it left something of ours unread


@asynccontextmanager
async def tampering(world: BulkPair, wire: TamperingWire) -> AsyncIterator[TamperingWire]:
    """The wire, while the block lasts: connections to WIRE_HOST and Bob's bulk port go over it."""
    async with trio.open_nursery() as nursery:

        async def serve(*, task_status: trio.TaskStatus[None]) -> None:
            [listener] = await trio.open_tcp_listeners(world.giver.port, host=WIRE_HOST)
            async with listener:
                task_status.started()
                while True:
                    nursery.start_soon(wire.relay, await listener.accept(), world.giver.port)

        await nursery.start(serve)
        yield wire
        nursery.cancel_scope.cancel()
