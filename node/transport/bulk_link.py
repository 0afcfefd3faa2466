"""The two ends of a bulk link: the connections of one session between one giver and one asker, its lanes.

A chunk travels on one lane, whole. When a lane breaks off, chunks may be lost that its giver believes sent, so the
link ends as a whole and the session begins anew; a lane that ends in order has lost nothing.
"""

import logging
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress

import attrs
import trio

from node.ports import CarriedChunk, TransportError
from node.transport.bulk_lane import AskerLane, GiverLane
from protocols.bulk.frames import BrokenFrame
from protocols.climber import Climber, ClimberConfig
from protocols.errors import RemoteProtocolError
from protocols.ids import PeerId

log = logging.getLogger("herd.bulk")

SAMPLE_INTERVAL_S = 1.0
BUSY = 0.8
"""The part of the time that lanes must be receiving for their rate to say how many there should be."""


class GiverLink:
    """Implements `node.ports.ChunkLink` for the giver; the carrier adds the lanes that the asker opens."""

    def __init__(self, peer: PeerId, ticket: bytes, bytes_max: int, on_broken: Callable[[], None]) -> None:
        self.peer = peer
        self.ticket = ticket
        self._bytes_max = bytes_max
        self._on_broken = on_broken
        self._lanes: dict[GiverLane, None] = {}
        self._idle: deque[GiverLane] = deque()
        self._sending: dict[GiverLane, None] = {}
        self._leaving: dict[GiverLane, trio.Event] = {}
        self._waiting = trio.lowlevel.ParkingLot()
        self._closed = False

    @property
    def lanes(self) -> int:
        """How many connections stand; 0 once the link is gone."""
        return 0 if self._closed else len(self._lanes)

    async def keep(self, lane: GiverLane) -> None:
        """Use a lane until it ends."""
        if self._closed:
            return lane.close()
        self._lanes[lane] = None
        self._give_back(lane)
        try:
            if await lane.wait_ended():
                await self._let_go(lane)
        except BrokenFrame:
            self._on_broken()
        except TransportError:
            pass  # It went before it could be told that nothing more comes; it had asked for that.
        finally:
            lane.close()
            self._forget(lane)

    async def send(self, chunk: CarriedChunk, wanted: Callable[[], bool]) -> bool:
        """Send one chunk on a free lane, if it is still wanted by then; whether it went."""
        while not self._idle:
            if self._closed:
                raise TransportError(f"the bulk link of {self.peer} is closed")
            await self._waiting.park()
        lane = self._idle.pop()
        if not wanted():
            self._give_back(lane)
            return False
        self._sending[lane] = None
        went = False
        try:
            await lane.send_chunk(chunk)
            went = True
        finally:
            del self._sending[lane]
            if not went:
                self._end()
        await self._retire_or_give_back(lane)
        return True

    async def receive(self) -> CarriedChunk | None:
        """Nothing comes from an asker."""
        raise TransportError("a giver's link only sends")

    async def close(self) -> None:
        """End every lane at once; idempotent."""
        self._end()
        await trio.lowlevel.checkpoint()

    def _end(self) -> None:
        self._closed = True
        for lane in list(self._lanes):
            lane.close()
        for over in self._leaving.values():
            over.set()
        self._waiting.unpark_all()

    async def _let_go(self, lane: GiverLane) -> None:
        """The asker needs a lane no more: what is on its way goes through, then it ends in order."""
        if lane in self._idle:
            self._idle.remove(lane)
            await lane.finish()
        elif lane in self._sending:
            over = self._leaving[lane] = trio.Event()
            await over.wait()

    async def _retire_or_give_back(self, lane: GiverLane) -> None:
        leaving = self._leaving.pop(lane, None)
        if leaving is None and lane.carried_bytes < self._bytes_max:
            self._give_back(lane)
            return
        # Over its limit: the asker counts too and has opened the successor by now.
        with suppress(TransportError):
            await lane.finish()
        if leaving is not None:
            leaving.set()

    def _give_back(self, lane: GiverLane) -> None:
        if lane in self._lanes:
            self._idle.append(lane)
            self._waiting.unpark()

    def _forget(self, lane: GiverLane) -> None:
        self._lanes.pop(lane, None)
        if lane in self._idle:
            self._idle.remove(lane)
        if not self._lanes:
            # An asker that stays opens the next lane before it ends one, so without a lane it is gone.
            self._end()


@attrs.frozen
class _Sample:
    """How far all lanes of a link are at one moment."""

    at_s: float
    carried_bytes: int
    receiving_s: float


class AskerLink:
    """Implements `node.ports.ChunkLink` for the asker; `open_lane` gets a ticket and connects."""

    def __init__(
        self,
        peer: PeerId,
        ticket: bytes,
        nursery: trio.Nursery,
        open_lane: Callable[[], Awaitable[AskerLane]],
        on_broken: Callable[[], None],
        lanes_max: int,
    ) -> None:
        self.peer = peer
        self.ticket = ticket
        self._nursery = nursery
        self._open_lane = open_lane
        self._on_broken = on_broken
        self._lanes: dict[AskerLane, trio.CancelScope] = {}
        self._replaced: dict[AskerLane, None] = {}
        self._arrived: deque[tuple[CarriedChunk, trio.Event]] = deque()
        self._changed = trio.Event()
        self._failure: TransportError | RemoteProtocolError | None = None
        self._climber = Climber(ClimberConfig(maximum=lanes_max))
        self._carried_bytes = 0
        self.ended = trio.Event()

    @property
    def lanes(self) -> int:
        """How many connections stand; 0 once the link is gone."""
        return 0 if self.ended.is_set() else len(self._lanes)

    def add(self, lane: AskerLane) -> None:
        """Read from a further lane."""
        if self.ended.is_set():
            return lane.close()
        self._lanes[lane] = trio.CancelScope()
        self._nursery.start_soon(self._read, lane, self._lanes[lane])

    async def send(self, chunk: CarriedChunk, wanted: Callable[[], bool]) -> bool:
        """Nothing goes to a giver."""
        raise TransportError("an asker's link only receives")

    async def receive(self) -> CarriedChunk | None:
        """The next chunk of any lane, None when the giver ended the last of them in order."""
        while not self._arrived:
            if self.ended.is_set():
                if self._failure is not None:
                    raise self._failure
                return None
            self._changed = trio.Event()
            await self._changed.wait()
        chunk, taken = self._arrived.popleft()
        taken.set()
        return chunk

    async def close(self) -> None:
        """End every lane at once; idempotent."""
        self._end(None)
        await trio.lowlevel.checkpoint()

    async def _read(self, lane: AskerLane, scope: trio.CancelScope) -> None:
        try:
            with scope:
                while (chunk := await lane.receive_chunk()) is not None:
                    # A lane reads no further until its chunk was taken: what waits here is one chunk a lane.
                    taken = trio.Event()
                    self._arrived.append((chunk, taken))
                    self._carried_bytes += len(chunk.data)
                    self._changed.set()
                    await taken.wait()
                    if lane.nearly_used_up and lane not in self._replaced:
                        await self._replace(lane)
        except BrokenFrame as error:
            self._on_broken()
            self._end(TransportError(f"a bulk connection of {self.peer} was tampered with: {error}"))
        except (TransportError, RemoteProtocolError) as error:
            self._end(error)
        except Exception:  # boundary: a fault of ours that one lane meets ends its link, never the node.
            log.exception("a bulk connection of %s failed", self.peer)
            self._end(TransportError(f"a bulk connection of {self.peer} failed here"))
        finally:
            lane.close()
            self._lanes.pop(lane, None)
            self._replaced.pop(lane, None)
            if not self._lanes:
                self._end(None)

    async def grow(self) -> None:
        """Until the link ends, see whether one lane more brings more, and leave it when it does not."""
        before = self._sample()
        while True:
            with trio.move_on_after(SAMPLE_INTERVAL_S):
                await self.ended.wait()
            if self.ended.is_set():
                return
            now = self._sample()
            passed_s = now.at_s - before.at_s
            if now.receiving_s - before.receiving_s < BUSY * passed_s * len(self._lanes):
                # Whatever holds the lanes up, a further one would wait as well.
                self._climber.idle()
            else:
                await self._adjust(
                    self._climber.sample((now.carried_bytes - before.carried_bytes) / passed_s, now.at_s)
                )
            before = self._sample()

    def _sample(self) -> "_Sample":
        return _Sample(trio.current_time(), self._carried_bytes, sum(lane.receiving_s() for lane in self._lanes))

    async def _adjust(self, level: int) -> None:
        staying = [lane for lane in self._lanes if lane not in self._replaced]
        try:
            if level > len(staying):
                self.add(await self._open_lane())
            elif level < len(staying):
                # Marked as one that has its successor: nobody opens another when it ends.
                self._replaced[staying[-1]] = None
                await staying[-1].finish()
        except TransportError as error:
            log.debug("the lanes of %s stay as they are: %s", self.peer, error)

    async def _replace(self, lane: AskerLane) -> None:
        """A lane that has carried nearly what one key may carry gets its successor before the giver ends it."""
        self._replaced[lane] = None
        self.add(await self._open_lane())

    def _end(self, failure: TransportError | RemoteProtocolError | None) -> None:
        if not self.ended.is_set():
            self._failure = failure
            self.ended.set()
            self._changed.set()
            for lane, scope in list(self._lanes.items()):
                scope.cancel()
                lane.close()
