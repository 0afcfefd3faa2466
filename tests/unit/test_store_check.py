"""node/store/check, chunk_check, chunk_worker and damage: what is read again, and what is found wrong."""

import os
import signal
import subprocess
import sys
from array import array
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from node.errors import NotFound
from node.events import EventBus
from node.ports import StoreError
from node.store import adopt, chunk_check, chunk_worker, hashing
from node.store.chunk_check import ChunkChecker, WorkerEnded
from node.store.chunk_worker import CHANGED, DONE, RECORD, REQUEST
from node.store.damage import damage_text, differing_chunks, wrong_ranges
from node.store.files import FileKey
from node.store.store import Store
from node.store.verify import FileChanged
from node.views import Progress
from protocols.ids import digest_of
from protocols.recipe.recipe import Recipe
from tests.support_store import (
    blob_file,
    cut,
    heard,
    keep_mtime_and_write,
    make_model,
    manifest_for,
    name,
    opened,
    random_bytes,
    receive_all,
    running,
    until_state,
)

CONFIG = b'{"model_format":"gguf"}'
DATA = random_bytes(20_500)
TINY = name("tiny")
MIB = 1024 * 1024


@pytest.fixture(autouse=True)
def fast_from_the_first_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adopt, "FAST_SIZE_BYTES_MIN", 1)


def no_sha256(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on nothing may be hashed whole."""

    def refused(*_: object, **__: object) -> Any:
        raise AssertionError("a file was hashed whole")

    monkeypatch.setattr(hashing, "hash_file", refused)


async def hold(store: Store, data: bytes = DATA) -> None:
    """The store has the model `tiny` with this blob, in chunks of 1,000 bytes, verified."""
    for blob in (data, CONFIG):
        await receive_all(store, blob)
    await store.place_model(TINY, manifest_for([data], CONFIG))


def read_bytes(store: Store) -> int:
    return store.statistics().verified_bytes_total


async def test_what_nobody_touched_is_answered_from_the_record_and_not_read(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await hold(store)
        before = read_bytes(store)
        report = await store.verify([TINY])
        assert (report.verified, report.damaged) == (True, [])
        assert (report.read_bytes, report.recorded_bytes) == (0, len(DATA) + len(CONFIG))
        assert [(model.name, model.state) for model in report.models] == [("tiny:latest", "verified")]
        assert read_bytes(store) == before


async def test_again_reads_every_chunk_and_no_sha256_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Progress] = []
    async with opened(tmp_path) as store:
        await hold(store)
        before = read_bytes(store)
        no_sha256(monkeypatch)
        report = await store.verify(again=True, on_progress=told.append)
        assert (report.verified, report.recorded_bytes) == (True, 0)
        assert report.read_bytes == len(DATA) + len(CONFIG) == read_bytes(store) - before
        assert {(one.phase, one.model, one.size_bytes) for one in told} == {
            ("verifying", "tiny:latest", report.read_bytes)
        }
        held = [one.held_bytes for one in told]
        assert held == sorted(held)
        assert held[-1] == report.read_bytes


async def test_a_flipped_byte_is_found_by_again_named_and_withdrawn_for_good(tmp_path: Path) -> None:
    bus = EventBus()
    with bus.subscribe() as events:
        async with opened(tmp_path, bus) as store:
            await hold(store)
            keep_mtime_and_write(blob_file(tmp_path, DATA), 7_500, bytes([DATA[7_500] ^ 1]))
            # No time of change tells: the record cannot know.
            assert (await store.verify([TINY])).verified
            report = await store.verify([TINY], again=True)
            assert not report.verified
            [blob] = report.damaged
            assert (blob.digest, blob.wrong_ranges) == (digest_of(DATA), [(7_000, 8_000)])
            assert blob.detail == f"{blob.path} is damaged: 1 of 21 chunks is wrong, bytes 7000 to 7999"
            assert [model.state for model in report.models] == ["damaged"]
            assert store.blobs.held(digest_of(DATA)) is None
            assert await store.complete_manifests() == {}
            assert ("tiny:latest", "damaged") in heard(events)
            # From then on the record knows.
            recorded = await store.verify([TINY])
            assert (recorded.verified, recorded.read_bytes, recorded.damaged) == (False, 0, [blob])
    async with opened(tmp_path) as store:
        assert [model.state for model in await store.models()] == ["damaged"]


async def test_what_is_damaged_can_be_received_again(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await hold(store)
        keep_mtime_and_write(blob_file(tmp_path, DATA), 0, bytes(2_000))
        assert not (await store.verify(again=True)).verified
        await hold(store)
        assert (await store.verify(again=True)).verified
    assert blob_file(tmp_path, DATA).read_bytes() == DATA


@pytest.mark.parametrize("fast_size_bytes_min", [1, 1 << 40])
async def test_an_adopted_file_is_compared_chunk_by_chunk_also_where_it_is_hashed_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fast_size_bytes_min: int
) -> None:
    monkeypatch.setattr(adopt, "FAST_SIZE_BYTES_MIN", fast_size_bytes_min)
    data = random_bytes(6 * MIB)
    make_model(tmp_path, "tiny", [data])
    async with running(tmp_path, chunk_size_bytes=MIB) as store:
        await until_state(store, "tiny", "verified")
        recipe = await store.blobs.recipe(digest_of(data))
        keep_mtime_and_write(blob_file(tmp_path, data), 3 * MIB, b"wrong")
        report = await store.verify(again=True)
        [(begin, end)] = report.damaged[0].wrong_ranges
        assert begin <= 3 * MIB < end
        assert f"of {len(recipe)} chunks" in report.damaged[0].detail


async def test_a_file_that_was_only_touched_is_verified_again_by_its_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path) as store:
        await hold(store)
        no_sha256(monkeypatch)
        os.utime(blob_file(tmp_path, DATA))
        report = await store.verify()
        assert (report.verified, report.read_bytes, report.recorded_bytes) == (True, len(DATA), len(CONFIG))
        assert (await store.verify()).read_bytes == 0
    os.utime(blob_file(tmp_path, DATA))
    async with running(tmp_path) as store:
        # Neither the look at the start nor the sweeps lose the recipe that this needs.
        await until_state(store, "tiny", "verified")
        assert read_bytes(store) == len(DATA)
        assert len(await store.blobs.recipe(digest_of(DATA))) == 21


async def test_a_changed_file_is_damaged_whatever_its_time_says(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await hold(store)
        blob_file(tmp_path, DATA).write_bytes(DATA[:-1] + b"?")
        report = await store.verify()
        assert report.damaged[0].wrong_ranges == [(20_000, 20_500)]
        blob_file(tmp_path, DATA).write_bytes(DATA[:100])
        report = await store.verify(again=True)
        assert (report.models[0].state, report.read_bytes) == ("damaged", len(CONFIG))
        assert "has 100 bytes" in report.models[0].detail
        blob_file(tmp_path, DATA).unlink()
        assert (await store.verify()).models[0].state == "incomplete"


async def test_an_index_that_rots_does_not_condemn_a_good_file(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await hold(store)
        right = cut(DATA)
        rotten = attrs.evolve(right, hashes=bytes(32) + right.hashes[32:])
        await store._index.record(FileKey.at(blob_file(tmp_path, DATA)), rotten)
        report = await store.verify(again=True)
        assert report.verified
        stored = await store._index.recipe(right.digest)
        assert stored is not None
        assert stored != rotten


async def test_a_name_that_is_not_here_is_named(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        assert (await store.verify()).verified
        with pytest.raises(NotFound, match="ghost:latest is not in this store"):
            await store.verify([name("ghost")])


# -- the worker


def written(path: Path, data: bytes = DATA) -> tuple[Path, FileKey, Recipe]:
    path.write_bytes(data)
    return path, FileKey.at(path), cut(data)


async def test_wrong_chunks_are_told_by_index_and_a_later_write_is_noticed(tmp_path: Path) -> None:
    checker = ChunkChecker(0)
    path, key, recipe = written(tmp_path / "blob")
    assert await checker.check(path, key, recipe) == []
    keep_mtime_and_write(path, 999, b"??")
    keep_mtime_and_write(path, 20_499, bytes([DATA[-1] ^ 1]))
    assert await checker.check(path, key, recipe) == [0, 1, 20]
    os.utime(path)
    with pytest.raises(FileChanged, match="was written to"):
        await checker.check(path, key, recipe)
    with pytest.raises(StoreError, match=r"cannot read .*absent: it does not exist"):
        await checker.check(tmp_path / "absent", key, recipe)


async def test_a_file_that_is_written_to_while_it_is_read_is_not_judged(tmp_path: Path) -> None:
    path, key, recipe = written(tmp_path / "blob")
    # 0.1 s a chunk: it is touched when nearly all of it is still to be read.
    with trio.fail_after(60), pytest.raises(FileChanged, match="was written to while it was being read"):
        await ChunkChecker(10_000).check(path, key, recipe, background=True, on_progress=lambda _: os.utime(path))


async def test_a_file_that_shrinks_while_it_is_read_ends_the_worker_and_not_the_node(tmp_path: Path) -> None:
    # One chunk of a page or more each 0.1 s: when the first progress comes, most of the file was not touched yet.
    data = random_bytes(40 * 65_536)
    path = tmp_path / "blob"
    path.write_bytes(data)
    key, recipe = FileKey.at(path), cut(data, 65_536)
    told: list[int] = []

    def truncate(checked_bytes: int) -> None:
        told.append(checked_bytes)
        if checked_bytes:
            os.truncate(path, 0)

    with trio.fail_after(60), pytest.raises(FileChanged, match="shrank while it was being read"):
        await ChunkChecker(655_360).check(path, key, recipe, background=True, on_progress=truncate)
    assert 0 < max(told) < len(data)


async def test_a_shrinking_blob_is_a_damaged_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = random_bytes(40 * 65_536)
    async with opened(tmp_path) as store:
        for blob in (data, CONFIG):
            await receive_all(store, blob, 65_536)
        await store.place_model(TINY, manifest_for([data], CONFIG))
        path = blob_file(tmp_path, data)
        request = chunk_check._request

        def slow(path: Path, key: FileKey, recipe: Recipe, rate_bytes_per_s: int, background: bool) -> bytes:
            return request(path, key, recipe, 655_360, background)

        monkeypatch.setattr(chunk_check, "_request", slow)

        def truncate(progress: Progress) -> None:
            if 0 < progress.held_bytes < len(data):
                os.truncate(path, 1000)

        report = await store.verify(again=True, on_progress=truncate)
        assert [model.state for model in report.models] == ["damaged"]
        assert "has 1000 bytes" in report.models[0].detail
        assert await store.complete_manifests() == {}


async def test_a_worker_that_dies_is_told_from_a_file_that_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    dying = tmp_path / "dying.py"
    dying.write_text("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    async with opened(tmp_path / "models") as store:
        await hold(store)
        monkeypatch.setattr(chunk_worker, "__file__", str(dying))
        with pytest.raises(WorkerEnded, match="ended with code -9"):
            await ChunkChecker(0).check(*written(tmp_path / "blob"))
        report = await store.verify(again=True)
    assert report.verified
    assert "ended with code -9: its SHA-256 is computed instead" in caplog.text


async def test_cancelling_kills_the_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[trio.Process] = []
    open_process = trio.lowlevel.open_process

    async def remembered(*arguments: Any, **options: Any) -> trio.Process:
        started.append(await open_process(*arguments, **options))
        return started[-1]

    monkeypatch.setattr(trio.lowlevel, "open_process", remembered)
    with trio.fail_after(60), trio.CancelScope() as scope:
        await ChunkChecker(1).check(*written(tmp_path / "blob"), background=True, on_progress=lambda _: scope.cancel())
    assert scope.cancelled_caught
    assert [process.returncode for process in started] == [-signal.SIGKILL]


async def test_the_bus_error_of_a_whole_file_is_the_disks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("import os, signal; os.kill(os.getpid(), signal.SIGBUS)")
    monkeypatch.setattr(chunk_worker, "__file__", str(broken))
    with pytest.raises(StoreError, match="check the disk's health"):
        await ChunkChecker(0).check(*written(tmp_path / "blob"))


def test_the_worker_is_a_script_of_its_own_that_knows_nothing_of_herd(tmp_path: Path) -> None:
    written(tmp_path / "blob")
    (tmp_path / "struct.py").write_text("raise SystemExit(3)")

    def ask(request: bytes) -> bytes:
        return subprocess.run(WORKER, input=request, capture_output=True, check=True, cwd=tmp_path).stdout

    assert ask(request_for(tmp_path / "blob"))[-RECORD.size :] == RECORD.pack(DONE, len(DATA))
    assert ask(request_for(tmp_path / "blob", later_ns=1)) == RECORD.pack(CHANGED, 0)


def test_a_worker_whose_node_is_gone_ends(tmp_path: Path) -> None:
    written(tmp_path / "blob")
    with subprocess.Popen(WORKER, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as worker:
        assert worker.stdin is not None
        assert worker.stdout is not None
        # At a byte a second, it would take hours.
        worker.stdin.write(request_for(tmp_path / "blob", rate_bytes_per_s=1))
        worker.stdin.flush()
        assert worker.stdout.read(RECORD.size)
        worker.stdout.close()
        assert worker.wait(timeout=30) == 1


WORKER = [sys.executable, "-P", chunk_worker.__file__]


def request_for(path: Path, later_ns: int = 0, rate_bytes_per_s: int = 0) -> bytes:
    key, recipe, shown = FileKey.at(path), cut(DATA), os.fsencode(path)
    mtime_ns = key.mtime_ns + later_ns
    sizes = (len(shown), len(recipe), 2, 1)
    head = REQUEST.pack(key.device, key.inode, key.size_bytes, mtime_ns, rate_bytes_per_s, *sizes)
    return head + shown + array("I", recipe.sizes_bytes).tobytes() + recipe.hashes


# -- words


def test_neighbours_are_one_range_and_a_long_list_is_cut_short(tmp_path: Path) -> None:
    recipe = cut(DATA)
    assert wrong_ranges(recipe, [0, 1, 4, 20]) == ((0, 2000), (4000, 5000), (20_000, 20_500))
    assert damage_text(Path("x"), recipe, [1, 3, 5, 7, 9]) == (
        "x is damaged: 5 of 21 chunks are wrong, bytes 1000 to 1999, 3000 to 3999, 5000 to 5999 and 2 more ranges"
    )


def test_recipes_of_other_rules_say_nothing_about_each_other() -> None:
    changed = cut(DATA[:1500] + b"?" + DATA[1501:])
    assert differing_chunks(cut(DATA), changed) == [1]
    assert differing_chunks(cut(DATA), cut(DATA, 500)) == []
