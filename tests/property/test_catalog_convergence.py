"""Whatever is lost, doubled or comes out of order: after the repairs that follow, all catalogs say the same."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.catalog.buckets import BucketedKeys
from protocols.catalog.clock import Clock
from protocols.catalog.messages import CODEC
from protocols.catalog.records import VersionRecord
from protocols.catalog.versions import Versions
from protocols.errors import RemoteProtocolError
from tests.support_catalog import World, blob, full, holds, manifest_of, person, publish

NODES = 5

step = st.one_of(
    st.tuples(st.just("publish"), st.integers(0, NODES - 1), st.integers(0, 3), st.booleans()),
    st.tuples(st.just("hold"), st.integers(0, NODES - 1), st.integers(0, 3), st.booleans()),
    st.tuples(st.just("wait"), st.integers(0, 3), st.just(0), st.just(False)),
    st.tuples(st.just("cut"), st.integers(0, NODES - 1), st.just(0), st.just(False)),
    st.tuples(st.just("mend"), st.integers(0, NODES - 1), st.just(0), st.just(False)),
)


@given(st.lists(step, max_size=25), st.integers(0, 2**16), st.floats(0, 0.6), st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_all_catalogs_converge(
    steps: list[tuple[str, int, int, bool]], seed: int, loss: float, copies_max: int
) -> None:
    world = World(seed)
    people = [person(number + 1) for number in range(NODES)]
    for who in people:
        world.add(who)
    world.lost = lambda sender, receiver: world.rng.random() < loss
    world.copies = lambda: world.rng.randint(1, copies_max)
    for verb, number, content, flag in steps:
        peer = people[number % NODES].peer_id
        match verb:
            case "publish":
                world.feed(peer, publish("m:1", content, wall_ms=world.wall_ms(), deliberate=flag))
            case "hold":
                world.feed(peer, holds(*range(content), wall_ms=world.wall_ms()))
            case "wait":
                world.run(number * 0.3)
            case "cut":
                world.cut_off[peer] = None
            case "mend":
                world.cut_off.pop(peer, None)
    world.cut_off.clear()
    world.lost = lambda sender, receiver: False
    # Repairs with random members over ten minutes: each node has begun about twenty.
    world.run(600.0)
    assert len(set(world.head_ids("m:1").values())) == 1
    first, *others = world.cores.values()
    for other in others:
        assert all(other.inventory(who.peer_id) == first.inventory(who.peer_id) for who in people)
        assert other._contents.keys.root() == first._contents.keys.root()
    assert world.blamed == []


@st.composite
def histories(draw: st.DrawFn) -> list[VersionRecord]:
    """Versions of one name with random parents among the earlier ones, unsigned: the DAG looks at no signature."""
    records: list[VersionRecord] = []
    for number in range(draw(st.integers(1, 12))):
        entry = blob(draw(st.integers(0, 4)))
        chosen = draw(st.sets(st.integers(0, number - 1), max_size=3)) if number else set()
        parents = tuple(sorted({records[index].id() for index in sorted(chosen)}))
        author = person(draw(st.integers(1, 3))).peer_id
        clock = Clock(1000 + number if parents else draw(st.integers(0, 1000)), number)
        records.append(VersionRecord(full("m:1"), manifest_of(entry), (entry,), parents, author, clock, ""))
    return records


@given(histories(), st.randoms(use_true_random=False))
def test_heads_are_a_function_of_the_set(records: list[VersionRecord], rng: random.Random) -> None:
    shuffled = list(records)
    rng.shuffle(shuffled)
    one, other = Versions(1000, 2**30), Versions(1000, 2**30)
    for record in records:
        one.add(record)
    for record in [*shuffled, *shuffled]:
        other.add(record)
    heads = one.heads(full("m:1"))
    assert other.heads(full("m:1")) == heads
    assert heads, "a name with versions has a head"
    superseded = {parent for record in records for parent in record.parents}
    assert not [head for head in heads if head.id() in superseded]
    assert len({head.manifest_digest for head in heads}) == len(heads)
    assert sorted(heads, key=lambda head: (head.clock, head.id()), reverse=True) == list(heads)


@given(histories(), st.integers(2, 8))
def test_indices_agree_with_the_records_whatever_was_let_go(records: list[VersionRecord], room: int) -> None:
    versions = Versions(room, 2**30)
    for record in records:
        versions.add(record)
    known = [record for record in records if record.id() in versions]
    assert len(known) == len(versions.ids()) == len(versions) <= room
    assert versions.size_bytes == sum(record.memory_bytes for record in known)
    for content in range(5):
        entry = blob(content)
        having = [record for record in known if record.blobs == (entry,)]
        assert versions.manifests_with_blob(entry.digest) == [r.manifest_digest for r in having[:1]]
    assert {head.id() for head in versions.heads(full("m:1"))} <= {record.id() for record in known}


@given(st.sets(st.binary(min_size=32, max_size=32), max_size=40), st.sets(st.binary(min_size=32, max_size=32)))
def test_bucket_hashes_differ_exactly_where_keys_do(one: set[bytes], other: set[bytes]) -> None:
    first, second = BucketedKeys(), BucketedKeys()
    for key in sorted(one):
        first.set(key, key)
    for key in sorted(one | other):
        second.set(key, key)
    for key in sorted(other - one)[::2]:
        second.remove(key)
    left = (one | other) - set(sorted(other - one)[::2])
    assert first.differing(second.hashes()) == sorted({key[0] for key in one ^ left})
    assert (first.root() == second.root()) == (one == left)


@given(st.binary(max_size=200))
def test_bytes_of_a_peer_are_a_message_or_a_remote_error(data: bytes) -> None:
    try:
        message = CODEC.decode(data)
    except RemoteProtocolError:
        return
    assert CODEC.decode(CODEC.encode(message)) == message
