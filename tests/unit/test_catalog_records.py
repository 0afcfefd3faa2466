"""Version records, head records and inventories: what is signed, what is refused."""

import attrs
import pytest

from protocols.catalog.clock import LOGICAL_MAX, Clock, after, too_far_ahead
from protocols.catalog.keys import manifest_key, name_key, newest_head, pack_head, read_head
from protocols.catalog.messages import CODEC, Advert, AskVersion, HoldingAnswer, Keys, Records, VersionAnswer, Want
from protocols.catalog.records import BlobEntry, Holding, Inventory, VersionRecord
from protocols.codec import pack, unpack
from protocols.errors import RemoteProtocolError
from protocols.ids import Digest, PeerId, digest_of, public_key_of
from tests.support_catalog import WALL_MS, blob, full, inventory, manifest_digest, manifest_of, person, version

ALICE, BOB = person(1), person(2)


def test_a_version_survives_the_wire_with_its_id_and_its_signature() -> None:
    record = version(ALICE, "llama3:latest", 1)
    again = unpack(pack(record), VersionRecord)
    assert again == record
    assert again.id() == record.id()
    again.verify()


def test_the_id_covers_every_field_but_the_signature() -> None:
    record = version(ALICE, "llama3:latest", 1)
    ids = {
        record.id(),
        attrs.evolve(record, name=full("llama3:8b")).id(),
        attrs.evolve(record, manifest=record.manifest + b" ").id(),
        attrs.evolve(record, blobs=(attrs.evolve(record.blobs[0], recipe_id=b""),)).id(),
        attrs.evolve(record, parents=(bytes(32),)).id(),
        attrs.evolve(record, author=BOB.peer_id).id(),
        attrs.evolve(record, clock=Clock(WALL_MS, 1)).id(),
        attrs.evolve(record, message="new").id(),
    }
    assert len(ids) == 8
    assert attrs.evolve(record, signature=bytes(64)).id() == record.id()


def test_a_version_knows_its_manifest_digest_and_the_size_of_its_blobs() -> None:
    entries = (blob(1), blob(2))
    record = VersionRecord(full("two:1"), manifest_of(*entries), entries, (), ALICE.peer_id, Clock(WALL_MS), "")
    assert record.manifest_digest == digest_of(manifest_of(*entries))
    assert record.size_bytes == entries[0].size_bytes + entries[1].size_bytes


def test_a_version_signed_by_somebody_else_is_refused() -> None:
    record = version(ALICE, "llama3:latest", 1)
    with pytest.raises(RemoteProtocolError, match="is not signed by"):
        record.sign(BOB.sign).verify()
    with pytest.raises(RemoteProtocolError, match="is not signed by"):
        attrs.evolve(record, message="changed after signing").verify()
    with pytest.raises(RemoteProtocolError, match="is not signed by"):
        attrs.evolve(record, signature=b"").verify()


@pytest.mark.parametrize(
    "blobs",
    [
        (),
        (blob(2),),
        (blob(1), blob(2)),
        (attrs.evolve(blob(1), size_bytes=7),),
    ],
    ids=["none", "another", "one more", "another size"],
)
def test_a_version_whose_blobs_are_not_its_manifests_is_refused(blobs: tuple[BlobEntry, ...]) -> None:
    record = attrs.evolve(version(ALICE, "llama3:latest", 1), blobs=blobs).sign(ALICE.sign)
    with pytest.raises(RemoteProtocolError, match="other blobs than its manifest"):
        record.verify()


def test_a_version_whose_manifest_is_none_is_refused() -> None:
    record = attrs.evolve(version(ALICE, "llama3:latest", 1), manifest=b"[]", blobs=()).sign(ALICE.sign)
    with pytest.raises(RemoteProtocolError):
        record.verify()


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "llama3"},
        {"name": "llama3:latest"},
        {"name": "registry.ollama.ai/library/../etc:latest"},
        {"name": "https://registry.ollama.ai/library/llama3:latest"},
        {"name": "x" * 601},
        {"manifest": bytes(4 * 1024 * 1024 + 1)},
        {"message": "x" * 4097},
        {"message": "ä" * 2049},
        {"parents": (bytes(31),)},
        {"parents": (b"b" * 32, b"a" * 32)},
        {"parents": (bytes(32), bytes(32))},
        {"parents": tuple(bytes([n]) * 32 for n in range(17))},
        {"signature": bytes(63)},
        {"author": PeerId("x" * 81)},
        {"clock": [2**48, 0]},
        {"clock": [-1, 0]},
        {"clock": [0, 2**16]},
        {"blobs": [["sha256:" + "A" * 64, 1, b""]]},
        {"blobs": [["../../etc/passwd", 1, b""]]},
        {"blobs": [[blob(1).digest, -1, b""]]},
        {"blobs": [[blob(1).digest, 2**50, b""]]},
        {"blobs": [[blob(1).digest, True, b""]]},
        {"blobs": [[blob(1).digest, 1, b"short"]]},
        {"blobs": "none"},
    ],
    ids=lambda changes: " ".join(f"{key}={str(value)[:30]}" for key, value in changes.items()),
)
def test_a_version_over_a_limit_is_malformed_on_the_wire(changes: dict[str, object]) -> None:
    record = version(ALICE, "llama3:latest", 1)
    fields = [changes.get(attribute.name, getattr(record, attribute.name)) for attribute in attrs.fields(VersionRecord)]
    with pytest.raises(RemoteProtocolError, match="malformed VersionRecord"):
        unpack(pack(fields), VersionRecord)


def test_a_head_record_is_signed_by_the_author_whoever_derives_it() -> None:
    head = version(ALICE, "llama3:latest", 1).head()
    head.verify()
    assert read_head(pack_head(head)) == head
    with pytest.raises(RemoteProtocolError, match="is not signed by"):
        read_head(pack_head(attrs.evolve(head, clock=Clock(WALL_MS + 1))))
    with pytest.raises(RemoteProtocolError, match="over 2048"):
        read_head(pack_head(head) + bytes(2048))
    with pytest.raises(RemoteProtocolError):
        read_head(b"no head")


def test_the_newest_head_wins_and_bad_ones_do_not_count() -> None:
    old = pack_head(version(ALICE, "llama3:latest", 1).head())
    new = pack_head(version(BOB, "llama3:latest", 2, at_ms=WALL_MS + 1).head())
    assert newest_head([old, new]) == 1
    assert newest_head([new, old]) == 0
    assert newest_head([old, b"bad", old]) == 2, "of equal ones the last, so that saying it again renews it"
    assert newest_head([b"bad"]) is None


def test_keys_differ_by_name_and_by_kind() -> None:
    keys = {name_key(full("a:1")), name_key(full("a:2")), manifest_key(manifest_digest(1)), manifest_key(Digest("x"))}
    assert len(keys) == 4
    assert all(len(key) == 32 for key in keys)


def test_an_inventory_is_its_owners_alone() -> None:
    stated = inventory(ALICE, 7, 1, 2)
    stated.verify()
    assert unpack(pack(stated), Inventory) == stated
    with pytest.raises(RemoteProtocolError, match="not signed by its owner"):
        attrs.evolve(stated, sequence=8).verify()
    with pytest.raises(RemoteProtocolError, match="not signed by its owner"):
        attrs.evolve(stated, owner=BOB.peer_id).verify()


def test_an_inventory_lists_each_holding_once_in_order() -> None:
    first, second = sorted([manifest_digest(1), manifest_digest(2)])
    for holdings in ([[second, "complete"], [first, "complete"]], [[first, "complete"], [first, "partial"]]):
        with pytest.raises(RemoteProtocolError, match="malformed Inventory"):
            unpack(pack([ALICE.peer_id, 1, holdings, b""]), Inventory)
    with pytest.raises(RemoteProtocolError, match="malformed Inventory"):
        unpack(pack([ALICE.peer_id, 1, [[first, "rumoured"]], b""]), Inventory)
    with pytest.raises(ValueError, match="neither complete nor partial"):
        Holding(first, "rumoured")  # type: ignore[arg-type]  # that is the test


def test_a_peer_id_has_one_text() -> None:
    # Base58 decoding forgives white space at the end; two texts of one key would be two owners.
    with pytest.raises(RemoteProtocolError, match="not an Ed25519 peer id"):
        public_key_of(PeerId(ALICE.peer_id + " "))


def test_messages_survive_the_wire() -> None:
    record = version(ALICE, "llama3:latest", 1)
    for message in (
        Advert((record.id(),), (), True),
        Want((record.id(),), (BOB.peer_id,)),
        Records((record,), (inventory(BOB, 1, 1),)),
        Keys(bytes([0, 255]), (record.id(),), ()),
        HoldingAnswer(manifest_digest(1), "partial"),
        HoldingAnswer(manifest_digest(1), None),
        AskVersion(record.id(), "", Digest("")),
        VersionAnswer(record),
        VersionAnswer(None),
    ):
        assert CODEC.decode(CODEC.encode(message)) == message


@pytest.mark.parametrize(
    "fields",
    [
        [1, [bytes(31)], []],
        [1, [bytes(32)] * 20_001, []],
        [3, [], [[ALICE.peer_id, 1, [], b""]] * 257],
        [4, b"short"],
        [5, bytes(255)],
        [6, bytes([3, 3]), [], []],
        [6, bytes([3, 2]), [], []],
        [99],
    ],
    ids=["short id", "too many ids", "too many records", "root", "buckets", "twice", "order", "tag"],
)
def test_a_message_over_a_limit_is_refused(fields: list[object]) -> None:
    with pytest.raises(RemoteProtocolError):
        CODEC.decode(pack(fields))


def test_the_hybrid_clock_follows_the_wall_and_never_goes_back() -> None:
    assert after(Clock(100, 3), 200) == Clock(200, 0)
    assert after(Clock(200, 3), 200) == Clock(200, 4)
    assert after(Clock(300, 3), 200) == Clock(300, 4), "a wall clock set back does not take the order back"
    assert after(Clock(300, LOGICAL_MAX), 200) == Clock(301, 0)


def test_a_clock_far_ahead_is_refused() -> None:
    assert not too_far_ahead(Clock(WALL_MS + 600_000), WALL_MS, 600)
    assert too_far_ahead(Clock(WALL_MS + 600_001), WALL_MS, 600)
    assert not too_far_ahead(Clock(0), WALL_MS, 600), "what is old is old"
