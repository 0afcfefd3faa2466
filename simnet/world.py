"""Whole nodes in one process: the node's own services over simulated streams, datagrams, disks and clocks.

A host outlives its node: what was durable when the node died is what the next one on it finds.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import attrs
import trio

from node.app import Services, Surroundings, assemble
from node.background import open_background
from node.blame import BlameLedger
from node.config import HerdConfig
from node.identity import Identity
from node.ports import Blobs
from node.trust.mesh_key import MeshKeyDoor
from node.views import PullReport
from protocols.errors import LocalProtocolError
from protocols.ids import PeerId
from protocols.names import ModelName
from simnet.blobs import RESERVE_FREE_BYTES, MemoryBlobs
from simnet.carrier import SimCarrier, scaled
from simnet.conditions import Conditions, Quality
from simnet.datagrams import SimDatagramNetwork, SimDatagrams
from simnet.determinism import part_rng
from simnet.directory import SimDirectories
from simnet.disk import SimDisk
from simnet.keeping import MemoryFile, MemoryKeeper
from simnet.manifests import manifest_of
from simnet.models import MemoryModels
from simnet.network import SimNetwork, SimTransport
from simnet.pipe import WINDOW_SIZE_BYTES
from simnet.trace import Trace, TracedBus

EPOCH_S = 1_700_000_000
MESH_KEY = b"simnet".ljust(32, b"\0")


@attrs.frozen(kw_only=True)
class WorldOptions:
    """What a world is made of; rates are bytes a second each way, None for no limit.

    `disk_size_bytes` is what blobs may take of a disk. With a `bytes_scale`, chunks and the disk have so many times
    fewer bytes than the chunks are declared to have; rates are the declared ones. `sealed=False` saves the elliptic
    curve of datagrams. `loss` is that of both planes.
    """

    seed: int = 0
    latency_s: float = 0.002
    jitter_s: float = 0.001
    loss: float = 0.0
    rate_bytes_per_s: float | None = None
    chunk_size_bytes: int = 64 * 1024
    bytes_scale: int = 1
    sealed: bool = True
    disk_size_bytes: int | None = None
    config: HerdConfig = attrs.field(factory=lambda: HerdConfig(home=Path("/simulated")))


@attrs.define(eq=False)
class Node:
    """One life of a node."""

    services: Services
    transport: SimTransport
    datagrams: SimDatagrams
    blame: BlameLedger
    scope: trio.CancelScope
    ended: trio.Event
    started_s: float
    crashed: bool = False


@attrs.define(eq=False)
class Host:
    """A machine: its name, its disk, its place, and the node that runs on it now, if one does."""

    number: int
    identity: Identity
    labels: dict[str, str]
    blobs: MemoryBlobs
    members_file: MemoryFile
    catalog_records: MemoryKeeper
    models: MemoryModels | None = None
    address: str = ""
    lives: int = 0
    node: Node | None = None
    clock_ahead_s: float = 0.0

    @property
    def disk(self) -> SimDisk:
        """Its disk in this life."""
        return self.blobs.disk

    @property
    def name(self) -> str:
        """As traces and reports call it."""
        return f"h{self.number}"

    @property
    def peer(self) -> PeerId:
        """Its node's name in the mesh."""
        return self.identity.peer_id

    @property
    def multiaddr(self) -> str:
        """What others take as a bootstrap peer."""
        return f"{self.address}/p2p/{self.peer}"

    def wall_time(self) -> float:
        """What its clock says, in seconds since 1970."""
        return EPOCH_S + trio.current_time() + self.clock_ahead_s

    def local_time(self) -> time.struct_time:
        """The same for people; every host stands in Greenwich."""
        return time.gmtime(self.wall_time())


class World:
    """Hosts by number, from 1. Made in the nursery that its nodes live in; runs under a virtual clock only.

    `on_life` hears of each life of a node: True before its services start, False when they have ended. `watch_blobs`
    gives what a node serves and receives through instead of its host's blobs themselves.
    """

    def __init__(self, nursery: trio.Nursery, options: WorldOptions, trace: Trace | None = None) -> None:
        self.options = options
        self.trace = trace if trace is not None else Trace()
        self.hosts: dict[int, Host] = {}
        self.conditions = Conditions(Quality(latency_s=options.latency_s, jitter_s=options.jitter_s, loss=options.loss))
        self.network = _network(options, self.conditions)
        self.datagrams = SimDatagramNetwork(
            part_rng(options.seed, "datagrams"), conditions=self.conditions, sealed=options.sealed
        )
        self.network.on_frame = self.datagrams.on_datagram = self.trace.frame
        self._contents: dict[bytes, bytes] = {}
        self.directories = SimDirectories(options.latency_s)
        self.on_life: Callable[[Host, Node, bool], object] | None = None
        self.watch_blobs: Callable[[Host], Blobs] = lambda host: host.blobs
        self._nursery = nursery
        self._door = MeshKeyDoor(MESH_KEY)

    # Hosts and their nodes

    def add_host(self, *, labels: dict[str, str] | None = None) -> Host:
        """One more machine, with nothing running on it."""
        number = len(self.hosts) + 1
        identity = identity_of(self.options.seed, number)
        size_bytes = self.options.disk_size_bytes
        disk = SimDisk(
            part_rng(self.options.seed, "disk", number),
            size_bytes=None if size_bytes is None else size_bytes + RESERVE_FREE_BYTES,
            contents=self._contents,
        )
        blobs = MemoryBlobs(disk=disk, chunk_size_bytes=self.options.chunk_size_bytes, config=self.options.config.store)
        host = Host(number, identity, dict(labels or {}), blobs, MemoryFile(disk), MemoryKeeper(disk))
        self.hosts[number] = host
        disk.on_power_lost = partial(self.lose_power, host)
        if "region" in host.labels:
            self.conditions.place(host.peer, host.labels["region"])
        return host

    async def start(self, number: int, *, bootstrap: Sequence[int] = (1,)) -> Node:
        """Start a host's node, by default joining through the first host; returns when it has joined or tries on."""
        host = self.hosts[number]
        if host.node is not None:
            raise LocalProtocolError(f"the node of {host.name} runs already")
        through = [self.hosts[each].multiaddr for each in bootstrap if each != number and self.hosts[each].address]
        self.trace.tell(host.name, "start")
        node: Node = await self._nursery.start(self._live, host, through)
        return node

    async def leave(self, number: int) -> None:
        """Stop a host's node as a person does: it says so, and what it has is durable."""
        host = self.hosts[number]
        if (node := host.node) is not None:
            self.trace.tell(host.name, "leave")
            await node.services.leave()
            node.scope.cancel()
            await node.ended.wait()

    async def crash(self, number: int, *, power_lost: bool = True) -> None:
        """End a host's node at once: nothing it does from now on reaches the network or the disk.

        What was not synced may be lost with the power; with `power_lost` false only the process dies.
        """
        host = self.hosts[number]
        if (node := host.node) is not None:
            self.lose_power(host, power_lost=power_lost)
            await node.ended.wait()

    def lose_power(self, host: Host, *, power_lost: bool = True) -> None:
        """The moment of a crash, wherever it comes from; the node has ended when its `ended` is set.

        With `power_lost` false only the process dies: what it had written stands, synced or not.
        """
        self.trace.tell(host.name, "crash")
        host.blobs = host.blobs.crash(power_lost=power_lost)
        host.members_file = host.members_file.restarted(host.disk)
        host.catalog_records = host.catalog_records.restarted(host.disk)
        if (node := host.node) is not None:
            self.network.vanish(node.transport)
            self.datagrams.block(host.peer)
            node.crashed = True
            node.scope.cancel()

    def running(self) -> dict[int, Node]:
        """The nodes that run now, by the number of their host."""
        return {number: host.node for number, host in self.hosts.items() if host.node is not None}

    def lives(self) -> list[trio.lowlevel.Task]:
        """The tasks that the running nodes' lives are, each with all its own below it; in no order."""
        return [task for task in self._nursery.child_tasks if task.coro.cr_code is World._live.__code__]

    async def _live(
        self, host: Host, bootstrap: list[str], *, task_status: trio.TaskStatus[Node] = trio.TASK_STATUS_IGNORED
    ) -> None:
        host.lives += 1
        bus = TracedBus(self.trace, host.name)
        blame = BlameLedger(bus)
        blobs = host.blobs
        models = host.models = MemoryModels(blobs, bus) if host.models is None else host.models.restarted(blobs, bus)
        ended = trio.Event()
        rate = self.options.rate_bytes_per_s
        joined = False
        try:
            async with AsyncExitStack() as stack:
                transport = await stack.enter_async_context(
                    self.network.transport(
                        host.peer, self._door, blame, address=host.address, up_bytes_per_s=rate, down_bytes_per_s=rate
                    )
                )
                host.address = transport.addresses()[0]
                datagrams = await stack.enter_async_context(self.datagrams.datagrams(host.identity, self._door))
                surroundings = self._surroundings(host, models, blame, bus, transport, datagrams)
                config = self._config_of(host, bootstrap)
                services = assemble(config, surroundings)
                nursery = await stack.enter_async_context(open_background())
                host.node = Node(
                    services, transport, datagrams, blame, nursery.cancel_scope, ended, trio.current_time()
                )
                self._tell_life(host, True)
                nursery.start_soon(host.blobs.run)
                await services.start(nursery)
                await services.join(nursery)
                joined = True
                task_status.started(host.node)
                await trio.sleep_forever()
        except Exception:  # boundary: a node without power says nothing more; a living one's failure ends the world
            if host.node is None or not host.node.crashed:
                raise
        finally:
            if host.node is not None and host.node.crashed:
                self.datagrams.unblock(host.peer)
            self._tell_life(host, False)
            node, host.node = host.node, None
            ended.set()
        if node is not None and not joined:
            # It was ended before it had joined: whoever started it hears of that by `ended`.
            task_status.started(node)

    def _tell_life(self, host: Host, began: bool) -> None:
        if self.on_life is not None and host.node is not None:
            self.on_life(host, host.node, began)

    def _surroundings(
        self,
        host: Host,
        models: MemoryModels,
        blame: BlameLedger,
        bus: TracedBus,
        transport: SimTransport,
        datagrams: SimDatagrams,
    ) -> Surroundings:
        return Surroundings(
            identity=host.identity,
            bus=bus,
            blame=blame,
            models=models,
            blobs=self.watch_blobs(host),
            free_disk_bytes=host.blobs.free_disk_bytes,
            transport=transport,
            datagrams=datagrams,
            directory=self.directories.directory(host.peer, transport.addresses()),
            streams=SimCarrier(transport, self.options.bytes_scale),
            bulk=None,
            remembered=host.members_file,
            keeper=host.catalog_records,
            rng=part_rng(self.options.seed, "node", host.number, host.lives),
            wall_time=host.wall_time,
            local_time=host.local_time,
            settings_file=Path("herd.toml"),
        )

    def _config_of(self, host: Host, bootstrap: list[str]) -> HerdConfig:
        config = self.options.config
        network = attrs.evolve(config.network, bootstrap=tuple(bootstrap))
        exchange = scaled(config.exchange, self.options.bytes_scale)
        return attrs.evolve(config, network=network, exchange=exchange, labels=host.labels)

    async def wait(self, seconds: float) -> None:
        """Let virtual time pass."""
        await trio.sleep(seconds)

    # What people do

    async def hold(self, number: int, name: str, *blobs: bytes) -> None:
        """Put a model into a host's store, as Ollama would; its running node finds and announces it."""
        host = self.hosts[number]
        for blob in blobs:
            host.blobs.add(blob)
        if host.models is None:
            raise LocalProtocolError(f"no node ever ran on {host.name}")
        await host.models.place_model(ModelName.parse(name), manifest_of(*blobs))

    async def pull(self, number: int, name: str) -> PullReport:
        """`herd pull` on a host whose node runs."""
        node = self.hosts[number].node
        if node is None:
            raise LocalProtocolError(f"no node runs on h{number}")
        return await node.services.models.pull(name)


def identity_of(seed: int, number: int) -> Identity:
    """Who the node of a host is, in every world of that seed."""
    return Identity(part_rng(seed, "identity", number).randbytes(32))


def _network(options: WorldOptions, conditions: Conditions) -> SimNetwork:
    """Streams in pieces and windows of the declared chunks: few events a chunk, and the next one on its way."""
    declared_bytes = options.chunk_size_bytes * options.bytes_scale
    return SimNetwork(
        part_rng(options.seed, "streams"),
        conditions=conditions,
        segment_size_bytes=max(64 * 1024, declared_bytes // 8),
        window_size_bytes=max(WINDOW_SIZE_BYTES, 4 * declared_bytes),
        send_buffer_bytes=max(256 * 1024, declared_bytes // 4),
    )
