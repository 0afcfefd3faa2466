"""What the store does when the disk fails it, and its twin on a simulated disk does the same."""

import errno
import os
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path

import attrs
import pytest

from node.events import EventBus
from node.ports import Blobs, PartialBlob, StoreError
from node.store.config import StoreConfig
from node.store.ollama import Layout
from node.store.store import open_store
from protocols.ids import Digest
from simnet.blobs import MemoryBlobs, cut
from simnet.stock import LAYOUT
from tests.support_blobs import read_chunk
from tests.support_exchange import CHUNK, some_bytes

DATA = some_bytes(5 * CHUNK)
RECIPE = cut(DATA, CHUNK)


@attrs.frozen
class Box:
    """A store whose disk a test can spoil; `killed` opens what a process that was killed there left."""

    open: Callable[[], AbstractAsyncContextManager[Blobs]]
    killed: Callable[[], AbstractAsyncContextManager[Blobs]]
    fail_next_sync: Callable[[], object]
    rot: Callable[[Digest, int], object]


@pytest.fixture(params=["memory", "disk"])
def box(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Box:
    return memory_box() if request.param == "memory" else disk_box(tmp_path, monkeypatch)


def memory_box() -> Box:
    kept = [MemoryBlobs(chunk_size_bytes=CHUNK)]

    @asynccontextmanager
    async def open_it() -> AsyncIterator[Blobs]:
        yield kept[0]

    @asynccontextmanager
    async def killed() -> AsyncIterator[Blobs]:
        yield kept[0].crash(power_lost=False)

    return Box(
        open_it,
        killed,
        lambda: kept[0].disk.fail_syncs(),
        lambda digest, offset: kept[0].disk.rot(LAYOUT.partial_blob(digest), offset),
    )


def disk_box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Box:
    def open_at(path: Path) -> AbstractAsyncContextManager[Blobs]:
        @asynccontextmanager
        async def opened() -> AsyncIterator[Blobs]:
            async with open_store(StoreConfig(models_path=str(path), reserve_free_bytes=0), EventBus()) as store:
                yield store.blobs

        return opened()

    def killed() -> AbstractAsyncContextManager[Blobs]:
        # What stands there while the first store is still at work is what it would leave if it were killed now.
        shutil.copytree(tmp_path / "models", tmp_path / "left")
        return open_at(tmp_path / "left")

    def fail_next_sync() -> None:
        def refuse(_descriptor: int) -> None:
            monkeypatch.undo()
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        monkeypatch.setattr(os, "fdatasync", refuse)
        monkeypatch.setattr(os, "fsync", refuse)

    def rot(digest: Digest, offset: int) -> None:
        path = Layout(tmp_path / "models").partial_blob(digest)
        with path.open("r+b") as file:
            file.seek(offset)
            byte = file.read(1)[0]
            file.seek(offset)
            file.write(bytes([byte ^ 1]))

    return Box(lambda: open_at(tmp_path / "models"), killed, fail_next_sync, rot)


async def write(partial: PartialBlob, *indices: int) -> None:
    for index in indices:
        await partial.write(index, DATA[index * CHUNK : (index + 1) * CHUNK])


async def all_of_it(blobs: Blobs) -> bytes:
    return b"".join([await read_chunk(blobs, RECIPE.digest, index) for index in range(5)])


async def test_after_a_failed_sync_only_what_was_durable_before_is_held(box: Box) -> None:
    async with box.open() as blobs:
        partial = await blobs.receive(RECIPE)
        await write(partial, 0, 3)
        await partial.close()
        partial = await blobs.receive(RECIPE)
        await write(partial, 1)
        box.fail_next_sync()
        with pytest.raises(StoreError, match=r"cannot sync .*the disk reports an error"):
            await partial.close()
        assert blobs.held(RECIPE.digest) is None

        again = await blobs.receive(RECIPE)
        assert list(again.held()) == [0, 3], "nothing comes back that the kernel may have thrown away"
        await write(again, 1, 2, 4)
        await again.finish()
        await again.close()
        assert await all_of_it(blobs) == DATA


async def test_who_receives_learns_at_the_next_write_that_the_disk_failed_another(box: Box) -> None:
    async with box.open() as blobs:
        first, second = await blobs.receive(RECIPE), await blobs.receive(RECIPE)
        await write(first, 0, 1, 2, 3, 4)
        box.fail_next_sync()
        with pytest.raises(StoreError):
            await first.finish()
        held = blobs.held(RECIPE.digest)
        assert held is None or blobs.held(RECIPE.digest) is second.held()
        for each in (first, second):
            with suppress(StoreError):
                await each.close()
        third = await blobs.receive(RECIPE)
        await write(third, *third.held().missing())
        await third.finish()
        await third.close()
        assert await all_of_it(blobs) == DATA


async def test_what_rotted_while_it_came_in_is_found_at_the_end_and_only_that_is_fetched_again(box: Box) -> None:
    async with box.open() as blobs:
        partial = await blobs.receive(RECIPE)
        await write(partial, 1, 2)
        await partial.close()
        box.rot(RECIPE.digest, 2 * CHUNK + 5)

        partial = await blobs.receive(RECIPE)
        await write(partial, 0, 3, 4)
        with pytest.raises(StoreError, match=r"1 chunks of .* do not stand in"):
            await partial.finish()
        await partial.close()

        again = await blobs.receive(RECIPE)
        assert list(again.held()) == [0, 1, 3, 4]
        await write(again, 2)
        await again.finish()
        await again.close()
        assert await all_of_it(blobs) == DATA


async def test_what_a_killed_process_had_written_is_taken_again_synced_or_not(box: Box) -> None:
    async with box.open() as blobs:
        partial = await blobs.receive(RECIPE)
        await write(partial, 0)
        await partial.close()
        partial = await blobs.receive(RECIPE)
        await write(partial, 2, 4)
        async with box.killed() as left:
            assert left.held(RECIPE.digest) is None
            again = await left.receive(RECIPE)
            assert list(again.held()) == [0, 2, 4]
            await write(again, 1, 3)
            await again.finish()
            await again.close()
            assert await all_of_it(left) == DATA
        with suppress(StoreError):
            await partial.close()


async def test_the_first_chunk_alone_is_kept_however_often_it_is_let_go(box: Box) -> None:
    async with box.open() as blobs:
        partial = await blobs.receive(RECIPE)
        await write(partial, 0)
        await partial.close()
        for _ in range(2):
            again = await blobs.receive(RECIPE)
            assert list(again.held()) == [0]
            await again.close()


async def test_killed_before_anything_was_durable_what_was_written_is_taken_again(box: Box) -> None:
    async with box.open() as blobs:
        partial = await blobs.receive(RECIPE)
        await write(partial, 0, 3)
        async with box.killed() as left:
            again = await left.receive(RECIPE)
            assert list(again.held()) == [0, 3]
            await again.close()
        with suppress(StoreError):
            await partial.close()
