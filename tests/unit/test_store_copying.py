"""node/store/copying: chunks that other blobs here have, and sources that are not what they were."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import trio

from node.ports import StoreError
from node.store import copying, files
from protocols.ids import digest_of
from tests.support_store import (
    CHUNK,
    blob_file,
    chunks_of,
    cut,
    keep_mtime_and_write,
    make_model,
    opened,
    random_bytes,
    read_all,
    receive_all,
    running,
    until_state,
    write_all,
)

OLD = random_bytes(20_000)
NEW = OLD[:9000] + random_bytes(2000, 9) + OLD[11_000:]
RECIPE = cut(NEW)
CHUNKS = chunks_of(NEW)


async def test_a_fine_tune_takes_what_it_shares_with_its_base_from_here(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await receive_all(store, OLD)
        partial = await store.blobs.receive(RECIPE)
        assert list(partial.held().missing()) == [9, 10]
        assert partial.copied_bytes == 18_000
        for index in (9, 10):
            await partial.write(index, CHUNKS[index])
        await partial.finish()
        await partial.close()
        assert await read_all(store, RECIPE.digest) == NEW
        assert await read_all(store, digest_of(OLD)) == OLD
        statistics = store.statistics()
        assert (statistics.copied_bytes_total, statistics.reflinked_bytes_total) == (18_000, 0)
        assert statistics.written_bytes_total == 22_000  # 20 000 of them the base


async def test_a_model_of_somebody_else_is_a_source_too(tmp_path: Path) -> None:
    """Whatever Ollama keeps here was read and cut; its recipe follows its own rule."""
    base = random_bytes(3_000_000)
    make_model(tmp_path, "base", [base])
    async with running(tmp_path, chunk_size_bytes=1_048_576) as store:
        await until_state(store, "base", "verified")
        recipe = await store.blobs.recipe(digest_of(base))
        assert len(recipe) > 1
        last = recipe.offset_bytes(len(recipe) - 1)
        changed = base[:last] + random_bytes(len(base) - last, 7)
        sizes, hashes = recipe.sizes_bytes, recipe.hashes[:-32] + cut(changed[last:], len(changed)).hashes
        mixed = type(recipe)(digest_of(changed), len(changed), recipe.rule, sizes, hashes)
        partial = await store.blobs.receive(mixed)
        assert list(partial.held().missing()) == [len(recipe) - 1]
        await partial.write(len(recipe) - 1, changed[last:])
        await partial.finish()
        await partial.close()
        assert await read_all(store, mixed.digest) == changed


async def test_a_rotten_source_is_not_believed_and_read_again(tmp_path: Path) -> None:
    make_model(tmp_path, "base", [OLD])
    async with running(tmp_path) as store:
        await until_state(store, "base", "verified")
        file = store._census.verified(digest_of(OLD))
        assert file is not None
        # The adopted file has one chunk by its own rule; let it be cut as the new blob is.
        await store._index.record(file.key, cut(OLD))
        store._census.put_file(type(file)(file.digest, file.path, file.key, file.state, 20))
        keep_mtime_and_write(blob_file(tmp_path, OLD), 4 * CHUNK + 10, b"rotten")
        partial = await store.blobs.receive(RECIPE)
        assert list(partial.held().missing()) == [4, 9, 10]
        assert partial.copied_bytes == 17_000
        detail = await until_state(store, "base", "damaged")
        assert "holds the bytes of" in detail
        await write_all(partial, NEW)
        await partial.finish()
        await partial.close()
        assert await read_all(store, RECIPE.digest) == NEW


async def test_a_source_that_is_gone_or_cut_short_leaves_its_chunks_to_be_fetched(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        digest = await receive_all(store, OLD)
        path = store.layout.whole_blob(digest)
        os.truncate(path, 5_500)
        partial = await store.blobs.receive(RECIPE)
        assert list(partial.held()) == [0, 1, 2, 3, 4]
        await partial.close()
    async with opened(tmp_path / "other") as store:
        digest = await receive_all(store, OLD)
        store.layout.whole_blob(digest).unlink()
        partial = await store.blobs.receive(RECIPE)
        assert len(partial.held()) == 0
        await partial.close()


async def test_a_disk_that_fills_up_while_copying_says_so_and_keeps_what_was_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pwrite, written = os.pwrite, 0

    def filling(descriptor: int, data: memoryview, offset: int) -> int:
        nonlocal written
        written += 1
        if written > 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pwrite(descriptor, data, offset)

    async with opened(tmp_path) as store:
        await receive_all(store, OLD)
        with monkeypatch.context() as patched:
            patched.setattr(os, "pwrite", filling)
            with pytest.raises(StoreError, match=r"cannot copy chunk \d+ to .*: the disk is full"):
                await store.blobs.receive(RECIPE)
        assert not store.blobs.in_use(RECIPE.digest)
        assert [view.held_bytes for view in store.partials()] == [3000]
        partial = await store.blobs.receive(RECIPE)
        assert partial.copied_bytes == 15_000
        await partial.close()


async def test_cancelling_stops_the_copying_and_keeps_what_was_copied(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await receive_all(store, OLD)
        with trio.CancelScope() as scope:
            await store.blobs.receive(RECIPE, lambda copied: scope.cancel() if copied >= 5000 else None)
        assert scope.cancelled_caught
        [view] = store.partials()
        assert not view.receiving
        assert 5000 <= view.held_bytes <= 5000 + (copying.COPIES_AT_ONCE - 1) * CHUNK


async def test_who_joins_waits_for_the_copies_and_writes_nothing_under_them(tmp_path: Path) -> None:
    held: list[int] = []

    async def join() -> None:
        partial = await store.blobs.receive(RECIPE)
        held.append(len(partial.held()))
        await partial.close()

    async with opened(tmp_path) as store:
        await receive_all(store, OLD)
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(join)
        assert held == [18, 18, 18]
        assert store.statistics().copied_bytes_total == 18_000


async def test_blobs_of_one_chunk_are_not_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model may have thousands of them, and none is part of another."""
    async with opened(tmp_path) as store:
        await receive_all(store, OLD)

        async def never(*_: Any) -> list[bytes]:
            raise AssertionError("there is nothing to look for")

        monkeypatch.setattr(store._index, "recipe_bodies", never)
        digest = await receive_all(store, b"a licence")
        assert await read_all(store, digest) == b"a licence"
        with pytest.raises(AssertionError, match="nothing to look for"):
            await store.blobs.receive(RECIPE)


async def test_where_blocks_can_be_shared_the_edges_are_copied_and_the_whole_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file system of this test may not share blocks: a stand-in writes what the kernel would have shared."""
    shared: list[tuple[int, int]] = []

    def clone(source: int, source_offset: int, target: int, target_offset: int, size_bytes: int) -> bool:
        assert source_offset % 4096 == target_offset % 4096 == size_bytes % 4096 == 0
        shared.append((target_offset, size_bytes))
        files.write_at(target, files.read_at(source, size_bytes, source_offset), target_offset)
        return True

    old = random_bytes(200_000)
    new = random_bytes(20_000, 2) + old[20_000:]
    monkeypatch.setattr(copying, "clone_range", clone)
    async with opened(tmp_path) as store:
        digest = await receive_all(store, old, 20_000)
        keep_mtime_and_write(store.layout.whole_blob(digest), 100_100, b"rotten")
        partial = await store.blobs.receive(cut(new, 20_000))
        assert list(partial.held().missing()) == [0, 5]
        assert len(shared) == 9
        assert store.statistics().reflinked_bytes_total == sum(size for offset, size in shared if offset != 102_400)
        await write_all(partial, new, 20_000)
        await partial.finish()
        await partial.close()
        assert await read_all(store, digest_of(new)) == new


async def test_where_blocks_cannot_be_shared_it_is_tried_once_a_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []

    def cannot(*_: Any) -> bool:
        tried.append(1)
        return False

    old = random_bytes(200_000)
    new = random_bytes(20_000, 2) + old[20_000:]
    monkeypatch.setattr(copying, "COPIES_AT_ONCE", 1)
    monkeypatch.setattr(copying, "clone_range", cannot)
    async with opened(tmp_path) as store:
        await receive_all(store, old, 20_000)
        partial = await store.blobs.receive(cut(new, 20_000))
        assert list(partial.held().missing()) == [0]
        assert len(tried) == 1
        await partial.close()
