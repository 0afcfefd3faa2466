"""A failing plan shrinks to what it takes: the one guilty fault, as short as may be."""

from pathlib import Path

import pytest

from simnet.models import MemoryModels
from simnet.plans import draw
from simnet.running import run_scenario
from simnet.scenario import read_scenario
from simnet.shrinking import drop, shrink, shrink_run
from simnet.stage import Fault, Plan

KINDS = ("crash", "partition", "loss", "slow_node")


def test_the_one_guilty_fault_is_found_and_shortened() -> None:
    plan = draw(1, range(1, 9), 10, 300, KINDS, 6)
    guilty = next(fault for fault in plan if fault.kind == "crash" and fault.for_s > 8)
    asked: list[Plan] = []

    def fails(tried: Plan) -> bool:
        asked.append(tried)
        return any(fault.hosts == guilty.hosts and fault.kind == "crash" and fault.for_s > 3 for fault in tried)

    (left,) = shrink(plan, fails)
    assert (left.at_s, left.kind, left.hosts) == (guilty.at_s, "crash", guilty.hosts)
    assert 3 < left.for_s <= 6.1
    assert len(asked) <= 60


def test_two_faults_that_are_guilty_together_both_stay() -> None:
    assert drop(range(20), lambda left: 3 in left and 17 in left) == (3, 17)


def test_what_fails_without_any_fault_shrinks_to_none() -> None:
    assert shrink((Fault(1, "crash", (2,), 3),), lambda plan: True) == ()


def test_the_runs_are_bounded() -> None:
    asked: list[Plan] = []

    def fails(tried: Plan) -> bool:
        asked.append(tried)
        return len(tried) > 5

    plan = draw(2, range(1, 9), 10, 300, KINDS, 12)
    left = shrink(plan, fails, runs_max=10)
    assert len(asked) == 10
    assert 5 < len(left) < len(plan)


def test_a_plan_is_drawn_from_the_seed_and_ends_in_time() -> None:
    one = draw(7, range(1, 9), 10, 100, (*KINDS, "swizzle"), 10)
    assert one == draw(7, range(1, 9), 10, 100, (*KINDS, "swizzle"), 10)
    assert one != draw(8, range(1, 9), 10, 100, (*KINDS, "swizzle"), 10)
    assert all(fault.at_s >= 10 and fault.ends_s <= 100.2 for fault in one)
    assert all(1 not in fault.hosts for fault in one), "the first host is a landmark"


@pytest.mark.slow
def test_a_failing_run_shrinks_to_the_crash_that_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(self: MemoryModels, path: Path) -> None:
        """As if the manifest had never been durable."""

    monkeypatch.setattr(MemoryModels, "_take_manifest", forgetful)
    innocent = {"kind": "loss", "value": 0.05, "for_s": 3}
    document = {
        "nodes": 3,
        "for_s": 20,
        "settle_s": 10,
        "models": [{"name": "llama", "size_bytes": 1000, "hosts": "2", "at_s": 2}],
        "faults": [
            {**innocent, "at_s": 3},
            {**innocent, "at_s": 5},
            {"kind": "kill", "hosts": "2", "at_s": 6, "for_s": 2},
            {**innocent, "at_s": 9},
        ],
    }
    scenario = read_scenario("forgetful", document, "forgetful.toml")
    report = shrink_run(scenario, 5, nodes=3)
    assert [fault.kind for fault in report.faults] == ["kill"]
    assert report.replay == "herd sim run forgetful --seed 5 --nodes 3 --only 3"
    assert run_scenario(scenario, 5, nodes=3, only=[3]).digest == report.digest
    assert run_scenario(scenario, 5, nodes=3, only=[0]).passed
