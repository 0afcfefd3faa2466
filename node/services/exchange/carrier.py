"""Chunks over streams of the transport: the plane that works wherever the control streams do."""

from collections.abc import Callable
from functools import partial

import trio

from node.ports import CarriedChunk, ChunkLinkHandler, Stream, Transport, TransportError
from protocols.errors import RemoteProtocolError
from protocols.exchange.messages import (
    CHUNK_HEADER_SIZE_BYTES_MAX,
    CHUNKS_CODEC,
    CHUNKS_PROTOCOL,
    Attach,
    ChunkHeader,
)
from protocols.ids import PeerId

ATTACH_TIMEOUT_S = 10.0


class StreamLink:
    """A link over one stream: each chunk is a header frame and a payload frame."""

    def __init__(self, stream: Stream, ticket: bytes) -> None:
        self.peer = stream.peer
        self.ticket = ticket
        self._stream = stream
        self._sending = trio.Lock()
        self.lanes = 1

    async def send(self, chunk: CarriedChunk, wanted: Callable[[], bool]) -> bool:
        """Send one chunk if it is still wanted when its turn comes; whether it went."""
        async with self._sending:
            if not wanted():
                return False
            header = ChunkHeader(chunk.digest, chunk.index, len(chunk.data))
            await self._stream.send(CHUNKS_CODEC.encode(header))
            await self._stream.send(chunk.data)
            return True

    async def receive(self) -> CarriedChunk | None:
        """The next chunk, or None when the giver ended the link between two chunks."""
        frame = await self._stream.receive(CHUNK_HEADER_SIZE_BYTES_MAX)
        if frame is None:
            return None
        header = CHUNKS_CODEC.decode(frame)
        if not isinstance(header, ChunkHeader):
            raise RemoteProtocolError(f"a chunk begins with its header, not with {type(header).__name__}")
        data = await self._stream.receive(header.size_bytes)
        if data is None:
            raise TransportError(f"{self.peer} ended its chunk link in the middle of a chunk")
        if len(data) != header.size_bytes:
            raise RemoteProtocolError(f"a chunk of {header.size_bytes} bytes came with {len(data)}")
        return CarriedChunk(header.digest, header.index, data)

    async def close(self) -> None:
        """End the stream."""
        self.lanes = 0
        await self._stream.abort()


class StreamCarrier:
    """Implements `node.ports.ChunkCarrier`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def link(self, stream: Stream, ticket: bytes) -> StreamLink:
        """A link over an attached stream."""
        return StreamLink(stream, ticket)

    async def connect(self, peer: PeerId, ticket: bytes, *, timeout_s: float) -> StreamLink:
        """Open a stream to the giver and show the ticket."""
        stream = await self._transport.open(peer, CHUNKS_PROTOCOL, timeout_s=timeout_s)
        attached = False
        try:
            with trio.move_on_after(timeout_s):
                await stream.send(CHUNKS_CODEC.encode(Attach(ticket)))
                attached = True
        finally:
            if not attached:
                with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
                    await stream.abort()
        if not attached:
            raise TransportError(f"{peer} took no chunk link within {timeout_s:g} s")
        return self.link(stream, ticket)

    def serve(self, handler: ChunkLinkHandler) -> None:
        """Hand inbound links to the handler once they have shown their ticket."""
        self._transport.serve(CHUNKS_PROTOCOL, partial(self._attached, handler))

    async def _attached(self, handler: ChunkLinkHandler, stream: Stream) -> None:
        with trio.move_on_after(ATTACH_TIMEOUT_S) as waiting:
            frame = await stream.receive(CHUNK_HEADER_SIZE_BYTES_MAX)
        if waiting.cancelled_caught or frame is None:
            return
        first = CHUNKS_CODEC.decode(frame)
        if not isinstance(first, Attach):
            raise RemoteProtocolError(f"a chunk link begins with its ticket, not with {type(first).__name__}")
        await handler(self.link(stream, first.ticket))
