"""node/store/partials and blobs: receiving, sharing, resuming, and what may go wrong meanwhile."""

import errno
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trio
from blake3 import blake3

from node.ports import BlobMissing, StoreError
from node.store import partials
from node.store.index import Index
from protocols.bits import Bits
from protocols.errors import RemoteProtocolError
from protocols.ids import blob_file_name, digest_of
from protocols.recipe.recipe import Recipe
from tests.support_blobs import read_chunk
from tests.support_store import (
    CHUNK,
    chunks_of,
    cut,
    herd_files,
    keep_mtime_and_write,
    make_model,
    opened,
    random_bytes,
    read_all,
    receive_all,
    running,
    write_all,
)

DATA = random_bytes(10_500)
RECIPE = cut(DATA)
CHUNKS = chunks_of(DATA)
FILE = blob_file_name(RECIPE.digest)


async def test_a_blob_comes_in_any_order_and_can_be_served(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        assert store.blobs.held(RECIPE.digest) is None
        partial = await store.blobs.receive(RECIPE)
        order = list(range(len(CHUNKS)))
        random.Random(3).shuffle(order)
        for index in order:
            await partial.write(index, CHUNKS[index])
        await partial.finish()
        await partial.close()

        assert store.blobs.held(RECIPE.digest) == Bits.full(11)
        assert await read_all(store, RECIPE.digest) == DATA
        assert await store.blobs.recipe(RECIPE.digest) == RECIPE
        assert herd_files(tmp_path) == [f"whole/{FILE}"]
        assert (tmp_path / ".herd" / "whole" / FILE).stat().st_mode & 0o777 == 0o644
        assert store.partials() == []


async def test_what_is_being_received_is_served_by_chunk(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        partial = await store.blobs.receive(RECIPE)
        live = store.blobs.held(RECIPE.digest)
        assert live is not None
        assert len(live) == 0
        await partial.write(4, CHUNKS[4])
        assert list(live) == [4]
        assert await read_chunk(store.blobs, RECIPE.digest, 4) == CHUNKS[4]
        with pytest.raises(BlobMissing):
            await read_chunk(store.blobs, RECIPE.digest, 5)
        await partial.close()


@pytest.mark.parametrize(
    ("index", "data"), [(2, bytes(CHUNK)), (2, CHUNKS[2][:-1]), (2, b""), (11, CHUNKS[2]), (-1, CHUNKS[10])]
)
async def test_a_wrong_chunk_is_the_peers_fault_and_leaves_no_trace(tmp_path: Path, index: int, data: bytes) -> None:
    async with opened(tmp_path) as store:
        partial = await store.blobs.receive(RECIPE)
        await partial.write(1, CHUNKS[1])
        with pytest.raises(RemoteProtocolError, match=RECIPE.digest):
            await partial.write(index, data)
        assert list(partial.held()) == [1]
        assert store.statistics().refused_chunks_total == 1
        await write_all(partial, DATA)
        with pytest.raises(RemoteProtocolError):  # also where the right one is here already
            await partial.write(2, bytes(CHUNK))
        await partial.finish()
        assert await read_all(store, RECIPE.digest) == DATA
        await partial.close()


async def test_an_unfinished_blob_resumes_after_a_restart(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        partial = await store.blobs.receive(RECIPE)
        for index in (0, 3, 10):
            await partial.write(index, CHUNKS[index])
        await partial.close()
        await partial.close()
        [view] = store.partials()
        assert (view.held_bytes, view.size_bytes, view.receiving) == (2500, 10_500, False)

    async with opened(tmp_path) as store:
        assert [view.held_bytes for view in store.partials()] == [2500]
        partial = await store.blobs.receive(RECIPE)
        assert list(partial.held()) == [0, 3, 10]
        await write_all(partial, DATA)
        await partial.finish()
        await partial.close()
        assert await read_all(store, RECIPE.digest) == DATA

    async with opened(tmp_path) as store:
        assert store.blobs.held(RECIPE.digest) == Bits.full(11)
        assert store.partials() == []


async def test_a_cancelled_receiver_still_makes_its_chunks_durable(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        with trio.CancelScope() as scope:
            partial = await store.blobs.receive(RECIPE)
            try:
                await partial.write(7, CHUNKS[7])
                scope.cancel()
                await trio.sleep_forever()
            finally:
                await partial.close()
    async with opened(tmp_path) as store:
        assert list((await store.blobs.receive(RECIPE)).held()) == [7]


async def test_two_receivers_share_one_partial_blob(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        one, two = await store.blobs.receive(RECIPE), await store.blobs.receive(RECIPE)
        await one.write(0, CHUNKS[0])
        assert list(two.held()) == [0]
        await one.close()
        for index in range(1, 11):
            await two.write(index, CHUNKS[index])
        three = await store.blobs.receive(RECIPE)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(two.finish)
            nursery.start_soon(three.finish)
        await three.write(5, CHUNKS[5])  # an endgame duplicate arrives late
        await two.close()
        await three.close()
        assert await read_all(store, RECIPE.digest) == DATA


async def test_receiving_what_is_here_already_needs_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await receive_all(store, DATA)
        again = await store.blobs.receive(cut(DATA, 700))
        assert again.held().complete()
        assert again.recipe == RECIPE
        await again.finish()
        await again.close()
        assert herd_files(tmp_path) == [f"whole/{FILE}"]


async def test_an_empty_blob_and_a_blob_of_one_chunk(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        for data in (b"", b"{}"):
            digest = await receive_all(store, data)
            assert await read_all(store, digest) == data
            assert (tmp_path / ".herd" / "whole" / blob_file_name(digest)).read_bytes() == data


async def test_a_lying_recipe_is_thrown_away_for_all_and_the_true_one_taken(tmp_path: Path) -> None:
    lie = Recipe(digest_of(b"something else"), RECIPE.size_bytes, RECIPE.rule, RECIPE.sizes_bytes, RECIPE.hashes)
    async with opened(tmp_path) as store:
        one, two = await store.blobs.receive(lie), await store.blobs.receive(lie)
        await write_all(one, DATA)
        with pytest.raises(RemoteProtocolError, match="lie"):
            await one.finish()
        assert store.blobs.held(lie.digest) is None
        with pytest.raises(StoreError, match="lie"):
            await two.finish()
        await one.close()
        await two.close()
        assert herd_files(tmp_path) == []
        assert store.partials() == []
        assert await receive_all(store, b"something else") == lie.digest


async def test_a_disk_that_changes_what_was_written_is_blamed_and_only_that_is_fetched_again(tmp_path: Path) -> None:
    path = tmp_path / ".herd" / "partial" / FILE
    async with opened(tmp_path) as store:
        one, two = await store.blobs.receive(RECIPE), await store.blobs.receive(RECIPE)
        for index in range(1, 11):
            await one.write(index, CHUNKS[index])
        # Behind the front, nothing is read twice: what rots there rots as it could after the end.
        keep_mtime_and_write(path, 3 * CHUNK + 5, b"rotten")
        await one.write(0, CHUNKS[0])
        # No peer lied, so this is no RemoteProtocolError.
        with pytest.raises(StoreError, match=f"1 chunks of .* do not stand in {path} .* check the disk's health"):
            await one.finish()
        with pytest.raises(StoreError, match="check the disk's health"):
            await two.finish()
        assert store.blobs.held(RECIPE.digest) is None
        await one.close()
        await two.close()

    async with opened(tmp_path) as store:
        again = await store.blobs.receive(RECIPE)
        assert list(again.held().missing()) == [3]
        await again.write(3, CHUNKS[3])
        await again.finish()
        await again.close()
        assert await read_all(store, RECIPE.digest) == DATA


async def test_finishing_too_early_is_refused(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        partial = await store.blobs.receive(RECIPE)
        await partial.write(0, CHUNKS[0])
        with pytest.raises(StoreError, match="10 chunks are still missing"):
            await partial.finish()
        await write_all(partial, DATA)
        await partial.finish()
        await partial.close()


async def test_a_disk_without_room_says_how_much_is_missing_before_the_first_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the file system cannot reserve, what was promised is counted."""
    monkeypatch.setattr(partials, "free_bytes", lambda _: 20_000)
    monkeypatch.setattr(partials, "reserve", lambda *_: False)
    other = random_bytes(10_000, 2)
    async with opened(tmp_path, reserve_free_bytes=1000) as store:
        first = await store.blobs.receive(RECIPE)
        with pytest.raises(StoreError, match=r"1500 bytes are missing \(20000 are free, 1000 stay reserved"):
            await store.blobs.receive(cut(other))  # what the first was promised counts, though nothing is written
        assert not (tmp_path / ".herd" / "partial" / blob_file_name(digest_of(other))).exists()
        for index in (0, 1):
            await first.write(index, CHUNKS[index])
        second = await store.blobs.receive(cut(other))
        await first.close()
        await second.close()


async def test_a_model_that_does_not_fit_is_refused_before_its_first_blob(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partials, "free_bytes", lambda _: 20_000)
    monkeypatch.setattr(partials, "reserve", lambda *_: False)
    adopted = random_bytes(8000, 3)
    make_model(tmp_path, "adopted", [adopted])
    sizes = {digest_of(bytes([number])): 5000 for number in range(3)}
    with_adopted = {**sizes, digest_of(adopted): 8000}
    async with opened(tmp_path, reserve_free_bytes=1000) as store:
        # Every blob alone would fit; what is here unread takes no more room, and what others were promised does.
        with store.blobs.keep(with_adopted):
            assert all(store.blobs.in_use(digest) for digest in with_adopted)
        assert not any(store.blobs.in_use(digest) for digest in with_adopted)
        first = await store.blobs.receive(RECIPE)
        missing = r"to receive 15000 bytes of 3 blobs: 6500 bytes are missing \(20000 are free"
        with pytest.raises(StoreError, match=missing), store.blobs.keep(with_adopted):
            raise AssertionError("there is no room for it")
        for index in range(7):
            await first.write(index, CHUNKS[index])
        with store.blobs.keep(with_adopted):
            pass
        # What is held of a blob is not needed twice.
        with store.blobs.keep({**sizes, RECIPE.digest: RECIPE.size_bytes}):
            pass
        await first.close()
        with store.blobs.keep({**sizes, RECIPE.digest: RECIPE.size_bytes}):
            pass


async def test_what_was_written_and_never_made_durable_needs_no_room_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that filled up keeps what was written there; when as much as is missing is free again, it goes on."""
    data = random_bytes(400_000)
    recipe, chunks = cut(data, 100_000), chunks_of(data, 100_000)
    async with opened(tmp_path, sync_interval_bytes=150_000) as store:
        partial = await store.blobs.receive(recipe)
        for index in (0, 1):
            await partial.write(index, chunks[index])
        await partial.write(2, chunks[2])

        async def full(*_: object, **__: object) -> None:
            raise StoreError("the disk is full")

        with monkeypatch.context() as patched:
            patched.setattr(Index, "save_partial", full)
            with pytest.raises(StoreError, match="full"):
                await partial.close()

        monkeypatch.setattr(partials, "free_bytes", lambda _: 110_000)
        with store.blobs.keep({recipe.digest: recipe.size_bytes}):
            again = await store.blobs.receive(recipe)
        assert list(again.held()) == [0, 1]
        await write_all(again, data, 100_000)
        await again.finish()
        await again.close()


async def test_a_disk_that_fills_up_meanwhile_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(tmp_path) as store:
        partial = await store.blobs.receive(RECIPE)
        await partial.write(0, CHUNKS[0])

        def full(*_: object) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patched:
            patched.setattr(os, "pwrite", full)
            with pytest.raises(StoreError, match=f"cannot write chunk 1 to .*{FILE}: the disk is full"):
                await partial.write(1, CHUNKS[1])
        assert list(partial.held()) == [0]
        await write_all(partial, DATA)
        await partial.finish()
        await partial.close()
        assert await read_all(store, RECIPE.digest) == DATA


async def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: pwrite(fd, data[:300], offset))
    async with opened(tmp_path) as store:
        await receive_all(store, DATA)
        assert await read_all(store, RECIPE.digest) == DATA


async def test_after_a_failed_sync_nothing_of_its_batch_is_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path, sync_interval_bytes=2 * CHUNK) as store:
        partial = await store.blobs.receive(RECIPE)
        await partial.write(0, CHUNKS[0])
        await partial.write(1, CHUNKS[1])  # the batch is full and synced

        def broken(_: int) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        await partial.write(2, CHUNKS[2])
        monkeypatch.setattr(os, "fdatasync", broken)
        with pytest.raises(StoreError, match="the disk reports an error"):
            await partial.write(3, CHUNKS[3])
        with pytest.raises(StoreError, match="the disk reports an error"):
            await partial.write(4, CHUNKS[4])
        await partial.close()
        monkeypatch.undo()
        again = await store.blobs.receive(RECIPE)
        assert list(again.held()) == [0, 1]
        await again.close()


async def test_bits_are_committed_only_after_their_bytes_were_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    synced: list[int] = []
    commits: list[tuple[list[int], list[int]]] = []
    pwrite, fdatasync, save = os.pwrite, os.fdatasync, Index.save_partial

    def watched_write(descriptor: int, data: bytes, offset: int) -> int:
        count = pwrite(descriptor, data, offset)
        written.append(offset // CHUNK)
        return count

    def watched_sync(descriptor: int) -> None:
        covered = list(written)  # what is written while the sync runs is not covered by it
        fdatasync(descriptor)
        synced[:] = covered

    async def watched_save(index: Index, digest: Any, bits: bytes, recipe: Any) -> None:
        commits.append((list(Bits.from_bytes(11, bits)), list(synced)))
        await save(index, digest, bits, recipe)

    monkeypatch.setattr(os, "pwrite", watched_write)
    monkeypatch.setattr(os, "fdatasync", watched_sync)
    monkeypatch.setattr(Index, "save_partial", watched_save)
    async with opened(tmp_path, sync_interval_bytes=2 * CHUNK) as store:
        partial = await store.blobs.receive(RECIPE)
        async with trio.open_nursery() as nursery:
            for index in range(10):
                nursery.start_soon(partial.write, index, CHUNKS[index])
        await partial.close()
    assert commits
    assert sorted(commits[-1][0]) == list(range(10))
    for bits, durable in commits:
        assert set(bits) <= set(durable)


async def test_a_waiting_batch_is_synced_by_time_too(tmp_path: Path) -> None:
    async with running(tmp_path, sync_interval_s=0.05) as store:
        partial = await store.blobs.receive(RECIPE)
        await partial.write(6, CHUNKS[6])
        for _ in range(500):
            if any((await store._index.partials())[RECIPE.digest].bits):
                break
            await trio.sleep(0.01)  # real time: the store's own worker thread commits
        assert list((await store._index.partials())[RECIPE.digest].bits) == [6]
        await partial.close()


async def test_what_is_held_counts_under_another_recipe_of_the_same_blob(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        partial = await store.blobs.receive(RECIPE)
        for index in (0, 1, 2, 5, 10):
            await partial.write(index, CHUNKS[index])
        await partial.close()
        other = cut(DATA, 700)  # 0-2999 holds four of these whole, 5000-5999 one ... 10000-10499 the last needs 9800
        again = await store.blobs.receive(other)
        assert list(again.held()) == [0, 1, 2, 3]
        assert again.recipe == other
        # Before a byte is written under the new recipe, no bit of the old one is left to outlive its bytes.
        assert (await store._index.partials())[RECIPE.digest].recipe == other
        await again.close()
    async with opened(tmp_path) as store:
        again = await store.blobs.receive(other)
        assert list(again.held()) == [0, 1, 2, 3]
        await write_all(again, DATA, 700)
        await again.finish()
        await again.close()
        assert await read_all(store, RECIPE.digest) == DATA


async def test_leftovers_of_a_crash_are_cleared_at_the_next_start(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        partial = await store.blobs.receive(RECIPE)
        await partial.write(0, CHUNKS[0])
        await partial.close()
    (tmp_path / ".herd" / "partial" / FILE).unlink()
    orphan = tmp_path / ".herd" / "partial" / blob_file_name(digest_of(b"orphan"))
    orphan.write_bytes(b"orp")
    (tmp_path / ".herd" / "tmp" / "manifest-abc").write_bytes(b"{")
    async with opened(tmp_path) as store:
        assert store.partials() == []
        assert await store._index.partials() == {}
        assert herd_files(tmp_path) == []
        assert list((await store.blobs.receive(RECIPE)).held()) == []


async def test_a_crash_between_moving_a_whole_blob_and_recording_it_costs_one_reading(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        partial = await store.blobs.receive(RECIPE)
        await write_all(partial, DATA)
        await partial.close()
    (tmp_path / ".herd" / "partial" / FILE).rename(tmp_path / ".herd" / "whole" / FILE)
    async with opened(tmp_path) as store:
        assert store.partials() == []
        assert store.unverified_bytes() == len(DATA)
        partial = await store.blobs.receive(RECIPE)
        assert partial.held().complete()
        await partial.close()
        assert await read_all(store, RECIPE.digest) == DATA


KILLED = """
import sys, trio
from node.events import EventBus
from node.store.store import open_store
from tests.support_store import config_for, cut, chunks_of, random_bytes
from pathlib import Path

async def main():
    data = random_bytes(8_000_000)
    recipe = cut(data, 20_000)
    async with open_store(config_for(Path(sys.argv[1]), sync_interval_bytes=200_000), EventBus()) as store:
        partial = await store.blobs.receive(recipe)
        print(len(partial.held()), flush=True)
        for index, chunk in enumerate(chunks_of(data, 20_000)):
            if index not in partial.held():
                await partial.write(index, chunk)
                print(index, flush=True)

trio.run(main)
"""


def _write_until_killed(models: Path, after: int) -> tuple[int, int]:
    """How many chunks the process found at its start, and how many it had written when it was killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(models)], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
    )
    assert process.stdout is not None
    with process, process.stdout as lines:
        found = int(lines.readline())
        written = sum(1 for _ in zip(range(after), lines, strict=False))
        process.send_signal(signal.SIGKILL)
        written += sum(1 for _ in lines)
    return found, written


@pytest.mark.slow
async def test_kill_nine_loses_no_chunk_that_was_written_and_keeps_no_wrong_bit(tmp_path: Path) -> None:
    before = 0
    for after in (35, 3, 60):
        found, written = _write_until_killed(tmp_path, after)
        assert found >= before  # durable or not
        before = found + written
    data = random_bytes(8_000_000)
    async with opened(tmp_path) as store:
        partial = await store.blobs.receive(cut(data, 20_000))
        assert len(partial.held()) >= before >= 98
        for index in partial.held():
            chunk = await read_chunk(store.blobs, partial.recipe.digest, index)
            assert blake3(chunk).digest() == partial.recipe.chunk_hash(index)
        await write_all(partial, data, 20_000)
        await partial.finish()
        await partial.close()


async def test_a_store_that_closes_keeps_what_nobody_closed(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        partial = await store.blobs.receive(RECIPE)
        await partial.write(2, CHUNKS[2])
    async with opened(tmp_path) as store:
        assert list((await store.blobs.receive(RECIPE)).held()) == [2]
