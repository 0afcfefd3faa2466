"""One stream of a yamux connection: flow control, half-closing, and what was received but not read yet."""

from collections import deque
from typing import TYPE_CHECKING

import trio

from node.ports import TransportError
from protocols.errors import RemoteProtocolError

if TYPE_CHECKING:
    from node.transport.yamux import YamuxConnection

WINDOW_SIZE_BYTES = 256 * 1024
"""Both windows of a new stream, as the specification has it."""

WINDOW_SIZE_BYTES_MAX = 8 * 1024 * 1024
"""What a window grows to under load: 1 GB/s over 8 ms."""

# One data frame and its 12 bytes of header fill one Noise message (65,535 bytes, 16 of them the tag).
PAYLOAD_SIZE_BYTES_MAX = 65_535 - 16 - 12

_SEND_WINDOW_BYTES_MAX = 1 << 32

_CRUMB_SIZE_BYTES = 4096
"""Received pieces are put together up to this size."""


class FrameBudget:
    """What a peer may make us hold, over one connection, in large frames whose end did not come yet."""

    def __init__(self, size_bytes: int) -> None:
        self._free_bytes = size_bytes
        self._freed = trio.Event()

    async def take(self, size_bytes: int, stream: "YamuxStream") -> None:
        """Wait for so much room, never more than the whole. TransportError when the stream breaks meanwhile."""
        while self._free_bytes < size_bytes:
            if stream.broken_why is not None:
                raise TransportError(stream.broken_why)
            if self._freed.is_set():
                self._freed = trio.Event()
            await self._freed.wait()
        self._free_bytes -= size_bytes

    def give(self, size_bytes: int) -> None:
        """Give back what was taken; all who wait look again."""
        self._free_bytes += size_bytes
        self._freed.set()


class YamuxStream:
    """Read and write in any sizes. One task reads and one writes at a time; cancelling a read loses nothing.

    After the peer finished, what it sent can be read to the end whatever happens to the connection.
    """

    def __init__(self, connection: "YamuxConnection", stream_id: int) -> None:
        self.stream_id = stream_id
        self.muxed_conn = connection
        self.broken_why: str | None = None
        self.receive_window = WINDOW_SIZE_BYTES
        self.window_growth_bytes = 0
        self._connection = connection
        self._chunks: deque[bytes] = deque()
        self._chunk_offset = 0
        self._peer_finished = False
        self._finished = False
        self._send_window = WINDOW_SIZE_BYTES
        self._window_target = WINDOW_SIZE_BYTES
        self._read_uncredited_bytes = 0
        self._readable = trio.Event()
        self._writable = trio.Event()

    async def read(self, n: int | None = None) -> bytes:
        """1 to `n` bytes (without `n`: what is there), or b"" when the peer finished. TransportError when broken."""
        await trio.lowlevel.checkpoint()
        while not self._chunks:
            if self._peer_finished:
                return b""
            if self.broken_why is not None:
                raise TransportError(self.broken_why)
            if self._readable.is_set():
                self._readable = trio.Event()
            await self._readable.wait()
        chunk, start = self._chunks[0], self._chunk_offset
        left = len(chunk) - start
        if n is None or n < 0 or n >= left:
            self._chunks.popleft()
            self._chunk_offset = 0
            data = chunk[start:] if start else chunk
        else:
            self._chunk_offset += n
            data = chunk[start : start + n]
        self._credit(len(data))
        return data

    async def write(self, data: bytes | memoryview) -> None:
        """Send all bytes. TransportError when the stream is over, or when the peer's reader does not go on.

        Cancelled in the middle, an unknown part of the bytes has gone; the connection is not harmed.
        """
        view = memoryview(data)
        if not view:
            await trio.lowlevel.checkpoint()
        while view:
            await self._wait_for_window()
            size_bytes = min(self._send_window, PAYLOAD_SIZE_BYTES_MAX, len(view))
            self._send_window -= size_bytes
            await self._connection.send_data(self, view[:size_bytes])
            view = view[size_bytes:]

    async def _wait_for_window(self) -> None:
        while True:
            if self.shut_why is not None:
                raise TransportError(self.shut_why)
            if self._send_window > 0:
                return
            if self._writable.is_set():
                self._writable = trio.Event()
            stall_timeout_s = self._connection.limits.stall_timeout_s
            with trio.move_on_after(stall_timeout_s) as deadline:
                await self._writable.wait()
            if deadline.cancelled_caught:
                self._connection.queue_reset(self)
                self.break_off(f"peer {self._connection.peer} read nothing of the stream for {stall_timeout_s:g} s")

    def finish(self) -> None:
        """Nothing more is written from here; the peer reads to the end. Idempotent."""
        if not self._finished and self.broken_why is None:
            self._finished = True
            self._connection.queue_finish(self)
            self._writable.set()

    async def close(self) -> None:
        """`finish`, under the name libraries use."""
        self.finish()
        await trio.lowlevel.checkpoint()

    async def reset(self) -> None:
        """End both directions now; idempotent, never fails."""
        self._connection.queue_reset(self)
        self.break_off("the stream was reset by this node")
        # Nobody here reads any more, and a stream that is over must not keep its bytes.
        self._chunks.clear()
        self._chunk_offset = 0
        self._peer_finished = False
        await trio.lowlevel.cancel_shielded_checkpoint()

    def get_remote_address(self) -> tuple[str, int] | None:
        """The peer's host; the port of a dialing peer says nothing, so it is 0."""
        return (self._connection.remote_host, 0)

    def set_deadline(self, ttl: int) -> bool:
        """There are none: callers use cancel scopes."""
        return False

    # -- what the connection tells

    @property
    def is_done(self) -> bool:
        """Both sides finished."""
        return self._finished and self._peer_finished

    @property
    def shut_why(self) -> str | None:
        """Why nothing more can be written, or None."""
        return self.broken_why or ("the stream is finished on this side" if self._finished else None)

    def add_received(self, data: bytes) -> None:
        """Bytes came in."""
        if self._peer_finished:
            raise RemoteProtocolError(f"data on stream {self.stream_id} after its end")
        self.receive_window -= len(data)
        if self.broken_why is not None:
            return
        if self._chunks and len(self._chunks[-1]) + len(data) <= _CRUMB_SIZE_BYTES:
            # A window filled in frames of two bytes would cost us twenty times its size.
            self._chunks[-1] += data
        else:
            self._chunks.append(data)
        self._readable.set()

    def add_send_window(self, increment_bytes: int) -> None:
        """The peer takes more."""
        self._send_window += increment_bytes
        if self._send_window > _SEND_WINDOW_BYTES_MAX:
            raise RemoteProtocolError(f"the window of stream {self.stream_id} is over 4 GiB")
        self._writable.set()

    def finished_by_peer(self) -> None:
        """The peer sends no more."""
        self._peer_finished = True
        self._readable.set()

    def break_off(self, why: str) -> None:
        """The stream is over; what a finished peer sent stays readable, half of a message does not."""
        if self.broken_why is None:
            self.broken_why = why
            if not self._peer_finished:
                self._chunks.clear()
                self._chunk_offset = 0
        self._readable.set()
        self._writable.set()
        self._connection.frame_budget.give(0)

    def _credit(self, read_bytes: int) -> None:
        """Give the peer back the room of what was read, in steps of half a window; a busy window doubles."""
        if self._peer_finished or self.broken_why is not None:
            return
        self._read_uncredited_bytes += read_bytes
        if self._read_uncredited_bytes < self._window_target // 2:
            return
        increment_bytes, self._read_uncredited_bytes = self._read_uncredited_bytes, 0
        if self._window_target < WINDOW_SIZE_BYTES_MAX:
            growth_bytes = self._connection.grant_growth(self._window_target)
            self._window_target += growth_bytes
            self.window_growth_bytes += growth_bytes
            increment_bytes += growth_bytes
        self.receive_window += increment_bytes
        self._connection.queue_credit(self, increment_bytes)
