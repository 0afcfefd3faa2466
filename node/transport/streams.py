"""Frames over a yamux stream: `node.ports.Stream` as services use it."""

import trio

from node.ports import TransportError
from node.transport.serving import LINGER_S
from node.transport.yamux_stream import PAYLOAD_SIZE_BYTES_MAX, WINDOW_SIZE_BYTES, YamuxStream
from protocols.framing import FRAME_SIZE_BYTES_MAX, HEADER_SIZE_BYTES, frame_header, payload_size
from protocols.ids import PeerId


class FramedStream:
    """Whole frames both ways. A cancelled receive loses nothing and may be repeated; a cancelled send ends all."""

    def __init__(self, stream: YamuxStream, peer: PeerId) -> None:
        self.peer = peer
        self._stream = stream
        self._buffer = bytearray()
        self._size_bytes: int | None = None
        self._reserved_bytes = 0

    async def send(self, payload: bytes | memoryview) -> None:
        """Send one frame. TransportError when the stream is gone, LocalProtocolError when the frame is too large."""
        header = frame_header(len(payload))
        head_bytes = PAYLOAD_SIZE_BYTES_MAX - len(header)
        try:
            # The header rides with the payload's beginning, so a small frame is one message on the wire.
            await self._stream.write(header + payload[:head_bytes])
            if len(payload) > head_bytes:
                await self._stream.write(memoryview(payload)[head_bytes:])
        except BaseException:
            # Part of a frame may have gone, so nothing sensible can follow it on this stream.
            await self._stream.reset()
            raise

    async def receive(self, size_bytes_max: int = FRAME_SIZE_BYTES_MAX) -> bytes | None:
        """The next frame, None when the peer finished; TransportError when the stream broke off.

        RemoteProtocolError when the frame is over `size_bytes_max`, before any of it is held; the stream is of no
        further use then.
        """
        if self._size_bytes is None:
            if not await self._fill(HEADER_SIZE_BYTES):
                return None
            self._size_bytes = payload_size(bytes(self._buffer), size_bytes_max)
            self._buffer.clear()
        # A frame that fits the first window costs no more than the window; larger ones of a peer share a budget.
        if self._size_bytes > WINDOW_SIZE_BYTES and not self._reserved_bytes:
            await self._stream.muxed_conn.frame_budget.take(self._size_bytes, self._stream)
            self._reserved_bytes = self._size_bytes
        try:
            if self._size_bytes > 0 and not await self._fill(self._size_bytes):
                raise TransportError(f"peer {self.peer} ended the stream inside a frame")
        except TransportError:
            self._release()
            raise
        payload = bytes(self._buffer)
        self._buffer.clear()
        self._size_bytes = None
        self._release()
        return payload

    async def finish(self) -> None:
        """Nothing more will be sent from here."""
        self._stream.finish()
        await trio.lowlevel.checkpoint()

    async def abort(self) -> None:
        """End both sides at once; what this side had finished still reaches the peer."""
        self._buffer.clear()
        self._release()
        await self._stream.reset()

    async def linger(self) -> None:
        """Finish, then drop what still comes until the peer finishes too, at most `LINGER_S`."""
        await self.finish()
        with trio.move_on_after(LINGER_S):
            while await self._stream.read():
                pass

    def _release(self) -> None:
        self._stream.muxed_conn.frame_budget.give(self._reserved_bytes)
        self._reserved_bytes = 0

    async def _fill(self, size_bytes: int) -> bool:
        """Read until the buffer holds so many bytes; False when the peer had finished before the first."""
        while len(self._buffer) < size_bytes:
            data = await self._stream.read(size_bytes - len(self._buffer))
            if not data:
                if self._buffer:
                    raise TransportError(f"peer {self.peer} ended the stream inside a frame")
                return False
            self._buffer += data
        return True
