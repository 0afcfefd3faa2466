"""The exchange where it will live: libp2p on 127.0.0.1 and stores on disk."""

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import trio

from node.blame import BlameLedger
from node.events import EventBus
from node.services.exchange.carrier import StreamCarrier
from node.services.exchange.service import ExchangeService, FetchProgress, FetchReport
from node.store.config import StoreConfig
from node.store.store import Store, open_store
from node.transport.libp2p import open_libp2p_transport
from node.trust.mesh_key import MeshKeyDoor
from protocols.exchange.config import ExchangeConfig
from protocols.ids import PeerId
from protocols.recipe.recipe import Recipe
from simnet.blobs import cut
from tests.support_blobs import read_chunk
from tests.support_exchange import some_bytes
from tests.support_transport import MESH_KEY, identity_of, loopback_config

MIB = 1024 * 1024


@attrs.frozen
class RealNode:
    id: PeerId
    store: Store
    exchange: ExchangeService
    blame: BlameLedger
    scope: trio.CancelScope


@asynccontextmanager
async def open_nodes(path: Path, *names: str) -> AsyncIterator[list[RealNode]]:
    """Nodes with a transport, a store and an exchange each, that know each other's addresses."""
    async with trio.open_nursery() as nursery:
        nodes, transports = [], []

        async def run(name: str, task_status: trio.TaskStatus[RealNode]) -> None:
            identity, bus = identity_of(name), EventBus()
            blame = BlameLedger(bus)
            config = StoreConfig(models_path=str(path / name), reserve_free_bytes=0)
            with trio.CancelScope() as scope:
                async with (
                    open_store(config, bus) as store,
                    open_libp2p_transport(identity, MeshKeyDoor(MESH_KEY), loopback_config(), blame) as transport,
                    trio.open_nursery() as own,
                ):
                    exchange = ExchangeService(
                        transport,
                        store.blobs,
                        blame,
                        bus,
                        ExchangeConfig(),
                        identity.peer_id,
                        random.Random(name),
                        carrier=StreamCarrier(transport),
                    )
                    await own.start(exchange.run)
                    transports.append(transport)
                    task_status.started(RealNode(identity.peer_id, store, exchange, blame, scope))

        for name in names:
            nodes.append(await nursery.start(run, name))
        for transport in transports:
            for node, other in zip(nodes, transports, strict=True):
                if other is not transport:
                    transport.learn(node.id, other.addresses())
        yield nodes
        nursery.cancel_scope.cancel()


async def put(node: RealNode, data: bytes, recipe: Recipe) -> None:
    """Make a blob whole in a node's store."""
    partial = await node.store.blobs.receive(recipe)
    for index in range(len(recipe)):
        offset = recipe.offset_bytes(index)
        await partial.write(index, data[offset : offset + recipe.sizes_bytes[index]])
    await partial.finish()
    await partial.close()


async def bytes_of(node: RealNode, recipe: Recipe) -> bytes:
    held = await node.store.blobs.recipe(recipe.digest)
    return b"".join([await read_chunk(node.store.blobs, recipe.digest, index) for index in range(len(held))])


async def test_two_fetch_at_once_from_one_and_from_each_other(tmp_path: Path) -> None:
    data = some_bytes(24 * MIB + 77)
    recipe = cut(data, MIB)
    async with open_nodes(tmp_path, "seed", "ann", "bob") as (seed, ann, bob):
        await put(seed, data, recipe)
        reports: dict[PeerId, FetchReport] = {}

        async def fetch(node: RealNode) -> None:
            reports[node.id] = await node.exchange.fetch(
                recipe.digest, len(data), recipe_id=recipe.id(), sources=lambda: [seed.id, ann.id, bob.id]
            )

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(fetch, ann)
                nursery.start_soon(fetch, bob)

        for node in (ann, bob):
            assert reports[node.id].fetched_bytes == len(data) == sum(reports[node.id].sources.values())
            assert await bytes_of(node, recipe) == data
            assert node.blame.statistics() == {}
        assert seed.blame.statistics() == {}


async def test_a_sender_that_goes_in_the_middle_is_replaced(tmp_path: Path) -> None:
    data = some_bytes(32 * MIB)
    recipe = cut(data, MIB)
    async with open_nodes(tmp_path, "first", "second", "asker") as (first, second, asker):
        await put(first, data, recipe)
        await put(second, data, recipe)

        def end_first(progress: FetchProgress) -> None:
            if progress.held_bytes > 8 * MIB:
                first.scope.cancel()

        with trio.fail_after(60):
            report = await asker.exchange.fetch(
                recipe.digest, len(data), sources=lambda: [first.id, second.id], on_progress=end_first
            )
        assert report.fetched_bytes == len(data)
        assert report.sources[second.id] > 0
        assert await bytes_of(asker, recipe) == data


async def test_a_cancelled_fetch_resumes(tmp_path: Path) -> None:
    data = some_bytes(32 * MIB)
    recipe = cut(data, MIB)
    async with open_nodes(tmp_path, "seed", "asker") as (seed, asker):
        await put(seed, data, recipe)
        with trio.fail_after(60):
            with trio.CancelScope() as interrupted:

                def interrupt(progress: FetchProgress) -> None:
                    if progress.held_bytes > 8 * MIB:
                        interrupted.cancel()

                await asker.exchange.fetch(recipe.digest, len(data), sources=lambda: [seed.id], on_progress=interrupt)
            await trio.sleep(0.2)  # real time: what was on its way when it was cancelled arrives and is not counted
            served_bytes = seed.exchange.statistics().served_bytes

            report = await asker.exchange.fetch(recipe.digest, len(data), sources=lambda: [seed.id])
        assert 8 * MIB < report.resumed_bytes < len(data)
        assert report.fetched_bytes == len(data) - report.resumed_bytes
        assert seed.exchange.statistics().served_bytes - served_bytes == report.fetched_bytes
        assert await bytes_of(asker, recipe) == data
