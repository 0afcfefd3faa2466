"""node/store/store, index and config: one node a store, a store of one's own, and clear words where that cannot be."""

import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from node.ports import StoreError
from node.store.config import StoreConfig
from node.store.files import Disk, FileKey, OpenFile, explain
from node.store.index import Index, KnownFile
from tests.support_store import cut, make_model, name, opened, random_bytes, running, snapshot, until_state

WEIGHTS = random_bytes(30_000)


async def test_where_there_is_no_store_one_of_ollamas_layout_is_made(tmp_path: Path) -> None:
    models = tmp_path / "a" / "b"
    async with opened(models) as store:
        assert await store.models() == []
        assert store.free_disk_bytes() > 0
    assert sorted(path.name for path in models.iterdir()) == [".herd", "blobs", "manifests"]
    assert (models / "blobs").stat().st_mode & 0o777 == 0o755


async def test_a_second_node_on_the_same_store_is_refused(tmp_path: Path) -> None:
    async with opened(tmp_path):
        with pytest.raises(StoreError, match=rf"process {os.getpid()}\) uses the store {tmp_path}: stop it"):
            async with opened(tmp_path):
                pass
    async with opened(tmp_path) as store:
        assert await store.models() == []


async def test_a_place_where_no_store_can_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match=f"cannot make {tmp_path}/file/models"):
        async with opened(tmp_path / "file" / "models"):
            pass
    (tmp_path / ".herd").write_bytes(b"")
    with pytest.raises(StoreError, match=f"cannot make {tmp_path}/.herd: .*unfinished downloads"):
        async with opened(tmp_path):
            pass


READ_ONLY = """
import sys, trio
from pathlib import Path
from tests.support_store import opened

async def main():
    try:
        async with opened(Path(sys.argv[1])):
            print("opened")
    except Exception as error:
        print(type(error).__name__, error)

trio.run(main)
"""


async def test_a_read_only_store_is_refused_in_one_line_and_not_touched(tmp_path: Path) -> None:
    models = tmp_path / "models"
    make_model(models, "one", [WEIGHTS])
    before = snapshot(models)
    mount = f"mount --bind {models} {models} && mount -o remount,ro,bind {models}"
    command = ["unshare", "--mount", "sh", "-c", f'{mount} && exec "$0" -c "$1" {models}', sys.executable, READ_ONLY]
    if shutil.which("unshare") is None or os.geteuid() != 0:
        pytest.skip("only root can make a store read-only for one process")
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, cwd=Path(__file__).parents[2])
    if done.returncode != 0 and "unshare" in done.stderr:
        pytest.skip(f"no mount namespaces here: {done.stderr.strip()}")
    assert done.stdout == (
        f"StoreError cannot make {models}/.herd: the file system is read-only: mount it writable,"
        " or use another directory of models; herd keeps its index and unfinished downloads in"
        f" {models}/.herd\n"
    )
    assert snapshot(models) == before


async def test_an_index_of_a_later_release_is_left_alone(tmp_path: Path) -> None:
    async with opened(tmp_path):
        pass
    index = tmp_path / ".herd" / "index.sqlite"
    with sqlite3.connect(index) as connection:
        connection.execute("UPDATE schema SET version = 99")
    connection.close()
    with pytest.raises(StoreError, match=f"{index} has schema version 99, this release knows 1"):
        async with opened(tmp_path):
            pass


async def test_a_broken_index_is_named_with_its_remedy(tmp_path: Path) -> None:
    make_model(tmp_path, "one", [WEIGHTS])
    async with running(tmp_path) as store:
        await until_state(store, "one", "verified")
    index = tmp_path / ".herd" / "index.sqlite"
    index.write_bytes(b"this is no database, not at all" * 100)
    with pytest.raises(StoreError, match=f"{index} cannot be used: .*move the file away"):
        async with opened(tmp_path):
            pass
    index.unlink()
    async with running(tmp_path) as store:
        await until_state(store, "one", "verified")


async def test_the_index_remembers_files_recipes_and_partial_blobs(tmp_path: Path) -> None:
    one, two = cut(random_bytes(5000)), cut(random_bytes(700, 2))
    # Some file systems number inodes with all 64 bits.
    first, second = FileKey(1, (1 << 64) - 5, 5000, 123), FileKey(1, 6, 700, 124)
    index = Index(tmp_path / "index.sqlite")
    await index.record(first, one)
    await index.record(second, two)
    await index.save_partial(two.digest, b"\x80", two)
    await index.save_partial(two.digest, b"\x80", None)
    index.close()

    index = Index(tmp_path / "index.sqlite")
    assert await index.files() == {first: KnownFile(one.digest, 5), second: KnownFile(two.digest, 1)}
    assert await index.recipe(one.digest) == one
    [partial] = (await index.partials()).values()
    assert (partial.recipe, list(partial.bits)) == (two, [0])
    moved = FileKey(1, (1 << 64) - 5, 5000, 999)
    await index.move(first, moved)
    await index.forget([second, first])
    assert await index.files() == {moved: KnownFile(one.digest, 5)}
    assert await index.recipe(two.digest) is None
    await index.drop_partial(two.digest)
    assert await index.partials() == {}
    index.close()


async def test_figures_add_up(tmp_path: Path) -> None:
    make_model(tmp_path, "one", [WEIGHTS])
    async with running(tmp_path) as store:
        await until_state(store, "one", "verified")
        await store.blobs.read(next(iter(store._census.referenced())), 0)
        figures = store.statistics()
        assert (figures.models, figures.models_verified, figures.blobs_verified, figures.partial_blobs) == (1, 1, 2, 0)
        assert figures.read_bytes_total == len(WEIGHTS)
        assert figures.stored_bytes == figures.verified_bytes_total == len(WEIGHTS) + 23
        assert store.model_digest(name("one")).startswith("sha256:")


@pytest.mark.parametrize(
    ("setting", "environment", "expected"),
    [
        ("/a", {"OLLAMA_MODELS": "/b"}, "/a"),
        ("", {"OLLAMA_MODELS": ' "/b c" '}, "/b c"),
        ("", {"OLLAMA_MODELS": "", "HOME": "/home/bob"}, "/home/bob/.ollama/models"),
        ("", {"HOME": "/home/bob"}, "/home/bob/.ollama/models"),
    ],
)
def test_the_store_is_where_ollama_would_look(setting: str, environment: dict[str, str], expected: str) -> None:
    assert StoreConfig(models_path=setting).models_directory(environment) == Path(expected)


def test_settings_outside_their_limits_are_refused() -> None:
    with pytest.raises(ValueError, match=r"chunk_size_bytes: 5 is not allowed: 1\.04858e\+06 to 1\.67772e\+07"):
        StoreConfig(chunk_size_bytes=5)


async def test_failing_file_work_names_the_file_and_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / "absent"
    with pytest.raises(StoreError, match=f"cannot read {path}: it does not exist"):
        await Disk(1).run("read", path, path.read_bytes)
    assert str(explain(OSError(9999, "odd"), "read", path)) == f"cannot read {path}: odd"


def test_a_lent_descriptor_is_closed_when_the_last_borrower_gave_it_back(tmp_path: Path) -> None:
    file = OpenFile(os.open(tmp_path, os.O_RDONLY))
    with file.borrow() as outer:
        with file.borrow() as inner:
            file.close()
            assert os.fstat(inner).st_ino == tmp_path.stat().st_ino
        assert os.fstat(outer).st_ino == tmp_path.stat().st_ino
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(outer)
    with pytest.raises(ValueError, match="closed"), file.borrow():
        pass
    file.close()
