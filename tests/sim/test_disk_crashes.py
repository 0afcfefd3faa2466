"""A pull whose host loses power at its first write, its second, its third, and so on to the last.

After each crash the host starts again and pulls again: what it had called durable is there and right, the model
becomes whole, and nobody was ever given a wrong byte.
"""

import random
from contextlib import suppress
from pathlib import Path

import attrs
import pytest
import trio

from node.background import open_background
from node.config import HerdConfig
from node.errors import HerdError
from node.events import EventBus
from node.store.config import StoreConfig
from protocols.errors import RemoteProtocolError
from protocols.ids import digest_of
from protocols.names import ModelName
from protocols.recipe.recipe import Recipe
from simnet.audit import unfounded_names, wrong_bytes
from simnet.blobs import MemoryBlobs, cut
from simnet.determinism import part_rng, run_world
from simnet.disk import SimDisk
from simnet.manifests import manifest_of
from simnet.models import MemoryModels
from simnet.partials import MemoryPartial
from simnet.world import World, WorldOptions

CHUNK = 256 * 1024
WEIGHTS = random.Random(1).randbytes(4 * CHUNK + 777)  # large enough for the names of large blobs to be synced at once
TEMPLATE = random.Random(2).randbytes(3 * 1024)
NAME = ModelName.parse("llama")
BATCHES = StoreConfig(sync_interval_bytes=2 * CHUNK)


# -- a store alone: every moment, many ways to lose what was not durable


async def bring(blobs: MemoryBlobs, models: MemoryModels, data: tuple[bytes, ...] = (WEIGHTS, TEMPLATE)) -> None:
    """What a pull does to a store."""
    for blob in data:
        recipe = cut(blob, CHUNK)
        partial = await blobs.receive(recipe)
        try:
            order = list(partial.held().missing())
            random.Random(3).shuffle(order)
            for index in order:
                offset = recipe.offset_bytes(index)
                await partial.write(index, blob[offset : offset + recipe.sizes_bytes[index]])
            await partial.finish()
        finally:
            await partial.close()
    await models.place_model(NAME, manifest_of(*data))


@attrs.frozen
class Life:
    """A store in which a pull was at work when the power went: whether it was through, and what came back."""

    through: bool
    blobs: MemoryBlobs
    models: MemoryModels

    def problems(self) -> list[str]:
        """What is wrong with what came back."""
        found = wrong_bytes(self.blobs) + unfounded_names(self.models, self.blobs)
        if self.through and (self.blobs.whole(digest_of(WEIGHTS)) != WEIGHTS or NAME not in self.models.manifests()):
            found.append("a pull that was through is lost")
        return found


async def pull_and_lose_power(blobs: MemoryBlobs, at_write: int) -> Life:
    """Pull into a store whose power goes at that write, or right after the pull."""
    left: list[SimDisk] = []
    disk, through = blobs.disk, False
    disk.on_power_lost = lambda: left.append(disk.crash())
    disk.crash_at_write(at_write)
    try:
        await bring(blobs, MemoryModels(blobs, EventBus()))
        through = True
    except HerdError:
        assert disk.dead, "nothing but the power ends it"
    after = blobs.restarted(left[0] if left else disk.crash())
    return Life(through, after, MemoryModels(after, EventBus()))


async def first_problem(draws: int) -> str:
    """What the search through all moments finds first, "" for nothing: two crashes, then a pull that is left alone."""
    for draw in range(draws):
        for at_write in range(1, 1000):
            where = f"power lost at write {at_write}, draw {draw}"
            disk = SimDisk(part_rng(draw, "disk", at_write))
            first = await pull_and_lose_power(MemoryBlobs(disk=disk, chunk_size_bytes=CHUNK, config=BATCHES), at_write)
            if problems := first.problems():
                return f"{where}: {problems[0]}"
            second = await pull_and_lose_power(first.blobs, 1 + part_rng(draw, "again", at_write).randrange(40))
            if problems := second.problems():
                return f"{where}, and again: {problems[0]}"
            await bring(second.blobs, second.models)
            last = Life(True, second.blobs, second.models)
            if problems := last.problems():
                return f"{where}, pulled again: {problems[0]}"
            if first.through:
                assert at_write > 20, "a pull makes many writes"
                break
    return ""


async def test_whenever_the_power_goes_what_was_durable_is_right_and_a_new_pull_makes_it_whole() -> None:
    assert await first_problem(draws=3) == ""


async def test_bits_that_are_committed_before_their_data_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    async def pretend(partial: MemoryPartial) -> None:
        await trio.lowlevel.checkpoint()

    monkeypatch.setattr(MemoryPartial, "sync_data", pretend)
    assert "is called held and is not what its hash says" in await first_problem(draws=3)


async def test_a_pull_that_is_through_before_its_names_are_durable_is_found_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def pretend(disk: SimDisk) -> None:
        await trio.lowlevel.checkpoint()

    monkeypatch.setattr(SimDisk, "sync_names", pretend)
    assert await first_problem(draws=3) != ""


async def test_a_blob_that_is_linked_before_it_is_checked_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    other = random.Random(4).randbytes(len(WEIGHTS))
    told = cut(other, CHUNK)
    lie = Recipe(digest_of(WEIGHTS), told.size_bytes, told.rule, told.sizes_bytes, told.hashes)

    async def believe() -> list[str]:
        blobs = MemoryBlobs(chunk_size_bytes=CHUNK)
        partial = await blobs.receive(lie)
        for index, size in enumerate(lie.sizes_bytes):
            await partial.write(index, other[lie.offset_bytes(index) :][:size])
        with suppress(RemoteProtocolError):
            await partial.finish()
        await partial.close()
        return wrong_bytes(blobs)

    assert await believe() == []
    monkeypatch.setattr(MemoryBlobs, "is_the_blob", lambda blobs, partial: True)
    problems = await believe()
    assert problems == [f"{digest_of(WEIGHTS)} is called whole and holds the bytes of {digest_of(other)}"]


# -- whole nodes: the crash is a node's death, and others are served by who came back


@attrs.frozen
class Told:
    """What a world saw of its pulls."""

    verified: bool
    problems: list[str]


async def pull_through_a_crash(world: World, at_write: int) -> Told:
    """Host 2 pulls from host 1, loses power at that write, comes back and pulls again; host 3 pulls from it alone."""
    for _ in range(3):
        await world.start(world.add_host().number)
    await world.wait(1)
    await world.hold(1, "llama", WEIGHTS, TEMPLATE)
    await world.wait(1)
    host, verified = world.hosts[2], False
    node = host.node
    assert node is not None
    host.disk.crash_at_write(at_write)
    with trio.move_on_after(60):
        try:
            verified = (await world.pull(2, "llama")).verified
        except HerdError:
            verified = False
    if host.node is node and not node.crashed:
        await world.crash(2)
    await node.ended.wait()
    if problems := wrong_bytes(host.blobs):
        return Told(verified, problems)
    await world.start(2)
    await world.wait(2)
    assert host.models is not None
    problems += unfounded_names(host.models, host.blobs)
    if verified and NAME not in host.models.manifests():
        problems.append("a pull that was verified is lost")
    assert (await world.pull(2, "llama")).verified
    await world.leave(1)
    assert (await world.pull(3, "llama")).verified
    problems += wrong_bytes(host.blobs) + wrong_bytes(world.hosts[3].blobs)
    refused = [
        f"somebody was blamed for {each.blame.statistics()}"
        for each in world.running().values()
        if each.blame.statistics()
    ]
    return Told(verified, problems + refused)


def first_problem_of_nodes() -> str:
    """What is wrong first when the power goes at each write of a pull, "" for nothing."""
    for at_write in range(1, 1000):

        async def main(at_write: int = at_write) -> Told:
            async with open_background() as nursery:
                config = HerdConfig(home=Path("/simulated"), store=BATCHES)
                world = World(nursery, WorldOptions(seed=at_write, chunk_size_bytes=CHUNK, config=config))
                return await pull_through_a_crash(world, at_write)

        told = run_world(main, at_write)
        if told.problems:
            return f"power lost at write {at_write}: {told.problems[0]}"
        if told.verified:
            assert at_write > 20, "a pull makes many writes"
            break
    return ""


def test_a_host_that_loses_power_at_any_write_of_a_pull_comes_back_and_serves_nothing_wrong() -> None:
    assert first_problem_of_nodes() == ""


def test_a_host_whose_store_commits_bits_before_their_data_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    async def pretend(partial: MemoryPartial) -> None:
        await trio.lowlevel.checkpoint()

    monkeypatch.setattr(MemoryPartial, "sync_data", pretend)
    assert "is called held and is not what its hash says" in first_problem_of_nodes()
