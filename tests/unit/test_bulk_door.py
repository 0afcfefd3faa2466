"""Who comes to the bulk port without a good ticket: port scanners, strangers, the late and the double."""

import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack

import pytest
import trio
import trio.testing

from node.ports import TransportError
from protocols.bulk.frames import FrameKind
from protocols.bulk.tickets import Ticket
from tests import reference_frames as reference
from tests.support_bulk import SCANNER_HOST, BulkPair, bulk_pair, chunks_of, give, hangs_up, told
from tests.support_transport import until

TLS_HELLO = bytes.fromhex("16030100a5010000a10303") + bytes(range(160))
SIZES_BYTES = [200_000] * 30


def opening_by_hand(ticket: Ticket, key: bytes | None = None) -> bytes:
    """All that an asker says, with the ticket's key or another."""
    mine = reference.direction(reference.ASKER, ticket.cipher, key or ticket.key, ticket.connection_id)
    return reference.opening(ticket.connection_id) + mine.greeting()


async def says(world: BulkPair, data: bytes) -> None:
    """Connect from the scanner's address, say it, and see the connection ended."""
    async with await world.dial(SCANNER_HOST) as stream:
        await stream.send_all(data)
        assert await hangs_up(stream)


async def says_and_leaves(world: BulkPair, data: bytes) -> None:
    """Connect from the scanner's address, say it, and go."""
    async with await world.dial(SCANNER_HOST) as stream:
        await stream.send_all(data)


SCANS: dict[str, Callable[[BulkPair], Awaitable[None]]] = {
    "an HTTP request": lambda world: says(world, b"GET / HTTP/1.1\r\nHost: example\r\n\r\n"),
    "a TLS hello": lambda world: says(world, TLS_HELLO),
    "random bytes": lambda world: says(world, bytes(range(255, 0, -1)) * 4),
    "the right word and no ticket": lambda world: says(world, reference.opening(b"x" * 16) + bytes(20)),
    "silence": lambda world: says(world, b""),
    "half an opening and silence": lambda world: says(world, b"herdbulk" + b"x" * 10),
    "connect and close": lambda world: says_and_leaves(world, b""),
    "half an opening and close": lambda world: says_and_leaves(world, b"herdbu"),
}


@pytest.mark.parametrize("scan", SCANS)
async def test_a_port_scan_ends_its_own_connection_and_disturbs_nobody(scan: str) -> None:
    async with bulk_pair(opening_timeout_s=0.3) as world, trio.open_nursery() as nursery:
        asker, giver = await world.link()
        nursery.start_soon(give, giver, chunks_of(SIZES_BYTES))
        nursery.start_soon(SCANS[scan], world)
        assert [told(await asker.receive())[0] for _ in SIZES_BYTES] == list(range(len(SIZES_BYTES)))
        await until(lambda: world.giver.counters.connections_refused == 1)
        assert world.giver.statistics().connections_accepted == world.giver.statistics().lanes == 1
        assert world.blames() == [{}, {}]


async def test_three_hundred_connections_at_once_leave_room_for_those_from_elsewhere() -> None:
    async with bulk_pair(openings_max=64, opening_timeout_s=1.0) as world:
        crowd = [await world.dial(SCANNER_HOST) for _ in range(300)]
        await until(lambda: world.giver.counters.connections_refused >= 300 - 16)
        assert world.giver.counters.connections_refused == 300 - 16, "a quarter of the openings, for one address"

        asker, giver = await world.link()
        await giver.send(chunks_of([100])[0], lambda: True)
        assert told(await asker.receive())[0] == 0

        await until(lambda: world.giver.counters.connections_refused == 300)
        for stream in crowd:
            assert await hangs_up(stream)
            await stream.aclose()
        await says(world, b"the openings of that address are free again, so this is read")
        assert world.giver.counters.connections_refused == 301


async def test_all_openings_together_are_bounded_too() -> None:
    async with bulk_pair(openings_max=4, opening_timeout_s=30) as world:
        silent = [await world.dial(f"127.0.1.{number}") for number in range(4)]
        await trio.testing.wait_all_tasks_blocked()
        async with await world.dial("127.0.1.9") as fifth:
            assert await hangs_up(fifth)
        await silent[0].aclose()
        await until(lambda: world.giver.counters.connections_refused == 2)
        asker, _giver = await world.link()
        assert asker.lanes == 1
        for stream in silent[1:]:
            await stream.aclose()


async def test_who_saw_the_ticket_pass_but_not_its_key_neither_gets_in_nor_burns_it() -> None:
    async with bulk_pair() as world:
        ticket = await world.ticket()
        await says(world, opening_by_hand(ticket, key=b"w" * 32))
        assert world.giver.statistics().tickets == 1
        async with await world.dial() as stream:
            await stream.send_all(opening_by_hand(ticket))
            await world.given()
        assert world.giver.statistics().tickets == 0
        assert world.giver.counters.connections_refused == world.giver.counters.connections_accepted == 1
        assert world.blames() == [{}, {}]


@pytest.mark.parametrize(("kind", "text"), [(reference.MESSAGE, b"hello"), (reference.END, b""), (reference.BODY, b"")])
async def test_who_has_the_key_but_does_not_greet_is_not_let_in(kind: int, text: bytes) -> None:
    async with bulk_pair() as world:
        ticket = await world.ticket()
        mine = reference.direction(reference.ASKER, ticket.cipher, ticket.key, ticket.connection_id)
        await says(world, reference.opening(ticket.connection_id) + mine.seal(kind, text))
        assert (world.giver.counters.connections_refused, world.giver.counters.connections_accepted) == (1, 0)


async def test_a_ticket_that_ran_out_opens_nothing() -> None:
    async with bulk_pair(ticket_valid_s=0.5) as world:
        ticket = await world.ticket()
        await trio.sleep(0.6)  # real time: sockets know no other
        await says(world, opening_by_hand(ticket))
        assert world.giver.counters.connections_refused == 1
        assert world.giver.statistics().tickets == 0


async def test_a_ticket_shown_in_time_but_proved_too_late_opens_nothing() -> None:
    async with bulk_pair(ticket_valid_s=0.5, opening_timeout_s=0.7) as world:
        ticket = await world.ticket()
        data = opening_by_hand(ticket)
        async with await world.dial() as stream:
            await stream.send_all(data[:24])
            await trio.sleep(0.6)  # real time: sockets know no other
            await stream.send_all(data[24:])
            assert await hangs_up(stream)
        assert world.giver.counters.connections_accepted == 0


async def test_a_ticket_used_twice_at_the_same_time_lets_one_in() -> None:
    async with bulk_pair() as world:
        ticket = await world.ticket()
        data = opening_by_hand(ticket)
        async with await world.dial() as first, await world.dial() as second:
            for stream in (first, second):
                await stream.send_all(data[:-1])
            for _ in range(3):
                await trio.testing.wait_all_tasks_blocked()
            for stream in (first, second):
                await stream.send_all(data[-1:])
            await until(lambda: world.giver.counters.connections_refused == 1)
            assert world.giver.counters.connections_accepted == 1
            answers = []
            for stream in (first, second):
                with trio.move_on_after(0.2):
                    try:
                        answers.append(len(await stream.receive_some()))
                    except trio.BrokenResourceError:
                        answers.append(0)
            assert sorted(answers) == [0, 20], "one is greeted, the other hung up on; no key seals the same nonce twice"


async def test_an_asker_that_goes_on_talking_loses_its_connection() -> None:
    async with bulk_pair() as world:
        ticket = await world.ticket()
        mine = reference.direction(reference.ASKER, ticket.cipher, ticket.key, ticket.connection_id)
        async with await world.dial() as stream:
            await stream.send_all(reference.opening(ticket.connection_id) + mine.greeting())
            giver = await world.given()
            await stream.send_all(mine.seal(FrameKind.MESSAGE, b"and another thing"))
            await until(lambda: giver.lanes == 0)
        assert world.giver.counters.broken_frames == 1
        with pytest.raises(TransportError):
            await giver.send(chunks_of([1])[0], lambda: True)


async def test_who_answers_at_the_port_without_the_key_is_not_taken_for_the_giver() -> None:
    async with bulk_pair() as world, trio.open_nursery() as nursery:
        [listener] = await trio.open_tcp_listeners(world.giver.port, host="127.0.0.2")

        async def pretend() -> None:
            async with listener, await listener.accept() as stream:
                await stream.send_all(b"\x01\x00\x00\x00" + bytes(16))
                await hangs_up(stream)

        nursery.start_soon(pretend)
        with pytest.raises(TransportError, match="is not it"):
            await world.link(route="127.0.0.2")
        assert world.asker.counters.connections_failed == 1
        assert world.blames() == [{}, {}]


async def test_a_host_that_swallows_connections_leaves_time_for_the_next(sockets: ExitStack) -> None:
    async with bulk_pair(connect_timeout_s=2.0) as world:
        swallowing = "127.0.0.9"
        door = sockets.enter_context(socket.create_server((swallowing, world.giver.port), backlog=0))
        # Linux takes one more than the backlog, and then no longer answers.
        crowd = [sockets.enter_context(socket.socket()) for _ in range(4)]
        for one in crowd:
            one.setblocking(False)
            one.connect_ex(door.getsockname())
        asker, giver = await world.link(route=f"{swallowing} 127.0.0.1")
        await giver.send(chunks_of([100])[0], lambda: True)
        assert told(await asker.receive())[0] == 0


@pytest.fixture
def sockets() -> Iterator[ExitStack]:
    """Sockets of the test's own, closed after it."""
    with ExitStack() as stack:
        yield stack
