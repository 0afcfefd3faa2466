"""node/store/cleaning: given-up downloads do not fill the disk for ever, and nothing that is needed goes."""

import time
from pathlib import Path

import pytest

from node.ports import BlobMissing
from node.store.store import Store
from protocols.ids import blob_file_name, digest_of
from tests.support_blobs import read_chunk
from tests.support_store import (
    blob_file,
    chunks_of,
    cut,
    herd_files,
    make_model,
    manifest_file,
    manifest_for,
    name,
    opened,
    random_bytes,
    read_all,
    receive_all,
)

DAY_S = 86400.0
DATA, WHOLE = random_bytes(5000), random_bytes(3000, 2)
RECIPE = cut(DATA)
PARTIAL_FILE = f"partial/{blob_file_name(RECIPE.digest)}"
WHOLE_FILE = f"whole/{blob_file_name(digest_of(WHOLE))}"


async def give_up_halfway(store: Store) -> None:
    partial = await store.blobs.receive(RECIPE)
    await partial.write(0, chunks_of(DATA)[0])
    await partial.close()


async def clean_up_in(store: Store, days: float) -> None:
    await store._cleaner.clean_up(time.time() + days * DAY_S)


async def test_downloads_that_nobody_came_back_for_go_after_a_week(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await give_up_halfway(store)
        await receive_all(store, WHOLE)
        await clean_up_in(store, 6.9)
        assert herd_files(tmp_path) == [PARTIAL_FILE, WHOLE_FILE]

        await clean_up_in(store, 7.1)
        assert herd_files(tmp_path) == []
        assert store.partials() == []
        assert store.blobs.held(digest_of(WHOLE)) is None
        with pytest.raises(BlobMissing):
            await read_chunk(store.blobs, digest_of(WHOLE), 0)
        assert await store._index.partials() == {}
        assert await store._index.files() == {}
        # Who comes back after all begins anew.
        assert await receive_all(store, DATA) == RECIPE.digest


async def test_the_configured_age_counts(tmp_path: Path) -> None:
    async with opened(tmp_path, clean_up_age_s=60) as store:
        await give_up_halfway(store)
        await store._cleaner.clean_up(time.time() + 50)
        assert herd_files(tmp_path) == [PARTIAL_FILE]
        await store._cleaner.clean_up(time.time() + 70)
        assert herd_files(tmp_path) == []


async def test_what_somebody_receives_or_wants_kept_is_never_too_old(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        partial = await store.blobs.receive(RECIPE)
        await partial.write(0, chunks_of(DATA)[0])
        await receive_all(store, WHOLE)
        with store.blobs.keep({digest_of(WHOLE): len(WHOLE)}):
            await clean_up_in(store, 100)
            assert herd_files(tmp_path) == [PARTIAL_FILE, WHOLE_FILE]
            await partial.close()
            with store.blobs.keep({RECIPE.digest: len(DATA)}):
                await clean_up_in(store, 100)
                assert herd_files(tmp_path) == [PARTIAL_FILE, WHOLE_FILE]


async def test_a_blob_that_a_model_names_stays_wherever_it_is(tmp_path: Path) -> None:
    manifest = make_model(tmp_path, "pruned", [WHOLE])
    blob_file(tmp_path, WHOLE).unlink()
    async with opened(tmp_path) as store:
        await receive_all(store, WHOLE)
        await clean_up_in(store, 100)
        assert await read_all(store, digest_of(WHOLE)) == WHOLE
        # While it cannot be told what a manifest names, it may be this.
        manifest_file(tmp_path, "pruned").write_bytes(manifest[:-9])
        await store.scan()
        await clean_up_in(store, 100)
        assert await read_all(store, digest_of(WHOLE)) == WHOLE


async def test_what_was_set_aside_as_damaged_goes_too(tmp_path: Path) -> None:
    manifest = manifest_for([WHOLE], b"{}")
    async with opened(tmp_path) as store:
        await receive_all(store, WHOLE)
        await receive_all(store, b"{}")
        blob_file(tmp_path, WHOLE).write_bytes(b"something else")
        await store.place_model(name("one"), manifest)
        damaged = tmp_path / ".herd" / "damaged"
        assert len(list(damaged.iterdir())) == 1
        await clean_up_in(store, 6.9)
        assert len(list(damaged.iterdir())) == 1
        await clean_up_in(store, 7.1)
        assert list(damaged.iterdir()) == []
        assert await read_all(store, digest_of(WHOLE)) == WHOLE
