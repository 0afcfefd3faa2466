"""The catalog's file: what a restarted node knows at once."""

import sqlite3
from pathlib import Path

import pytest
import trio

from node.errors import HerdError
from node.services.catalog.file import CatalogFile
from protocols.catalog.config import CatalogConfig
from tests.support_catalog import WALL_MS, full, inventory, manifest_digest, person, version
from tests.support_discovery import Hosts
from tests.support_transport import simulated_nodes, until

ALICE, BOB = person(1), person(2)


def test_records_are_there_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "home" / "catalog.sqlite"
    first, second = version(ALICE, "m:1", 1), version(BOB, "n:1", 2)
    file = CatalogFile(path)
    assert file.load().versions == []
    file.write({first.id(): first, second.id(): second, ALICE.peer_id: inventory(ALICE, 1, 1)})
    file.write({second.id(): None, ALICE.peer_id: inventory(ALICE, 2, 1, 2)})
    file.close()
    file.close()
    again = CatalogFile(path)
    restored = again.load()
    again.close()
    assert restored.versions == [first]
    assert restored.inventories == [inventory(ALICE, 2, 1, 2)]


DAMAGE = {
    "a record that is none": "UPDATE records SET record = x'ff'",
    "a record that is text": "UPDATE records SET record = CAST(x'ff00ff' AS TEXT)",
    "a record of no kind": "UPDATE records SET kind = 9",
    "a signature with a flipped bit": "UPDATE records SET record = substr(record, 1, length(record) - 1) || x'00'",
    "another table": "DROP TABLE records; CREATE TABLE records (x)",
}


@pytest.mark.parametrize("damage", ["no database", "cut short", *DAMAGE])
def test_a_damaged_file_is_set_aside(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "catalog.sqlite"
    file = CatalogFile(path)
    file.load()
    file.write({b"k" * 32: version(ALICE, "m:1", 1)})
    file.close()
    if damage == "no database":
        path.write_bytes(b"this is no database" * 100)
    elif damage == "cut short":
        path.write_bytes(path.read_bytes()[:5000])
    else:
        connection = sqlite3.connect(path)
        connection.executescript(DAMAGE[damage])
        connection.close()
    file = CatalogFile(path)
    assert file.load().versions == []
    file.write({b"k" * 32: version(ALICE, "m:1", 1)})
    file.close()
    assert path.with_name("catalog.sqlite.damaged").exists()
    assert len(CatalogFile(path).load().versions) == 1


def test_a_file_of_a_newer_release_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "catalog.sqlite"
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(HerdError, match="was written by a newer herd"):
        CatalogFile(path).load()
    assert not path.with_name("catalog.sqlite.damaged").exists()


def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    path = tmp_path / "catalog.sqlite"
    path.mkdir()
    with pytest.raises(HerdError, match=r"catalog\.sqlite cannot be used: .*; check disk space and permissions"):
        CatalogFile(path).load()
    with pytest.raises(HerdError, match="is not open"):
        CatalogFile(path).write({})


async def test_a_restarted_node_knows_its_catalog_without_asking_anybody(tmp_path: Path) -> None:
    # Real time: the file is written by a thread.
    hosts, path = Hosts(simulated_nodes(0.0)), tmp_path / "catalog.sqlite"
    async with hosts.open("ann", path=path) as ann:
        record = ann.add_model("m:1", 1)
        before = ann.catalog.statistics()
    async with hosts.open("ann", CatalogConfig(follow="none"), path=path) as ann:
        assert ann.catalog.head(full("m:1")) == record
        assert ann.catalog.holdings_count(ann.peer) == 1
        assert ann.catalog.statistics().versions == before.versions
        ann.add_model("m:1", 1)
        assert ann.catalog.statistics().versions == 1
        assert record.clock.physical_ms >= WALL_MS
        assert ann.catalog.providers(manifest_digest(1)) == [(ann.peer, "complete")]


async def test_records_are_on_disk_soon_without_an_orderly_end(tmp_path: Path) -> None:
    path = tmp_path / "catalog.sqlite"
    async with Hosts(simulated_nodes(0.0)).open("ann", path=path) as ann:
        ann.add_model("m:1", 1)
        await until(lambda: _rows(path) > 0)
        assert _rows(path) == 2


def _rows(path: Path) -> int:
    connection = sqlite3.connect(path)
    try:
        (count,) = connection.execute("SELECT count(*) FROM records").fetchone()
    finally:
        connection.close()
    return int(count)


async def test_no_record_is_lost_however_soon_the_end_comes(tmp_path: Path) -> None:
    path = tmp_path / "catalog.sqlite"
    for number in range(20):
        async with Hosts(simulated_nodes(0.0)).open("ann", path=path) as ann:
            assert len(ann.catalog.names()) == number
            for _ in range(number % 4):
                await trio.lowlevel.checkpoint()
            ann.add_model(f"m{number}:1", number)
            for _ in range(number % 3):
                await trio.lowlevel.checkpoint()
