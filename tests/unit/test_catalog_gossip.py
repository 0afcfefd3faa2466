"""Gossip and repair between pure cores: who says what to whom, in order."""

import attrs
import pytest

from protocols.catalog.asked import Asked
from protocols.catalog.catalog import Catalog
from protocols.catalog.config import CatalogConfig
from protocols.catalog.events import Heard, Keep, Kept, PeerJoined, Restored, Started
from protocols.catalog.gossip import GOSSIP, PUSH_PULL
from protocols.catalog.inventories import Inventories
from protocols.catalog.messages import Advert, AskHolding, Buckets, InventoryKey, Keys, Records, Summary, Want
from protocols.catalog.records import Inventory, VersionRecord
from protocols.catalog.rumors import Rumors, rounds_for
from protocols.effects import Blame, Effect, Event, Send, SetTimer, TimerFired
from protocols.errors import RemoteProtocolError
from protocols.ids import PeerId
from tests.support_catalog import (
    WALL_MS,
    Person,
    World,
    full,
    holds,
    inventory,
    manifest_digest,
    person,
    publish,
    version,
)

ALICE, BOB, CAROL = person(1), person(2), person(3)


def core_of(who: Person, *alive: Person, config: CatalogConfig | None = None) -> Catalog:
    living = [other.peer_id for other in alive]
    return Catalog(config or CatalogConfig(), who.peer_id, who.sign, World().rng, lambda: living)


def hears(core: Catalog, sender: Person, message: object, now: float = 0.0, wall_ms: int = WALL_MS) -> list[Effect]:
    return core.handle(Heard(sender.peer_id, message, wall_ms), now)


def sent(effects: list[Effect]) -> list[tuple[PeerId, object]]:
    return [(effect.to, effect.message) for effect in effects if isinstance(effect, Send)]


def test_a_rumor_in_four_messages() -> None:
    alice, bob = core_of(ALICE, BOB), core_of(BOB, ALICE)
    published = alice.handle(publish("m:1", 1), 0.0)
    record = next(effect.record for effect in published if isinstance(effect, Kept))
    assert isinstance(record, VersionRecord)
    assert [type(effect) for effect in published] == [Kept, SetTimer]
    rumor = alice.handle(TimerFired(GOSSIP), 0.1)
    assert sent(rumor) == [(BOB.peer_id, Advert((record.id(),), ()))]
    asked = hears(bob, ALICE, Advert((record.id(),), ()))
    assert sent(asked) == [(ALICE.peer_id, Want((record.id(),), ()))]
    answered = hears(alice, BOB, Want((record.id(),), ()))
    assert sent(answered) == [(BOB.peer_id, Records((record,), ()))]
    learned = hears(bob, ALICE, Records((record,), ()))
    assert learned[0] == Kept(record, news=True)
    assert bob.head(full("m:1")) == record
    assert isinstance(learned[1], SetTimer), "bob tells it on"


def test_what_is_known_is_not_asked_for_nor_kept_again() -> None:
    bob = core_of(BOB, ALICE)
    record, stated = version(ALICE, "m:1", 1), inventory(ALICE, 5, 1)
    hears(bob, ALICE, Records((record,), (stated,)))
    assert hears(bob, CAROL, Advert((record.id(),), (InventoryKey(ALICE.peer_id, 5),))) == []
    assert hears(bob, CAROL, Records((record,), (stated,))) == []
    assert hears(bob, CAROL, Advert((), (InventoryKey(ALICE.peer_id, 4),))) == [], "older than what is here"


def test_one_record_is_asked_of_one_peer_at_a_time() -> None:
    bob = core_of(BOB, ALICE, CAROL)
    record = version(ALICE, "m:1", 1)
    advert = Advert((record.id(),), ())
    assert sent(hears(bob, ALICE, advert, now=0.0)) == [(ALICE.peer_id, Want((record.id(),), ()))]
    assert hears(bob, CAROL, advert, now=1.0) == []
    assert sent(hears(bob, CAROL, advert, now=6.0)) == [(CAROL.peer_id, Want((record.id(),), ()))], (
        "alice never gave it"
    )


def test_a_rumor_ends_and_a_want_shows_that_it_should_not_have() -> None:
    alice = core_of(ALICE, BOB)
    alice.handle(publish("m:1", 1), 0.0)
    record = alice.head(full("m:1"))
    assert record is not None
    rounds = 0
    while sent(alice.handle(TimerFired(GOSSIP), 0.1)):
        rounds += 1
    assert rounds == rounds_for(1, 3)
    again = hears(alice, CAROL, Want((record.id(),), ()))
    assert [type(effect) for effect in again] == [Send, SetTimer]
    assert sent(alice.handle(TimerFired(GOSSIP), 0.2)) == [(BOB.peer_id, Advert((record.id(),), ()))]
    assert [type(e) for e in hears(alice, CAROL, Want((record.id(),), (), repair=True))] == [Send]


def test_a_repair_sends_keys_of_differing_buckets_only() -> None:
    alice, bob = core_of(ALICE, BOB), core_of(BOB, ALICE)
    shared = [version(CAROL, f"m{number}:1", number) for number in range(100)]
    news = version(CAROL, "news:1", 500)
    for core in (alice, bob):
        hears(core, CAROL, Records(tuple(shared), ()))
    hears(bob, CAROL, Records((news,), ()))
    ((to, summary),) = sent(alice.handle(PeerJoined(BOB.peer_id), 1.0))
    assert to == BOB.peer_id
    assert isinstance(summary, Summary)
    ((_, buckets),) = sent(hears(bob, ALICE, summary))
    assert isinstance(buckets, Buckets)
    ((_, keys),) = sent(hears(alice, BOB, buckets))
    assert isinstance(keys, Keys)
    assert keys.buckets == news.id()[:1]
    ((_, advert),) = sent(hears(bob, ALICE, keys))
    assert advert == Advert((news.id(),), (), repair=True)
    ((_, want),) = sent(hears(alice, BOB, advert))
    assert want == Want((news.id(),), (), repair=True)
    hears(alice, BOB, Records((news,), ()))
    ((_, again),) = sent(alice.handle(PeerJoined(BOB.peer_id), 2.0))
    assert hears(bob, ALICE, again) == [], "equal catalogs say no more than one hash"


def test_a_repair_goes_both_ways() -> None:
    bob = core_of(BOB, ALICE)
    mine, theirs = version(ALICE, "m:1", 1), version(BOB, "n:1", 2)
    hears(bob, CAROL, Records((theirs,), (inventory(CAROL, 1, 2),)))
    keys = Keys(bytes(range(256)), (mine.id(),), (InventoryKey(ALICE.peer_id, 1),))
    want, advert, owners = (message for _, message in sent(hears(bob, ALICE, keys)))
    assert want == Want((mine.id(),), (ALICE.peer_id,), repair=True)
    assert advert == Advert((theirs.id(),), (), repair=True)
    assert owners == Advert((), (InventoryKey(CAROL.peer_id, 1),), repair=True)


def test_a_forged_record_is_refused_and_its_sender_blamed() -> None:
    bob = core_of(BOB, ALICE)
    forged = attrs.evolve(version(ALICE, "m:1", 1), message="not what alice signed")
    (blame,) = hears(bob, CAROL, Records((forged,), ()))
    assert blame == Blame(CAROL.peer_id, "catalog", f"the head of {full('m:1')} is not signed by {ALICE.peer_id}")
    assert bob.head(full("m:1")) is None
    stated = attrs.evolve(inventory(ALICE, 1, 1), sequence=99)
    (blame,) = hears(bob, CAROL, Records((), (stated,)))
    assert isinstance(blame, Blame)
    assert blame.peer == CAROL.peer_id
    assert bob.inventory(ALICE.peer_id) is None


def test_what_was_good_before_the_forged_record_stays() -> None:
    bob = core_of(BOB, ALICE)
    good, forged = version(ALICE, "m:1", 1), attrs.evolve(version(ALICE, "n:1", 2), signature=bytes(64))
    effects = hears(bob, CAROL, Records((good, forged, version(ALICE, "o:1", 3)), ()))
    assert [effect.record for effect in effects if isinstance(effect, Kept)] == [good]
    assert isinstance(effects[-1], Blame)


def test_a_record_from_the_future_is_refused_and_its_author_blamed_once() -> None:
    bob = core_of(BOB, ALICE)
    early = version(ALICE, "m:1", 1, at_ms=WALL_MS + 700_000)
    (blame,) = hears(bob, CAROL, Records((early,), ()))
    assert isinstance(blame, Blame)
    assert (blame.peer, blame.reason) == (ALICE.peer_id, "clock")
    assert "700 s ahead" in blame.detail
    assert hears(bob, CAROL, Records((early,), ())) == []
    hears(bob, CAROL, Records((early,), ()), wall_ms=WALL_MS + 200_000)
    assert bob.head(full("m:1")) == early, "time came"


def test_a_question_on_the_gossip_path_is_no_gossip() -> None:
    (blame,) = hears(core_of(BOB), CAROL, AskHolding(manifest_digest(1)))
    assert isinstance(blame, Blame)
    assert blame.peer == CAROL.peer_id


def test_a_node_that_follows_nobody_keeps_its_own_and_tells_it() -> None:
    config = CatalogConfig(follow="none")
    bob = core_of(BOB, ALICE, config=config)
    foreign = version(ALICE, "m:1", 1)
    assert hears(bob, ALICE, Advert((foreign.id(),), (InventoryKey(ALICE.peer_id, 1),))) == []
    assert hears(bob, ALICE, Records((foreign,), (inventory(ALICE, 1, 1),))) == []
    assert hears(bob, ALICE, Buckets(bytes(256 * 32))) == []
    assert hears(bob, ALICE, Keys(bytes(range(256)), (foreign.id(),), ())) == []
    bob.handle(publish("own:1", 2), 0.0)
    bob.handle(holds(2), 0.0)
    own = bob.head(full("own:1"))
    assert own is not None
    key = InventoryKey(BOB.peer_id, WALL_MS)
    assert sent(bob.handle(TimerFired(GOSSIP), 0.1)) == [(ALICE.peer_id, Advert((own.id(),), (key,)))]
    offers = [Advert((own.id(),), (), repair=True), Advert((), (key,), repair=True)]
    assert [message for _, message in sent(hears(bob, ALICE, Summary(bytes(32))))] == offers
    assert [message for _, message in sent(bob.handle(PeerJoined(ALICE.peer_id), 0.2))] == offers
    assert bob.names() == [full("own:1")]


def test_a_node_that_forgot_its_own_inventory_moves_past_it() -> None:
    alice = core_of(ALICE, BOB)
    alice.handle(holds(2, wall_ms=WALL_MS - 10_000), 0.0)
    earlier = inventory(ALICE, WALL_MS + 50, 1)
    asked = hears(alice, BOB, Advert((), (InventoryKey(ALICE.peer_id, WALL_MS + 50),)))
    assert sent(asked) == [(BOB.peer_id, Want((), (ALICE.peer_id,)))]
    hears(alice, BOB, Records((), (earlier,)))
    own = alice.inventory(ALICE.peer_id)
    assert own is not None
    assert own.sequence == WALL_MS + 51
    assert [holding.manifest_digest for holding in own.holdings] == [manifest_digest(2)]


def test_what_is_restored_is_there_and_no_news() -> None:
    alice = core_of(ALICE, BOB)
    record, stated = version(BOB, "m:1", 1, at_ms=WALL_MS + 9), inventory(BOB, 3, 1)
    assert alice.handle(Restored([record], [stated]), 0.0) == []
    assert alice.head(full("m:1")) == record
    alice.handle(publish("n:1", 2), 0.0)
    own = alice.head(full("n:1"))
    assert own is not None
    assert own.clock > record.clock, "dated after all it knows"


def test_a_node_that_follows_nobody_restores_and_keeps_what_it_holds() -> None:
    config = CatalogConfig(follow="none")
    held, other, own = version(BOB, "held:1", 1), version(BOB, "other:1", 2), version(ALICE, "own:1", 3)
    mine = inventory(ALICE, 3, 1)
    alice = core_of(ALICE, BOB, config=config)
    alice.handle(Restored([held, other, own], [mine, inventory(BOB, 3, 1, 2)]), 0.0)
    assert alice.names() == [full("held:1"), full("own:1")]
    assert alice.inventory(ALICE.peer_id) == mine
    assert alice.inventory(BOB.peer_id) is None
    pulled = version(BOB, "pulled:1", 4)
    assert alice.handle(Keep(pulled, WALL_MS), 0.0)[0] == Kept(pulled, news=True)
    assert alice.handle(publish("pulled:1", 4), 0.0) == [], "it is bob's version that alice now holds"
    with pytest.raises(RemoteProtocolError, match="is not signed by"):
        alice.handle(Keep(attrs.evolve(other, signature=bytes(64)), WALL_MS), 0.0)
    assert not alice.knows(full("other:1"), other.manifest_digest)


def test_providers_are_alive_and_sorted_complete_first() -> None:
    alice = core_of(ALICE, BOB, CAROL)
    everybody = [person(n) for n in range(2, 7)]
    stated = [inventory(who, 1, 1, state="partial" if n % 2 else "complete") for n, who in enumerate(everybody)]
    hears(alice, BOB, Records((version(BOB, "m:1", 1),), tuple(stated)))
    living = {who.peer_id for who in everybody[:4]}
    found = alice.providers(manifest_digest(1), living.__contains__)
    complete = sorted(everybody[n].peer_id for n in (0, 2))
    partial = sorted(everybody[n].peer_id for n in (1, 3))
    assert found == [(peer, "complete") for peer in complete] + [(peer, "partial") for peer in partial]
    blob_digest = version(BOB, "m:1", 1).blobs[0].digest
    assert alice.blob_providers(blob_digest, living.__contains__) == found
    assert alice.providers(manifest_digest(2), living.__contains__) == []


def test_names_are_found_by_glob_whatever_the_case() -> None:
    alice = core_of(ALICE)
    for number, name in enumerate(["llama3:latest", "Llama3:8b", "qwen:7b"]):
        hears(alice, BOB, Records((version(BOB, name, number),), ()))
    other = attrs.evolve(version(BOB, "x:1", 9), name="hf.co/bob/x:1").sign(BOB.sign)
    hears(alice, BOB, Records((other,), ()))
    assert alice.find("LLAMA*") == [full("Llama3:8b"), full("llama3:latest")]
    assert alice.find("llama3") == [full("llama3:latest")], "a plain name gets its defaults"
    assert alice.find("llama3:8B") == [full("Llama3:8b")]
    assert alice.find("hf.co/*") == ["hf.co/bob/x:1"]
    assert alice.find("*/library/*") == [full(name) for name in ("Llama3:8b", "llama3:latest", "qwen:7b")]
    assert len(alice.find("*")) == 4
    assert alice.find("no such/name/at/all") == []


def test_started_sets_the_repair_timer_and_a_lonely_node_keeps_it() -> None:
    alice = core_of(ALICE)
    (timer,) = alice.handle(Started(), 0.0)
    assert isinstance(timer, SetTimer)
    assert timer.name == PUSH_PULL
    assert 0.75 * 30 <= timer.delay_s <= 1.25 * 30
    assert [type(effect) for effect in alice.handle(TimerFired(PUSH_PULL), 30.0)] == [SetTimer]
    alice.handle(publish("m:1", 1), 30.0)
    assert alice.handle(TimerFired(GOSSIP), 30.1) == [], "nobody to tell: the rumor is dropped, not kept spinning"


def test_large_answers_travel_in_bounded_messages() -> None:
    alice = core_of(ALICE, BOB)
    records = [version(CAROL, f"m{number}:1", number) for number in range(600)]
    for start in range(0, 600, 200):
        hears(alice, CAROL, Records(tuple(records[start : start + 200]), ()))
    answers = [message for _, message in sent(hears(alice, BOB, Want(tuple(r.id() for r in records), ())))]
    assert [len(message.versions) for message in answers if isinstance(message, Records)] == [256, 256, 88]
    assert [record for message in answers if isinstance(message, Records) for record in message.versions] == records


def test_rumors_are_bounded_and_the_oldest_are_left_to_repair() -> None:
    rumors: Rumors[int] = Rumors()
    for key in range(5000):
        rumors.heat(key, 2)
    assert len(rumors) == 4096
    told = rumors.next_round()
    assert told == list(range(4999, 4999 - 1024, -1)), "the newest first"
    rumors.next_round()
    assert len(rumors) == 4096 - 1024
    assert rounds_for(1, 3) == 3
    assert rounds_for(1000, 3) == 7


def test_counts_tell_what_happened() -> None:
    alice = core_of(ALICE)
    hears(alice, BOB, Records((version(BOB, "m:1", 1),), (inventory(BOB, 1, 1, 2),)))
    hears(alice, BOB, Records((attrs.evolve(version(BOB, "m:1", 2), signature=b""),), ()))
    counts = alice.counts()
    assert (counts.versions, counts.names, counts.owners, counts.holdings) == (1, 1, 1, 2)
    assert (counts.learned, counts.refused, counts.let_go) == (2, 1, 0)
    assert counts.size_bytes > 1000


def test_events_and_inventories_are_not_mixed_up() -> None:
    alice = core_of(ALICE)
    first: list[Event] = [holds(1), holds(1, 2), holds()]
    kept = [effect for event in first for effect in alice.handle(event, 0.0) if isinstance(effect, Kept)]
    assert [len(effect.record.holdings) for effect in kept if isinstance(effect.record, Inventory)] == [1, 2, 0]


def test_who_advertised_and_did_not_give_is_not_asked_for_it_again_before_a_repair() -> None:
    bob = core_of(BOB, ALICE, CAROL)
    record = version(ALICE, "m:1", 1)
    advert, want = Advert((record.id(),), ()), Want((record.id(),), ())
    assert sent(hears(bob, CAROL, advert, now=0.0)) == [(CAROL.peer_id, want)]
    assert hears(bob, CAROL, advert, now=6.0) == [], "or carol could hold it up for ever"
    assert sent(hears(bob, ALICE, advert, now=6.1)) == [(ALICE.peer_id, want)]
    bob.handle(TimerFired(PUSH_PULL), 30.0)
    assert sent(hears(bob, CAROL, advert, now=30.1)) == [(CAROL.peer_id, want)], "carol may have lost our question"


def test_who_comes_anew_is_asked_anew() -> None:
    bob = core_of(BOB, ALICE)
    record = version(ALICE, "m:1", 1)
    advert = Advert((record.id(),), ())
    assert sent(hears(bob, ALICE, advert, now=0.0)) != []
    bob.handle(PeerJoined(ALICE.peer_id), 1.0)
    assert sent(hears(bob, ALICE, advert, now=1.1)) != [], "alice died before she answered, and is back"


def test_a_flood_of_adverts_keeps_no_honest_record_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("protocols.catalog.asked.ASKED_MAX", 1000)
    asked: Asked[int] = Asked()
    for key in range(1010):
        asked.ask(key, CAROL.peer_id, False, 0.0)
    assert len(asked) == 1000
    assert asked.ask(-1, ALICE.peer_id, False, 0.1)
    asked.forget_late(6.0)
    assert len(asked) == 0


def test_a_record_asked_for_many_times_in_one_message_is_given_once() -> None:
    alice = core_of(ALICE, BOB)
    record, stated = version(CAROL, "m:1", 1), inventory(CAROL, 1, 1)
    hears(alice, CAROL, Records((record,), (stated,)))
    want = Want((record.id(),) * 1000, (CAROL.peer_id,) * 1000)
    assert sent(hears(alice, BOB, want)) == [(BOB.peer_id, Records((record,), (stated,)))]


def test_a_wrong_clock_is_blamed_once_a_minute_however_many_records_it_dates() -> None:
    bob = core_of(BOB, ALICE)
    flood = tuple(version(ALICE, f"m{number}:1", number, at_ms=WALL_MS + 700_000) for number in range(100))
    (blame,) = hears(bob, CAROL, Records(flood, ()))
    assert isinstance(blame, Blame)
    assert (blame.peer, blame.reason) == (ALICE.peer_id, "clock")
    assert hears(bob, CAROL, Records(flood, ()), wall_ms=WALL_MS + 59_000) == []
    assert len(hears(bob, CAROL, Records(flood, ()), wall_ms=WALL_MS + 61_000)) == 1
    assert bob.counts().refused == 300


def test_a_host_whose_clock_was_wrong_once_is_heard_again_when_it_is_set_right() -> None:
    alice, bob = core_of(ALICE, BOB), core_of(BOB, ALICE)
    alice.handle(publish("m:1", 1, wall_ms=WALL_MS + 86_400_000), 0.0)
    alice.handle(publish("m:1", 2, deliberate=True), 0.0)
    alice.handle(publish("n:1", 3), 0.0)
    records = [alice.head(full(name)) for name in ("m:1", "n:1")]
    for record in records:
        assert record is not None
        hears(bob, ALICE, Records((record,), ()))
    assert [bob.head(full(name)) for name in ("m:1", "n:1")] == records
    assert bob.counts().refused == 0


def test_what_is_let_go_for_want_of_room_is_no_walk_over_everybody_for_each_record() -> None:
    inventories = Inventories(BOB.peer_id, 64, 100_000)
    calls = 0

    def living() -> tuple[PeerId, ...]:
        nonlocal calls
        calls += 1
        return ()

    for number in range(2, 202):
        inventories.add(inventory(person(number), number, 1), living)
    assert len(inventories) <= 64
    assert calls <= 200 / 2
