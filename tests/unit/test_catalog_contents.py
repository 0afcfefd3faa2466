"""The parts of a catalog by themselves: contents with their keys, inventories with their index, publishing."""

import attrs
import pytest

from protocols.catalog.clock import Clock
from protocols.catalog.config import CatalogConfig, DiscoveryConfig
from protocols.catalog.contents import Contents, key_batches
from protocols.catalog.inventories import Inventories
from protocols.catalog.messages import InventoryKey
from protocols.catalog.publishing import Publisher
from protocols.catalog.records import HOLDINGS_MAX, Holding
from protocols.errors import LocalProtocolError
from protocols.ids import Digest, PeerId, VersionId
from tests.support_catalog import WALL_MS, blob, full, inventory, manifest_digest, manifest_of, person, publish, version

ALICE, BOB, CAROL = person(1), person(2), person(3)


def everybody(_peer: PeerId) -> bool:
    return True


def test_contents_list_the_keys_of_a_bucket_and_follow_what_is_let_go() -> None:
    contents = Contents(CatalogConfig(owners_max=16), ALICE.peer_id)
    record = version(BOB, "m:1", 1)
    contents.add_version(record)
    contents.add_inventory(inventory(BOB, 5, 1), tuple)
    keys = [contents.keys_in(bucket) for bucket in range(256)]
    assert [key for versions, _ in keys for key in versions] == [record.id()]
    assert [key for _, inventories in keys for key in inventories] == [InventoryKey(BOB.peer_id, 5)]
    assert contents.all_keys() == ([record.id()], [InventoryKey(BOB.peer_id, 5)])
    before = contents.keys.root()
    contents.add_inventory(inventory(BOB, 6, 1), tuple)
    assert contents.keys.root() != before, "a newer inventory is another key in the same place"
    for number in range(10, 30):
        contents.add_inventory(inventory(person(number), number, 1), tuple)
    listed = sum(len(contents.keys_in(bucket)[1]) for bucket in range(256))
    assert listed == len(contents.inventories) == 16


def test_a_large_record_travels_alone_and_unknown_ones_not_at_all() -> None:
    contents = Contents(CatalogConfig(), ALICE.peer_id)
    small = [version(BOB, f"m{number}:1", number) for number in range(3)]
    large = attrs.evolve(version(BOB, "large:1", 9), manifest=b" " * 2_000_000)
    for record in (small[0], large, small[1], small[2]):
        contents.add_version(record)
    contents.add_inventory(inventory(BOB, 1, 1), tuple)
    wanted = [small[0].id(), large.id(), bytes(32), small[1].id(), small[2].id()]
    messages = list(contents.records(wanted, [BOB.peer_id, CAROL.peer_id]))
    assert [message.versions for message in messages] == [(small[0],), (large,), (small[1], small[2])]
    assert [len(message.inventories) for message in messages] == [0, 0, 1]
    assert list(contents.known_keys(wanted, [BOB.peer_id, CAROL.peer_id])) == [
        small[0].id(),
        large.id(),
        small[1].id(),
        small[2].id(),
        BOB.peer_id,
    ]


def test_keys_are_cut_into_messages() -> None:
    versions = [VersionId(bytes([number]) * 32) for number in range(5)]
    inventories = [InventoryKey(BOB.peer_id, number) for number in range(3)]
    batches = list(key_batches(versions, inventories, size_max=2))
    assert [len(some) for some, _ in batches] == [2, 2, 1, 0, 0]
    assert [len(some) for _, some in batches] == [0, 0, 0, 2, 1]
    assert list(key_batches([], [])) == []


def test_a_newer_inventory_replaces_an_older_one_in_the_index() -> None:
    inventories = Inventories(ALICE.peer_id, 16, 1000)
    assert inventories.newer(BOB.peer_id, 0)
    inventories.add(inventory(BOB, 5, 1, 2), tuple)
    assert not inventories.newer(BOB.peer_id, 5)
    inventories.add(inventory(BOB, 6, 2, 3, state="partial"), tuple)
    assert inventories.providers(manifest_digest(1), everybody) == []
    assert inventories.providers(manifest_digest(2), everybody) == [(BOB.peer_id, "partial")]
    assert inventories.state(BOB.peer_id, manifest_digest(3)) == "partial"
    assert inventories.state(BOB.peer_id, manifest_digest(1)) is None
    assert inventories.holdings == 2


def test_holdings_are_bounded_and_ones_own_stay() -> None:
    inventories = Inventories(ALICE.peer_id, 16, 10)
    inventories.add(inventory(ALICE, 1, *range(8)), tuple)
    assert inventories.add(inventory(BOB, 2, 1, 2), tuple) == []
    living = {CAROL.peer_id: None}
    assert inventories.add(inventory(CAROL, 1, 1, 2), lambda: living) == [BOB.peer_id], "the dead one goes"
    assert inventories.add(inventory(BOB, 9, 1), lambda: living) == [BOB.peer_id], "though it is newer"
    assert inventories.owners() == [ALICE.peer_id, CAROL.peer_id]
    assert inventories.holdings == 10


def publisher_of(contents: Contents) -> Publisher:
    return Publisher(CatalogConfig(), ALICE.peer_id, ALICE.sign, contents)


def test_a_published_version_is_dated_after_all_that_was_seen() -> None:
    publisher = publisher_of(Contents(CatalogConfig(), ALICE.peer_id))
    publisher.latest = Clock(WALL_MS + 500, 7)
    record = publisher.version(publish("m:1", 1))
    assert record is not None
    assert record.clock == Clock(WALL_MS + 500, 8)
    record.verify()


def test_blobs_are_put_into_the_manifests_order() -> None:
    entries = (blob(1), blob(2))
    publisher = publisher_of(Contents(CatalogConfig(), ALICE.peer_id))
    event = attrs.evolve(publish("m:1", 1), manifest=manifest_of(*entries), blobs=(blob(3), *entries[::-1]))
    record = publisher.version(event)
    assert record is not None
    assert record.blobs == entries, "and what the manifest does not name is left out"
    with pytest.raises(LocalProtocolError, match="cannot be published"):
        publisher.version(attrs.evolve(event, blobs=(attrs.evolve(blob(1), size_bytes=1),)))


def test_a_deliberate_version_follows_every_head() -> None:
    contents = Contents(CatalogConfig(), ALICE.peer_id)
    left, right = version(BOB, "m:1", 1), version(CAROL, "m:1", 2)
    contents.add_version(left)
    contents.add_version(right)
    publisher = publisher_of(contents)
    record = publisher.version(publish("m:1", 3, deliberate=True))
    assert record is not None
    assert record.parents == tuple(sorted([left.id(), right.id()]))
    found = publisher.version(publish("m:1", 3))
    assert found is not None
    assert found.parents == (), "what was merely found follows nothing"
    contents.add_inventory(inventory(ALICE, 1, 2), tuple)
    changed = publisher.version(publish("m:1", 3))
    assert changed is not None
    assert changed.parents == (right.id(),), "it stood here before"
    assert contents.versions.heads(full("m:1")) == tuple(
        sorted([left, right], key=lambda record: record.id(), reverse=True)
    )


def test_too_many_holdings_lose_the_partial_ones_first() -> None:
    publisher = publisher_of(Contents(CatalogConfig(), ALICE.peer_id))
    holdings = [Holding(Digest(f"sha256:{number:064x}"), "complete") for number in range(HOLDINGS_MAX)]
    partial = Holding(Digest("sha256:" + "0" * 62 + "ff"), "partial")
    stated = publisher.inventory([*holdings[1:], partial, attrs.evolve(holdings[5], state="partial")], WALL_MS)
    assert stated is not None
    assert len(stated.holdings) == HOLDINGS_MAX - 1, "the partial one is held whole as well"
    over = publisher.inventory([*holdings, Holding(Digest("sha256:" + "f" * 64), "partial")], WALL_MS)
    assert over is not None
    assert over.holdings == tuple(holdings)


def test_settings_name_what_is_allowed() -> None:
    with pytest.raises(ValueError, match=r"follow: 'some' is not one of all, none"):
        CatalogConfig(follow="some")
    with pytest.raises(ValueError, match=r"gossip_fanout: 0 is not allowed: 1 to 32"):
        CatalogConfig(gossip_fanout=0)
    with pytest.raises(ValueError, match=r"reprovide_interval_s: 1 is not allowed: 10 to 86400"):
        DiscoveryConfig(reprovide_interval_s=1)
