"""Each scenario at a small size: it passes, the same seed is the same run, and a few seeds of faults find nothing."""

import attrs
import pytest

from simnet.report import Report
from simnet.running import plan_of, run_scenario
from simnet.scenario import Scenario, load_scenario, read_scenario, scenario_names

NODES = {
    "cold-start-1-to-100": 6,
    "disk-full": 5,
    "flapping": 5,
    "join-storm": 15,
    "lying-peer": 8,
    "region-cut": 6,
    "rolling-restart": 5,
    "swizzle": 5,
}

EVERYTHING = {
    "nodes": 6,
    "for_s": 90,
    "settle_s": 60,
    "world": {"regions": 2, "disk_size_bytes": 4_000_000},
    "models": [
        {"name": "llama", "size_bytes": 500_000, "hosts": "first, 2", "at_s": 3},
        {"name": "tuned", "base": "llama", "base_size_bytes": 200_000, "size_bytes": 50_000, "hosts": "3", "at_s": 3},
    ],
    "pulls": [
        {"model": "llama", "hosts": "others", "at_s": 8, "spread_s": 30},
        {"model": "tuned", "hosts": "half", "at_s": 8, "spread_s": 30},
    ],
    "removals": [{"model": "tuned", "hosts": "3", "at_s": 45}],
}
DRAWN = {"from_s": 6, "until_s": 55, "per_minute": 8}
NETWORK = ["partition", "partition_oneway", "hold", "block", "slow_node", "loss", "duplication", "reordering"]
HOSTS = ["crash", "kill", "restart", "swizzle", "disk_full", "eio", "lying_peer", "clock_skew", "join"]


def small(name: str) -> Scenario:
    """A scenario, with less to carry where it carries much."""
    scenario = load_scenario(name)
    models = [attrs.evolve(model, size_bytes=min(model.size_bytes, 10_000_000_000)) for model in scenario.models]
    # Of few chunks, more leave the origin twice for five hosts than of many for a hundred.
    expected = attrs.evolve(scenario.expected, origin_copies_max=scenario.expected.origin_copies_max * 1.25)
    return attrs.evolve(scenario, models=tuple(models), expected=expected)


def wrong(report: Report) -> list[object]:
    """All that is not as it should be."""
    violated = [check for check in report.checks if not check.held]
    unmet = [expectation for expectation in report.expectations if not expectation.met]
    return [each for each in (report.failure, *violated, *unmet) if each]


@pytest.mark.slow
@pytest.mark.parametrize("name", scenario_names())
def test_a_scenario_passes(name: str) -> None:
    told: list[tuple[float, str]] = []
    report = run_scenario(small(name), 7, nodes=NODES[name], on_progress=lambda at_s, text: told.append((at_s, text)))
    assert wrong(report) == []
    assert report.passed
    assert len(report.checks) == 8
    assert len(report.faults) == len(plan_of(small(name), 7, NODES[name]))
    assert all(finish.took_s >= 0 for finish in report.finishes)
    assert report.replay == f"herd sim run {name} --seed 7 --nodes {NODES[name]}"
    assert report.agreement[-1][1] == 1.0
    assert all(traffic.sent_bytes > 0 for traffic in report.traffic.values())
    assert told[0][0] == 1.0
    assert f"{NODES[name]} nodes, 100% agree" in told[-1][1]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["region-cut", "swizzle"])
def test_the_same_seed_is_the_same_run_and_another_is_not(name: str) -> None:
    one, again, other = (run_scenario(small(name), seed, nodes=4) for seed in (7, 7, 8))
    assert one.digest == again.digest
    assert attrs.evolve(one, wall_s=0) == attrs.evolve(again, wall_s=0)
    assert one.digest != other.digest


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 7))
@pytest.mark.parametrize("kinds", [NETWORK, HOSTS], ids=["network", "hosts"])
def test_a_soak_of_drawn_faults_finds_nothing(kinds: list[str], seed: int) -> None:
    scenario = read_scenario("soak", {**EVERYTHING, "drawn": {**DRAWN, "kinds": kinds}}, "soak.toml")
    report = run_scenario(scenario, seed)
    assert wrong(report) == [], [fault.text for fault in report.faults]
