"""One bulk connection after its opening: chunks as sealed frames, seen from the giver's and from the asker's end."""

import time
from typing import NoReturn

from node.buffers import BufferPool
from node.ports import CarriedChunk, TransportError
from node.transport.bulk_socket import BulkSocket
from protocols.bulk.frames import (
    FRAME_SIZE_BYTES_MAX,
    HEADER_SIZE_BYTES,
    TAG_SIZE_BYTES,
    BrokenFrame,
    FrameKind,
    FrameOpener,
    FrameSealer,
)
from protocols.errors import RemoteProtocolError
from protocols.exchange.messages import CHUNK_HEADER_SIZE_BYTES_MAX, CHUNKS_CODEC, ChunkHeader

REPLACE_AT = 0.9
"""The part of what a ticket allows after which an asker opens the lane's successor."""
OVERHEAD_SIZE_BYTES = HEADER_SIZE_BYTES + TAG_SIZE_BYTES
_SIZE_BYTES_MAX_OUTSIDE_CHUNKS = {FrameKind.MESSAGE: CHUNK_HEADER_SIZE_BYTES_MAX, FrameKind.BODY: -1, FrameKind.END: 0}


class _Lane:
    """What both ends share: a socket, a sealer and an opener."""

    def __init__(self, socket: BulkSocket, sealer: FrameSealer, opener: FrameOpener) -> None:
        self._socket = socket
        self._sealer = sealer
        self._opener = opener
        self._header = memoryview(bytearray(HEADER_SIZE_BYTES))

    async def greet(self) -> None:
        """Send the empty message that proves the ticket."""
        await self._send(FrameKind.MESSAGE, b"")

    async def hear_greeting(self) -> None:
        """Receive the peer's empty message. BrokenFrame when it is something else, TransportError when none comes."""
        if await self._receive_message() != b"":
            raise BrokenFrame("a bulk connection begins with an empty message")

    async def _send(self, kind: FrameKind, data: bytes) -> None:
        buffer = memoryview(bytearray(len(data) + OVERHEAD_SIZE_BYTES))
        self._sealer.seal_into(kind, data, buffer)
        await self._socket.send_all(buffer)

    async def _receive_header(self) -> tuple[FrameKind, int]:
        if not await self._socket.receive_exactly(self._header):
            raise TransportError("the bulk connection was cut off")
        return self._opener.announced(self._header)

    async def _open(self, size_bytes: int, sealed: memoryview, buffer: memoryview) -> None:
        if not await self._socket.receive_exactly(sealed[: size_bytes + TAG_SIZE_BYTES]):
            raise TransportError("the bulk connection was cut off")
        self._opener.open_into(bytes(self._header), sealed[: size_bytes + TAG_SIZE_BYTES], buffer)

    async def _receive_message(self) -> bytes | None:
        """The next message, None when the peer ended in order. Frames of any other kind or size are refused."""
        kind, size_bytes = await self._receive_header()
        if size_bytes > _SIZE_BYTES_MAX_OUTSIDE_CHUNKS[kind]:
            await self._refuse(kind, size_bytes, "where a message was due")
        message = bytearray(size_bytes)
        await self._open(size_bytes, memoryview(bytearray(size_bytes + TAG_SIZE_BYTES)), memoryview(message))
        return None if kind is FrameKind.END else bytes(message)

    async def _refuse(self, kind: FrameKind, size_bytes: int, place: str) -> NoReturn:
        """End over a frame that has no place here; what its header says may have been changed on the way."""
        raise BrokenFrame(f"a {kind.name} frame of {size_bytes} bytes {place}")

    async def finish(self) -> None:
        """Say that nothing more will be sent from here."""
        await self._send(FrameKind.END, b"")

    def close(self) -> None:
        """End the connection at once; idempotent."""
        self._socket.close()


class GiverLane(_Lane):
    """The end that sends chunks, one after the other."""

    def __init__(self, socket: BulkSocket, sealer: FrameSealer, opener: FrameOpener, frame_size_bytes: int) -> None:
        super().__init__(socket, sealer, opener)
        self._frame_size_bytes = frame_size_bytes
        self._frame = memoryview(bytearray(CHUNK_HEADER_SIZE_BYTES_MAX + frame_size_bytes + 2 * OVERHEAD_SIZE_BYTES))

    @property
    def carried_bytes(self) -> int:
        """What this connection has carried so far."""
        return self._sealer.sealed_bytes

    async def send_chunk(self, chunk: CarriedChunk) -> None:
        """Send one chunk. TransportError when the asker is gone; cancelling tears the connection."""
        data = memoryview(chunk.data)
        header = CHUNKS_CODEC.encode(ChunkHeader(chunk.digest, chunk.index, len(data)))
        # The header travels with the first piece, so that a small chunk costs one call and one segment.
        filled = self._sealer.seal_into(FrameKind.MESSAGE, header, self._frame)
        for offset in range(0, len(data), self._frame_size_bytes):
            piece = data[offset : offset + self._frame_size_bytes]
            filled += self._sealer.seal_into(FrameKind.BODY, piece, self._frame[filled:])
            await self._socket.send_all(self._frame[:filled])
            filled = 0

    async def wait_ended(self) -> bool:
        """Return when the asker ends the connection; whether in order, to have what is under way and nothing more."""
        try:
            message = await self._receive_message()
        except TransportError:
            return False
        if message is not None:
            raise BrokenFrame("an asker says nothing on a bulk connection")
        return True


class AskerLane(_Lane):
    """The end that receives chunks."""

    def __init__(
        self, socket: BulkSocket, sealer: FrameSealer, opener: FrameOpener, pool: BufferPool, bytes_max: int
    ) -> None:
        super().__init__(socket, sealer, opener)
        self.bytes_max = bytes_max
        self._sealed = memoryview(bytearray(FRAME_SIZE_BYTES_MAX + TAG_SIZE_BYTES))
        self._pool = pool
        self._receiving_since_s: float | None = None
        self._received_s = 0.0

    @property
    def carried_bytes(self) -> int:
        """What this connection has carried so far."""
        return self._opener.opened_bytes

    @property
    def nearly_used_up(self) -> bool:
        """Whether it has carried nearly all that its ticket allows, so that a successor is due."""
        return self.carried_bytes >= REPLACE_AT * self.bytes_max

    def receiving_s(self) -> float:
        """How many seconds of its life it was in the middle of a chunk."""
        since_s = self._receiving_since_s
        return self._received_s + (time.monotonic() - since_s if since_s is not None else 0.0)

    async def receive_chunk(self) -> CarriedChunk | None:
        """The next chunk in lent memory, None when the giver ended the connection in order.

        TransportError when it broke off, BrokenFrame when a frame did not open, another RemoteProtocolError when what
        the giver itself sealed is no chunk, or one more than its ticket allows.
        """
        used_up = self.carried_bytes >= self.bytes_max
        message = await self._receive_message()
        if message is None:
            return None
        header = CHUNKS_CODEC.decode(message)
        if not isinstance(header, ChunkHeader):
            raise RemoteProtocolError(f"a chunk begins with its header, not with {type(header).__name__}")
        if used_up:
            raise RemoteProtocolError(f"a chunk on a connection that has carried its {self.bytes_max} bytes")
        buffer = self._pool.lend(header.size_bytes)
        self._receiving_since_s = time.monotonic()
        received = 0
        while received < header.size_bytes:
            kind, size_bytes = await self._receive_header()
            if kind is not FrameKind.BODY or not 0 < size_bytes <= header.size_bytes - received:
                await self._refuse(kind, size_bytes, "inside a chunk")
            await self._open(size_bytes, self._sealed, buffer.view[received : received + size_bytes])
            received += size_bytes
        self._received_s = self.receiving_s()
        self._receiving_since_s = None
        return CarriedChunk(header.digest, header.index, buffer.view, buffer.release)

    async def _refuse(self, kind: FrameKind, size_bytes: int, place: str) -> NoReturn:
        # If it opens, the giver itself sealed it, and the offence is the giver's, not the wire's.
        await self._open(size_bytes, self._sealed, memoryview(bytearray(size_bytes)))
        raise RemoteProtocolError(f"a {kind.name} frame of {size_bytes} bytes {place}")
