"""One end of a simulated stream: `node.ports.Stream` over two pipes, under the conditions between its peers."""

from collections.abc import Callable
from typing import Protocol

import trio

from node.transport.serving import LINGER_S
from protocols.framing import frame_header
from protocols.ids import PeerId
from simnet.conditions import Conditions
from simnet.pipe import CLEAR, CUT_BREAKS_S, Pipe
from simnet.wire import Lane


class Line(Protocol):
    """What a stream asks of its network."""

    conditions: Conditions
    send_buffer_bytes: int
    on_frame: Callable[[PeerId, PeerId, int], object] | None
    on_chunk: Callable[[PeerId, PeerId, int], object] | None

    def delay_s(self, sender: PeerId, receiver: PeerId) -> float:
        """One draw of how long a frame travels."""
        ...


class SimStream:
    """One end of a stream: `node.ports.Stream` over two pipes."""

    def __init__(
        self,
        line: Line,
        owner: PeerId,
        peer: PeerId,
        inbound: Pipe,
        lane: Lane,
        forget: Callable[[], object],
    ) -> None:
        self.peer = peer
        self._line = line
        self._owner = owner
        self._inbound = inbound
        self._outbound = lane.pipe
        self._lane = lane
        self._forget = forget

    async def send(self, payload: bytes | memoryview) -> None:
        """Send one frame; waits while the peer's window is full. A cancelled send ends the stream."""
        await self.send_as(payload, len(payload))

    async def send_as(self, payload: bytes | memoryview, weight_bytes: int, *, chunk: bool = False) -> None:
        """Send one frame that takes the time and the room of so many bytes, whatever it has; `chunk` is what it is."""
        # Too large a frame is refused before anything is done, as by a real stream.
        frame_header(len(payload))
        try:
            delay_s = self._line.delay_s(self._owner, self.peer)
            await self._outbound.room(weight_bytes, self._way)
            self._lane.push(bytes(payload), weight_bytes, delay_s)
            if self._line.on_frame is not None:
                self._line.on_frame(self._owner, self.peer, weight_bytes)
            if chunk and self._line.on_chunk is not None:
                self._line.on_chunk(self._owner, self.peer, weight_bytes)
            await self._lane.flushed(self._line.send_buffer_bytes)
        except BaseException:
            self.break_off(f"a send of peer {self._owner} ended early")
            raise

    async def receive(self, size_bytes_max: int) -> bytes | None:
        """The next frame, or None when the peer finished; a cancelled receive loses nothing."""
        return await self._inbound.take(size_bytes_max, self._way)

    async def finish(self) -> None:
        """Nothing more will be sent from here."""
        await trio.lowlevel.checkpoint()
        delay_s = self._line.delay_s(self._owner, self.peer)
        if self._outbound.end():
            self._lane.push(None, 0, delay_s)
        self._forget_when_done()

    async def abort(self) -> None:
        """End both sides at once."""
        await trio.lowlevel.cancel_shielded_checkpoint()
        self.break_off(f"peer {self._owner} ended the stream")

    async def linger(self) -> None:
        """After a handler returned: finish, then drop what still comes until the peer finishes too."""
        await self.finish()
        with trio.move_on_after(LINGER_S):
            while await self._inbound.take(None, self._way) is not None:
                pass

    def break_off(self, why: str) -> None:
        """Both directions fail from now on, unless they had ended well before."""
        self._inbound.break_off(why)
        self._outbound.break_off(why)
        self._lane.wake()
        self._forget()

    def wake(self) -> None:
        """Conditions changed: look again."""
        self._inbound.wake()
        self._outbound.wake()
        self._lane.wake()

    def _way(self) -> tuple[bool, float]:
        conditions = self._line.conditions
        if not conditions.troubled:
            return CLEAR
        since_s = conditions.shut_since(self._owner, self.peer)
        if since_s is not None and trio.current_time() >= since_s + CUT_BREAKS_S:
            self.break_off(f"peer {self.peer} did not answer for {CUT_BREAKS_S:g} s")
        breaks_at_s = float("inf") if since_s is None else since_s + CUT_BREAKS_S
        return conditions.arrives(self.peer, self._owner), breaks_at_s

    def _forget_when_done(self) -> None:
        if self._inbound.ended and self._outbound.ended:
            self._forget()
