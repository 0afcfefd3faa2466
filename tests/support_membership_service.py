"""Hosts with the membership service on simulated streams and datagrams; needs a virtual clock."""

import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import attrs
import trio

from node.blame import BlameLedger
from node.events import EventBus
from node.identity import Identity
from node.services.membership.memory import FILE_NAME
from node.services.membership.service import MembershipService
from node.small_file import DiskFile
from node.trust.mesh_key import MeshKeyDoor
from protocols.membership.config import MembershipConfig
from simnet.datagrams import SimDatagramNetwork, SimDatagrams
from simnet.network import SimNetwork, SimTransport

DOOR, OTHER_DOOR = MeshKeyDoor(b"m" * 32), MeshKeyDoor(b"x" * 32)
EPOCH_S = 1_700_000_000


def identity(number: int) -> Identity:
    """The same number is always the same peer."""
    return Identity(bytes([number]) * 32)


@attrs.define(eq=False)
class Running:
    """One running node."""

    service: MembershipService
    transport: SimTransport
    datagrams: SimDatagrams
    bus: EventBus
    blame: BlameLedger
    scope: trio.CancelScope
    ended: trio.Event

    @property
    def multiaddr(self) -> str:
        """What others take as bootstrap."""
        return f"{self.transport.addresses()[0]}/p2p/{self.transport.peer_id}"


class Mesh:
    """Hosts by number on one simulated network."""

    def __init__(self, nursery: trio.Nursery, config: MembershipConfig) -> None:
        self.network = SimNetwork(random.Random(1), latency_s=0.005)
        self.datagrams = SimDatagramNetwork(random.Random(2), latency_s=0.005)
        self.config = config
        self.nodes: dict[int, Running] = {}
        self.free_disk_bytes = 10**12
        self._nursery = nursery

    async def start(
        self, number: int, *, bootstrap: list[str] | None = None, join: bool = True, **options: Any
    ) -> Running:
        """Start a host; with `join` also wait for it to find the mesh."""
        node: Running = await self._nursery.start(self._host, number, bootstrap or [], options)
        self.nodes[number] = node
        if join:
            await node.service.join()
        return node

    async def _host(self, number: int, bootstrap: list[str], options: dict[str, Any], *, task_status: Any) -> None:
        me, door, bus = identity(number), options.get("door", DOOR), EventBus()
        blame, ended = BlameLedger(bus), trio.Event()
        with trio.CancelScope() as scope:
            async with (
                self.network.transport(me.peer_id, door, blame, address=options.get("address", "")) as transport,
                self.datagrams.datagrams(me, door) as datagrams,
                trio.open_nursery() as nursery,
            ):
                service = MembershipService(
                    transport,
                    datagrams,
                    self.config,
                    me.peer_id,
                    me.sign,
                    random.Random(number),
                    bus,
                    blame,
                    DiskFile(options["home"] / FILE_NAME) if "home" in options else None,
                    options.get("labels", {}),
                    lambda: self.free_disk_bytes,
                    bootstrap,
                    wall_time=lambda: EPOCH_S + trio.current_time(),
                )
                await nursery.start(service.run)
                task_status.started(Running(service, transport, datagrams, bus, blame, scope, ended))
        ended.set()

    async def crash(self, number: int) -> None:
        """End a host without a word."""
        node = self.nodes.pop(number)
        node.scope.cancel()
        await node.ended.wait()

    def sees(self, number: int) -> list[int]:
        """Whom a host takes for members."""
        return sorted(n for n in range(1, 60) if identity(n).peer_id in self.nodes[number].service.alive())

    def state(self, of: int, seen_by: int) -> str:
        """How one host sees another."""
        member = self.nodes[seen_by].service.member(identity(of).peer_id)
        return member.state if member is not None else "unknown"

    async def until(self, condition: Callable[[], bool], within_s: float) -> bool:
        """Wait for a condition; whether it came true within so many virtual seconds."""
        with trio.move_on_after(within_s):
            while not condition():  # noqa: ASYNC110  # under a virtual clock looking again costs nothing
                await trio.sleep(0.05)  # real time: none, every caller runs under a virtual clock
        return condition()

    def complete(self) -> bool:
        """Whether every running host sees every other and nobody else."""
        return all(self.sees(one) == sorted(set(self.nodes) - {one}) for one in self.nodes)


@asynccontextmanager
async def mesh_of(count: int, config: MembershipConfig | None = None) -> AsyncIterator[Mesh]:
    """So many hosts that see each other, the first being everybody's bootstrap peer."""
    async with trio.open_nursery() as nursery:
        mesh = Mesh(nursery, config or MembershipConfig())
        for number in range(1, count + 1):
            await mesh.start(number, bootstrap=[mesh.nodes[1].multiaddr] if number > 1 else [])
        assert await mesh.until(mesh.complete, within_s=10)
        yield mesh
        nursery.cancel_scope.cancel()
