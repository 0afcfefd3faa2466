"""Faults: what can go wrong in a world, each kind by its name, and how a plan of them is played.

A kind is one row of `KINDS`: what begins it and what ends it. A fault that lasts 0 s is there for good.
"""

from collections.abc import Awaitable, Callable

import attrs
import trio

from node.config_values import Origin, refuse
from simnet.disk import Speed
from simnet.report import FaultShown
from simnet.selecting import check_selector
from simnet.stage import Fault, Plan, Stage

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


def _slow_disk(stage: Stage, fault: Fault) -> None:
    for number in fault.hosts:
        stage.world.hosts[number].disk.speed = Speed(operation_s=fault.value or 0.1)


def _slow_disk_ended(stage: Stage, fault: Fault) -> None:
    for number in fault.hosts:
        stage.world.hosts[number].disk.speed = Speed()


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
    "slow_disk": Kind(
        help="each operation on the disk takes longer",
        begin=_at_once(_slow_disk),
        end=_at_once(_slow_disk_ended),
        value="seconds, 0 for 0.1",
        values=(0, 60),
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
