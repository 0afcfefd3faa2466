"""What a simulated disk does to what was written, one fault at a time."""

import random
from contextlib import suppress
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from node.background import open_background
from node.errors import HerdError
from node.ports import PartialBlob, StoreError
from node.store.config import StoreConfig
from protocols.errors import LocalProtocolError
from simnet.audit import wrong_bytes
from simnet.blobs import MemoryBlobs, cut
from simnet.determinism import run_world
from simnet.disk import SimDisk
from simnet.extents import Extents
from simnet.files import SECTOR_SIZE_BYTES, SimFile
from simnet.keeping import MemoryFile
from simnet.stock import LAYOUT
from simnet.world import World, WorldOptions
from tests.support_blobs import read_chunk

HERE = Path("/here")
CHUNK = 4 * SECTOR_SIZE_BYTES
OLD, NEW = b"o" * CHUNK, b"n" * CHUNK
DATA = random.Random(5).randbytes(6 * CHUNK)


def found(disk: SimDisk, path: Path = HERE) -> bytes:
    """What stands under a name."""
    file = disk.file(path)
    assert file is not None
    return disk.read(file, 0, file.size_bytes)


async def disk_with_file(seed: int = 0) -> tuple[SimDisk, SimFile]:
    """A disk on which four old chunks stand, durable."""
    disk = SimDisk(random.Random(seed))
    file = disk.make(HERE)
    disk.write(file, 0, OLD * 4)
    await disk.sync(disk.open(file))
    await disk.sync_names()
    return disk, file


async def write(partial: PartialBlob, *indices: int) -> None:
    """Bring chunks of DATA in."""
    for index in indices:
        offset = partial.recipe.offset_bytes(index)
        await partial.write(index, DATA[offset : offset + partial.recipe.sizes_bytes[index]])


# -- the power goes


async def test_what_was_synced_is_there_and_what_was_written_since_is_lost_torn_or_out_of_order() -> None:
    seen: set[tuple[str, ...]] = set()
    for seed in range(200):
        disk, file = await disk_with_file(seed)
        disk.write(file, 0, NEW)
        await disk.sync(disk.open(file))
        for place in (1, 2):
            disk.write(file, place * CHUNK, NEW)
        left = found(disk.crash())
        chunks = [left[begin : begin + CHUNK] for begin in range(0, len(left), CHUNK)]
        assert chunks[0] == NEW, "synced"
        assert chunks[3] == OLD, "never touched"
        for chunk in chunks:
            sectors = [chunk[begin : begin + SECTOR_SIZE_BYTES] for begin in range(0, CHUNK, SECTOR_SIZE_BYTES)]
            assert all(len(set(sector)) == 1 for sector in sectors), "a sector is written whole or not at all"
        names = {OLD: "old", NEW: "new"}
        seen.add(tuple(names.get(chunk, "torn") for chunk in chunks[1:3]))
    assert seen >= {("old", "old"), ("new", "new"), ("new", "old"), ("old", "new"), ("torn", "old"), ("old", "torn")}


async def test_names_come_back_as_they_were_at_some_moment_since_they_were_synced() -> None:
    seen: set[tuple[str, ...]] = set()
    for seed in range(50):
        disk, _ = await disk_with_file(seed)
        disk.link(HERE, Path("/second"))
        disk.rename(HERE, Path("/third"))
        left = disk.crash()
        names = tuple(str(path) for path in left.paths(Path("/")))
        seen.add(names)
        assert found(left, Path(names[0])) == OLD * 4
    assert seen == {("/here",), ("/here", "/second"), ("/second", "/third")}


async def test_records_come_back_as_they_were_after_some_transaction_and_never_before_a_durable_one() -> None:
    seen: set[frozenset[object]] = set()
    for seed in range(50):
        disk = SimDisk(random.Random(seed))
        await disk.commit("index", {"one": 1}, durable=False)
        await disk.commit("index", {"two": 2}, durable=True)
        await disk.commit("index", {"one": None, "three": 3}, durable=False)
        await disk.commit("index", {"four": 4}, durable=False)
        seen.add(frozenset(disk.crash().records("index").live))
    assert seen == {frozenset(("one", "two")), frozenset(("two", "three")), frozenset(("two", "three", "four"))}


async def test_what_a_process_wrote_outlives_the_process() -> None:
    disk, file = await disk_with_file()
    disk.write(file, 0, NEW * 4)
    disk.link(HERE, Path("/second"))
    left = disk.crash(power_lost=False)
    assert found(left, Path("/second")) == NEW * 4
    with pytest.raises(OSError, match="no power"):
        disk.write(file, 0, OLD)
    with pytest.raises(LocalProtocolError):
        disk.crash()


async def test_what_waited_for_half_a_minute_the_kernel_has_written(autojump_clock: MockClock) -> None:
    for seed in range(20):
        disk, file = await disk_with_file(seed)
        disk.write(file, 0, NEW)
        disk.link(HERE, Path("/second"))
        members = MemoryFile(disk)
        members.replace(b"ann and bob")
        await trio.sleep(31)
        members.replace(b"ann")
        disk.write(file, CHUNK, NEW)
        left = disk.crash()
        assert found(left, Path("/second")).startswith(NEW)
        assert members.restarted(left).read(100) in (b"ann and bob", b"ann"), "the old bytes or the new ones"


async def test_the_power_goes_at_the_write_that_was_chosen() -> None:
    disk, file = await disk_with_file()
    left: list[SimDisk] = []
    disk.on_power_lost = lambda: left.append(disk.crash())
    disk.crash_at_write(2)
    disk.write(file, 0, NEW)
    with pytest.raises(OSError, match="no power"):
        disk.write(file, CHUNK, NEW)
    assert found(left[0])[2 * CHUNK :] == OLD * 2


async def test_the_same_seed_loses_the_same() -> None:
    async def left(seed: int) -> bytes:
        disk, file = await disk_with_file(seed)
        for place in range(4):
            disk.write(file, place * CHUNK, NEW)
        return found(disk.crash())

    assert await left(3) == await left(3)
    assert len({await left(seed) for seed in range(20)}) > 5


async def test_a_started_store_serves_nothing_of_a_partial_blob_until_somebody_goes_on_and_then_what_is_right() -> None:
    for seed in range(30):
        disk = SimDisk(random.Random(seed))
        blobs = MemoryBlobs(disk=disk, chunk_size_bytes=CHUNK, config=StoreConfig(sync_interval_bytes=2 * CHUNK))
        recipe = cut(DATA, CHUNK)
        await write(await blobs.receive(recipe), 4, 1, 3)
        after = blobs.crash()
        assert after.held(recipe.digest) is None
        assert list(after.stored(recipe.digest) or ()) == [1, 4], "the batch that was synced, in its bits"
        again = await after.receive(recipe)
        assert {1, 4} <= set(again.held()) <= {1, 3, 4}, "what stood there right, and no more"
        assert wrong_bytes(after) == []
        await again.close()


# -- a full disk


async def test_a_full_disk_refuses_what_is_new_and_goes_on_with_what_has_its_room() -> None:
    blobs = MemoryBlobs(chunk_size_bytes=CHUNK, capacity_bytes=len(DATA))
    recipe, other = cut(DATA, CHUNK), cut(NEW, CHUNK)
    partial = await blobs.receive(recipe)
    assert blobs.free_disk_bytes() == 0, "the room is taken at the beginning"
    await write(partial, 0, 1, 2)
    with pytest.raises(StoreError, match=f"no room .* {len(NEW)} bytes are missing"):
        await blobs.receive(other)
    await partial.close()
    assert blobs.free_disk_bytes() == 3 * CHUNK, "what did not come gives its room back"
    assert (await blobs.receive(other)).recipe == other


async def test_a_disk_that_another_program_fills_takes_nothing_more_until_it_is_emptied() -> None:
    blobs = MemoryBlobs(chunk_size_bytes=CHUNK)
    recipe = cut(DATA, CHUNK)
    partial = await blobs.receive(recipe)
    await write(partial, 0)
    blobs.disk.fill()
    await write(partial, 1)
    with pytest.raises(StoreError, match=r"cannot write .*index.* the disk is full"):
        await partial.close()
    file = blobs.disk.file(LAYOUT.partial_blob(recipe.digest))
    assert file is None, "nothing of it is in the index, so nothing of it stays"
    blobs.disk.empty()
    partial = await blobs.receive(recipe)
    await write(partial, *range(6))
    await partial.finish()
    await partial.close()
    assert blobs.whole(recipe.digest) == DATA


# -- a disk that fails


async def test_what_a_failed_sync_gave_up_can_be_read_and_is_gone_with_the_power() -> None:
    lost = 0
    for seed in range(20):
        disk, file = await disk_with_file(seed)
        opened, another = disk.open(file), disk.open(file)
        disk.write(file, 0, NEW)
        disk.fail_syncs()
        for each in (opened, another):
            with pytest.raises(OSError, match="input/output error"):
                await disk.sync(each)
        await disk.sync(opened)  # told once, and then it says that all is well
        disk.write(file, CHUNK, NEW)
        await disk.sync(opened)
        assert found(disk) == NEW * 2 + OLD * 2
        left = found(disk.crash())
        assert left[CHUNK:] == NEW + OLD * 2
        lost += left[:CHUNK] != NEW
    assert lost > 5


async def test_bits_that_rot_are_the_same_bits_for_the_same_seed_and_nothing_tells_of_them() -> None:
    def rotten(seed: int) -> tuple[list[int], MemoryBlobs]:
        blobs = MemoryBlobs(disk=SimDisk(random.Random(seed)), chunk_size_bytes=CHUNK)
        blobs.add(DATA)
        return [offset for _, offset in blobs.disk.rot_somewhere(3, under=LAYOUT.models)], blobs

    (places, blobs), digest = rotten(1), cut(DATA, CHUNK).digest
    assert places == rotten(1)[0] != rotten(2)[0]
    after = blobs.crash()
    served = b"".join([await read_chunk(after, digest, index) for index in range(6)])
    assert [place for place in range(len(DATA)) if served[place] != DATA[place]] == sorted(places)
    assert all((served[place] ^ DATA[place]).bit_count() == 1 for place in places)
    assert wrong_bytes(after) == [], "what a test spoiled is no fault of the store"


def test_who_pulls_refuses_what_rotted_elsewhere_and_takes_it_from_another() -> None:
    async def main() -> int:
        async with open_background() as nursery:
            world = World(nursery, WorldOptions(seed=1, chunk_size_bytes=CHUNK))
            for _ in range(3):
                await world.start(world.add_host().number)
            await world.wait(1)
            for number in (1, 2):
                await world.hold(number, "llama", DATA)
            await world.wait(1)
            for _ in range(6):
                world.hosts[2].disk.rot_somewhere(10, under=LAYOUT.blobs)
            assert (await world.pull(3, "llama")).verified
            digest = cut(DATA, CHUNK).digest
            assert world.hosts[3].blobs.whole(digest) == DATA
            ours, theirs = (world.hosts[number].disk.file(LAYOUT.blob(digest)) for number in (1, 3))
            assert ours is not None
            assert theirs is not None
            mine = dict(ours.pieces())
            return sum(mine[start] is piece for start, piece in theirs.pieces())

    assert run_world(main, 1) == 6, "and both hosts keep the same pieces of memory"


def test_a_pull_ends_with_what_the_disk_said_and_the_next_one_goes_on() -> None:
    async def main() -> None:
        async with open_background() as nursery:
            world = World(nursery, WorldOptions(seed=1, chunk_size_bytes=CHUNK))
            for _ in range(2):
                await world.start(world.add_host().number)
            await world.wait(1)
            await world.hold(1, "llama", DATA)
            await world.wait(1)
            disk = world.hosts[2].disk
            disk.fill()
            with pytest.raises(StoreError, match="no room"):
                await world.pull(2, "llama")
            disk.empty()
            disk.fail_syncs()
            with pytest.raises(StoreError, match="the disk reports an error: check its health"):
                await world.pull(2, "llama")
            assert (await world.pull(2, "llama")).verified
            assert world.hosts[2].blobs.whole(cut(DATA, CHUNK).digest) == DATA

    run_world(main, 1)


async def test_what_came_in_and_waits_is_synced_after_a_while_and_an_idle_store_does_nothing(
    autojump_clock: MockClock,
) -> None:
    blobs = MemoryBlobs(chunk_size_bytes=CHUNK)
    async with open_background() as nursery:
        nursery.start_soon(blobs.run)
        await write(await blobs.receive(cut(DATA, CHUNK)), 2)
        await trio.sleep(2.5)
        operations = blobs.disk.operations
        await trio.sleep(3600)
        assert blobs.disk.operations == operations
        assert list(blobs.crash().stored(cut(DATA, CHUNK).digest) or ()) == [2]


# -- a slow disk


async def test_a_slow_disk_takes_its_time_for_every_operation_and_byte(autojump_clock: MockClock) -> None:
    blobs = MemoryBlobs(chunk_size_bytes=CHUNK)
    blobs.disk.speed.operation_s, blobs.disk.speed.byte_s = 0.01, 1 / CHUNK
    recipe = cut(DATA, CHUNK)
    partial = await blobs.receive(recipe)
    began_s = trio.current_time()
    async with trio.open_nursery() as nursery:
        for index in range(3):
            nursery.start_soon(write, partial, index)
    assert 3.0 <= trio.current_time() - began_s < 3.2, "three at once share what it can carry"
    await partial.close()
    blobs.disk.speed.byte_s = 1e9 / CHUNK
    left = trio.CancelScope()

    async def wait_for_it() -> None:
        with left, suppress(StoreError):
            await write(await blobs.receive(recipe), 5)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait_for_it)
        await trio.sleep(1)
        left.cancel()
        await trio.sleep(1)
        began_s = trio.current_time()
        blobs.disk.crash()
    assert trio.current_time() == began_s, "what waits for a disk without power waits no longer"


async def test_a_disk_without_power_refuses_everything_by_name() -> None:
    blobs = MemoryBlobs(chunk_size_bytes=CHUNK)
    digest = blobs.add(DATA)
    partial = await blobs.receive(cut(NEW, CHUNK))
    after = blobs.crash()
    with pytest.raises(StoreError, match="no power"):
        await read_chunk(blobs, digest, 0)
    with pytest.raises(StoreError, match="no power"):
        await partial.write(0, NEW)
    with pytest.raises(HerdError, match="no power"):
        await blobs.receive(cut(OLD, CHUNK))
    assert after.whole(digest) == DATA


# -- the bytes themselves


def test_extents_hold_what_a_plain_array_of_bytes_would() -> None:
    rng = random.Random(9)
    for _ in range(200):
        extents, plain, written = Extents(), bytearray(64), bytearray(64)
        for _ in range(12):
            offset, size = rng.randrange(64), rng.randrange(20)
            size = min(size, 64 - offset)
            assert extents.written_in(offset, size) == sum(written[offset : offset + size])
            if rng.random() < 0.3:
                taken = extents.cut(offset, size)
                assert b"".join(piece for _, piece in taken) == bytes(
                    plain[place] for place in range(offset, offset + size) if written[place]
                )
                plain[offset : offset + size], written[offset : offset + size] = bytes(size), bytes(size)
            else:
                data = rng.randbytes(size)
                extents.put(offset, data)
                plain[offset : offset + size], written[offset : offset + size] = data, b"\1" * size
            assert extents.read(0, 64) == plain
            assert extents.written_bytes == sum(written)
            assert b"".join(b"\1" * (end - begin) for begin, end in extents.spans()) == b"\1" * sum(written)
