"""One member's gossip takes a bounded share of a node's time."""

import trio
from trio.testing import MockClock

from node.services.catalog.pace import PEERS_MAX, REST, Pace
from protocols.ids import PeerId
from tests.support_catalog import person

ALICE, BOB = person(1).peer_id, person(2).peer_id


async def test_a_peer_that_kept_the_node_busy_is_heard_again_after_a_rest(autojump_clock: MockClock) -> None:
    pace = Pace()
    began_at_s = trio.current_time()
    await pace.turn(ALICE)
    pace.took(ALICE, 0.5)
    await pace.turn(BOB)
    assert trio.current_time() == began_at_s, "bob waits for nothing"
    await pace.turn(ALICE)
    assert round(trio.current_time() - began_at_s, 3) == REST * 0.5


async def test_many_streams_of_one_peer_take_turns(autojump_clock: MockClock) -> None:
    pace = Pace()
    began_at_s = trio.current_time()
    handled_after_s = []

    async def send() -> None:
        await pace.turn(ALICE)
        handled_after_s.append(round(trio.current_time() - began_at_s, 3))
        pace.took(ALICE, 1.0)

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(send)
    assert handled_after_s == [0, REST, 2 * REST, 3 * REST]


async def test_peers_without_end_are_forgotten_when_their_rest_is_over(autojump_clock: MockClock) -> None:
    pace = Pace()
    for number in range(10 * PEERS_MAX):
        pace.took(PeerId(f"peer{number}"), 0.001)
        if number % 100 == 0:
            await trio.sleep(1)
    assert len(pace) <= PEERS_MAX
