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
        self.full: dict[int, None] = {}
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

    def separate(self, some: Sequence[int], others: Sequence[int], *, oneway: bool = False) -> None:
        """Nothing passes between two groups, or from one to the other; each separation is undone by its `rejoin`."""
        verb = self.world.conditions.partition_oneway if oneway else self.world.conditions.partition
        verb(self.peers(some), self.peers(others))
        self._cuts.update(self._pairs(some, others, oneway))

    def rejoin(self, some: Sequence[int], others: Sequence[int], *, oneway: bool = False) -> None:
        """Undo a `separate`; what others of these still cut stays so."""
        self._cuts.subtract(self._pairs(some, others, oneway))
        self._cuts = +self._cuts
        self.world.conditions.repair(self.peers(some), self.peers(others))
        for sender, receiver in [*self._pairs(some, others), *self._pairs(others, some)] if self._cuts else ():
            if (sender, receiver) in self._cuts:
                self.world.conditions.partition_oneway([sender], [receiver])

    def peers(self, hosts: Sequence[int]) -> list[PeerId]:
        """Their names."""
        return [self.world.hosts[number].peer for number in hosts]

    def others(self, hosts: Sequence[int]) -> list[int]:
        """All hosts but these."""
        return [number for number in self.world.hosts if number not in hosts]

    def _pairs(self, some: Sequence[int], others: Sequence[int], oneway: bool = True) -> list[tuple[PeerId, PeerId]]:
        pairs = list(product(self.peers(some), self.peers(others)))
        return pairs if oneway else pairs + [(other, one) for one, other in pairs]


Verb = Callable[[Stage, Fault], Awaitable[None]]


@attrs.frozen(kw_only=True)
class Kind:
    """What a kind of fault does. `impairs` are the hosts whose death may be believed: none, its own, or all."""

    help: str
    begin: Verb
    end: Verb
    impairs: str = "none"
    value: str = ""
    values: tuple[float, float] = (0.0, 0.0)
    hostless: bool = False
    needs_disk_size: bool = False


async def _nothing(_stage: Stage, _fault: Fault) -> None:
    await trio.lowlevel.checkpoint()


def _at_once(change: Callable[[Stage, Fault], object]) -> Verb:
    """A verb that takes no time."""

    async def verb(stage: Stage, fault: Fault) -> None:
        await trio.lowlevel.checkpoint()
        change(stage, fault)

    return verb


async def _crash(stage: Stage, fault: Fault) -> None:
    for number in fault.hosts:
        await stage.world.crash(number)


async def _kill(stage: Stage, fault: Fault) -> None:
    for number in fault.hosts:
        await stage.world.crash(number, power_lost=False)


async def _leave(stage: Stage, fault: Fault) -> None:
    for number in fault.hosts:
        await stage.world.leave(number)


async def _start(stage: Stage, fault: Fault) -> None:
    await stage.start_all(fault.hosts)


async def _join(stage: Stage, fault: Fault) -> None:
    new = [stage.world.add_host().number for _ in range(max(1, int(fault.value)))]
    await stage.start_all(new)


def _part(stage: Stage, fault: Fault) -> None:
    stage.separate(fault.hosts, stage.others(fault.hosts), oneway=fault.kind == "partition_oneway")


def _part_ended(stage: Stage, fault: Fault) -> None:
    stage.rejoin(fault.hosts, stage.others(fault.hosts), oneway=fault.kind == "partition_oneway")


def _hold(stage: Stage, fault: Fault) -> None:
    stage.world.conditions.hold(stage.peers(fault.hosts), stage.peers(stage.others(fault.hosts)))


def _hold_ended(stage: Stage, fault: Fault) -> None:
    stage.world.conditions.release(stage.peers(fault.hosts), stage.peers(stage.others(fault.hosts)))


def _block(stage: Stage, fault: Fault) -> None:
    for peer in stage.peers(fault.hosts):
        stage.world.datagrams.block(peer)


def _block_ended(stage: Stage, fault: Fault) -> None:
    for peer in stage.peers(fault.hosts):
        stage.world.datagrams.unblock(peer)


def _slow(stage: Stage, fault: Fault) -> None:
    stage.world.conditions.slow(stage.peers(fault.hosts), factor=fault.value or 10.0)


def _slow_ended(stage: Stage, fault: Fault) -> None:
    stage.world.conditions.slow(stage.peers(fault.hosts))


def _worsen(stage: Stage, fault: Fault) -> None:
    conditions = stage.world.conditions
    conditions.usual = attrs.evolve(conditions.usual, **{fault.kind: fault.value})


def _worsen_ended(stage: Stage, fault: Fault) -> None:
    usual = stage.world.options.loss if fault.kind == "loss" else 0.0
    conditions = stage.world.conditions
    conditions.usual = attrs.evolve(conditions.usual, **{fault.kind: usual})


def _fill(stage: Stage, fault: Fault) -> None:
    for number in fault.hosts:
        stage.world.hosts[number].disk.fill()
        stage.full[number] = None


def _fill_ended(stage: Stage, fault: Fault) -> None:
    for number in fault.hosts:
        stage.world.hosts[number].disk.empty()
        stage.full.pop(number, None)


def _fail_syncs(stage: Stage, fault: Fault) -> None:
    for number in fault.hosts:
        stage.world.hosts[number].disk.fail_syncs(max(1, int(fault.value)))


def _rot(stage: Stage, fault: Fault) -> None:
    for number in fault.hosts:
        blobs = stage.world.hosts[number].blobs
        digests = sorted(blobs.digests())
        for _ in range(max(1, int(fault.value)) if digests else 0):
            digest = stage.rng.choice(digests)
            blobs.corrupt(digest, stage.rng.randrange(len(blobs.whole(digest) or b"\0")))
            stage.rotten[number, digest] = None


def _skew(stage: Stage, fault: Fault) -> None:
    for number in fault.hosts:
        stage.world.hosts[number].clock_ahead_s = fault.value


def _skew_ended(stage: Stage, fault: Fault) -> None:
    for number in fault.hosts:
        stage.world.hosts[number].clock_ahead_s = 0.0


def _lie(stage: Stage, fault: Fault) -> None:
    stage.lying.update(dict.fromkeys(fault.hosts, fault.value or 1.0))


def _lie_ended(stage: Stage, fault: Fault) -> None:
    for number in fault.hosts:
        stage.lying.pop(number, None)


KINDS: dict[str, Kind] = {
    "crash": Kind(help="power fails; the node starts again afterwards", begin=_crash, end=_start, impairs="hosts"),
    "kill": Kind(help="the process dies; it starts again afterwards", begin=_kill, end=_start, impairs="hosts"),
    "leave": Kind(help="stopped as a person does; started again", begin=_leave, end=_start, impairs="hosts"),
    "restart": Kind(help="as leave", begin=_leave, end=_start, impairs="hosts"),
    "join": Kind(help="new hosts start", begin=_join, end=_nothing, value="how many", values=(0, 5000), hostless=True),
    "partition": Kind(
        help="nothing passes between these hosts and all others",
        begin=_at_once(_part),
        end=_at_once(_part_ended),
        impairs="all",
    ),
    "partition_oneway": Kind(
        help="nothing passes from these hosts to all others",
        begin=_at_once(_part),
        end=_at_once(_part_ended),
        impairs="all",
    ),
    "region_cut": Kind(
        help="as partition, with hosts = region N", begin=_at_once(_part), end=_at_once(_part_ended), impairs="all"
    ),
    "hold": Kind(
        help="what these hosts and all others send each other is kept until the end",
        begin=_at_once(_hold),
        end=_at_once(_hold_ended),
        impairs="all",
    ),
    "block": Kind(
        help="no datagram passes from or to these hosts; streams do",
        begin=_at_once(_block),
        end=_at_once(_block_ended),
    ),
    "slow_node": Kind(
        help="all that these hosts send and receive takes longer",
        begin=_at_once(_slow),
        end=_at_once(_slow_ended),
        value="factor, 0 for 10",
        values=(0, 1e6),
    ),
    **{
        kind: Kind(
            help=f"of all datagrams, the share of {kind}",
            begin=_at_once(_worsen),
            end=_at_once(_worsen_ended),
            value="share",
            values=(0, 1),
            hostless=True,
        )
        for kind in ("loss", "duplication", "reordering")
    },
    "disk_full": Kind(
        help="somebody else fills the disk", begin=_at_once(_fill), end=_at_once(_fill_ended), needs_disk_size=True
    ),
    "eio": Kind(
        help="the next syncs to disk fail",
        begin=_at_once(_fail_syncs),
        end=_nothing,
        value="how many",
        values=(0, 1e6),
    ),
    "bit_rot": Kind(
        help="bits flip in whole blobs at rest",
        begin=_at_once(_rot),
        end=_nothing,
        value="how many bits",
        values=(0, 1e6),
    ),
    "clock_skew": Kind(
        help="the clock of these hosts is wrong",
        begin=_at_once(_skew),
        end=_at_once(_skew_ended),
        value="seconds ahead",
        values=(-1e6, 1e6),
    ),
    "lying_peer": Kind(
        help="chunks are served wrong",
        begin=_at_once(_lie),
        end=_at_once(_lie_ended),
        value="share of chunks, 0 for all",
        values=(0, 1),
    ),
}


def check_fault(origin: Origin, key: str, kind: str, hosts: str, value: float, disk_size_bytes: int) -> None:
    """UsageError naming the key when a fault of this kind cannot be so."""
    if kind not in KINDS:
        raise refuse(origin, f"{key}.kind" if key[-1] == "]" else key, kind, f"one of {', '.join(KINDS)}")
    known = KINDS[kind]
    if not known.hostless:
        check_selector(origin, f"{key}.hosts", hosts)
    least, most = known.values
    if not least <= value <= most:
        wanted = f"{known.value}, {least:g} to {most:g}" if known.value else f"{kind} has no measure"
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
