"""Faults: what can go wrong in a world, each kind by its name, and how a plan of them is played.

A kind is one row of `KINDS`: what begins it and what ends it. A fault that lasts 0 s is there for good.
"""

import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from itertools import product

import attrs
import trio

from node.config_values import Origin, refuse
from protocols.ids import Digest, PeerId
from simnet.report import FaultShown
from simnet.selecting import check_selector
from simnet.world import World

GRACE_S = 30.0
"""So long after a fault, news of it still travel: a death that is told late is no false one."""

BOOTSTRAP_HOSTS = (1, 2, 3)


@attrs.frozen
class Fault:
    """At a virtual second something happens to some hosts and lasts `for_s`; `value` as its kind says."""

    at_s: float
    kind: str
    hosts: tuple[int, ...] = ()
    for_s: float = 0.0
    value: float = 0.0

    @property
    def ends_s(self) -> float:
        """When it is over, or, when it stays, when it began."""
        return self.at_s + self.for_s

    def __str__(self) -> str:
        names = ", ".join(f"h{number}" for number in self.hosts)
        lasting = f" for {self.for_s:g} s" if self.for_s else ""
        return f"{self.kind}{f' of {names}' if names else ''}{f' ({self.value:g})' if self.value else ''}{lasting}"


Plan = tuple[Fault, ...]


class Stage:
    """A world and what is wrong in it now. `on_end` hears when a fault is over.

    `parted` is how many faults there are now that keep live hosts from each other.
    """

    def __init__(self, world: World, rng: random.Random) -> None:
        self.world = world
        self.rng = rng
        self.shown: list[FaultShown] = []
        self.lying: dict[int, float] = {}
        self.rotten: dict[tuple[int, Digest], None] = {}
        self.full: dict[int, int] = {}
        self.impaired_until: dict[int, float] = {}
        self.last_disturbed_s = 0.0
        self.parted = 0
        self.on_end: Callable[[Fault], object] | None = None
        self._starting: dict[int, None] = {}
        self._cuts: Counter[tuple[PeerId, PeerId]] = Counter()

    def impair(self, hosts: Sequence[int], until_s: float) -> None:
        """Until then, and a grace longer, nobody need hold these for live and connected."""
        for number in hosts:
            self.impaired_until[number] = max(self.impaired_until.get(number, 0.0), until_s + GRACE_S)

    def impaired(self, number: int) -> bool:
        """Whether a host may be taken for dead without blame, or takes others so."""
        return self.impaired_until.get(number, 0.0) > trio.current_time()

    async def start(self, number: int) -> None:
        """Start a host's node unless it runs or starts already."""
        if self.world.hosts[number].node is None and number not in self._starting:
            self._starting[number] = None
            try:
                through = [each for each in BOOTSTRAP_HOSTS if each in self.world.hosts]
                await self.world.start(number, bootstrap=through)
            finally:
                del self._starting[number]

    async def start_all(self, hosts: Sequence[int]) -> None:
        """Start several at once."""
        async with trio.open_nursery() as nursery:
            for number in hosts:
                nursery.start_soon(self.start, number)

    def separate(self, some: Sequence[int], others: Sequence[int]) -> None:
        """Nothing passes between two groups; cuts add up, each is undone by a `rejoin`."""
        for pair in self._pairs(some, others):
            self._cuts[pair] += 1
            if self._cuts[pair] == 1:
                self.world.network.cut(*pair)
                self.world.datagrams.cut(*pair)

    def rejoin(self, some: Sequence[int], others: Sequence[int]) -> None:
        """Undo a `separate`."""
        for pair in self._pairs(some, others):
            self._cuts[pair] -= 1
            if self._cuts[pair] == 0:
                self.world.network.mend(*pair)
                self.world.datagrams.mend(*pair)

    def others(self, hosts: Sequence[int]) -> list[int]:
        """All hosts but these."""
        return [number for number in self.world.hosts if number not in hosts]

    def _pairs(self, some: Sequence[int], others: Sequence[int]) -> list[tuple[PeerId, PeerId]]:
        hosts = self.world.hosts
        return [_ordered(hosts[one].peer, hosts[other].peer) for one, other in product(some, others)]


def _ordered(one: PeerId, other: PeerId) -> tuple[PeerId, PeerId]:
    return (one, other) if one < other else (other, one)


Verb = Callable[[Stage, Fault], Awaitable[None]]


@attrs.frozen
class Kind:
    """What a kind of fault does. `impairs` are the hosts whose death may be believed: none, its own, or all."""

    help: str
    begin: Verb
    end: Verb
    impairs: str = "none"
    value: str = ""
    value_max: float = 0.0
    hostless: bool = False
    needs_disk_size: bool = False


async def _nothing(_stage: Stage, _fault: Fault) -> None:
    await trio.lowlevel.checkpoint()


async def _crash(stage: Stage, fault: Fault) -> None:
    for number in fault.hosts:
        await stage.world.crash(number)


async def _leave(stage: Stage, fault: Fault) -> None:
    for number in fault.hosts:
        await stage.world.leave(number)


async def _start(stage: Stage, fault: Fault) -> None:
    await stage.start_all(fault.hosts)


async def _join(stage: Stage, fault: Fault) -> None:
    new = [stage.world.add_host().number for _ in range(max(1, int(fault.value)))]
    await stage.start_all(new)


async def _part(stage: Stage, fault: Fault) -> None:
    await trio.lowlevel.checkpoint()
    stage.separate(fault.hosts, stage.others(fault.hosts))


async def _part_ended(stage: Stage, fault: Fault) -> None:
    await trio.lowlevel.checkpoint()
    stage.rejoin(fault.hosts, stage.others(fault.hosts))


async def _block(stage: Stage, fault: Fault) -> None:
    await trio.lowlevel.checkpoint()
    for number in fault.hosts:
        stage.world.datagrams.block(stage.world.hosts[number].peer)


async def _unblock(stage: Stage, fault: Fault) -> None:
    await trio.lowlevel.checkpoint()
    for number in fault.hosts:
        stage.world.datagrams.unblock(stage.world.hosts[number].peer)


async def _lose(stage: Stage, fault: Fault) -> None:
    await trio.lowlevel.checkpoint()
    stage.world.datagrams.loss = fault.value


async def _lose_ended(stage: Stage, _fault: Fault) -> None:
    await trio.lowlevel.checkpoint()
    stage.world.datagrams.loss = stage.world.options.loss


async def _fill(stage: Stage, fault: Fault) -> None:
    await trio.lowlevel.checkpoint()
    for number in fault.hosts:
        blobs = stage.world.hosts[number].blobs
        free_bytes = blobs.free_disk_bytes()
        stage.full[number] = stage.full.get(number, 0) + free_bytes
        blobs.take_space(free_bytes)


async def _fill_ended(stage: Stage, fault: Fault) -> None:
    await trio.lowlevel.checkpoint()
    for number in fault.hosts:
        stage.world.hosts[number].blobs.take_space(-stage.full.pop(number, 0))


async def _rot(stage: Stage, fault: Fault) -> None:
    await trio.lowlevel.checkpoint()
    for number in fault.hosts:
        blobs = stage.world.hosts[number].blobs
        digests = sorted(blobs.digests())
        for _ in range(max(1, int(fault.value)) if digests else 0):
            digest = stage.rng.choice(digests)
            blobs.corrupt(digest, stage.rng.randrange(len(blobs.whole(digest) or b"\0")))
            stage.rotten[number, digest] = None


async def _lie(stage: Stage, fault: Fault) -> None:
    await trio.lowlevel.checkpoint()
    stage.lying.update(dict.fromkeys(fault.hosts, fault.value or 1.0))


async def _lie_ended(stage: Stage, fault: Fault) -> None:
    await trio.lowlevel.checkpoint()
    for number in fault.hosts:
        stage.lying.pop(number, None)


KINDS: dict[str, Kind] = {
    "crash": Kind("the node dies at once; it starts again when that is over", _crash, _start, "hosts"),
    "leave": Kind("the node is stopped as a person does; it starts again when that is over", _leave, _start, "hosts"),
    "restart": Kind("as leave", _leave, _start, "hosts"),
    "join": Kind("new hosts start", _join, _nothing, value="how many", value_max=5000, hostless=True),
    "partition": Kind("nothing passes between these hosts and all others", _part, _part_ended, "all"),
    "region_cut": Kind("as partition; say hosts = region N", _part, _part_ended, "all"),
    "block": Kind("no datagram passes from or to these hosts; streams do", _block, _unblock),
    "loss": Kind(
        "this share of all datagrams is lost", _lose, _lose_ended, value="share", value_max=1.0, hostless=True
    ),
    "disk_full": Kind("somebody else fills the disk", _fill, _fill_ended, needs_disk_size=True),
    "bit_rot": Kind("bits flip in whole blobs at rest", _rot, _nothing, value="how many bits", value_max=1e6),
    "lying_peer": Kind("chunks are served wrong", _lie, _lie_ended, value="share of chunks, 0 for all", value_max=1.0),
}


def check_fault(origin: Origin, key: str, kind: str, hosts: str, value: float, disk_size_bytes: int) -> None:
    """UsageError naming the key when a fault of this kind cannot be so."""
    if kind not in KINDS:
        raise refuse(origin, f"{key}.kind" if key[-1] == "]" else key, kind, f"one of {', '.join(KINDS)}")
    known = KINDS[kind]
    if not known.hostless:
        check_selector(origin, f"{key}.hosts", hosts)
    if not 0 <= value <= known.value_max:
        wanted = f"{known.value}, 0 to {known.value_max:g}" if known.value else f"{kind} has no measure"
        raise refuse(origin, f"{key}.value", value, wanted)
    if known.needs_disk_size and not disk_size_bytes:
        raise refuse(origin, f"{key}.kind", kind, "only where world.disk_size_bytes says how large disks are")


def ends_s(plan: Plan) -> float:
    """When the last fault is over."""
    return max((fault.ends_s for fault in plan), default=0.0)


async def play(stage: Stage, plan: Plan) -> None:
    """Perform a plan at its virtual times; returns when the last fault is over."""
    async with trio.open_nursery() as nursery:
        for fault in plan:
            nursery.start_soon(_play_one, stage, fault)


async def _play_one(stage: Stage, fault: Fault) -> None:
    kind = KINDS[fault.kind]
    await trio.sleep_until(fault.at_s)
    impaired = {"none": (), "hosts": fault.hosts, "all": tuple(stage.world.hosts)}[kind.impairs]
    stage.impair(impaired, fault.ends_s if fault.for_s else float("inf"))
    stage.world.trace.tell("", f"fault: {fault}")
    stage.shown.append(
        FaultShown(fault.at_s, fault.for_s, fault.kind, tuple(f"h{number}" for number in fault.hosts), str(fault))
    )
    stage.last_disturbed_s = trio.current_time()
    stage.parted += kind.impairs == "all"
    await kind.begin(stage, fault)
    if fault.for_s:
        await trio.sleep_until(fault.ends_s)
        stage.world.trace.tell("", f"over: {fault}")
        stage.last_disturbed_s = trio.current_time()
        await kind.end(stage, fault)
        stage.parted -= kind.impairs == "all"
        if stage.on_end is not None:
            stage.on_end(fault)
