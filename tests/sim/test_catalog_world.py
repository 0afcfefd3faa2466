"""Many pure catalogs under a virtual clock: how fast news spreads, and how a lost node catches up."""

import attrs

from protocols.catalog.config import CatalogConfig
from protocols.catalog.events import Restored
from protocols.catalog.messages import Buckets, Keys, Records, Summary
from tests.support_catalog import World, full, holds, manifest_digest, person, publish, version


def test_one_new_version_reaches_fifty_nodes_in_two_seconds_for_a_bounded_price() -> None:
    world = World(seed=1)
    people = [person(number) for number in range(1, 51)]
    for who in people:
        world.add(who)
    world.feed(people[0].peer_id, publish("llama3:latest", 1))
    world.feed(people[0].peer_id, holds(1))
    world.run(2.0)
    for core in world.cores.values():
        head = core.head(full("llama3:latest"))
        assert head is not None
        assert head.author == people[0].peer_id
        assert core.providers(manifest_digest(1), lambda _: True) == [(people[0].peer_id, "complete")]
    records = [message for _, _, message in world.messages if isinstance(message, Records)]
    assert len(records) <= 60, "nearly every node is told once, not once a neighbour"
    spent = len(world.messages)
    world.run(10.0)
    gossip = [m for _, _, m in world.messages[spent:] if not isinstance(m, Summary)]
    assert gossip == [], "a rumor ends"


def test_news_reaches_all_though_a_third_of_the_messages_is_lost() -> None:
    world = World(seed=2)
    people = [person(number) for number in range(1, 31)]
    for who in people:
        world.add(who)
    world.lost = lambda sender, receiver: world.rng.random() < 0.33
    for number, who in enumerate(people[:10]):
        world.feed(who.peer_id, publish(f"m{number}:1", number))
        world.feed(who.peer_id, holds(number))
    # A repair takes six messages, of which a third is lost; half an hour is about sixty tries a node.
    world.run(1800.0)
    for number in range(10):
        assert len(set(world.head_ids(f"m{number}:1").values())) == 1
        assert world.head_ids(f"m{number}:1")[people[0].peer_id]
    assert world.blamed == []


def test_a_node_cut_off_for_a_week_catches_up_in_one_exchange() -> None:
    world = World(seed=3)
    alice, bob, lost = person(1), person(2), person(3)
    for who in (alice, bob, lost):
        world.add(who, CatalogConfig(push_pull_interval_s=3600.0))
    world.feed(alice.peer_id, publish("old:1", 0))
    world.run(5.0)
    world.cut_off[lost.peer_id] = None
    for number in range(300):
        world.feed(alice.peer_id, publish(f"m{number}:1", number, wall_ms=world.wall_ms()))
        world.feed(alice.peer_id, holds(*range(number), wall_ms=world.wall_ms()))
    world.feed(lost.peer_id, publish("meanwhile:1", 1000, wall_ms=world.wall_ms()))
    world.run(7 * 24 * 3600.0)
    assert world.cores[lost.peer_id].names() == [full("meanwhile:1"), full("old:1")]
    del world.cut_off[lost.peer_id]
    before, at = len(world.messages), world.now
    world.joined(lost.peer_id, bob.peer_id)
    world.run(0.2)
    spoken = [m for sender, receiver, m in world.messages[before:] if {sender, receiver} == {lost.peer_id, bob.peer_id}]
    assert sum(isinstance(message, Summary) for message in spoken) == 1
    assert sum(isinstance(message, Buckets) for message in spoken) == 1
    assert sum(isinstance(message, Keys) for message in spoken) == 1
    expected = [full("meanwhile:1"), full("old:1"), *(full(f"m{number}:1") for number in range(300))]
    assert world.cores[lost.peer_id].names() == sorted(expected)
    assert len(world.cores[lost.peer_id].providers(manifest_digest(298), lambda _: True)) == 1
    assert world.cores[bob.peer_id].head(full("meanwhile:1")) is not None, "it works both ways"
    assert world.now - at < 1.0
    world.run(5.0)
    assert world.cores[alice.peer_id].head(full("meanwhile:1")) is not None, "and the news spreads on"


def test_two_halves_that_met_agree_within_seconds() -> None:
    world = World(seed=4)
    people = [person(number) for number in range(1, 21)]
    left = {who.peer_id for who in people[:10]}
    for who in people:
        world.add(who)
    world.lost = lambda sender, receiver: (sender in left) != (receiver in left)
    world.feed(people[0].peer_id, publish("m:1", 1))
    world.feed(people[19].peer_id, publish("m:1", 2, wall_ms=world.wall_ms() + 1))
    world.run(60.0)
    assert len(set(world.head_ids("m:1").values())) == 2
    world.lost = lambda sender, receiver: False
    world.joined(people[3].peer_id, people[15].peer_id)
    world.run(5.0)
    (heads,) = set(world.head_ids("m:1").values())
    assert len(heads) == 2, "a conflict, and all see the same one"
    world.feed(people[5].peer_id, publish("m:1", 3, wall_ms=world.wall_ms(), deliberate=True))
    world.run(5.0)
    (heads,) = set(world.head_ids("m:1").values())
    assert len(heads) == 1, "settled by a version that follows both"


def test_a_member_that_forges_harms_nobody_but_itself() -> None:
    world = World(seed=5)
    people = [person(number) for number in range(1, 11)]
    for who in people:
        world.add(who)
    forger, victim = people[9], people[0]
    forged = attrs.evolve(version(victim, "m:1", 1), message="forged")
    for who in people[:9]:
        world._send(forger.peer_id, who.peer_id, Records((forged,), ()))
    world.run(5.0)
    assert all(core.head(full("m:1")) is None for core in world.cores.values())
    assert sorted(peer for peer, _ in world.blamed) == sorted(who.peer_id for who in people[:9])
    assert {blame.peer for _, blame in world.blamed} == {forger.peer_id}


def test_a_node_that_follows_nobody_is_heard_by_all_and_hears_nothing() -> None:
    world = World(seed=6)
    people = [person(number) for number in range(1, 11)]
    for who in people[:9]:
        world.add(who)
    loner = people[9]
    world.add(loner, CatalogConfig(follow="none"))
    world.feed(people[0].peer_id, publish("m:1", 1))
    world.feed(loner.peer_id, publish("own:1", 2))
    world.feed(loner.peer_id, holds(2))
    world.run(100.0)
    assert world.cores[loner.peer_id].names() == [full("own:1")]
    for who in people[:9]:
        core = world.cores[who.peer_id]
        assert core.names() == [full("m:1"), full("own:1")]
        assert core.providers(manifest_digest(2), lambda _: True) == [(loner.peer_id, "complete")]


def test_the_same_seed_gives_the_same_world() -> None:
    def history() -> list[tuple[str, str, str]]:
        world = World(seed=7)
        for number in range(1, 13):
            world.add(person(number))
        world.feed(person(1).peer_id, publish("m:1", 1))
        world.run(60.0)
        return [(sender, receiver, repr(message)) for sender, receiver, message in world.messages]

    assert history() == history()


def test_a_newcomer_among_many_is_told_everything_by_a_few() -> None:
    world = World(seed=6)
    people, newcomer = [person(number) for number in range(1, 61)], person(900)
    records = [version(who, f"m{number}:1", number) for number, who in enumerate(people)]
    for who in people:
        world.add(who)
        world.feed(who.peer_id, Restored(records, []))
    world.add(newcomer)
    world.feed(newcomer.peer_id, publish("new:1", 900))
    for who in people:
        world.joined(newcomer.peer_id, who.peer_id)
        world.joined(who.peer_id, newcomer.peer_id)
    world.run(5.0)
    assert len(world.cores[newcomer.peer_id].names()) == 61
    assert all(core.head(full("new:1")) is not None for core in world.cores.values())
    repairs = [message for _, _, message in world.messages if isinstance(message, Summary)]
    assert 2 <= len(repairs) <= 40, "sixteen or so, not two with each of 60"
