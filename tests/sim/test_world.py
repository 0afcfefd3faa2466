"""A world of whole nodes: they meet, share models, die and come back; and the same seed is the same world."""

import os
import subprocess
import sys
from collections.abc import Awaitable, Callable

import pytest
import trio

from node.background import open_background
from protocols.errors import LocalProtocolError
from simnet import determinism
from simnet.determinism import run_world
from simnet.world import World, WorldOptions

WEIGHTS = bytes(range(256)) * 4096
Story = Callable[[World], Awaitable[None]]


def tell(story: Story, seed: int = 0) -> World:
    """Let a story happen in a world of its own; the world as it is at the end."""

    async def main() -> World:
        async with open_background() as nursery:
            world = World(nursery, WorldOptions(seed=seed))
            await story(world)
            return world

    return run_world(main, seed)


async def five_share_a_model(world: World) -> None:
    for _ in range(5):
        await world.start(world.add_host().number)
    await world.wait(5)
    await world.hold(1, "llama", WEIGHTS)
    await world.wait(5)
    for number in (2, 3, 4, 5):
        assert (await world.pull(number, "llama")).verified
    assert all(host.blobs.whole(digest) == WEIGHTS for host in world.hosts.values() for digest in host.blobs.digests())


async def one_crashes_and_comes_back(world: World) -> None:
    for _ in range(4):
        await world.start(world.add_host().number)
    await world.wait(5)
    await world.hold(2, "llama", WEIGHTS)
    await world.wait(5)
    second = world.hosts[2].peer
    await world.crash(2)
    await world.wait(60)
    assert all(second not in node.services.membership.alive() for node in world.running().values())
    # It finds the mesh by what it remembers, and still has its model.
    await world.start(2, bootstrap=())
    await world.wait(10)
    assert all(len(node.services.membership.alive()) == 3 for node in world.running().values())
    assert (await world.pull(4, "llama")).sources == {second: len(WEIGHTS)}


def test_five_nodes_share_a_model() -> None:
    world = tell(five_share_a_model)
    assert sorted(world.hosts) == [1, 2, 3, 4, 5]


def test_a_node_that_crashed_is_missed_and_comes_back() -> None:
    assert tell(one_crashes_and_comes_back).hosts[2].lives == 2


@pytest.mark.parametrize("story", [five_share_a_model, one_crashes_and_comes_back])
def test_the_same_seed_is_the_same_world_and_another_is_not(story: Story) -> None:
    one, again, other = tell(story, seed=7), tell(story, seed=7), tell(story, seed=8)
    assert one.trace.digest() == again.trace.digest()
    assert one.trace.lines == again.trace.lines
    assert one.trace.digest() != other.trace.digest()


def test_the_same_seed_is_the_same_world_in_another_process() -> None:
    program = (
        "from tests.sim.test_world import five_share_a_model, tell;"
        " print(tell(five_share_a_model, seed=7).trace.digest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert digests == {tell(five_share_a_model, seed=7).trace.digest() + "\n"}


def test_a_thread_in_a_world_is_refused() -> None:
    async def main() -> None:
        await trio.to_thread.run_sync(int)

    with pytest.raises(LocalProtocolError, match="no threads"):
        run_world(main, 1)


def test_a_trio_without_the_private_names_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(determinism.PRIVATE_NAMES, "_gone", bool)
    with pytest.raises(LocalProtocolError, match=r"mend simnet/determinism\.py"):
        run_world(trio.lowlevel.checkpoint, 1)
