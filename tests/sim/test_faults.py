"""Faults do what their kind says, and are gone when they are over; what is seen of them is told rightly."""

from typing import Any

import pytest
import trio

from node.background import open_background
from simnet.determinism import part_rng, run_world
from simnet.faults import KINDS, play
from simnet.plans import draw
from simnet.report import Report
from simnet.running import run_scenario
from simnet.scenario import read_scenario
from simnet.stage import Fault, Plan, Stage
from simnet.world import World, WorldOptions

WEIGHTS = bytes(range(256)) * 1024


def staged(plan: Plan, look: Any, *, hosts: int = 4) -> None:
    """Play a plan in a small world; `look` is asked every half second."""

    async def main() -> None:
        async with open_background() as nursery:
            world = World(nursery, WorldOptions(disk_size_bytes=10**7))
            for _ in range(hosts):
                await world.start(world.add_host().number)
            stage = Stage(world, part_rng(0, "stage"))
            await world.hold(2, "llama", WEIGHTS)
            nursery.start_soon(play, stage, plan)
            while trio.current_time() < 30:
                await trio.sleep_until(int(trio.current_time() * 2 + 1) / 2)  # real time: none, a virtual clock
                look(trio.current_time(), stage)

    run_world(main, 1)


def told(**document: Any) -> Report:
    """The report of a small world."""
    return run_scenario(read_scenario("x", {"nodes": 4, "for_s": 60, "settle_s": 40, **document}, "x.toml"), 1)


def test_overlapping_partitions_end_one_by_one() -> None:
    plan = (Fault(5, "partition", (2,), 10), Fault(8, "partition", (2, 3), 12), Fault(9, "partition_oneway", (4,), 2))
    seen: dict[float, tuple[bool, ...]] = {}

    def look(now: float, stage: Stage) -> None:
        one, two, three, four = (stage.world.hosts[number].peer for number in (1, 2, 3, 4))
        passes = stage.world.conditions.arrives
        seen[now] = (passes(one, two), passes(two, three), passes(one, three), passes(four, one), passes(one, four))

    staged(plan, look)
    assert seen[4.5] == (True, True, True, True, True)
    assert seen[6.0] == (False, False, True, True, True)
    assert seen[10.0] == (False, False, False, False, True), "from h4 nothing comes, to h4 it does"
    assert seen[11.5] == (False, False, False, True, True)
    assert seen[16.0] == (False, True, False, True, True), "the first partition is over, the second goes on"
    assert seen[21.0] == (True, True, True, True, True)


def test_a_fault_of_each_kind_comes_and_goes() -> None:
    values = {"loss": 0.3, "duplication": 0.3, "reordering": 0.3, "clock_skew": 60.0, "join": 1.0}
    plan = tuple(
        Fault(5 + 0.01 * place, kind, () if KINDS[kind].hostless else (2,), 6.0, values.get(kind, 0.0))
        for place, kind in enumerate(KINDS)
        if kind not in ("crash", "kill", "leave")
    )

    def look(now: float, stage: Stage) -> None:
        host = stage.world.hosts[2]
        wrong = {
            "quality": stage.world.conditions.usual.loss == 0.3,
            "slow": stage.world.conditions.slowness(host.peer) is not None,
            "shut": stage.world.conditions.troubled,
            "full": 2 in stage.full,
            "skewed": host.clock_ahead_s == 60.0,
            "slow disk": host.disk.speed.operation_s > 0,
            "lying": 2 in stage.lying,
        }
        if 6 < now < 11:
            assert all(wrong.values()), wrong
        if now < 5 or now > 12:
            assert not any(wrong.values()), (now, wrong)
        if now > 20:
            assert stage.parted == 0
            assert len(stage.shown) == len(plan)
            assert sorted(stage.world.running()) == [1, 2, 3, 4, 5], "one joined, one came back"

    staged(plan, look)


def test_who_crashes_while_it_starts_starts_again() -> None:
    plan = (Fault(5, "crash", (3,), 2), Fault(7.001, "kill", (3,), 3))
    lives: list[int] = []
    staged(plan, lambda now, stage: lives.append(len(stage.world.running())))
    assert lives[-1] == 4
    assert min(lives) == 3


@pytest.mark.slow
def test_a_death_that_is_none_is_a_false_positive_and_a_true_one_is_not() -> None:
    crash = told(faults=[{"kind": "crash", "hosts": "3", "at_s": 6, "for_s": 30}], expect={"detect_within_s": 30})
    assert crash.passed
    assert crash.false_positives == 0
    assert "at most" in crash.expectations[0].seen
    (death,) = (each for each in crash.convergences if each.what == "h3 crashed")
    assert death.took_s is not None
    assert 1 < death.took_s < 30
    # All that it sends takes half a minute, though it lives and is connected.
    slow = told(
        faults=[{"kind": "slow_node", "hosts": "3", "at_s": 6, "for_s": 60, "value": 20_000}],
        expect={"false_positives_max": 0},
    )
    assert slow.false_positives > 0
    assert not slow.passed
    assert slow.expectations[0].met is False


def test_blocked_datagrams_alone_kill_nobody() -> None:
    block = told(faults=[{"kind": "block", "hosts": "3", "at_s": 6, "for_s": 40}])
    assert block.passed
    assert block.false_positives == 0


def test_a_swizzle_stops_a_part_and_brings_it_back_in_another_order() -> None:
    plans = [draw(seed, range(1, 20), 0, 60, ["swizzle"], 1) for seed in range(5)]
    for plan in plans:
        assert all(fault.kind == "crash" and fault.for_s > 0 for fault in plan)
        assert len({fault.hosts for fault in plan}) == len(plan)
    stops = [[fault.hosts for fault in sorted(plan, key=lambda fault: fault.at_s)] for plan in plans]
    returns = [[fault.hosts for fault in sorted(plan, key=lambda fault: fault.ends_s)] for plan in plans]
    assert stops != returns
