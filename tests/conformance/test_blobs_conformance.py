"""One contract for blobs: the store's and their twin in memory."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from node.events import EventBus
from node.ports import BlobMissing, Blobs, PartialBlob
from node.store.config import StoreConfig
from node.store.store import open_store
from protocols.errors import RemoteProtocolError
from protocols.ids import digest_of
from protocols.recipe.recipe import Recipe
from simnet.blobs import MemoryBlobs, cut
from tests.support_blobs import read_chunk
from tests.support_exchange import CHUNK, some_bytes

OpenBlobs = Callable[[], AbstractAsyncContextManager[Blobs]]


@pytest.fixture(params=["memory", "disk"])
def open_blobs(request: pytest.FixtureRequest, tmp_path: Path) -> OpenBlobs:
    """Opens the same blobs each time: what is opened after a close is what was durable."""
    kept: list[MemoryBlobs] = [MemoryBlobs()]

    @asynccontextmanager
    async def open_memory() -> AsyncIterator[Blobs]:
        yield kept[0]
        kept[0] = kept[0].crash()

    @asynccontextmanager
    async def open_disk() -> AsyncIterator[Blobs]:
        config = StoreConfig(models_path=str(tmp_path / "models"), reserve_free_bytes=0)
        async with open_store(config, EventBus()) as store:
            yield store.blobs

    return open_memory if request.param == "memory" else open_disk


def chunk_of(data: bytes, recipe: Recipe, index: int) -> bytes:
    offset = recipe.offset_bytes(index)
    return data[offset : offset + recipe.sizes_bytes[index]]


async def write_chunks(partial: PartialBlob, data: bytes, indices: list[int]) -> None:
    for index in indices:
        await partial.write(index, chunk_of(data, partial.recipe, index))


async def test_what_is_not_here_is_missing(open_blobs: OpenBlobs) -> None:
    digest = digest_of(b"nowhere")
    async with open_blobs() as blobs:
        assert blobs.held(digest) is None
        with pytest.raises(BlobMissing):
            await blobs.recipe(digest)
        with pytest.raises(BlobMissing):
            await read_chunk(blobs, digest, 0)


async def test_chunks_are_served_while_the_blob_comes_in(open_blobs: OpenBlobs) -> None:
    data = some_bytes(4 * CHUNK + 9)
    recipe = cut(data, CHUNK)
    async with open_blobs() as blobs:
        partial = await blobs.receive(recipe)
        live = blobs.held(recipe.digest)
        assert live is not None
        assert len(live) == 0

        await write_chunks(partial, data, [4, 1])

        assert list(live) == [1, 4]
        assert list(partial.held()) == [1, 4]
        assert await blobs.recipe(recipe.digest) == recipe
        assert await read_chunk(blobs, recipe.digest, 4) == data[4 * CHUNK :]
        with pytest.raises(BlobMissing):
            await read_chunk(blobs, recipe.digest, 0)
        await partial.close()


async def test_a_whole_blob_is_verified_and_served(open_blobs: OpenBlobs) -> None:
    data = some_bytes(3 * CHUNK)
    recipe = cut(data, CHUNK)
    async with open_blobs() as blobs:
        partial = await blobs.receive(recipe)
        await write_chunks(partial, data, [2, 0, 1])
        await partial.finish()
        await partial.close()

        held = blobs.held(recipe.digest)
        assert held is not None
        assert held.complete()
        whole = await blobs.recipe(recipe.digest)
        served = [await read_chunk(blobs, recipe.digest, index) for index in range(len(whole))]
        assert b"".join(served) == data

        again = await blobs.receive(recipe)
        assert again.held().complete()
        await again.finish()
        await again.close()
        assert b"".join([await read_chunk(blobs, recipe.digest, index) for index in range(len(whole))]) == data


@pytest.mark.parametrize("wrong", [b"x" * CHUNK, b"", b"short", b"y" * (CHUNK + 1)])
async def test_a_wrong_chunk_is_refused_and_leaves_nothing(open_blobs: OpenBlobs, wrong: bytes) -> None:
    data = some_bytes(2 * CHUNK)
    async with open_blobs() as blobs:
        partial = await blobs.receive(cut(data, CHUNK))
        with pytest.raises(RemoteProtocolError):
            await partial.write(0, wrong)
        assert len(partial.held()) == 0

        await write_chunks(partial, data, [0, 1])
        await partial.finish()
        await partial.close()
        assert await read_chunk(blobs, digest_of(data), 0) == data[:CHUNK]


async def test_a_recipe_that_makes_another_blob_is_found_out(open_blobs: OpenBlobs) -> None:
    data, other = some_bytes(2 * CHUNK), some_bytes(2 * CHUNK, seed=2)
    told = cut(other, CHUNK)
    lie = Recipe(digest_of(data), told.size_bytes, told.rule, told.sizes_bytes, told.hashes)
    async with open_blobs() as blobs:
        partial = await blobs.receive(lie)
        await write_chunks(partial, other, [0, 1])
        with pytest.raises(RemoteProtocolError):
            await partial.finish()
        await partial.close()
        assert blobs.held(digest_of(data)) is None

        honest = await blobs.receive(cut(data, CHUNK))
        assert len(honest.held()) == 0
        await write_chunks(honest, data, [0, 1])
        await honest.finish()
        await honest.close()
        assert await read_chunk(blobs, digest_of(data), 1) == data[CHUNK:]


async def test_what_was_closed_is_there_after_a_restart(open_blobs: OpenBlobs) -> None:
    data = some_bytes(5 * CHUNK)
    recipe = cut(data, CHUNK)
    async with open_blobs() as blobs:
        partial = await blobs.receive(recipe)
        await write_chunks(partial, data, [0, 3])
        await partial.close()
        await partial.close()

    async with open_blobs() as blobs:
        partial = await blobs.receive(recipe)
        assert list(partial.held()) == [0, 3]
        assert await read_chunk(blobs, recipe.digest, 3) == chunk_of(data, recipe, 3)
        await write_chunks(partial, data, [1, 2, 4])
        await partial.finish()
        await partial.close()
        held = blobs.held(recipe.digest)
        assert held is not None
        assert held.complete()


async def test_two_receivers_share_one_partial_under_the_first_recipe(open_blobs: OpenBlobs) -> None:
    data = some_bytes(4 * CHUNK)
    async with open_blobs() as blobs:
        first = await blobs.receive(cut(data, CHUNK))
        second = await blobs.receive(cut(data, 2 * CHUNK))
        assert second.recipe == first.recipe

        await write_chunks(first, data, [0, 1])
        assert list(second.held()) == [0, 1]
        await first.close()
        await write_chunks(second, data, [2, 3])
        await second.finish()
        await second.close()
        assert await read_chunk(blobs, digest_of(data), 0)


async def test_another_recipe_later_keeps_what_fits_it(open_blobs: OpenBlobs) -> None:
    data = some_bytes(4 * CHUNK)
    coarse = cut(data, 2 * CHUNK)
    async with open_blobs() as blobs:
        partial = await blobs.receive(cut(data, CHUNK))
        await write_chunks(partial, data, [0, 1, 2])
        await partial.close()

        partial = await blobs.receive(coarse)
        assert partial.recipe == coarse
        assert list(partial.held()) == [0]
        await write_chunks(partial, data, [1])
        await partial.finish()
        await partial.close()
        held = blobs.held(coarse.digest)
        assert held is not None
        assert held.complete()


async def test_an_empty_blob_is_whole_at_once(open_blobs: OpenBlobs) -> None:
    recipe = cut(b"", CHUNK)
    async with open_blobs() as blobs:
        partial = await blobs.receive(recipe)
        assert partial.held().complete()
        await partial.finish()
        await partial.close()
        held = blobs.held(recipe.digest)
        assert held is not None
        assert held.count == 0
        assert (await blobs.recipe(recipe.digest)).size_bytes == 0


async def test_chunks_that_other_blobs_have_are_copied_and_counted_apart(open_blobs: OpenBlobs) -> None:
    old = some_bytes(5 * CHUNK)
    new = old[: 2 * CHUNK] + some_bytes(CHUNK, seed=2) + old[3 * CHUNK :]
    moved = some_bytes(CHUNK, seed=3) + old[: 2 * CHUNK]
    async with open_blobs() as blobs:
        first = await blobs.receive(cut(old, CHUNK))
        assert first.copied_bytes == 0
        await write_chunks(first, old, [0, 1, 2, 3, 4])
        await first.finish()
        await first.close()

        told: list[int] = []
        second = await blobs.receive(cut(new, CHUNK), told.append)
        assert list(second.held()) == [0, 1, 3, 4]
        assert second.copied_bytes == 4 * CHUNK
        assert told == [CHUNK, 2 * CHUNK, 3 * CHUNK, 4 * CHUNK]
        joined = await blobs.receive(cut(new, CHUNK))
        assert joined.copied_bytes == 0
        assert joined.held() is second.held()
        await joined.close()
        await write_chunks(second, new, [2])

        # What stands elsewhere in a blob is found there, and what a partial blob holds counts too.
        third = await blobs.receive(cut(moved, CHUNK))
        assert list(third.held()) == [1, 2]
        await third.close()
        await second.finish()
        await second.close()
        served = [await read_chunk(blobs, digest_of(new), index) for index in range(5)]
        assert b"".join(served) == new

    async with open_blobs() as blobs:
        again = await blobs.receive(cut(moved, CHUNK))
        assert list(again.held()) == [1, 2]
        assert again.copied_bytes == 0, "what was copied before is resumed now"
        await again.close()


async def test_what_a_partial_blob_holds_is_copied_too(open_blobs: OpenBlobs) -> None:
    one = some_bytes(4 * CHUNK)
    two = some_bytes(CHUNK, seed=2) + one[CHUNK:]
    async with open_blobs() as blobs:
        open_one = await blobs.receive(cut(one, CHUNK))
        await write_chunks(open_one, one, [0, 3])
        second = await blobs.receive(cut(two, CHUNK))
        assert list(second.held()) == [3]
        await open_one.close()
        await second.close()


async def test_a_chunk_behind_the_end_is_refused(open_blobs: OpenBlobs) -> None:
    data = some_bytes(CHUNK)
    async with open_blobs() as blobs:
        partial = await blobs.receive(cut(data, CHUNK))
        with pytest.raises(RemoteProtocolError):
            await partial.write(1, data)
        await partial.close()
        with pytest.raises(BlobMissing):
            await read_chunk(blobs, digest_of(data), 1)
