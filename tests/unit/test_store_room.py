"""Room for blobs to come, and the pace of writing: reserved, given back, synced beside what comes next."""

import errno
import os
import shutil
import threading
from pathlib import Path

import pytest
import trio

from node.ports import StoreError
from node.store import partials, space
from node.store.config import MEBIBYTE
from protocols.ids import blob_file_name
from protocols.recipe.recipe import Recipe
from tests.support_blobs import read_chunk
from tests.support_store import CHUNK, chunks_of, cut, herd_files, opened, random_bytes, read_all, write_all

DATA = random_bytes(10_500)
RECIPE = cut(DATA)
CHUNKS = chunks_of(DATA)
LARGE = random_bytes(4 * MEBIBYTE)
LARGE_RECIPE = cut(LARGE, MEBIBYTE)
LARGE_CHUNKS = chunks_of(LARGE, MEBIBYTE)


def partial_file(models: Path, recipe: Recipe) -> Path:
    return models / ".herd" / "partial" / blob_file_name(recipe.digest)


def taken_bytes(path: Path) -> int:
    return 512 * path.stat().st_blocks


@pytest.fixture
def _reserves(tmp_path: Path) -> None:
    with (tmp_path / "probe").open("wb") as file:
        if not space.reserve(file.fileno(), 4096):
            pytest.skip("the file system of the temporary directory cannot reserve room")


@pytest.mark.usefixtures("_reserves")
async def test_room_is_taken_before_the_first_byte_and_what_did_not_come_is_given_back(tmp_path: Path) -> None:
    path = partial_file(tmp_path, LARGE_RECIPE)
    async with opened(tmp_path) as store:
        partial = await store.blobs.receive(LARGE_RECIPE)
        assert taken_bytes(path) >= len(LARGE)
        await partial.write(2, LARGE_CHUNKS[2])
        await partial.close()
        assert MEBIBYTE <= taken_bytes(path) < 2 * MEBIBYTE
        again = await store.blobs.receive(LARGE_RECIPE)
        assert taken_bytes(path) >= len(LARGE)
        await write_all(again, LARGE, MEBIBYTE)
        await again.finish()
        await again.close()
        assert await read_all(store, LARGE_RECIPE.digest) == LARGE


@pytest.mark.usefixtures("_reserves")
async def test_what_is_reserved_needs_no_room_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(tmp_path) as store:
        first = await store.blobs.receive(LARGE_RECIPE)
        # The disk says what is free beside the room that was taken; that must not be counted twice.
        monkeypatch.setattr(partials, "free_bytes", lambda _: 20_000)
        second = await store.blobs.receive(RECIPE)
        with store.blobs.keep({LARGE_RECIPE.digest: len(LARGE), RECIPE.digest: len(DATA)}):
            pass
        with pytest.raises(StoreError, match="no room"):
            await store.blobs.receive(cut(random_bytes(30_000, 5)))
        await first.close()
        await second.close()


async def test_a_disk_that_others_filled_says_so_before_the_first_byte_and_keeps_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> bool:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async with opened(tmp_path) as store:
        with monkeypatch.context() as patched:
            patched.setattr(partials, "reserve", full)
            with pytest.raises(StoreError, match=r"cannot make room for .*: the disk is full"):
                await store.blobs.receive(RECIPE)
        assert herd_files(tmp_path) == []
        partial = await store.blobs.receive(RECIPE)
        await partial.write(3, CHUNKS[3])
        await partial.close()
        with monkeypatch.context() as patched:
            patched.setattr(partials, "reserve", full)
            with pytest.raises(StoreError, match="the disk is full"):
                await store.blobs.receive(RECIPE)
        again = await store.blobs.receive(RECIPE)
        assert list(again.held()) == [3]
        await again.close()


@pytest.mark.usefixtures("_reserves")
async def test_a_killed_process_gives_its_room_back_at_the_next_start(tmp_path: Path) -> None:
    killed = tmp_path / "killed"
    async with opened(tmp_path / "models", sync_interval_bytes=1) as store:
        partial = await store.blobs.receive(LARGE_RECIPE)
        await partial.write(0, LARGE_CHUNKS[0])
        shutil.copytree(tmp_path / "models", killed)
        await partial.close()
    path = partial_file(killed, LARGE_RECIPE)
    with path.open("r+b") as file:
        file.truncate(MEBIBYTE)
        file.truncate(len(LARGE))
        assert space.reserve(file.fileno(), len(LARGE))
    assert taken_bytes(path) >= len(LARGE)
    async with opened(killed) as store:
        assert taken_bytes(path) < 2 * MEBIBYTE
        assert list((await store.blobs.receive(LARGE_RECIPE)).held()) == [0]


async def test_what_a_killed_process_had_written_counts_when_it_is_right(tmp_path: Path) -> None:
    killed = tmp_path / "killed"
    async with opened(tmp_path / "models", sync_interval_bytes=2 * CHUNK) as store:
        partial = await store.blobs.receive(RECIPE)
        for index in (0, 1, 4, 7, 8):
            await partial.write(index, CHUNKS[index])
        assert list((await store._index.partials())[RECIPE.digest].bits) == [0, 1, 4, 7]
        shutil.copytree(tmp_path / "models", killed)
        await partial.close()
    with partial_file(killed, RECIPE).open("r+b") as file:
        for index in (5, 9):  # written, and no bit committed; the power went before all of 9 was on disk
            file.seek(index * CHUNK)
            file.write(CHUNKS[index] if index == 5 else CHUNKS[index][:500] + bytes(500))
    async with opened(killed) as store:
        again = await store.blobs.receive(RECIPE)
        assert list(again.held()) == [0, 1, 4, 5, 7, 8]
        await again.close()
    async with opened(killed) as store:
        again = await store.blobs.receive(RECIPE)
        assert list(again.held()) == [0, 1, 4, 5, 7, 8]
        await write_all(again, DATA)
        await again.finish()
        await again.close()
        assert await read_all(store, RECIPE.digest) == DATA


async def test_killed_before_the_first_batch_was_durable_what_was_written_is_kept(tmp_path: Path) -> None:
    killed = tmp_path / "killed"
    async with opened(tmp_path / "models") as store:
        partial = await store.blobs.receive(RECIPE)
        for index in (0, 1, 4):
            await partial.write(index, CHUNKS[index])
        shutil.copytree(tmp_path / "models", killed)
        assert list((await store._index.partials())[RECIPE.digest].bits) == []
        await partial.close()
    async with opened(killed) as store:
        again = await store.blobs.receive(RECIPE)
        assert list(again.held()) == [0, 1, 4]
        await again.close()


async def test_one_batch_is_synced_while_the_next_is_written_and_no_more_than_the_bound_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fdatasync, released, syncs = os.fdatasync, threading.Event(), 0

    def slow_sync(descriptor: int) -> None:
        nonlocal syncs
        syncs += 1
        assert released.wait(10)
        fdatasync(descriptor)

    async with opened(tmp_path, sync_interval_bytes=2 * CHUNK, unsynced_bytes_max=5 * CHUNK) as store:
        partial = await store.blobs.receive(RECIPE)
        monkeypatch.setattr(os, "fdatasync", slow_sync)
        written: list[int] = []

        async def write(index: int) -> None:
            await partial.write(index, CHUNKS[index])
            written.append(index)

        async with trio.open_nursery() as nursery:
            await write(0)
            nursery.start_soon(write, 1)  # fills the batch, and sees to its sync
            await _until(lambda: syncs == 1)
            for index in (2, 3):
                await write(index)
            nursery.start_soon(write, 4)  # the bound: it has to wait
            await _until(lambda: 4 in partial.held())
            await trio.sleep(0.02)  # real time: a write that did not wait would have ended by now
            assert (syncs, sorted(written)) == (1, [0, 2, 3])
            released.set()
        assert sorted(written) == [0, 1, 2, 3, 4]
        assert syncs == 2
        await partial.close()


async def test_a_long_sync_keeps_no_reader_and_no_writer_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fdatasync, released, syncs = os.fdatasync, threading.Event(), 0

    def slow_sync(descriptor: int) -> None:
        nonlocal syncs
        syncs += 1
        assert released.wait(10)
        fdatasync(descriptor)

    async with opened(tmp_path, sync_interval_bytes=2 * CHUNK, io_threads=1) as store:
        partial = await store.blobs.receive(RECIPE)
        other = await store.blobs.receive(LARGE_RECIPE)
        monkeypatch.setattr(os, "fdatasync", slow_sync)
        async with trio.open_nursery() as nursery:
            await partial.write(0, CHUNKS[0])
            nursery.start_soon(partial.write, 1, CHUNKS[1])
            await _until(lambda: syncs == 1)
            nursery.start_soon(other.write, 0, LARGE_CHUNKS[0])
            await _until(lambda: 0 in other.held())
            assert await read_chunk(store.blobs, RECIPE.digest, 1) == CHUNKS[1]
            assert await read_chunk(store.blobs, LARGE_RECIPE.digest, 0) == LARGE_CHUNKS[0]
            released.set()
        await partial.close()
        await other.close()


async def _until(condition: object) -> None:
    assert callable(condition)
    for _ in range(5000):
        if condition():
            return
        await trio.sleep(0.001)  # real time: worker threads know no other
    raise AssertionError("it did not come about")


def test_giving_back_leaves_every_written_byte(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with path.open("w+b", buffering=0) as file:
        file.truncate(1_000_000)
        space.reserve(file.fileno(), 1_000_000)
        for offset in (0, 100_001, 300_000, 999_990):
            file.seek(offset)
            file.write(b"written ok")
        before = path.read_bytes()
        space.give_back(file.fileno())
        assert path.read_bytes() == before
        assert path.stat().st_size == 1_000_000
        spans = list(space.written_spans(file.fileno()))
        for offset in (0, 100_001, 300_000, 999_990):
            assert any(begin <= offset and offset + 10 <= end for begin, end in spans)


def test_where_nothing_can_be_reserved_nothing_is_written_instead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (tmp_path / "file").open("w+b") as file:
        monkeypatch.setattr(space, "_fallocate", None)
        file.truncate(10_000_000)
        assert not space.reserve(file.fileno(), 10_000_000)
        space.give_back(file.fileno())
        assert taken_bytes(tmp_path / "file") < 1_000_000
