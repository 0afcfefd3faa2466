"""What a store holds is announced whatever the catalog, the directory or the disk make of it."""

import logging
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
import pytest
import trio
from trio.testing import MockClock

from node.ports import Directory, StoreError, Transport
from node.services.exchange.carrier import StreamCarrier
from node.services.exchange.service import ExchangeService
from node.services.models.service import ModelService
from protocols.catalog.config import CatalogConfig
from protocols.catalog.records import BlobEntry
from protocols.exchange.config import ExchangeConfig
from protocols.ids import Digest
from protocols.names import ModelName
from protocols.recipe.recipe import Recipe
from simnet.blobs import MemoryBlobs
from simnet.directory import SimDirectories
from simnet.models import MemoryModels
from tests.support_catalog import full, manifest_of, version
from tests.support_catalog import person as person_of
from tests.support_discovery import Host, Hosts
from tests.support_transport import simulated_nodes


class CountedBlobs(MemoryBlobs):
    """Counts the recipes read, and fails to read them when told to."""

    def __init__(self) -> None:
        super().__init__(chunk_size_bytes=1000)
        self.recipes_read = 0
        self.broken = False

    async def recipe(self, digest: Digest) -> Recipe:
        self.recipes_read += 1
        if self.broken:
            raise StoreError("index.sqlite cannot be read")
        return await super().recipe(digest)


@attrs.define
class Node:
    """A host with a store of models."""

    host: Host
    blobs: CountedBlobs
    shelf: MemoryModels
    models: ModelService

    async def hold(self, name: str, data: bytes) -> Digest:
        """Have a model in the store, as if somebody else had put it there."""
        digest = self.blobs.add(data)
        await self.shelf.place_model(ModelName.parse(name), manifest_of(BlobEntry(digest, len(data))))
        await trio.sleep(1)
        return digest

    def held(self) -> int:
        return self.host.catalog.holdings_count(self.host.peer)


@asynccontextmanager
async def node_with_store(hosts: Hosts, name: str, config: CatalogConfig | None = None) -> AsyncIterator[Node]:
    async with hosts.open(name, config) as host, trio.open_nursery() as nursery:
        assert host.discovery is not None
        blobs = CountedBlobs()
        shelf = MemoryModels(blobs, host.bus)
        exchange = ExchangeService(
            host.transport,
            blobs,
            host.blame,
            host.bus,
            ExchangeConfig(),
            host.peer,
            random.Random(1),
            carrier=StreamCarrier(host.transport),
        )
        models = ModelService(
            models=shelf,
            blobs=blobs,
            catalog=host.catalog,
            discovery=host.discovery,
            exchange=exchange,
            bus=host.bus,
            rng=random.Random(1),
            peer_id=host.peer,
        )
        await nursery.start(models.run)
        yield Node(host, blobs, shelf, models)
        nursery.cancel_scope.cancel()


@pytest.fixture
def hosts() -> Hosts:
    table = SimDirectories(latency_s=0.05)

    @asynccontextmanager
    async def directory(transport: Transport) -> AsyncIterator[Directory]:
        yield table.directory(transport.peer_id, transport.addresses())  # type: ignore[attr-defined]  # both have it

    return Hosts(simulated_nodes(), directory)


async def test_a_model_the_catalog_has_no_room_for_does_not_end_the_node(
    hosts: Hosts, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with node_with_store(hosts, "ann", CatalogConfig(versions_max=16)) as ann:
        record = version(person_of(5), "m:1", 0)
        for content in range(1, 40):
            ann.host.catalog.keep_version(record)
            record = version(person_of(5), "m:1", content, at_ms=record.clock.physical_ms + 1, parents=[record])
        with caplog.at_level(logging.WARNING, logger="herd.models"):
            await ann.hold("m:1", b"an old copy of m, from before the history that was let go" * 100)
            await ann.hold("n:1", b"another model" * 100)
        assert [text.split(":")[0] for text in caplog.messages] == ["m"], "said once, not at every change"
        assert "no room for registry.ollama.ai/library/m:1" in caplog.text
        assert ann.host.catalog.head(full("n:1")) is not None, "ann goes on"
        assert ann.held() == 2, "others may know the old copy by a record of theirs"


async def test_a_store_that_cannot_be_read_now_does_not_end_the_node(hosts: Hosts, autojump_clock: MockClock) -> None:
    async with node_with_store(hosts, "ann") as ann:
        ann.blobs.broken = True
        await ann.hold("m:1", b"m" * 5000)
        assert ann.held() == 0
        ann.blobs.broken = False
        await ann.hold("n:1", b"n" * 5000)
        assert ann.held() == 2


async def test_what_is_stated_is_not_read_again_at_every_change(hosts: Hosts, autojump_clock: MockClock) -> None:
    async with node_with_store(hosts, "ann") as ann:
        for number in range(10):
            await ann.hold(f"m{number}:1", b"%d" % number * 5000)
        assert ann.blobs.recipes_read == 10, "one for each blob, ever"


async def test_a_name_known_without_a_holder_is_asked_of_the_directory(hosts: Hosts, autojump_clock: MockClock) -> None:
    async with (
        node_with_store(hosts, "ann") as ann,
        node_with_store(hosts, "eve", CatalogConfig(follow="none")) as eve,
    ):
        ann.host.meet(eve.host)
        eve.host.meet(ann.host)
        await ann.hold("m:1", b"m" * 5000)
        head = ann.host.catalog.head(full("m:1"))
        assert head is not None
        eve.host.catalog.keep_version(head)
        (found,) = await eve.models.discover("m:1")
        assert (found.source, [provider.peer for provider in found.providers]) == ("dht", [ann.host.peer])
