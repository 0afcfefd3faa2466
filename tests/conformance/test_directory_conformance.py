"""One contract, two directories: libp2p's Kad-DHT between real hosts on loopback, and the simulated twin."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager

import attrs
import pytest
import trio
from trio.testing import MockClock

from node.ports import Directory, Transport, TransportError
from node.transport.dht import open_kad_directory
from protocols.catalog.clock import Clock
from protocols.catalog.keys import manifest_key, name_key, pack_head
from protocols.errors import RemoteProtocolError
from protocols.ids import PeerId
from simnet.directory import SimDirectories
from tests.support_catalog import WALL_MS, full, manifest_digest, person, version
from tests.support_transport import MESH_KEY, Node, OpenNode, libp2p, loopback_nodes, simulated_nodes

KEY = manifest_key(manifest_digest(1))
NAME_KEY = name_key(full("m:1"))


@attrs.frozen
class Member:
    """One node and its directory."""

    peer: PeerId
    transport: Transport
    directory: Directory


World = Callable[[int], AbstractAsyncContextManager[list[Member]]]


@pytest.fixture(params=["simulated", "kad"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def clock(kind: str) -> MockClock | None:
    """Virtual time for the simulation; real sockets need the real clock."""
    return MockClock(autojump_threshold=0) if kind == "simulated" else None


@pytest.fixture
def world(kind: str, clock: MockClock | None) -> World:
    """Opens so many members, of which each but the first knows the first alone, and the first knows nobody."""
    open_node: OpenNode = simulated_nodes() if kind == "simulated" else loopback_nodes()
    table = SimDirectories(0.01)

    @asynccontextmanager
    async def open_world(count: int) -> AsyncIterator[list[Member]]:
        async with AsyncExitStack() as stack:
            members = []
            for number in range(count):
                node: Node = await stack.enter_async_context(open_node(f"member{number}", MESH_KEY))
                directory: Directory
                if kind == "kad":
                    directory = await stack.enter_async_context(open_kad_directory(libp2p(node)))
                else:
                    directory = table.directory(node.peer, node.transport.addresses())
                members.append(Member(node.peer, node.transport, directory))
            first = members[0]
            for member in members[1:]:
                member.transport.learn(first.peer, first.transport.addresses())
                await member.directory.introduce(first.peer, first.transport.addresses())
            if kind == "simulated":
                # A real node hears of whoever asks it.
                for member in members[1:]:
                    await first.directory.introduce(member.peer, member.transport.addresses())
            yield members

    return open_world


async def providers(member: Member, key: bytes = KEY) -> list[PeerId]:
    return [found.peer for found in await member.directory.providers(key)]


async def test_a_provider_is_found_by_whoever_knows_one_member(world: World) -> None:
    async with world(5) as members:
        await members[1].directory.provide(KEY)
        (found,) = await members[4].directory.providers(KEY)
        assert found.peer == members[1].peer
        assert found.addresses == tuple(members[1].transport.addresses())


async def test_a_later_provider_is_seen_too_each_once_and_oneself_never(world: World) -> None:
    async with world(4) as members:
        await members[1].directory.provide(KEY)
        assert await providers(members[2]) == [members[1].peer]
        await members[3].directory.provide(KEY)
        await members[3].directory.provide(KEY)
        assert await providers(members[2]) == sorted([members[1].peer, members[3].peer])
        assert await providers(members[1]) == [members[3].peer]
        assert await providers(members[2], manifest_key(manifest_digest(2))) == []


async def test_a_head_is_found_by_whoever_knows_one_member(world: World) -> None:
    head = pack_head(version(person(1), "m:1", 1).head())
    async with world(5) as members:
        assert await members[4].directory.get(NAME_KEY) is None
        await members[1].directory.put(NAME_KEY, head)
        assert await members[4].directory.get(NAME_KEY) == head
        assert await members[1].directory.get(NAME_KEY) == head
        assert await members[4].directory.get(name_key(full("other:1"))) is None


async def test_the_newest_head_wins_whoever_comes_last(world: World) -> None:
    old = pack_head(version(person(1), "m:1", 1).head())
    new = pack_head(version(person(2), "m:1", 2, at_ms=WALL_MS + 1).head())
    async with world(4) as members:
        await members[1].directory.put(NAME_KEY, old)
        await members[2].directory.put(NAME_KEY, new)
        await members[3].directory.put(NAME_KEY, old)
        await members[2].directory.put(NAME_KEY, new)
        for member in members:
            assert await member.directory.get(NAME_KEY) == new


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"no head",
        pack_head(attrs.evolve(version(person(1), "m:1", 1).head(), clock=Clock(WALL_MS + 5))),
        pack_head(version(person(1), "other:1", 1).head()),
    ],
    ids=["empty", "garbage", "forged", "another name"],
)
async def test_a_bad_head_is_not_put(world: World, value: bytes) -> None:
    async with world(2) as members:
        with pytest.raises(RemoteProtocolError):
            await members[1].directory.put(NAME_KEY, value)
        assert await members[0].directory.get(NAME_KEY) is None


async def test_alone_nothing_is_taken_and_nothing_is_found(world: World) -> None:
    async with world(1) as (member,):
        with pytest.raises(TransportError, match="no peer"):
            await member.directory.provide(KEY)
        with pytest.raises(TransportError, match="no peer"):
            await member.directory.put(NAME_KEY, pack_head(version(person(1), "m:1", 1).head()))
        assert await providers(member) == []


async def test_a_tenth_announcement_waits_and_none_is_lost(world: World, kind: str, clock: MockClock | None) -> None:
    keys = [manifest_key(manifest_digest(number)) for number in range(10)]
    async with world(3) as members:
        began = trio.current_time()
        for key in keys[:9]:
            await members[1].directory.provide(key)
        assert trio.current_time() - began < 5
        if kind == "simulated":
            await members[1].directory.provide(keys[9])
            assert trio.current_time() - began >= 10.5
        else:
            with trio.move_on_after(0.3) as waiting:  # real time: the window of a real server, not waited out here
                await members[1].directory.provide(keys[9])
            assert waiting.cancelled_caught
            keys.pop()
        for key in keys:
            assert await providers(members[2], key) == [members[1].peer]
