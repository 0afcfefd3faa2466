"""node/store/store, index and config: one node a store, a store of one's own, and clear words where that cannot be."""

import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from node.errors import UsageError
from node.ports import StoreError
from node.store.config import StoreConfig
from node.store.files import Disk, FileKey, OpenFile, explain
from node.store.index import Index, KnownFile
from protocols.ids import digest_of
from tests.support_blobs import read_chunk
from tests.support_store import (
    cut,
    make_model,
    manifest_for,
    name,
    opened,
    random_bytes,
    receive_all,
    running,
    snapshot,
    until_state,
)

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
        with pytest.raises(UsageError, match=rf"process {os.getpid()}\) uses the store {tmp_path}: stop it"):
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


def _in_own_mounts(mount: str, program: str, models: Path) -> "subprocess.CompletedProcess[str]":
    """Run a program that alone sees a mount; the test is skipped where that cannot be done."""
    if shutil.which("unshare") is None or os.geteuid() != 0:
        pytest.skip("only root can mount something for one process")
    command = ["unshare", "--mount", "sh", "-c", f'{mount} && exec "$0" -c "$1" {models}', sys.executable, program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, cwd=Path(__file__).parents[2])
    if done.returncode != 0 and ("unshare:" in done.stderr or "mount:" in done.stderr):
        pytest.skip(f"no mounts here: {done.stderr.strip()}")
    return done


async def test_a_read_only_store_is_refused_in_one_line_and_not_touched(tmp_path: Path) -> None:
    models = tmp_path / "models"
    make_model(models, "one", [WEIGHTS])
    before = snapshot(models)
    done = _in_own_mounts(f"mount --bind {models} {models} && mount -o remount,ro,bind {models}", READ_ONLY, models)
    assert done.stdout == (
        f"StoreError cannot make {models}/.herd: the file system is read-only: mount it writable,"
        " or use another directory of models; herd keeps its index and unfinished downloads in"
        f" {models}/.herd\n"
    )
    assert snapshot(models) == before


FULL_DISK = """
import sys, trio
from pathlib import Path
from node.ports import StoreError
from tests.support_store import chunks_of, cut, opened, random_bytes, read_all

async def main():
    models = Path(sys.argv[1])
    data = random_bytes(3_000_000)
    recipe, chunks = cut(data, 100_000), chunks_of(data, 100_000)
    async with opened(models, sync_interval_bytes=300_000) as store:
        partial = await store.blobs.receive(recipe)
        try:
            await store.blobs.receive(cut(random_bytes(3_000_000, 2), 100_000))
        except StoreError as error:
            print("refused", "bytes are missing" in str(error))
        for index in range(10):
            await partial.write(index, chunks[index])
        ballast = models / "ballast"
        with ballast.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                pass
        try:
            for index in range(10, 30):
                await partial.write(index, chunks[index])
        except StoreError as error:
            print("failed", "disk" in str(error), "\\n" not in str(error))
        print("held", len(partial.held()) >= 10)
        ballast.unlink()
        for index in range(30):
            await partial.write(index, chunks[index])
        await partial.finish()
        await partial.close()
        print("whole", await read_all(store, recipe.digest) == data)

trio.run(main)
"""


async def test_a_disk_that_is_really_full_is_survived(tmp_path: Path) -> None:
    done = _in_own_mounts(f"mount -t tmpfs -o size=5m none {tmp_path}", FULL_DISK, tmp_path)
    assert done.stdout.splitlines() == ["refused True", "failed True True", "held True", "whole True"], done.stderr


async def test_root_gives_what_it_makes_to_the_owner_of_the_store(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a file to another user")
    models = tmp_path / "models"
    models.mkdir()
    os.chown(models, 12345, 12346)
    async with opened(models) as store:
        await receive_all(store, WEIGHTS)
        await receive_all(store, b"{}")
        await store.place_model(name("bob/x"), manifest_for([WEIGHTS], b"{}"))
    made = [path for path in models.rglob("*") if ".herd" not in path.parts]
    assert len(made) == 2 + 4 + 2
    assert {(path.stat().st_uid, path.stat().st_gid) for path in made} == {(12345, 12346)}


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


async def test_an_index_on_a_full_disk_says_so_and_goes_on_when_there_is_room(tmp_path: Path) -> None:
    recipe = cut(random_bytes(2_000_000))
    index = Index(tmp_path / "index.sqlite")
    await index._run(lambda connection: connection.execute("PRAGMA max_page_count = 10"))
    with pytest.raises(StoreError, match=r"cannot write .*index\.sqlite: the disk is full: free some space"):
        await index.record(FileKey(1, 2, 2_000_000, 3), recipe)
    assert await index.recipe(recipe.digest) is None

    await index._run(lambda connection: connection.execute("PRAGMA max_page_count = 1000"))
    await index.record(FileKey(1, 2, 2_000_000, 3), recipe)
    assert await index.recipe(recipe.digest) == recipe
    index.close()


async def test_figures_add_up(tmp_path: Path) -> None:
    make_model(tmp_path, "one", [WEIGHTS])
    async with running(tmp_path) as store:
        await until_state(store, "one", "verified")
        await read_chunk(store.blobs, next(iter(store._census.referenced())), 0)
        figures = store.statistics()
        assert (figures.models, figures.models_verified, figures.blobs_verified, figures.partial_blobs) == (1, 1, 2, 0)
        assert figures.read_bytes_total == len(WEIGHTS)
        assert figures.stored_bytes == figures.verified_bytes_total == len(WEIGHTS) + 23
        assert [view.digest for view in await store.models()] == [digest_of(store.manifest(name("one")))]


@pytest.mark.parametrize(
    ("setting", "environment", "expected"),
    [
        ("/a", {"OLLAMA_MODELS": "/b"}, "/a"),
        ("", {"OLLAMA_MODELS": ' "/b c" '}, "/b c"),
        ("", {"OLLAMA_MODELS": "", "HOME": "/h/bob"}, "/h/bob/.ollama/models"),
        ("", {"HOME": "/h/bob"}, "/h/bob/.ollama/models"),
    ],
)
def test_the_store_is_where_ollama_would_look(setting: str, environment: dict[str, str], expected: str) -> None:
    assert StoreConfig(models_path=setting).models_directory(environment) == Path(expected)


def test_settings_outside_their_limits_are_refused() -> None:
    with pytest.raises(ValueError, match=r"chunk_size_bytes: 5 is not allowed: 1048576 to 16777216"):
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
