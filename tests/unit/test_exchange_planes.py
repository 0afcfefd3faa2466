"""Which plane carries a peer's chunks: the bulk port where it can be reached, else control streams, and back again."""

from collections.abc import Callable

import attrs
import pytest
import trio
from trio.testing import MockClock

from node.ports import CarriedChunk, ChunkLinkHandler, TransportError
from node.services.exchange.planes import PEERS_KEPT_MAX, Plane, Planes
from protocols.bulk.config import BulkConfig
from protocols.ids import PeerId

ANN, BOB = PeerId("ann"), PeerId("bob")
TICKET = b"t" * 16
NO_PORT = TransportError("its bulk port cannot be reached: 10.0.0.2 port 4702: Connection refused")
NOBODY = TransportError("peer bob answers at none of /ip4/10.0.0.2/tcp/4701")


@attrs.define
class FakeLink:
    """A link that says only how it came."""

    plane: str
    peer: PeerId
    ticket: bytes
    lanes: int = 1

    async def send(self, chunk: CarriedChunk, wanted: Callable[[], bool]) -> bool:
        """Never asked."""
        raise AssertionError

    async def receive(self) -> CarriedChunk | None:
        """Never asked."""
        raise AssertionError

    async def close(self) -> None:
        """Nothing is open."""


class FakeCarrier:
    """A plane that works, fails, or takes its time, as the story goes."""

    def __init__(self, plane: str) -> None:
        self.plane = plane
        self.failure: TransportError | None = None
        self.takes_s = 0.0
        self.asked = 0
        self.handlers: list[ChunkLinkHandler] = []

    async def connect(self, peer: PeerId, ticket: bytes, *, timeout_s: float) -> FakeLink:
        """A link, or the failure there is."""
        self.asked += 1
        if self.takes_s > timeout_s:
            await trio.sleep(timeout_s)
            raise TransportError(f"no answer within {timeout_s:g} s")
        await trio.sleep(self.takes_s)
        if self.failure is not None:
            raise self.failure
        return FakeLink(self.plane, peer, ticket)

    def serve(self, handler: ChunkLinkHandler) -> None:
        """Remember who serves."""
        self.handlers.append(handler)


@attrs.define
class World:
    """Planes over two fakes."""

    bulk: FakeCarrier = attrs.field(factory=lambda: FakeCarrier("bulk"))
    streams: FakeCarrier = attrs.field(factory=lambda: FakeCarrier("streams"))
    planes: Planes = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.planes = Planes(self.bulk, self.streams, BulkConfig(connect_timeout_s=2.0, retry_s=60.0))

    async def connect(self, peer: PeerId = BOB) -> str:
        """Which plane a link to the peer came over."""
        link = await self.planes.connect(peer, TICKET, timeout_s=10)
        assert isinstance(link, FakeLink)
        assert (link.peer, link.ticket) == (peer, TICKET)
        return link.plane

    def shown(self, peer: PeerId = BOB) -> tuple[str, str]:
        """What `herd peers` shows of it."""
        plane = self.planes.plane_of(peer) or Plane("")
        return plane.name, plane.reason


async def test_a_blocked_port_is_gone_round_remembered_and_tried_again(autojump_clock: MockClock) -> None:
    world = World()
    assert world.shown() == ("", "")
    world.bulk.failure = NO_PORT
    assert await world.connect() == "streams"
    assert world.shown() == ("streams", str(NO_PORT))

    await trio.sleep(59)
    assert await world.connect() == "streams"
    assert world.bulk.asked == 1, "for a minute nobody knocks there again"

    await trio.sleep(2)
    assert await world.connect() == "streams"
    assert world.bulk.asked == 2, "then one try, which fails again"
    assert await world.connect() == "streams"
    assert world.bulk.asked == 2

    world.bulk.failure = None
    await trio.sleep(61)
    assert await world.connect() == "bulk"
    assert world.shown() == ("bulk", "")
    assert await world.connect() == "bulk"


async def test_a_port_that_swallows_everything_costs_a_bounded_wait_once(autojump_clock: MockClock) -> None:
    world = World()
    world.bulk.takes_s = float("inf")
    began_s = trio.current_time()
    assert await world.connect() == "streams"
    assert trio.current_time() - began_s == pytest.approx(4.0)
    assert "no answer" in world.shown()[1]
    began_s = trio.current_time()
    assert await world.connect() == "streams"
    assert trio.current_time() == pytest.approx(began_s)


async def test_one_peers_blocked_port_is_no_other_peers(autojump_clock: MockClock) -> None:
    world = World()
    world.bulk.failure = NO_PORT
    assert await world.connect(BOB) == "streams"
    world.bulk.failure = None
    assert await world.connect(ANN) == "bulk"
    assert (world.shown(ANN), world.shown(BOB)[0]) == (("bulk", ""), "streams")


async def test_a_peer_that_is_gone_altogether_says_nothing_about_its_bulk_port(autojump_clock: MockClock) -> None:
    world = World()
    world.bulk.failure = world.streams.failure = NOBODY
    with pytest.raises(TransportError, match="answers at none"):
        await world.connect()
    assert world.shown() == ("", "")
    world.bulk.failure = world.streams.failure = None
    assert await world.connect() == "bulk", "no minute of streams because it was away"


async def test_both_planes_are_served_and_what_is_remembered_is_bounded(autojump_clock: MockClock) -> None:
    world = World()

    async def handler(_link: object) -> None:
        return

    world.planes.serve(handler)
    assert world.bulk.handlers == world.streams.handlers == [handler]
    for number in range(PEERS_KEPT_MAX + 10):
        await world.connect(PeerId(f"peer{number}"))
    assert world.planes.plane_of(PeerId("peer9")) is None
    assert world.planes.plane_of(PeerId("peer10")) == Plane("bulk")
