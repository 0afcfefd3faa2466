"""node/{driver,events,blame}: a core's effects are performed in order, its timers kept; nobody waits for a listener."""

import pytest
import trio
from trio.testing import MockClock

from node.blame import BAN_S, PEERS_MAX, BlameLedger
from node.driver import Driver
from node.events import QUEUE_LENGTH_MAX, EventBus, EventsLost, MemberChanged, PeerBlamed, event_to_json
from protocols.effects import CancelTimer, Effect, Event, Received, Send, SetTimer, TimerFired
from protocols.ids import PeerId

PEER = PeerId("12D3KooWpeer")


class Script:
    """A core that answers each event with the effects written down for it, and keeps a transcript."""

    def __init__(self, answers: dict[object, list[Effect]]) -> None:
        self.answers = answers
        self.heard: list[tuple[float, object]] = []

    def handle(self, event: Event, now: float) -> list[Effect]:
        key = event.name if isinstance(event, TimerFired) else event.message if isinstance(event, Received) else None
        self.heard.append((now, key))
        return self.answers.get(key, [])


async def test_timers_fire_in_order_are_replaced_and_cancelled(autojump_clock: MockClock) -> None:
    script = Script(
        {
            "go": [SetTimer("late", 5), SetTimer("early", 1), SetTimer("never", 2), CancelTimer("never")],
            "early": [SetTimer("late", 7), SetTimer("same", 0)],
        }
    )
    driver = Driver(script, lambda effect: None)
    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(driver.run)
        driver.feed(Received(PEER, "go"))
        await trio.sleep(20)
        nursery.cancel_scope.cancel()
    assert [(at - start, what) for at, what in script.heard] == [(0, "go"), (1, "early"), (1, "same"), (8, "late")]


async def test_a_timer_set_while_the_driver_sleeps_wakes_it_earlier(autojump_clock: MockClock) -> None:
    script = Script({"far": [SetTimer("far away", 1000)], "near": [SetTimer("soon", 1)]})
    driver = Driver(script, lambda effect: None)
    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(driver.run)
        driver.feed(Received(PEER, "far"))
        await trio.sleep(10)
        driver.feed(Received(PEER, "near"))
        await trio.sleep(5)
        nursery.cancel_scope.cancel()
    assert (11, "soon") in [(at - start, what) for at, what in script.heard]


async def test_an_effect_that_feeds_the_core_waits_its_turn() -> None:
    script = Script({"first": [Send(PEER, "a"), Send(PEER, "b")]})
    order: list[object] = []

    def perform(effect: Effect) -> None:
        assert isinstance(effect, Send)
        driver.feed(Received(PEER, effect.message))
        order.append((effect.message, len(script.heard)))

    driver = Driver(script, perform)
    driver.feed(Received(PEER, "first"))
    assert order == [("a", 1), ("b", 1)]
    assert [what for _, what in script.heard] == ["first", "a", "b"]


async def test_a_bug_in_a_core_is_raised_and_does_not_stop_the_driver() -> None:
    script = Script({"first": [Send(PEER, "a"), Send(PEER, "b")], "later": [Send(PEER, "c")]})
    sent: list[object] = []

    def perform(effect: Effect) -> None:
        assert isinstance(effect, Send)
        sent.append(effect.message)
        driver.feed(Received(PEER, effect.message))
        if effect.message == "b":
            raise KeyError("a bug of ours")

    driver = Driver(script, perform)
    with pytest.raises(KeyError, match="a bug of ours"):
        driver.feed(Received(PEER, "first"))
    driver.feed(Received(PEER, "later"))
    assert sent == ["a", "b", "c"]
    assert [what for _, what in script.heard] == ["first", "a", "b", "later", "c"]


async def test_a_slow_listener_loses_the_oldest_and_is_told() -> None:
    bus = EventBus()
    with bus.subscribe() as listener:
        for number in range(QUEUE_LENGTH_MAX + 3):
            bus.publish(MemberChanged("peer", "alive", number))
        assert await anext(listener) == EventsLost(3)
        assert await anext(listener) == MemberChanged("peer", "alive", 3)
        listener.discard()
        bus.publish(MemberChanged("peer", "left", 7))
        assert await anext(listener) == MemberChanged("peer", "left", 7)
    bus.publish(MemberChanged("peer", "dead", 0))
    assert event_to_json(MemberChanged("p", "alive", 1)) == {
        "event": "MemberChanged",
        "peer": "p",
        "state": "alive",
        "incarnation": 1,
    }


async def test_blame_is_counted_told_and_bans_run_out(autojump_clock: MockClock) -> None:
    bus = EventBus()
    ledger = BlameLedger(bus)
    with bus.subscribe() as listener:
        ledger.blame(PEER, "chunk", "chunk 3 of sha256:.. is wrong", ban=True)
        ledger.blame(PEER, "protocol", "a message of no kind")
        assert await anext(listener) == PeerBlamed(PEER, "chunk", "chunk 3 of sha256:.. is wrong", 1)
    assert ledger.banned(PEER)
    assert ledger.view(PEER).counts == {"chunk": 1, "protocol": 1}
    await trio.sleep(BAN_S + 1)
    assert not ledger.banned(PEER)
    assert ledger.statistics() == {"chunk": 1, "protocol": 1}
    assert ledger.view(PeerId("another")).counts == {}


async def test_strangers_cannot_grow_the_ledger_without_bound() -> None:
    ledger = BlameLedger(EventBus())
    for number in range(PEERS_MAX + 1):
        ledger.blame(PeerId(f"stranger {number}"), "admission", "no proof", ban=True)
    assert ledger.view(PeerId("stranger 0")).counts == {}
    assert not ledger.banned(PeerId("stranger 0"))
    assert ledger.view(PeerId(f"stranger {PEERS_MAX}")).counts == {"admission": 1}
    assert ledger.statistics() == {"admission": PEERS_MAX + 1}
