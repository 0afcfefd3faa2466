"""How many lanes a link has, told with lanes played by hand under virtual time."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from node.ports import CarriedChunk, TransportError
from node.transport.bulk_link import AskerLink, GiverLink
from protocols.bulk.frames import BrokenFrame
from protocols.errors import RemoteProtocolError
from protocols.ids import PeerId, digest_of

BOB = PeerId("bob")
BLOB = digest_of(b"blob")
MEBIBYTE = 1 << 20
CHUNK = CarriedChunk(BLOB, 0, bytes(MEBIBYTE))


class PlayedLane:
    """Brings a chunk of 1 MiB every `chunk_s()`, until it is asked to finish, closed, or told to fail."""

    def __init__(self, chunk_s: Callable[[], float], bytes_max: int) -> None:
        self.carried_bytes = 0
        self._bytes_max = bytes_max
        self.finished = False
        self.closed = trio.Event()
        self.failure: Exception | None = None
        self._chunk_s = chunk_s
        self._received_s = 0.0

    @property
    def nearly_used_up(self) -> bool:
        return self.carried_bytes >= 0.9 * self._bytes_max

    def receiving_s(self) -> float:
        return self._received_s

    async def receive_chunk(self) -> CarriedChunk | None:
        if self.finished:
            return None
        with trio.move_on_after(self._chunk_s()):
            await self.closed.wait()
        if self.closed.is_set() or self.failure is not None:
            raise self.failure or TransportError("closed")
        self._received_s += self._chunk_s()
        self.carried_bytes += MEBIBYTE
        return CHUNK

    async def finish(self) -> None:
        self.finished = True
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        self.closed.set()


class Linked:
    """A link whose lanes each get `share(number of lanes)` of a link of 10 MiB/s."""

    def __init__(self, nursery: trio.Nursery, share: Callable[[int], float], bytes_max: int = 1 << 40) -> None:
        self.opened: list[PlayedLane] = []
        self.broken = 0
        self._share = share
        self._bytes_max = bytes_max
        self.link = AskerLink(BOB, b"t" * 16, nursery, self.open_lane, self._broke, 4)

    def _broke(self) -> None:
        self.broken += 1

    async def open_lane(self) -> Any:
        await trio.lowlevel.checkpoint()
        self.opened.append(PlayedLane(lambda: 0.1 / self._share(max(1, self.link.lanes)), self._bytes_max))
        return self.opened[-1]

    async def take(self, seconds: float) -> int:
        """How many chunks came in so many seconds."""
        count = 0
        with trio.move_on_after(seconds):
            while await self.link.receive() is not None:
                count += 1
        return count


@asynccontextmanager
async def linked(share: Callable[[int], float], bytes_max: int = 1 << 40) -> AsyncIterator[Linked]:
    async with trio.open_nursery() as nursery:
        made = Linked(nursery, share, bytes_max)
        made.link.add(await made.open_lane())
        nursery.start_soon(made.link.grow)
        yield made
        await made.link.close()
        nursery.cancel_scope.cancel()


async def test_a_link_that_one_lane_fills_keeps_one(autojump_clock: MockClock) -> None:
    async with linked(lambda lanes: 1 / lanes) as made:
        await made.take(200)
        assert made.link.lanes == 1
        assert 1 < len(made.opened) < 8, "more was tried, ever more rarely"


async def test_lanes_are_added_while_they_bring_more(autojump_clock: MockClock) -> None:
    async with linked(lambda lanes: 1 if lanes <= 3 else 3 / lanes) as made:
        await made.take(40)
        assert made.link.lanes in (3, 4)
        assert await made.take(10) == pytest.approx(300, rel=0.05)


async def test_a_link_that_waits_for_its_giver_is_not_judged(autojump_clock: MockClock) -> None:
    async with linked(lambda lanes: 1 / lanes) as made:
        for _ in range(100):
            await made.link.receive()
            await trio.sleep(2)
        assert len(made.opened) == 1


async def test_a_lane_near_its_limit_gets_a_successor_before_it_ends(autojump_clock: MockClock) -> None:
    async with linked(lambda lanes: 1 / lanes, bytes_max=10 * MEBIBYTE) as made:
        await made.take(0.95)
        assert len(made.opened) == 2, "at nine tenths"
        made.opened[0].finished = True  # the giver says END at its limit
        await made.take(0.5)
        assert (made.link.lanes, made.link.ended.is_set()) == (1, False)


@pytest.mark.parametrize(
    ("failure", "seen", "broken"),
    [
        (TransportError("reset"), TransportError, 0),
        (BrokenFrame("frame 3 does not open"), TransportError, 1),
        (RemoteProtocolError("no chunk"), RemoteProtocolError, 0),
    ],
)
async def test_a_lane_that_fails_ends_the_link(
    autojump_clock: MockClock, failure: Exception, seen: type[Exception], broken: int
) -> None:
    async with linked(lambda lanes: 1 / lanes) as made:
        await made.take(1)
        made.opened[0].failure = failure
        with pytest.raises(seen) as raised:
            await made.take(5)
        # What somebody on the way may have done is not the giver's offence.
        assert isinstance(raised.value, RemoteProtocolError) == (seen is RemoteProtocolError)
        assert (made.broken, made.link.lanes) == (broken, 0)


class PlayedGiverLane:
    """Takes a chunk in 0.1 s; `leave` is the asker saying that it needs the lane no more."""

    def __init__(self) -> None:
        self.carried_bytes = 0
        self.sent: list[int] = []
        self.finished = False
        self.leave = trio.Event()
        self.closed = False

    async def wait_ended(self) -> bool:
        await self.leave.wait()
        return True

    async def send_chunk(self, chunk: CarriedChunk) -> None:
        await trio.sleep(0.1)
        assert not self.closed, "closed in the middle of a chunk"
        self.sent.append(chunk.index)
        self.carried_bytes += len(chunk.data)

    async def finish(self) -> None:
        self.finished = True
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        self.closed = True


async def test_a_lane_that_is_given_up_sends_what_it_has_begun(autojump_clock: MockClock) -> None:
    lanes: list[Any] = [PlayedGiverLane(), PlayedGiverLane()]
    link = GiverLink(BOB, b"t" * 16, 1 << 40, lambda: None)
    async with trio.open_nursery() as nursery:
        for lane in lanes:
            nursery.start_soon(link.keep, lane)
        await trio.testing.wait_all_tasks_blocked()
        for index in range(6):
            nursery.start_soon(link.send, CarriedChunk(BLOB, index, b"x"), lambda: True)
        await trio.sleep(0.05)
        lanes[0].leave.set()
        await trio.sleep(1)
        assert len(lanes[0].sent) == 1, "what it had begun when it was given up, and nothing more"
        assert (lanes[0].finished, lanes[0].closed, link.lanes) == (True, True, 1)
        assert sorted(lanes[0].sent + lanes[1].sent) == [0, 1, 2, 3, 4, 5]
        nursery.cancel_scope.cancel()


async def test_a_chunk_that_nobody_wants_when_its_turn_comes_is_not_sent(autojump_clock: MockClock) -> None:
    lane: Any = PlayedGiverLane()
    link = GiverLink(BOB, b"t" * 16, 1 << 40, lambda: None)
    wanted, went = [True], []

    async def send(index: int) -> None:
        went.append((index, await link.send(CarriedChunk(BLOB, index, b"x"), lambda: wanted[0])))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(link.keep, lane)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(send, 0)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(send, 1)
        await trio.sleep(0.05)
        wanted[0] = False
        await trio.sleep(1)
        assert went == [(0, True), (1, False)]
        assert lane.sent == [0]
        nursery.cancel_scope.cancel()
