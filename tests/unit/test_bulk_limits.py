"""Bulk connections over time: replaced before their limit, ended in order, and nothing left behind."""

import os
from collections import Counter

import pytest
import trio
import trio.testing

from node.ports import TransportError
from protocols.bulk.config import BulkConfig
from tests.support_bulk import SESSION, bulk_pair, chunks_of, give, take_all, told
from tests.support_transport import until

MIB = 1024 * 1024


def descriptors() -> int:
    """How many files and sockets this process has open."""
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("size_bytes", [30_000, 262_144, 900_000, 3 * MIB])
async def test_a_transfer_of_many_limits_passes_through_several_connections_whole(size_bytes: int) -> None:
    count = max(8, 12 * MIB // size_bytes)
    async with bulk_pair(connection_bytes_max=MIB) as world, trio.open_nursery() as nursery:
        asker, giver = await world.link()
        halves = chunks_of([size_bytes] * (count // 2)), chunks_of([size_bytes] * (count - count // 2), count // 2)
        for half in halves:
            nursery.start_soon(give, giver, half)
        came = Counter([told(await asker.receive())[0] for _ in range(count)])
        assert came == Counter(range(count)), "none lost, none doubled"
        assert asker.lanes >= 1
        assert giver.lanes >= 1

        replaced = world.asker.counters.connections_opened - 1
        per_connection = -(-MIB // size_bytes)
        assert replaced == pytest.approx(count / per_connection, abs=2)
        await until(lambda: giver.lanes <= 2 and asker.lanes <= 2)
        assert world.giver.counters.tickets_issued == world.giver.counters.connections_accepted == replaced + 1
        assert world.asker.counters.broken_frames == world.giver.counters.broken_frames == 0
        assert list(world.attached) == [SESSION], "one link all the time"


async def test_a_link_whose_next_connection_is_refused_ends_with_a_reason() -> None:
    async with bulk_pair(connection_bytes_max=MIB) as world, trio.open_nursery() as nursery:
        asker, giver = await world.link()
        world.route = "127.0.0.9"
        nursery.start_soon(give, giver, chunks_of([200_000] * 12))
        with pytest.raises(TransportError, match="cannot be reached"):
            await take_all(asker)
        await until(lambda: giver.lanes == 0)


async def test_two_hundred_links_leave_nothing_behind() -> None:
    async with bulk_pair(ticket_valid_s=0.5) as world:

        async def live_and_end(number: int) -> None:
            session = number.to_bytes(16, "big")
            asker, giver = await world.link(session)
            await giver.send(chunks_of([2000])[0], lambda: True)
            assert told(await asker.receive())[0] == 0
            await (asker if number % 2 else giver).close()

        await live_and_end(0)
        await trio.testing.wait_all_tasks_blocked()
        await until(lambda: world.giver.statistics().lanes == world.asker.statistics().lanes == 0)
        open_before, tasks_before = descriptors(), trio.lowlevel.current_statistics().tasks_living
        for number in range(1, 201):
            await live_and_end(number)
        await until(lambda: world.giver.statistics().lanes == world.asker.statistics().lanes == 0)
        await until(lambda: world.asker.statistics().links == 0)
        await until(lambda: descriptors() <= open_before)
        # The handlers of this story keep their links for good: one task each.
        await until(lambda: trio.lowlevel.current_statistics().tasks_living <= tasks_before + 200)
        assert world.giver.statistics().tickets == 0


async def test_a_handler_that_returns_takes_its_link_with_it() -> None:
    async with bulk_pair() as world:
        over = trio.Event()

        async def keep(link: object) -> None:
            await over.wait()

        world.giver.serve(keep)
        asker = await world.asker.connect(world.bob.peer, SESSION, timeout_s=5)
        await until(lambda: world.giver.statistics().links == 1)
        over.set()
        with pytest.raises(TransportError):
            await asker.receive()
        await until(lambda: world.giver.statistics().links == world.asker.statistics().links == 0)


async def test_connections_that_come_to_nothing_leave_nothing_behind() -> None:
    async with bulk_pair() as world:
        await trio.testing.wait_all_tasks_blocked()
        open_before = descriptors()
        world.route = "127.0.0.9"
        for number in range(50):
            with pytest.raises(TransportError, match="cannot be reached"):
                await world.asker.connect(world.bob.peer, number.to_bytes(16, "big"), timeout_s=5)
        assert world.asker.counters.connections_failed == 50
        assert world.giver.statistics().tickets == 16, "tickets nobody came for are bounded, and run out"
        assert descriptors() <= open_before
        assert BulkConfig().ticket_valid_s <= 60
