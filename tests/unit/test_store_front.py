"""node/store/front: the SHA-256 that follows a blob as it comes in, and what finishing still has to do."""

import errno
import os
from pathlib import Path

import pytest
import trio
from blake3 import blake3

from node.ports import PartialBlob, StoreError
from node.store import front
from protocols.ids import digest_of
from protocols.recipe.hasher import ChunkHasher
from protocols.recipe.recipe import Recipe
from tests.support_store import CHUNK, chunks_of, cut, opened, random_bytes, read_all, small_gguf, write_all

DATA = random_bytes(10_500)
RECIPE = cut(DATA)
CHUNKS = chunks_of(DATA)


async def until_hashed(partial: PartialBlob, size_bytes: int) -> None:
    """Wait, in real time, for the hashing thread."""
    for _ in range(10_000):
        if partial.hashed_bytes() >= size_bytes:
            return
        await trio.sleep(0.001)  # real time: the hashing thread knows no other
    raise AssertionError(f"{partial.hashed_bytes()} of {size_bytes} bytes were hashed")


async def test_the_hash_goes_as_far_as_there_is_no_gap(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        partial = await store.blobs.receive(RECIPE)
        await partial.write(0, CHUNKS[0])
        await until_hashed(partial, CHUNK)
        for index in (2, 3, 5):
            await partial.write(index, CHUNKS[index])
        await trio.sleep(0.02)  # real time: a thread would have gone on by now
        assert partial.hashed_bytes() == CHUNK
        await partial.write(1, CHUNKS[1])
        await until_hashed(partial, 4 * CHUNK)
        await partial.write(4, CHUNKS[4])
        await until_hashed(partial, 6 * CHUNK)
        await partial.close()


async def test_every_byte_is_read_back_once_and_finishing_reads_only_what_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[tuple[int, int]] = []
    preadv = os.preadv

    def watched(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        count = preadv(descriptor, buffers, offset)
        read.append((offset, count))
        return count

    monkeypatch.setattr(os, "preadv", watched)
    async with opened(tmp_path) as store:
        partial = await store.blobs.receive(RECIPE)
        for index in range(9):
            await partial.write(index, CHUNKS[index])
        await until_hashed(partial, 9 * CHUNK)
        behind = len(read)
        for index in (10, 9):
            await partial.write(index, CHUNKS[index])
        await partial.finish()
        assert min(offset for offset, _ in read[behind:]) == 9 * CHUNK
        assert sum(count for _, count in read) == len(DATA)
        await partial.close()
        assert await read_all(store, RECIPE.digest) == DATA


async def test_what_was_here_before_a_restart_is_hashed_while_the_rest_comes(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        partial = await store.blobs.receive(RECIPE)
        for index in range(5):
            await partial.write(index, CHUNKS[index])
        await partial.close()
    async with opened(tmp_path) as store:
        partial = await store.blobs.receive(RECIPE)
        await until_hashed(partial, 5 * CHUNK)
        await write_all(partial, DATA)
        await partial.finish()
        await partial.close()
        assert await read_all(store, RECIPE.digest) == DATA


async def test_a_front_that_waits_for_its_turn_still_finishes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More blobs than threads, and turns of less than a chunk."""
    monkeypatch.setattr(front, "TURN_SIZE_BYTES", 300)
    monkeypatch.setattr(front, "PIECE_SIZE_BYTES", 200)
    blobs = [random_bytes(20_000, seed) for seed in range(6)]

    async def receive(data: bytes) -> None:
        partial = await store.blobs.receive(cut(data))
        await write_all(partial, data)
        await partial.finish()
        await partial.close()

    async with opened(tmp_path) as store:
        async with trio.open_nursery() as nursery:
            for data in blobs:
                nursery.start_soon(receive, data)
        for data in blobs:
            assert await read_all(store, digest_of(data)) == data


async def test_a_file_that_cannot_be_read_back_is_told_at_the_end_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    async with opened(tmp_path) as store:
        partial = await store.blobs.receive(RECIPE)
        with monkeypatch.context() as patched:
            patched.setattr(os, "preadv", broken)
            await write_all(partial, DATA)
            with pytest.raises(StoreError, match=r"cannot read .*partial.*: the disk reports an error"):
                await partial.finish()
        await partial.finish()
        await partial.close()
        assert await read_all(store, RECIPE.digest) == DATA


async def test_a_file_cut_short_by_somebody_is_no_peers_fault(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        partial = await store.blobs.receive(RECIPE)
        for index in range(1, 11):
            await partial.write(index, CHUNKS[index])
        [path] = (tmp_path / ".herd" / "partial").iterdir()
        os.truncate(path, 5000)
        await partial.write(0, CHUNKS[0])
        with pytest.raises(StoreError, match="was cut short"):
            await partial.finish()
        await partial.close()


async def test_a_store_that_closes_while_it_hashes_leaves_no_thread_and_no_file_open(tmp_path: Path) -> None:
    data = random_bytes(16_000_000)
    before = len(os.listdir("/proc/self/fd"))
    async with opened(tmp_path) as store:
        partial = await store.blobs.receive(cut(data, 1_000_000))
        for index, chunk in reversed(list(enumerate(chunks_of(data, 1_000_000)))):
            await partial.write(index, chunk)
        # Nothing was hashed before the first chunk came just now, so a thread has just begun.
    assert len(os.listdir("/proc/self/fd")) == before


async def test_a_cut_that_does_not_follow_its_rule_is_replaced_where_the_header_tells(tmp_path: Path) -> None:
    data = small_gguf()
    own = ChunkHasher(len(data), 16_384)
    own.update(data)
    right = own.finish(digest_of(data))
    assert right.rule == "gguf-1:16384"
    wrong = _under_rule(data, right.rule)
    async with opened(tmp_path) as store:
        for recipe in (wrong, right):
            partial = await store.blobs.receive(recipe)
            await write_all_of(partial, data)
            await partial.finish()
            await partial.close()
            assert await store.blobs.recipe(recipe.digest) == right
            assert await read_all(store, right.digest) == data


async def test_a_cut_the_bytes_decide_stays_as_it_came(tmp_path: Path) -> None:
    """To know better, the whole blob would have to be read again; its chunks are right all the same."""
    data = random_bytes(50_000)
    recipe = _under_rule(data, "fastcdc-1:4096")
    async with opened(tmp_path) as store:
        partial = await store.blobs.receive(recipe)
        await write_all_of(partial, data)
        await partial.finish()
        await partial.close()
        assert await store.blobs.recipe(recipe.digest) == recipe


def _under_rule(data: bytes, rule: str) -> Recipe:
    """Cut in pieces of 7000, whatever the rule says."""
    chunks = chunks_of(data, 7000)
    hashes = b"".join(blake3(chunk).digest() for chunk in chunks)
    return Recipe(digest_of(data), len(data), rule, tuple(map(len, chunks)), hashes)


async def write_all_of(partial: PartialBlob, data: bytes) -> None:
    recipe = partial.recipe
    for index, size in enumerate(recipe.sizes_bytes):
        await partial.write(index, data[recipe.offset_bytes(index) : recipe.offset_bytes(index) + size])
