"""A host's wire to the network: an uplink and a downlink of limited rate, shared fairly by the streams of a host.

Frames travel in segments. Streams put segments into the uplink's queue in turn, so that bulk streams share it evenly,
as TCP's do; the queue is first in, first out and `queue_s` long, so that a small message waits behind it, as on a real
link that is full. What leaves one host joins the downlink of the other, first come, first served; a stream whose
receiver has `queue_s` of work already waits, and the others go on. One task a host that sends over limited links.
"""

from collections import deque

import attrs
import trio

from simnet.pipe import Pipe

MOMENT_S = 1e-6


class Wire:
    """One host's two directions. Rates are in bytes a second, None for no limit."""

    def __init__(
        self,
        nursery: trio.Nursery,
        up_bytes_per_s: float | None,
        down_bytes_per_s: float | None,
        queue_s: float,
        segment_size_bytes: int,
    ) -> None:
        self.slowed = 1.0
        self.segment_size_bytes = segment_size_bytes
        self.sent_bytes = 0
        self._nursery = nursery
        self._up_bytes_per_s = up_bytes_per_s
        self._down_bytes_per_s = down_bytes_per_s
        self._queue_s = queue_s
        self._lanes: deque[Lane] = deque()
        self._queue: deque[_Segment] = deque()
        self._queued_bytes = 0
        self._down_free_s = 0.0
        self._changed = trio.Event()
        self._running = False

    @property
    def limited_up(self) -> bool:
        """Whether what this host sends takes time."""
        return self._up_bytes_per_s is not None

    @property
    def limited_down(self) -> bool:
        """Whether what this host receives takes time."""
        return self._down_bytes_per_s is not None

    def limit(self, up_bytes_per_s: float | None, down_bytes_per_s: float | None) -> None:
        """Other rates from the next segment on."""
        self._up_bytes_per_s, self._down_bytes_per_s = up_bytes_per_s, down_bytes_per_s
        self._changed.set()

    def join(self, lane: "Lane") -> None:
        """A stream has something to send from now on."""
        self._lanes.append(lane)
        if not self._running:
            self._running = True
            self._nursery.start_soon(self._run)
        self._changed.set()

    async def _run(self) -> None:
        """Send what streams queue, until cancelled."""
        free_s = 0.0
        while True:
            wait_s = self._fill(trio.current_time())
            if not self._queue:
                self._changed = trio.Event()
                with trio.move_on_after(wait_s):
                    await self._changed.wait()
                continue
            segment = self._queue[0]
            if self._up_bytes_per_s is not None:
                free_s = max(free_s, trio.current_time()) + segment.size_bytes * self.slowed / self._up_bytes_per_s
                await trio.sleep_until(free_s)
            self._queue.popleft()
            self._queued_bytes -= segment.size_bytes
            self.sent_bytes += segment.size_bytes
            segment.lane.depart(segment)

    def close(self, why: str) -> None:
        """The host is gone, and with it what it had not sent."""
        for lane in self._lanes:
            lane.fail(why)
        for segment in self._queue:
            segment.lane.fail(why)

    def arrive(self, size_bytes: int) -> float:
        """A segment left the other host; when it is through this one's downlink."""
        now = trio.current_time()
        if self._down_bytes_per_s is None:
            return now
        self._down_free_s = max(self._down_free_s, now) + size_bytes * self.slowed / self._down_bytes_per_s
        return self._down_free_s

    def congested_s(self, now: float) -> float:
        """How long a sender waits before it adds to what is coming here; 0 when it may at once."""
        if self._down_bytes_per_s is None:
            return 0.0
        wait_s = self._down_free_s - now - self._queue_s
        # Waiting for less than the clock can tell would be waiting for ever.
        return wait_s if wait_s > MOMENT_S else 0.0

    def _fill(self, now: float) -> float:
        """Queue segments of each stream in turn; how long until another look is worth it when none could be."""
        size_bytes_max = self._queue_s * self._up_bytes_per_s if self._up_bytes_per_s is not None else 1
        wait_s = float("inf")
        passed = 0
        while self._lanes and passed < len(self._lanes) and self._queued_bytes < size_bytes_max:
            lane = self._lanes[0]
            congested_s = lane.receiver.congested_s(now)
            if congested_s:
                wait_s = min(wait_s, congested_s)
                self._lanes.rotate(-1)
                passed += 1
                continue
            segment = lane.next_segment()
            if segment is not None:
                self._queue.append(segment)
                self._queued_bytes += segment.size_bytes
            if lane.busy():
                self._lanes.rotate(-1)
            else:
                self._lanes.popleft()
            passed = 0
        return wait_s


@attrs.define
class _Segment:
    """A piece of a frame; the last one carries the frame, its weight and its delay."""

    lane: "Lane"
    size_bytes: int
    last: bool
    payload: bytes | None
    weight_bytes: int
    delay_s: float


class Lane:
    """One direction of one stream, from the wire of its sender to that of its receiver."""

    def __init__(self, pipe: Pipe, sender: Wire, receiver: Wire) -> None:
        self.pipe = pipe
        self.receiver = receiver
        self._sender = sender
        self._frames: deque[tuple[bytes | None, int, float]] = deque()
        self._under_way = 0
        self._gone_bytes = 0
        self._unsent_bytes = 0
        self._sent = trio.Event()

    def push(self, payload: bytes | None, weight_bytes: int, delay_s: float) -> None:
        """A frame, or None for the end, in order; it joins the pipe when all of it has passed both wires."""
        if not self._sender.limited_up and not self.receiver.limited_down and not self._under_way:
            self._sender.sent_bytes += weight_bytes
            self.pipe.append(payload, weight_bytes, trio.current_time() + delay_s)
            return
        self._unsent_bytes += weight_bytes
        self._under_way += 1
        self._frames.append((payload, weight_bytes, delay_s))
        if len(self._frames) == 1:
            self._sender.join(self)

    async def flushed(self, left_bytes_max: int) -> None:
        """Wait until at most so much has not left the host, as who writes to a socket does."""
        while self._unsent_bytes > left_bytes_max and not self.pipe.broken:
            self._sent = trio.Event()
            await self._sent.wait()

    def busy(self) -> bool:
        """Whether anything is left to send."""
        return bool(self._frames)

    def next_segment(self) -> _Segment | None:
        """The next piece; None when the stream broke meanwhile."""
        if self.pipe.broken:
            self._frames.clear()
            self._gone_bytes = self._unsent_bytes = 0
            self._sent.set()
            return None
        payload, weight_bytes, delay_s = self._frames[0]
        left_bytes = weight_bytes - self._gone_bytes
        size_bytes = min(left_bytes, self._sender.segment_size_bytes)
        if size_bytes < left_bytes:
            self._gone_bytes += size_bytes
            return _Segment(self, size_bytes, False, None, 0, 0.0)
        self._frames.popleft()
        self._gone_bytes = 0
        return _Segment(self, size_bytes, True, payload, weight_bytes, delay_s)

    def wake(self) -> None:
        """The stream broke, perhaps: whoever waits looks again."""
        self._sent.set()

    def fail(self, why: str) -> None:
        """What is left will never be sent."""
        self.pipe.fail(why)
        self._sent.set()

    def depart(self, segment: _Segment) -> None:
        """A piece left the sender."""
        self._unsent_bytes = max(0, self._unsent_bytes - segment.size_bytes)
        self._sent.set()
        through_s = self.receiver.arrive(segment.size_bytes)
        if segment.last:
            self._under_way -= 1
            if not self.pipe.broken:
                self.pipe.append(segment.payload, segment.weight_bytes, through_s + segment.delay_s)
