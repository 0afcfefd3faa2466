"""The composition root: the one place where rooms are built and tied together."""

import logging
import random
import secrets
import socket
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.metadata import version

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
from node.services.catalog.service import CatalogService
from node.services.discovery.service import DiscoveryService
from node.services.exchange.carrier import StreamCarrier
from node.services.exchange.planes import Planes
from node.services.exchange.service import ExchangeService
from node.services.limits.service import LimitsService
from node.services.membership.service import MembershipService
from node.services.models.service import ModelService
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


@attrs.frozen
class _Resources:
    """What a node owns of the outside world; each is opened and closed in one place."""

    identity: Identity
    bus: EventBus
    blame: BlameLedger
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
            resources = await _open_resources(config, stack)
            services = _assemble(config, resources)
            node = _local_node(config, resources, services)
            async with open_background() as nursery, AsyncExitStack() as inner_stack:
                for part in (resources.store, services.membership, services.catalog, services.exchange):
                    await nursery.start(part.run)
                await nursery.start(services.discovery.run)
                await nursery.start(services.limits.run)
                node.api = await nursery.start(serve_api, node, config.api, _metrics(resources, services))
                if config.network.mdns:
                    addresses = resources.transport.addresses()
                    await inner_stack.enter_async_context(
                        open_mdns(resources.identity.peer_id, addresses, services.membership.meet)
                    )
                await services.membership.join()
                await nursery.start(services.models.run)
                try:
                    yield node
                finally:
                    with trio.move_on_after(LEAVE_TIMEOUT_S, shield=True):
                        await services.membership.leave()


async def _open_resources(config: HerdConfig, stack: AsyncExitStack) -> _Resources:
    network = config.network
    identity = load_or_create_identity(config.home)
    door = MeshKeyDoor(settle_mesh_key(config.home, config.mesh_key, joining=bool(network.bootstrap)))
    bus = EventBus()
    blame = BlameLedger(bus)
    store = await stack.enter_async_context(open_store(config.store, bus))
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
    return _Resources(identity, bus, blame, store, transport, datagrams, directory, bulk)


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


@attrs.frozen
class _Services:
    """The long-running parts, each knowing the others only where it is given them here."""

    membership: MembershipService
    catalog: CatalogService
    discovery: DiscoveryService
    exchange: ExchangeService
    models: ModelService
    planes: Planes | None
    limits: LimitsService


def _assemble(config: HerdConfig, resources: _Resources) -> _Services:
    identity, bus, blame = resources.identity, resources.bus, resources.blame
    store, transport = resources.store, resources.transport
    peer_id, rng = identity.peer_id, random.Random(secrets.randbits(128))
    membership = _membership(config, resources, rng)
    catalog = CatalogService(
        transport,
        config.catalog,
        peer_id,
        identity.sign,
        rng,
        bus,
        blame,
        membership.alive,
        config.home / CATALOG_FILE_NAME,
        time.time,
    )
    discovery = DiscoveryService(
        resources.directory, catalog, transport, peer_id, config.discovery, blame, membership.alive
    )
    planes = _planes(config, resources)
    limits = LimitsService(config.limits, time.localtime, config.home / FILE_NAME)
    exchange = _exchange(config, resources, membership, planes, limits, rng)
    models = ModelService(
        models=store,
        blobs=store.blobs,
        catalog=catalog,
        discovery=discovery,
        exchange=exchange,
        bus=bus,
        peer_id=peer_id,
    )

    def member_changed(peer: PeerId, takes_part: bool) -> None:
        member = membership.member(peer)
        if takes_part and member is not None:
            catalog.peer_joined(peer)
            discovery.peer_joined(peer, member.record.addresses)
        elif not takes_part:
            limits.forget(peer)

    membership.subscribe_alive(member_changed)
    return _Services(membership, catalog, discovery, exchange, models, planes, limits)


def _planes(config: HerdConfig, resources: _Resources) -> Planes | None:
    streams = StreamCarrier(resources.transport)
    return Planes(resources.bulk, streams, config.bulk) if resources.bulk is not None else None


def _exchange(
    config: HerdConfig,
    resources: _Resources,
    membership: MembershipService,
    planes: Planes | None,
    limits: LimitsService,
    rng: random.Random,
) -> ExchangeService:
    def near(peer: PeerId) -> int:
        member = membership.member(peer)
        return nearness(config.labels, member.record.labels if member else {}, config.exchange.near_labels)

    return ExchangeService(
        resources.transport,
        resources.store.blobs,
        resources.blame,
        resources.bus,
        config.exchange,
        resources.identity.peer_id,
        rng,
        carrier=planes or StreamCarrier(resources.transport),
        nearness=near,
        limits=limits,
    )


def _membership(config: HerdConfig, resources: _Resources, rng: random.Random) -> MembershipService:
    return MembershipService(
        resources.transport,
        resources.datagrams,
        config.membership,
        resources.identity.peer_id,
        resources.identity.sign,
        rng,
        resources.bus,
        resources.blame,
        config.home,
        config.labels,
        resources.store.free_disk_bytes,
        config.network.bootstrap,
    )


def _local_node(config: HerdConfig, resources: _Resources, services: _Services) -> LocalNode:
    return LocalNode(
        config=config,
        version=version("llamaherd"),
        peer_id=resources.identity.peer_id,
        events=resources.bus,
        blame=resources.blame,
        store=resources.store,
        transport=resources.transport,
        membership=services.membership,
        catalog=services.catalog,
        exchange=services.exchange,
        models=services.models,
        planes=services.planes,
        limiting=services.limits,
    )


def _metrics(resources: _Resources, services: _Services) -> Metrics:
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
    metrics.register_statistics("blame", resources.blame.statistics, label="reason")
    return metrics
