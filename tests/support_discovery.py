"""Whole catalog and discovery services on one network, simulated or real, for the stories told over them."""

import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import attrs
import trio

from node.blame import BlameLedger
from node.events import EventBus
from node.identity import Identity
from node.ports import Directory, Transport
from node.services.catalog.keeper import FileKeeper
from node.services.catalog.service import CatalogService
from node.services.discovery.service import DiscoveryService
from protocols.catalog.config import CatalogConfig, DiscoveryConfig
from protocols.catalog.records import Holding, VersionRecord
from protocols.ids import PeerId
from tests.support_catalog import WALL_MS, blob, full, manifest_digest, manifest_of
from tests.support_transport import MESH_KEY, OpenNode, identity_of

MakeDirectory = Callable[[Transport], AbstractAsyncContextManager[Directory]]


@attrs.define(eq=False)
class Host:
    """One node as far as it matters here. `alive` is what membership would say."""

    identity: Identity
    transport: Transport
    bus: EventBus
    blame: BlameLedger
    catalog: CatalogService
    directory: Directory | None
    discovery: DiscoveryService | None
    alive: list[PeerId]

    @property
    def peer(self) -> PeerId:
        return self.identity.peer_id

    def meet(self, *others: "Host") -> None:
        """Membership: these are alive, and listen there."""
        for other in others:
            self.transport.learn(other.peer, other.transport.addresses())
            self.alive = sorted({*self.alive, other.peer})
            self.catalog.peer_joined(other.peer)
            if self.discovery is not None:
                self.discovery.peer_joined(other.peer, other.transport.addresses())

    def add_model(self, name: str, content: int, state: str = "complete") -> VersionRecord:
        """The store holds a model now: what the model service would announce."""
        entry = blob(content)
        record = self.catalog.publish_version(full(name), manifest_of(entry), [entry])
        held = {holding.manifest_digest: holding for holding in self.catalog.holdings()}
        held[manifest_digest(content)] = Holding(manifest_digest(content), state)  # type: ignore[arg-type]  # as given
        self.catalog.set_holdings(list(held.values()))
        if self.discovery is not None:
            self.discovery.changed()
        return record

    def drop_models(self) -> None:
        """The store holds nothing any more."""
        self.catalog.set_holdings([])
        if self.discovery is not None:
            self.discovery.changed()


def wall_time() -> float:
    """A wall clock that goes with the test's clock."""
    return WALL_MS / 1000 + trio.current_time() % 1e6


class Hosts:
    """Opens hosts on one network; `directories` gives each its directory where the story needs one."""

    def __init__(self, open_node: OpenNode, directories: MakeDirectory | None = None) -> None:
        self._open_node = open_node
        self._directories = directories

    @asynccontextmanager
    async def open(
        self,
        name: str,
        config: CatalogConfig | None = None,
        discovery_config: DiscoveryConfig | None = None,
        path: Path | None = None,
    ) -> AsyncIterator[Host]:
        """A running host until the block ends."""
        identity = identity_of(name)
        async with self._open_node(name, MESH_KEY) as node, trio.open_nursery() as nursery:
            bus, alive = EventBus(), _Alive()
            catalog = CatalogService(
                node.transport,
                config or CatalogConfig(),
                identity.peer_id,
                identity.sign,
                random.Random(name),
                bus,
                node.blame,
                alive,
                FileKeeper(path) if path is not None else None,
                wall_time,
            )
            host = Host(identity, node.transport, bus, node.blame, catalog, None, None, [])
            alive.host = host
            await nursery.start(catalog.run)
            if self._directories is None:
                yield host
            else:
                async with self._directories(node.transport) as directory:
                    settings = discovery_config or DiscoveryConfig()
                    host.directory = directory
                    host.discovery = DiscoveryService(
                        directory, catalog, node.transport, identity.peer_id, settings, node.blame, alive
                    )
                    await nursery.start(host.discovery.run)
                    yield host
            nursery.cancel_scope.cancel()


class _Alive:
    def __init__(self) -> None:
        self.host: Host | None = None

    def __call__(self) -> Sequence[PeerId]:
        return self.host.alive if self.host is not None else []


def acquaint(*hosts: Host) -> None:
    """Everybody meets everybody."""
    for host in hosts:
        host.meet(*(other for other in hosts if other is not host))
