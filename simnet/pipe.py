"""One direction of a simulated stream: frames in order, each ready at its time, with a window for slow readers."""

from collections import deque
from collections.abc import Callable

import trio

from node.ports import TransportError
from protocols.errors import RemoteProtocolError

WINDOW_SIZE_BYTES = 1024 * 1024
"""A sender waits while at least this much lies unread; the frame that crosses the line still passes."""

STALL_TIMEOUT_S = 60.0
"""How long a sender waits for a reader that reads nothing (`NetworkConfig.stall_timeout_s` of a real node)."""

CUT_BREAKS_S = 30.0
"""A connection over a cut link breaks after this long, as one that gets no answer does in a real node."""

Way = Callable[[], tuple[bool, float]]
"""Whether what comes this way arrives now, and until when an answer is waited for; it breaks the stream by itself."""

CLEAR = (True, float("inf"))
"""The way of a stream that nothing is wrong with."""


class Pipe:
    """Frames from one task to another. `ended` says that no further frame will be put."""

    def __init__(self, window_size_bytes: int = WINDOW_SIZE_BYTES) -> None:
        self._window_size_bytes = window_size_bytes
        self._frames: deque[tuple[float, bytes | None, int]] = deque()
        self._unread_bytes = 0
        self._broken: str | None = None
        self._changed: trio.Event | None = None
        self._taking: trio.CancelScope | None = None
        self._arrives = True
        self._last_ready_s = 0.0
        self.ended = False

    @property
    def broken(self) -> bool:
        """Whether what is put now would reach nobody."""
        return self._broken is not None

    async def room(self, weight_bytes: int, way: Way) -> None:
        """Take room in the window for a frame, once it has any; the frame is to be put by `append`.

        TransportError when broken, ended, or nobody reads.
        """
        await trio.lowlevel.checkpoint()
        deadline_s = trio.current_time() + STALL_TIMEOUT_S
        while self._broken is None and self._unread_bytes >= self._window_size_bytes:
            if trio.current_time() >= deadline_s:
                self.break_off(f"the reader took nothing for {STALL_TIMEOUT_S:g} s")
                break
            unread_bytes = self._unread_bytes
            await self._wait(deadline_s, way)
            if self._unread_bytes < unread_bytes:
                deadline_s = trio.current_time() + STALL_TIMEOUT_S
        if self._broken is not None:
            raise TransportError(self._broken)
        if self.ended:
            raise TransportError("the stream is finished on this side")
        self._unread_bytes += weight_bytes

    def append(self, payload: bytes | None, weight_bytes: int, ready_s: float) -> None:
        """Add a frame that this much room was taken for, or None as the end; it can be read from `ready_s` on."""
        # Jitter never reorders a stream.
        self._last_ready_s = max(self._last_ready_s, ready_s)
        self._frames.append((self._last_ready_s, payload, weight_bytes))
        # Who takes wakes when a frame is ready and not before.
        if self._taking is not None and self._arrives and self._last_ready_s < self._taking.deadline:
            self._taking.deadline = self._last_ready_s

    def end(self) -> bool:
        """No further room will be taken; whether this ended it."""
        if self.ended or self._broken is not None:
            return False
        self.ended = True
        return True

    async def take(self, size_bytes_max: int | None, way: Way) -> bytes | None:
        """The next frame when its time has come, None at the end; None as limit means any size. One task takes."""
        waited = False
        while True:
            arrives, breaks_at_s = way()
            due_s = self._frames[0][0] if self._frames and arrives else float("inf")
            if due_s > trio.current_time():
                if self._broken is not None:
                    raise TransportError(self._broken)
                with trio.CancelScope(deadline=min(due_s, breaks_at_s)) as scope:
                    self._taking, self._arrives = scope, arrives
                    await trio.sleep_forever()
                self._taking, waited = None, True
            elif waited:
                return self._pop(size_bytes_max)
            else:
                await trio.lowlevel.checkpoint()
                waited = True

    def break_off(self, why: str) -> None:
        """Fail both ends from now on; frames on the way are lost, but what was finished can be read to its end."""
        if not self.ended:
            self.fail(why)

    def fail(self, why: str) -> None:
        """Fail both ends from now on, though the frames to its end are on their way."""
        if self._broken is None:
            self._broken = why
            self.ended = True
            self._frames.clear()
            self._unread_bytes = 0
            self.wake()

    def wake(self) -> None:
        """Let both ends look again."""
        if self._taking is not None:
            self._taking.deadline = trio.current_time()
        self._make_room()

    def _make_room(self) -> None:
        if self._changed is not None:
            self._changed.set()
            self._changed = None

    def _pop(self, size_bytes_max: int | None) -> bytes | None:
        _, payload, weight_bytes = self._frames[0]
        if payload is None:
            # The end stays in place: every further receive says the same.
            return None
        if size_bytes_max is not None and len(payload) > size_bytes_max:
            raise RemoteProtocolError(f"a frame of {len(payload)} bytes is over the limit of {size_bytes_max}")
        self._frames.popleft()
        self._unread_bytes -= weight_bytes
        self._make_room()
        return payload

    async def _wait(self, until_s: float, way: Way) -> None:
        _, breaks_at_s = way()
        if self._broken is not None:
            return
        if self._changed is None:
            self._changed = trio.Event()
        with trio.move_on_at(min(until_s, breaks_at_s)):
            await self._changed.wait()
