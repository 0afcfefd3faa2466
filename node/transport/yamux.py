"""Yamux, the stream multiplexer of a connection, after the specification of hashicorp/yamux (spec.md, version 0).

py-libp2p's own muxer stops for ever under two-way traffic (its receive loop waits for the write lock to answer a
ping), is corrupted by a cancelled write, resets a writer whose reader pauses for 5 s, never notices a dead peer and
bounds no buffer. Here one task reads and one task writes: the reader never waits for the writer, a frame once begun is
written whole whoever is cancelled, every queue has a limit, and a peer that takes or sends nothing is given up.
"""

import contextlib
import logging
import struct
from collections import deque
from collections.abc import Callable

import attrs
import trio

from node.ports import TransportError
from node.transport.secured import SecuredConnection
from node.transport.yamux_stream import (
    PAYLOAD_SIZE_BYTES_MAX,
    WINDOW_SIZE_BYTES_MAX,
    FrameBudget,
    YamuxStream,
)
from protocols.errors import RemoteProtocolError
from protocols.ids import PeerId

log = logging.getLogger("herd.transport.yamux")

PROTOCOL_ID = "/yamux/1.0.0"

_HEADER = struct.Struct(">BBHII")
_DATA, _WINDOW_UPDATE, _PING, _GO_AWAY = range(4)
_SYN, _ACK, _FIN, _RST = 1, 2, 4, 8
_GO_AWAY_NORMAL, _GO_AWAY_PROTOCOL_ERROR = 0, 1

_BATCH_SIZE_BYTES = 4 * PAYLOAD_SIZE_BYTES_MAX
"""How much the writer puts into one write: enough to save system calls, little enough for streams to take turns."""

_WINDOW_GROWTH_BYTES_MAX = 64 * 1024 * 1024
"""What all streams of one connection may add to their first windows together: the bound of a peer's hold on memory."""

_FRAME_BUDGET_BYTES = 64 * 1024 * 1024
"""Three of the largest frames at once; a peer that begins more and ends none waits for itself."""

_GOODBYE_TIMEOUT_S = 1.0


@attrs.frozen
class YamuxLimits:
    """How much a peer may ask of us, and how long it may leave us waiting."""

    streams_max: int = 256
    control_frames_max: int = 2048
    pings_per_interval_max: int = 64
    write_timeout_s: float = 30.0
    stall_timeout_s: float = 60.0
    keepalive_interval_s: float = 30.0
    keepalive_timeout_s: float = 15.0


@attrs.define(eq=False)
class _Pending:
    """A data frame that waits for the writer."""

    stream: YamuxStream
    frame: bytes
    taken: trio.Event = attrs.field(factory=trio.Event)
    sent: bool = False


class YamuxConnection:
    """One connection to an authenticated peer and its streams. `run` works until the connection ends.

    `on_stream` is called (and must not wait) for every stream the peer opens, `on_violation` once when it broke a rule.
    """

    def __init__(
        self,
        secured: SecuredConnection,
        limits: YamuxLimits,
        on_stream: Callable[[YamuxStream], None],
        on_violation: Callable[[PeerId, str], None],
    ) -> None:
        self.peer: PeerId = secured.peer
        self.peer_id = secured.remote_peer
        self.dialed_here = secured.dialed_here
        self.remote_host = secured.remote_host
        self.limits = limits
        self.opened_at_s = trio.current_time()
        self.used_at_s = self.opened_at_s
        self.received_at_s = self.opened_at_s
        self.closed_why: str | None = None
        self.rtt_s: float | None = None
        self.frame_budget = FrameBudget(_FRAME_BUDGET_BYTES)
        self.received_bytes = 0
        self.sent_bytes = 0
        self._secured = secured
        self._on_stream = on_stream
        self._on_violation = on_violation
        self._streams: dict[int, YamuxStream] = {}
        self._next_id = 1 if secured.dialed_here else 2
        self._last_remote_id = 0
        self._remote_open = 0
        self._control: deque[bytes] = deque()
        self._answers_queued = 0
        self._updates: dict[int, int] = {}
        self._data: deque[_Pending] = deque()
        self._work = trio.Event()
        self._window_growth_bytes = 0
        self._pings_since_s = 0.0
        self._pings_counted = 0
        self._ping_sent_s: float | None = None
        self._ended = trio.Event()
        self._scope = trio.CancelScope()

    # -- what a stream asks of its connection

    async def send_data(self, stream: YamuxStream, payload: bytes | memoryview) -> None:
        """Queue one data frame and wait until the writer took it; a cancelled caller takes an untouched frame back."""
        pending = _Pending(stream, _HEADER.pack(0, _DATA, 0, stream.stream_id, len(payload)) + payload)
        self._data.append(pending)
        self._work.set()
        try:
            await pending.taken.wait()
        except BaseException:
            # A frame that the writer has taken goes out whole; one that waits is withdrawn, so nothing is torn.
            if not pending.taken.is_set():
                self._data.remove(pending)
            raise
        if not pending.sent:
            raise TransportError(stream.shut_why or f"the connection to {self.peer} is closed")

    def queue_finish(self, stream: YamuxStream) -> None:
        """Tell the peer that nothing more comes on a stream; it stands behind all data the writer has taken."""
        self._queue_control(_WINDOW_UPDATE, _FIN, stream.stream_id, 0)
        self._forget_when_done(stream)

    def queue_reset(self, stream: YamuxStream) -> None:
        """Tell the peer that a stream is dead, and forget it."""
        if stream.stream_id in self._streams:
            self._queue_control(_WINDOW_UPDATE, _RST, stream.stream_id, 0)
            self._forget(stream)

    def queue_credit(self, stream: YamuxStream, increment_bytes: int) -> None:
        """Let the peer send more on a stream; credits that wait are added up to one frame."""
        if stream.stream_id in self._streams:
            self._updates[stream.stream_id] = self._updates.get(stream.stream_id, 0) + increment_bytes
            self._work.set()

    def grant_growth(self, wanted_bytes: int) -> int:
        """How much of a wanted window growth this connection's budget allows."""
        granted = min(wanted_bytes, _WINDOW_GROWTH_BYTES_MAX - self._window_growth_bytes)
        self._window_growth_bytes += granted
        return granted

    # -- what the network asks of a connection

    @property
    def is_closed(self) -> bool:
        """Whether the connection ended or is ending."""
        return self.closed_why is not None

    def stream_count(self) -> int:
        """Streams that are not over."""
        return len(self._streams)

    def open_stream(self) -> YamuxStream:
        """A new stream. TransportError when the connection is closed or holds too many."""
        if self.closed_why is not None:
            raise TransportError(f"the connection to {self.peer} is closed: {self.closed_why}")
        if len(self._streams) - self._remote_open >= self.limits.streams_max:
            raise TransportError(f"{self.limits.streams_max} streams to {self.peer} are open already")
        stream = YamuxStream(self, self._next_id)
        self._next_id += 2
        self._streams[stream.stream_id] = stream
        self._queue_control(_WINDOW_UPDATE, _SYN, stream.stream_id, 0)
        self.used_at_s = trio.current_time()
        return stream

    def ping(self) -> None:
        """Ask for a sign of life; `rtt_s` tells how long the last answer took."""
        self._ping_sent_s = trio.current_time()
        self._queue_control(_PING, _SYN, 0, int(self._ping_sent_s) & 0xFFFFFFFF)

    async def run(self) -> None:
        """Read, write and keep alive until the connection ends; every stream of it is broken afterwards."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._read_until_end)
                    nursery.start_soon(self._write_until_end)
                    nursery.start_soon(self._keep_alive)
        finally:
            self.fail("the node is closing")
            with trio.CancelScope(shield=True):
                await self._say_goodbye()
                await self._secured.close()
            self._ended.set()

    def fail(self, why: str) -> None:
        """End the connection at once; idempotent, never waits."""
        if self.closed_why is None:
            self.closed_why = why
            log.debug("connection to %s ended: %s", self.peer, why)
        for stream in list(self._streams.values()):
            stream.break_off(f"the connection to {self.peer} ended: {self.closed_why}")
        self._streams.clear()
        for pending in self._data:
            pending.taken.set()
        self._data.clear()
        self._scope.cancel()

    async def close(self) -> None:
        """End the connection and wait until its socket is closed."""
        self.fail("closed by this node")
        await self._ended.wait()

    # -- writing

    def _queue_control(self, kind: int, flags: int, stream_id: int, value: int) -> None:
        if len(self._control) >= self.limits.control_frames_max:
            self.fail(f"the peer left {len(self._control)} control frames unread")
            return
        self._control.append(_HEADER.pack(0, kind, flags, stream_id, value))
        self._work.set()

    def _answer(self, kind: int, flags: int, stream_id: int, value: int) -> None:
        # Who asks without taking the answers is to blame; who stalls while we do the asking is not.
        if self._answers_queued >= self.limits.control_frames_max:
            self._violated(f"it left {self._answers_queued} control frames unread")
            return
        self._answers_queued += 1
        self._queue_control(kind, flags, stream_id, value)

    async def _write_until_end(self) -> None:
        try:
            while True:
                batch = self._next_batch()
                if not batch:
                    self._work = trio.Event()
                    await self._work.wait()
                    continue
                with trio.move_on_after(self.limits.write_timeout_s) as deadline:
                    await self._secured.write(batch)
                if deadline.cancelled_caught:
                    self.fail(f"the peer took nothing for {self.limits.write_timeout_s:g} s")
                    return
                self.sent_bytes += len(batch)
        except TransportError as error:
            self.fail(str(error))

    def _next_batch(self) -> bytes:
        frames: list[bytes] = []
        while self._control:
            frames.append(self._control.popleft())
        self._answers_queued = 0
        for stream_id, increment_bytes in self._updates.items():
            frames.append(_HEADER.pack(0, _WINDOW_UPDATE, 0, stream_id, increment_bytes))
        self._updates.clear()
        size_bytes = 0
        while self._data and size_bytes < _BATCH_SIZE_BYTES:
            pending = self._data.popleft()
            # Nothing may follow the end of its stream, which went before as a control frame.
            pending.sent = pending.stream.shut_why is None
            pending.taken.set()
            if pending.sent:
                frames.append(pending.frame)
                size_bytes += len(pending.frame)
        return b"".join(frames)

    async def _say_goodbye(self) -> None:
        """Best effort: the peer learns at once that the connection is over instead of finding out."""
        with trio.move_on_after(_GOODBYE_TIMEOUT_S):
            with contextlib.suppress(TransportError):
                await self._secured.write(_HEADER.pack(0, _GO_AWAY, 0, 0, _GO_AWAY_NORMAL))

    # -- reading

    async def _read_until_end(self) -> None:
        try:
            while await self._read_frame():
                pass
            self.fail("the peer closed it")
        except TransportError as error:
            self.fail(str(error))
        except RemoteProtocolError as error:
            self._violated(str(error))

    def _violated(self, detail: str) -> None:
        if self.closed_why is None:
            self.fail(f"the peer broke the protocol: {detail}")
            self._on_violation(self.peer, detail)

    async def _read_frame(self) -> bool:
        header = await self._secured.read_exactly(_HEADER.size)
        if header is None:
            return False
        self.received_bytes += len(header)
        self.received_at_s = trio.current_time()
        version, kind, flags, stream_id, value = _HEADER.unpack(header)
        if version != 0 or kind > _GO_AWAY:
            raise RemoteProtocolError(f"a yamux frame of version {version} and type {kind}")
        if kind == _PING:
            self._pinged(flags, value)
        elif kind == _GO_AWAY:
            return False
        else:
            if flags & _SYN:
                self._opened(stream_id)
            stream = self._streams.get(stream_id)
            if kind == _DATA:
                await self._take_data(stream, value)
            elif stream is not None:
                stream.add_send_window(value)
            if stream is not None:
                self._take_flags(stream, flags)
        return True

    def _opened(self, stream_id: int) -> None:
        ours = stream_id % 2 == self._next_id % 2
        if ours or stream_id <= self._last_remote_id:
            raise RemoteProtocolError(f"the peer opened stream {stream_id}, which is not its to open")
        self._last_remote_id = stream_id
        if self._remote_open >= self.limits.streams_max:
            self._answer(_WINDOW_UPDATE, _RST, stream_id, 0)
            return
        stream = YamuxStream(self, stream_id)
        self._streams[stream_id] = stream
        self._remote_open += 1
        self._answer(_WINDOW_UPDATE, _ACK, stream_id, 0)
        self.used_at_s = trio.current_time()
        self._on_stream(stream)

    async def _take_data(self, stream: YamuxStream | None, size_bytes: int) -> None:
        # Checked before a byte is read: nobody makes us hold more than we granted.
        if size_bytes > (stream.receive_window if stream is not None else WINDOW_SIZE_BYTES_MAX):
            raise RemoteProtocolError(f"a data frame of {size_bytes} bytes is over the stream's window")
        while size_bytes > 0:
            data = await self._secured.read(size_bytes)
            if not data:
                raise TransportError("the peer closed the connection inside a frame")
            size_bytes -= len(data)
            self.received_bytes += len(data)
            if stream is not None:
                stream.add_received(data)

    def _take_flags(self, stream: YamuxStream, flags: int) -> None:
        if flags & _FIN:
            stream.finished_by_peer()
            self._forget_when_done(stream)
        if flags & _RST:
            self._forget(stream)
            stream.break_off(f"peer {self.peer} reset the stream")

    def _pinged(self, flags: int, value: int) -> None:
        now = trio.current_time()
        if flags & _ACK:
            if self._ping_sent_s is not None:
                self.rtt_s, self._ping_sent_s = now - self._ping_sent_s, None
            return
        if now - self._pings_since_s > self.limits.keepalive_interval_s:
            self._pings_since_s, self._pings_counted = now, 0
        self._pings_counted += 1
        if self._pings_counted > self.limits.pings_per_interval_max:
            raise RemoteProtocolError(f"{self._pings_counted} pings in {self.limits.keepalive_interval_s:g} s")
        self._answer(_PING, _ACK, 0, value)

    # -- life

    async def _keep_alive(self) -> None:
        """Ask a silent peer for a sign of life; TCP alone would believe for hours in a host that lost its power."""
        while True:
            seen_bytes = self.received_bytes
            await trio.sleep(self.limits.keepalive_interval_s)
            if self.received_bytes != seen_bytes:
                continue
            self.ping()
            await trio.sleep(self.limits.keepalive_timeout_s)
            if self.received_bytes == seen_bytes:
                silence_s = self.limits.keepalive_interval_s + self.limits.keepalive_timeout_s
                self.fail(f"the peer was silent for {silence_s:g} s")
                return

    def _forget_when_done(self, stream: YamuxStream) -> None:
        if stream.is_done:
            self._forget(stream)

    def _forget(self, stream: YamuxStream) -> None:
        if self._streams.pop(stream.stream_id, None) is not None:
            self._window_growth_bytes -= stream.window_growth_bytes
            self._updates.pop(stream.stream_id, None)
            if stream.stream_id % 2 != self._next_id % 2:
                self._remote_open -= 1
            self.used_at_s = trio.current_time()
