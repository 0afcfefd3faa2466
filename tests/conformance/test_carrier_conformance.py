"""One contract for every way chunks travel: streams and the bulk plane, over either kind of control stream."""

import random
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress

import attrs
import pytest
import trio

from node.ports import CarriedChunk, ChunkCarrier, ChunkLink, TransportError
from node.services.exchange.carrier import StreamCarrier
from protocols.ids import PeerId
from simnet.carrier import SimCarrier
from tests.support_bulk import BLOB, SESSION, STORY_TIMEOUT_S, bulk_pair, chunks_of, give, told
from tests.support_transport import OpenNode, loopback_nodes, pair, simulated_nodes, until

MIB = 1024 * 1024


@attrs.frozen
class Carried:
    """Ann asks through `asker`, Bob gives through `giver`."""

    ann: PeerId
    bob: PeerId
    asker: ChunkCarrier
    giver: ChunkCarrier

    async def link(self, session: bytes = SESSION) -> tuple[ChunkLink, ChunkLink]:
        """Attach a link that Bob's handler keeps for good; Ann's end and Bob's."""
        attached: list[ChunkLink] = []

        async def keep(link: ChunkLink) -> None:
            attached.append(link)
            await trio.sleep_forever()

        self.giver.serve(keep)
        asker = await self.asker.connect(self.bob, session, timeout_s=5)
        await until(lambda: bool(attached))
        return asker, attached[0]


@asynccontextmanager
async def over_streams(open_node: OpenNode) -> AsyncIterator[Carried]:
    async with pair(open_node) as (ann, bob):
        with trio.fail_after(STORY_TIMEOUT_S):
            yield Carried(ann.peer, bob.peer, StreamCarrier(ann.transport), StreamCarrier(bob.transport))


@asynccontextmanager
async def over_heavy_streams(open_node: OpenNode) -> AsyncIterator[Carried]:
    async with pair(open_node) as (ann, bob):
        with trio.fail_after(STORY_TIMEOUT_S):
            yield Carried(ann.peer, bob.peer, SimCarrier(ann.transport, 1024), SimCarrier(bob.transport, 1024))


@asynccontextmanager
async def over_bulk(open_node: OpenNode) -> AsyncIterator[Carried]:
    async with bulk_pair(open_node, serving=False) as world:
        yield Carried(world.ann.peer, world.bob.peer, world.asker, world.giver)


async def send_for_ever(giver: ChunkLink) -> None:
    while True:
        await giver.send(chunks_of([300_000])[0], lambda: True)


OpenCarriers = Callable[[], AbstractAsyncContextManager[Carried]]

WAYS: dict[str, OpenCarriers] = {
    "streams over the simulated network": lambda: over_streams(simulated_nodes(latency_s=0.001)),
    "heavy chunks over the simulated network": lambda: over_heavy_streams(simulated_nodes(latency_s=0.001)),
    "streams over libp2p": lambda: over_streams(loopback_nodes()),
    "bulk beside the simulated network": lambda: over_bulk(simulated_nodes(latency_s=0.001)),
    "bulk beside libp2p": lambda: over_bulk(loopback_nodes()),
}


@pytest.fixture(params=list(WAYS))
def carriers(request: pytest.FixtureRequest) -> OpenCarriers:
    return WAYS[request.param]


async def test_chunks_arrive_whole_and_in_order(carriers: OpenCarriers) -> None:
    sizes_bytes = [1, 70_000, 512 * 1024, 512 * 1024 + 1, 16 * MIB, 2]
    chunks = [CarriedChunk(BLOB, n, random.Random(n).randbytes(size)) for n, size in enumerate(sizes_bytes)]
    async with carriers() as carried, trio.open_nursery() as nursery:
        asker, giver = await carried.link()
        assert (giver.peer, giver.ticket) == (carried.ann, SESSION)
        assert (asker.peer, asker.ticket) == (carried.bob, SESSION)
        assert asker.lanes == giver.lanes == 1
        nursery.start_soon(give, giver, chunks)
        for chunk in chunks:
            assert told(await asker.receive()) == (chunk.index, chunk.data)
        nursery.cancel_scope.cancel()


async def test_what_is_no_longer_wanted_when_its_turn_comes_is_skipped(carriers: OpenCarriers) -> None:
    async with carriers() as carried:
        asker, giver = await carried.link()
        first, second, third = chunks_of([1000] * 3)
        went = [await giver.send(first, lambda: True), await giver.send(second, lambda: False)]
        went.append(await giver.send(third, lambda: True))
        assert went == [True, False, True]
        assert [told(await asker.receive())[0] for _ in range(2)] == [0, 2]


async def test_many_may_send_at_once(carriers: OpenCarriers) -> None:
    async with carriers() as carried, trio.open_nursery() as nursery:
        asker, giver = await carried.link()
        groups = [chunks_of([5, 300_000, 1_000_000], first=10 * group) for group in range(5)]
        for group in groups:
            nursery.start_soon(give, giver, group)
        came = [told(await asker.receive()) for _ in range(15)]
        assert sorted(came) == [(chunk.index, chunk.data) for group in groups for chunk in group]
        for group in groups:
            indices = [index for index, _ in came if index // 10 == group[0].index // 10]
            assert indices == sorted(indices), "what one task sends on one lane stays in order"


async def test_an_asker_that_takes_nothing_holds_its_giver_back(carriers: OpenCarriers) -> None:
    async with carriers() as carried, trio.open_nursery() as nursery:
        asker, giver = await carried.link()
        sent = 0

        async def send() -> None:
            nonlocal sent
            while True:
                await giver.send(chunks_of([MIB])[0], lambda: True)
                sent += 1

        nursery.start_soon(send)
        told(await asker.receive())
        before = -1
        while before != sent:
            before = sent
            await trio.sleep(0.1)  # real time: the kernel's buffers fill
        assert sent <= 32, "what waits is bounded, here and in the kernel"
        for _ in range(sent):
            told(await asker.receive())
        await until(lambda: sent > before)
        nursery.cancel_scope.cancel()


async def test_a_giver_that_closes_is_noticed(carriers: OpenCarriers) -> None:
    async with carriers() as carried, trio.open_nursery() as nursery:
        asker, giver = await carried.link()
        nursery.start_soon(giver.close)
        with pytest.raises(TransportError):
            await asker.receive()
        assert giver.lanes == 0
        await until(lambda: asker.lanes == 0 or isinstance(carried.asker, StreamCarrier))
        await giver.close()


async def test_an_asker_that_closes_is_noticed(carriers: OpenCarriers) -> None:
    async with carriers() as carried:
        asker, giver = await carried.link()
        await asker.close()
        assert asker.lanes == 0
        with pytest.raises(TransportError):
            await send_for_ever(giver)
        await asker.close()


async def test_a_sender_that_waits_for_its_turn_hears_that_the_link_is_gone(carriers: OpenCarriers) -> None:
    async with carriers() as carried, trio.open_nursery() as nursery:
        asker, giver = await carried.link()
        refused = []

        async def send() -> None:
            try:
                while True:
                    await giver.send(chunks_of([4_000_000])[0], lambda: True)
            except TransportError as error:
                refused.append(str(error))

        for _ in range(3):
            nursery.start_soon(send)
        told(await asker.receive())
        await asker.close()
        await until(lambda: len(refused) == 3)
        assert all(refused), "each is told why"


async def test_a_link_of_an_unknown_session_is_ended_by_its_handler(carriers: OpenCarriers) -> None:
    async with carriers() as carried:

        async def know_nothing(_link: ChunkLink) -> None:
            return

        carried.giver.serve(know_nothing)
        link = await carried.asker.connect(carried.bob, b"u" * 16, timeout_s=5)
        with suppress(TransportError):
            assert await link.receive() is None
        asker, giver = await carried.link(b"k" * 16)
        await giver.send(chunks_of([10])[0], lambda: True)
        assert told(await asker.receive()) == (0, b"\x01" * 10)


async def test_a_handler_that_fails_ends_its_link_and_nothing_else(carriers: OpenCarriers) -> None:
    async with carriers() as carried:

        async def fail(_link: ChunkLink) -> None:
            raise RuntimeError("a fault of the handler")

        carried.giver.serve(fail)
        link = await carried.asker.connect(carried.bob, b"f" * 16, timeout_s=5)
        with suppress(TransportError):
            assert await link.receive() is None
        asker, giver = await carried.link(b"k" * 16)
        await giver.send(chunks_of([10])[0], lambda: True)
        assert told(await asker.receive()) == (0, b"\x01" * 10)


async def test_there_is_no_link_to_who_serves_none(carriers: OpenCarriers) -> None:
    async with carriers() as carried:
        with pytest.raises(TransportError, match="does not serve"):
            await carried.asker.connect(carried.bob, SESSION, timeout_s=5)


async def test_memory_that_was_released_is_lent_again(carriers: OpenCarriers) -> None:
    async with carriers() as carried, trio.open_nursery() as nursery:
        asker, giver = await carried.link()
        nursery.start_soon(give, giver, chunks_of([1_000_000] * 20))
        first = await asker.receive()
        assert first is not None
        memory = memoryview(first.data)
        first.release()
        if isinstance(first.data, memoryview):
            memory.release()
            with pytest.raises(ValueError, match="released"):
                bytes(first.data)
        seen = {0}
        for _ in range(19):
            index, data = told(await asker.receive())
            assert data == bytes([index % 251 + 1]) * 1_000_000
            seen.add(index)
        assert seen == set(range(20))
        nursery.cancel_scope.cancel()
