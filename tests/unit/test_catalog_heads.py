"""Heads, history and conflicts of one name: functions of the set of records, never of their order."""

from itertools import permutations

import attrs

from protocols.catalog.catalog import Catalog
from protocols.catalog.config import CatalogConfig
from protocols.catalog.events import Dropped, Heard, Kept
from protocols.catalog.messages import Records
from protocols.catalog.records import Inventory, VersionRecord
from protocols.catalog.versions import Versions
from tests.support_catalog import (
    WALL_MS,
    World,
    full,
    holds,
    manifest_digest,
    person,
    publish,
    version,
)

ALICE, BOB, CAROL = person(1), person(2), person(3)


def heads_of(*records: VersionRecord) -> list[tuple[VersionRecord, ...]]:
    """The heads of `m:1` for every order in which the records may come."""
    found = []
    for order in permutations(records):
        versions = Versions(1000, 2**30)
        for record in order:
            versions.add(record)
        found.append(versions.heads(full("m:1")))
    return found


def test_a_version_supersedes_its_parents() -> None:
    first = version(ALICE, "m:1", 1)
    second = version(BOB, "m:1", 2, at_ms=WALL_MS + 1, parents=[first])
    third = version(ALICE, "m:1", 3, at_ms=WALL_MS + 2, parents=[second])
    assert heads_of(first, second, third) == [(third,)] * 6


def test_two_children_of_one_parent_are_a_conflict_latest_first() -> None:
    first = version(ALICE, "m:1", 1)
    left = version(ALICE, "m:1", 2, at_ms=WALL_MS + 5, parents=[first])
    right = version(BOB, "m:1", 3, at_ms=WALL_MS + 9, parents=[first])
    assert heads_of(first, left, right) == [(right, left)] * 6


def test_a_merge_ends_the_conflict() -> None:
    left = version(ALICE, "m:1", 2)
    right = version(BOB, "m:1", 3)
    merge = version(CAROL, "m:1", 4, at_ms=WALL_MS + 1, parents=[left, right])
    assert heads_of(left, right, merge) == [(merge,)] * 6


def test_the_same_model_adopted_by_three_hosts_is_no_conflict_and_the_earliest_stands_for_all() -> None:
    adopted = [version(who, "m:1", 1, at_ms=WALL_MS + n) for n, who in enumerate([CAROL, ALICE, BOB])]
    assert heads_of(*adopted) == [(adopted[0],)] * 6


def test_a_late_adoption_of_an_old_version_does_not_bring_it_back() -> None:
    first = version(ALICE, "m:1", 1)
    second = version(ALICE, "m:1", 2, at_ms=WALL_MS + 1, parents=[first])
    late = version(BOB, "m:1", 1, at_ms=WALL_MS + 100)
    assert heads_of(first, second, late) == [(second,)] * 6


def test_a_rollback_is_a_version_like_any_other() -> None:
    first = version(ALICE, "m:1", 1)
    second = version(ALICE, "m:1", 2, at_ms=WALL_MS + 1, parents=[first])
    back = version(BOB, "m:1", 1, at_ms=WALL_MS + 2, parents=[second])
    assert heads_of(first, second, back) == [(back,)] * 6


def test_a_parent_of_another_name_is_superseded_in_neither() -> None:
    other = version(ALICE, "n:1", 1)
    child = version(ALICE, "m:1", 2, parents=[other])
    versions = Versions(1000, 2**30)
    versions.add(child)
    versions.add(other)
    assert versions.heads(full("m:1")) == (child,)
    assert versions.heads(full("n:1")) == (other,)


def test_without_room_history_goes_first_and_stays_away() -> None:
    versions = Versions(16, 2**30)
    chain = [version(ALICE, "m:1", 0)]
    for number in range(1, 20):
        chain.append(version(ALICE, "m:1", number, at_ms=WALL_MS + number, parents=chain[-1:]))
    let_go = [gone for record in chain for gone in versions.add(record)]
    assert len(versions) <= 16
    assert let_go == [record.id() for record in chain[: len(let_go)]], "oldest first"
    assert versions.heads(full("m:1")) == (chain[-1],)
    assert versions.add(chain[0]) == [chain[0].id()], "it would pose as a head, its children being gone"
    assert versions.declined(chain[0].id())
    assert versions.heads(full("m:1")) == (chain[-1],)


def test_without_room_and_history_a_newcomer_is_refused() -> None:
    versions = Versions(16, 2**30)
    heads = [version(ALICE, f"m{number}:1", number) for number in range(16)]
    for record in heads:
        assert versions.add(record) == []
    late = version(BOB, "late:1", 99)
    assert versions.add(late) == [late.id()]
    assert late.id() not in versions
    assert all(record.id() in versions for record in heads)


def test_memory_is_bounded_too() -> None:
    record = version(ALICE, "m:1", 1)
    versions = Versions(1000, 3 * record.memory_bytes)
    for number in range(10):
        versions.add(version(ALICE, f"m{number}:1", number))
    assert versions.size_bytes <= 3 * record.memory_bytes
    assert len(versions) < 10


def kept_versions(world: World) -> list[VersionRecord]:
    kept: list[Kept] = world.kept.get(ALICE.peer_id, [])
    return [effect.record for effect in kept if isinstance(effect.record, VersionRecord)]


def test_publishing_what_the_head_says_already_makes_no_record() -> None:
    world = World()
    world.add(ALICE)
    world.feed(ALICE.peer_id, publish("m:1", 1))
    assert len(kept_versions(world)) == 1
    assert world.feed(ALICE.peer_id, publish("m:1", 1)) == []
    assert world.feed(ALICE.peer_id, publish("m:1", 1, deliberate=True)) == []


def test_a_host_that_changes_its_model_publishes_a_successor() -> None:
    world = World()
    core = world.add(ALICE)
    world.feed(ALICE.peer_id, publish("m:1", 1))
    world.feed(ALICE.peer_id, holds(1))
    world.feed(ALICE.peer_id, publish("m:1", 2))
    first, second = kept_versions(world)
    assert second.parents == (first.id(),)
    assert second.clock > first.clock
    assert core.head(full("m:1")) == second


def test_a_host_that_turns_up_with_an_old_copy_publishes_nothing() -> None:
    world = World()
    core = world.add(ALICE)
    world.feed(ALICE.peer_id, publish("m:1", 1))
    world.feed(ALICE.peer_id, publish("m:1", 2, deliberate=True))
    assert world.feed(ALICE.peer_id, publish("m:1", 1)) == []
    head = core.head(full("m:1"))
    assert head is not None
    assert head.manifest_digest == manifest_digest(2)
    assert core.knows(full("m:1"), manifest_digest(1))


def test_a_model_found_in_a_store_without_history_is_dated_by_its_file() -> None:
    world = World()
    core = world.add(ALICE)
    world.feed(ALICE.peer_id, attrs.evolve(publish("m:1", 1), created_at_ms=WALL_MS - 5000))
    head = core.head(full("m:1"))
    assert head is not None
    assert head.clock.physical_ms == WALL_MS - 5000
    world.feed(ALICE.peer_id, attrs.evolve(publish("n:1", 2), created_at_ms=WALL_MS + 5000))
    head = core.head(full("n:1"))
    assert head is not None
    assert head.clock.physical_ms == WALL_MS, "a file from the future is dated now"


def test_holdings_are_told_only_when_they_change() -> None:
    world = World()
    core = world.add(ALICE)
    assert world.feed(ALICE.peer_id, holds()) == []
    world.feed(ALICE.peer_id, holds(1, 2))
    assert world.feed(ALICE.peer_id, holds(2, 1)) == [], "the order says nothing"
    before = core.inventory(ALICE.peer_id)
    world.feed(ALICE.peer_id, holds(1, wall_ms=WALL_MS - 50_000))
    after = core.inventory(ALICE.peer_id)
    assert before is not None
    assert after is not None
    assert before.sequence == WALL_MS
    assert after.sequence == WALL_MS + 1, "forward even where the wall clock went back"
    after.verify()


def test_inventories_of_the_dead_go_first() -> None:
    config = CatalogConfig(owners_max=16)
    living = [person(n).peer_id for n in range(2, 10)]
    core = Catalog(config, ALICE.peer_id, ALICE.sign, World().rng, lambda: living)
    dropped = []
    for number in range(2, 20):
        owner = person(number)
        stated = Inventory(owner.peer_id, number, ()).sign(owner.sign)
        effects = core.handle(Heard(BOB.peer_id, Records((), (stated,)), WALL_MS), 0.0)
        dropped += [effect.key for effect in effects if isinstance(effect, Dropped)]
    assert dropped == [person(10).peer_id, person(11).peer_id], "dead, and of the lowest sequence"
    assert all(core.inventory(peer) for peer in living)


def test_ones_own_version_has_room_however_much_others_publish() -> None:
    world = World()
    core = world.add(ALICE, CatalogConfig(versions_max=16))
    flood = tuple(version(BOB, f"flood{number}:1", number) for number in range(40))
    world.feed(ALICE.peer_id, Heard(BOB.peer_id, Records(flood, ()), WALL_MS))
    assert core.counts().versions == 16
    world.feed(ALICE.peer_id, publish("m:1", 99))
    assert core.head(full("m:1")) is not None
    world.feed(ALICE.peer_id, Heard(BOB.peer_id, Records((version(BOB, "late:1", 98),), ()), WALL_MS))
    assert core.head(full("late:1")) is None
