"""The composition root: the one place where rooms are built and tied together."""

import logging
import random
import secrets
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.metadata import version
from pathlib import Path

import attrs
import trio
from multiaddr import Multiaddr

from node.api.server import serve_api
from node.background import open_background
from node.blame import BlameLedger
from node.config import FILE_NAME, HerdConfig
from node.events import EventBus
from node.facade import HerdNode
from node.home import holding_home
from node.identity import Identity, load_or_create_identity
from node.local_node import LocalNode
from node.metrics import Metrics
from node.ports import Blobs, ChunkCarrier, Datagrams, Directory, Door, Models, SmallFile, Transport
from node.services.catalog.keeper import CatalogKeeper, FileKeeper
from node.services.catalog.service import CatalogService
from node.services.discovery.service import DiscoveryService
from node.services.exchange.carrier import StreamCarrier
from node.services.exchange.planes import Planes
from node.services.exchange.service import ExchangeService
from node.services.limits.service import LimitsService
from node.services.membership.memory import FILE_NAME as MEMBERS_FILE_NAME
from node.services.membership.service import MembershipService
from node.services.models.service import ModelService
from node.small_file import DiskFile
from node.store.store import Store, open_store
from node.transport.bulk import BulkCarrier, open_bulk_carrier
from node.transport.datagram import UdpDatagrams, open_udp_datagrams
from node.transport.dht import KadDirectory, open_kad_directory
from node.transport.libp2p import Libp2pTransport, open_libp2p_transport
from node.transport.mdns import open_mdns
from node.trust.mesh_key import MeshKeyDoor, settle_mesh_key
from protocols.exchange.nearness import nearness
from protocols.ids import PeerId

log = logging.getLogger("herd.node")

LEAVE_TIMEOUT_S = 2.0
"""How long a stopping node takes to tell others that it leaves."""

CATALOG_FILE_NAME = "catalog.sqlite"

STORE_GAUGES = (
    "models",
    "models_verified",
    "blobs_verified",
    "partial_blobs",
    "stored_bytes",
    "unverified_bytes",
    "free_disk_bytes",
)
MEMBERSHIP_GAUGES = ("alive", "suspect", "dead", "left", "local_health_score", "updates_waiting")
EXCHANGE_GAUGES = ("transfers", "givers", "askers", "outstanding_bytes", "serve_buffered_bytes")


@attrs.frozen(kw_only=True)
class Surroundings:
    """What a node has of the world outside: real in `open_node`, simulated in a simulated world.

    `wall_time` gives seconds since 1970, `local_time` the local time; `settings_file` is named in advice only.
    """

    identity: Identity
    bus: EventBus
    blame: BlameLedger
    models: Models
    blobs: Blobs
    free_disk_bytes: Callable[[], int]
    transport: Transport
    datagrams: Datagrams
    directory: Directory
    streams: ChunkCarrier
    bulk: ChunkCarrier | None
    remembered: SmallFile | None
    keeper: CatalogKeeper | None
    rng: random.Random
    wall_time: Callable[[], float]
    local_time: Callable[[], time.struct_time]
    settings_file: Path


@attrs.frozen
class Services:
    """The long-running parts, each knowing the others only where it is given them in `assemble`."""

    membership: MembershipService
    catalog: CatalogService
    discovery: DiscoveryService
    exchange: ExchangeService
    models: ModelService
    planes: Planes | None
    limits: LimitsService

    async def start(self, nursery: trio.Nursery) -> None:
        """Run what must run before the mesh is joined. Raises a HerdError when something cannot start."""
        for part in (self.membership, self.catalog, self.exchange, self.discovery, self.limits):
            await nursery.start(part.run)

    async def join(self, nursery: trio.Nursery) -> None:
        """Find the mesh, then tell it of this node's models. JoinRefused when no bootstrap peer admits this node."""
        await self.membership.join()
        await nursery.start(self.models.run)

    async def leave(self) -> None:
        """Tell the others that this node goes; takes at most `LEAVE_TIMEOUT_S`, whatever is cancelled."""
        with trio.move_on_after(LEAVE_TIMEOUT_S, shield=True):
            await self.membership.leave()


@attrs.frozen
class _Resources:
    """What a real node owns besides; each is opened and closed in one place."""

    store: Store
    transport: Libp2pTransport
    datagrams: UdpDatagrams
    directory: KadDirectory
    bulk: BulkCarrier | None


@asynccontextmanager
async def open_node(config: HerdConfig) -> AsyncIterator[HerdNode]:
    """A running node with its HTTP API, until the block ends; then it tells the others that it leaves.

    It has joined its mesh when a bootstrap peer or a remembered member could be reached; else it goes on trying.
    Raises a HerdError when it cannot start: JoinRefused when no bootstrap peer admits it, UsageError and StoreError
    naming the file, port or setting that is in the way.
    """
    with holding_home(config.home):
        async with AsyncExitStack() as stack:
            surroundings, resources = await _open_surroundings(config, stack)
            services = assemble(config, surroundings)
            node = _local_node(config, surroundings, resources, services)
            async with open_background() as nursery, AsyncExitStack() as inner_stack:
                await nursery.start(resources.store.run)
                await services.start(nursery)
                metrics = _metrics(surroundings, resources, services)
                node.api = await nursery.start(serve_api, node, config.api, metrics)
                if config.network.mdns:
                    addresses = resources.transport.addresses()
                    await inner_stack.enter_async_context(
                        open_mdns(surroundings.identity.peer_id, addresses, services.membership.meet)
                    )
                await services.join(nursery)
                try:
                    yield node
                finally:
                    await services.leave()


async def _open_surroundings(config: HerdConfig, stack: AsyncExitStack) -> tuple[Surroundings, _Resources]:
    identity = load_or_create_identity(config.home)
    door = MeshKeyDoor(settle_mesh_key(config.home, config.mesh_key, joining=bool(config.network.bootstrap)))
    bus = EventBus()
    blame = BlameLedger(bus)
    store = await stack.enter_async_context(open_store(config.store, bus))
    resources = await _open_network(config, store, identity, door, blame, stack)
    surroundings = Surroundings(
        identity=identity,
        bus=bus,
        blame=blame,
        models=store,
        blobs=store.blobs,
        free_disk_bytes=store.free_disk_bytes,
        transport=resources.transport,
        datagrams=resources.datagrams,
        directory=resources.directory,
        streams=StreamCarrier(resources.transport),
        bulk=resources.bulk,
        remembered=DiskFile(config.home / MEMBERS_FILE_NAME),
        keeper=FileKeeper(config.home / CATALOG_FILE_NAME),
        rng=random.Random(secrets.randbits(128)),
        wall_time=time.time,
        local_time=time.localtime,
        settings_file=config.home / FILE_NAME,
    )
    return surroundings, resources


async def _open_network(
    config: HerdConfig, store: Store, identity: Identity, door: Door, blame: BlameLedger, stack: AsyncExitStack
) -> _Resources:
    network = config.network
    transport = await stack.enter_async_context(open_libp2p_transport(identity, door, network, blame))
    advertise = network.advertise[0] if network.advertise else ""
    datagrams = await stack.enter_async_context(
        open_udp_datagrams(identity, door, network.host, _datagram_port(network.port, transport), advertise=advertise)
    )
    directory = await stack.enter_async_context(open_kad_directory(transport))
    bulk: BulkCarrier | None = None
    if config.bulk.enabled:
        # The port after the streams' own, so that a firewall's rule is one range.
        after = int(Multiaddr(transport.addresses()[0]).value_for_protocol("tcp")) + 1
        bulk = await stack.enter_async_context(
            open_bulk_carrier(transport, transport.hosts_of, config.bulk, network.host, after)
        )
    return _Resources(store, transport, datagrams, directory, bulk)


def _datagram_port(configured: int, transport: Libp2pTransport) -> int:
    """The port for datagrams: the streams' own number, so that a firewall needs one rule, where it is free."""
    if configured:
        return configured
    number = int(Multiaddr(transport.addresses()[0]).value_for_protocol("tcp"))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind(("", number))
        except OSError:
            return 0
    return number


def assemble(config: HerdConfig, surroundings: Surroundings) -> Services:
    """Build a node's services and tie them together; nothing runs yet. UsageError for labels over a limit."""
    bus, blame, transport = surroundings.bus, surroundings.blame, surroundings.transport
    identity, rng = surroundings.identity, surroundings.rng
    membership = _membership(config, surroundings)
    catalog = CatalogService(
        transport,
        config.catalog,
        identity.peer_id,
        identity.sign,
        rng,
        bus,
        blame,
        membership.alive,
        surroundings.keeper,
        surroundings.wall_time,
    )
    discovery = DiscoveryService(
        surroundings.directory, catalog, transport, identity.peer_id, config.discovery, blame, membership.alive
    )
    bulk, streams = surroundings.bulk, surroundings.streams
    planes = Planes(bulk, streams, config.bulk) if bulk is not None else None
    limits = LimitsService(config.limits, surroundings.local_time, surroundings.settings_file)
    exchange = _exchange(config, surroundings, membership, planes or streams, limits)
    models = ModelService(
        models=surroundings.models,
        blobs=surroundings.blobs,
        catalog=catalog,
        discovery=discovery,
        exchange=exchange,
        bus=bus,
        peer_id=identity.peer_id,
        rng=rng,
    )

    def member_changed(peer: PeerId, takes_part: bool) -> None:
        member = membership.member(peer)
        if takes_part and member is not None:
            catalog.peer_joined(peer)
            discovery.peer_joined(peer, member.record.addresses)
        elif not takes_part:
            limits.forget(peer)

    membership.subscribe_alive(member_changed)
    return Services(membership, catalog, discovery, exchange, models, planes, limits)


def _exchange(
    config: HerdConfig,
    surroundings: Surroundings,
    membership: MembershipService,
    carrier: ChunkCarrier,
    limits: LimitsService,
) -> ExchangeService:
    def near(peer: PeerId) -> int:
        member = membership.member(peer)
        return nearness(config.labels, member.record.labels if member else {}, config.exchange.near_labels)

    return ExchangeService(
        surroundings.transport,
        surroundings.blobs,
        surroundings.blame,
        surroundings.bus,
        config.exchange,
        surroundings.identity.peer_id,
        surroundings.rng,
        carrier=carrier,
        nearness=near,
        limits=limits,
    )


def _membership(config: HerdConfig, surroundings: Surroundings) -> MembershipService:
    return MembershipService(
        surroundings.transport,
        surroundings.datagrams,
        config.membership,
        surroundings.identity.peer_id,
        surroundings.identity.sign,
        surroundings.rng,
        surroundings.bus,
        surroundings.blame,
        surroundings.remembered,
        config.labels,
        surroundings.free_disk_bytes,
        config.network.bootstrap,
        wall_time=surroundings.wall_time,
    )


def _local_node(config: HerdConfig, surroundings: Surroundings, resources: _Resources, services: Services) -> LocalNode:
    return LocalNode(
        config=config,
        version=version("llamaherd"),
        peer_id=surroundings.identity.peer_id,
        events=surroundings.bus,
        blame=surroundings.blame,
        store=resources.store,
        transport=resources.transport,
        membership=services.membership,
        catalog=services.catalog,
        exchange=services.exchange,
        models=services.models,
        planes=services.planes,
        limiting=services.limits,
    )


def _metrics(surroundings: Surroundings, resources: _Resources, services: Services) -> Metrics:
    metrics = Metrics(version("llamaherd"))
    for name, statistics, gauges in (
        ("store", resources.store.statistics, STORE_GAUGES),
        ("transport", resources.transport.statistics, ("connections", "handshakes", "streams")),
        ("datagrams", resources.datagrams.statistics, ()),
        ("dht", resources.directory.statistics, ("peers", "values", "provided_keys")),
        ("membership", services.membership.statistics, MEMBERSHIP_GAUGES),
        ("catalog", services.catalog.statistics, ("versions", "names", "owners", "holdings", "size_bytes", "streams")),
        ("discovery", services.discovery.statistics, ("pending",)),
        ("exchange", services.exchange.statistics, EXCHANGE_GAUGES),
        ("limits", services.limits.statistics, ("peers",)),
    ):
        metrics.register_statistics(name, statistics, gauges=gauges)
    if resources.bulk is not None:
        metrics.register_statistics("bulk", resources.bulk.statistics, gauges=("links", "lanes", "tickets"))
    metrics.register_statistics("blame", surroundings.blame.statistics, label="reason")
    return metrics
