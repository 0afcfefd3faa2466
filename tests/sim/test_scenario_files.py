"""What a scenario file may say, and how it is told that it says something else."""

from pathlib import Path
from typing import Any

import pytest

from node.errors import UsageError
from simnet.determinism import part_rng
from simnet.running import options_shown, plan_of, run_scenario
from simnet.scenario import load_scenario, read_scenario, scenario_names
from simnet.selecting import select

MODEL = {"name": "llama", "size_bytes": 1000}


def test_the_eight_scenarios_are_there() -> None:
    assert scenario_names() == [
        "cold-start-1-to-100",
        "disk-full",
        "flapping",
        "join-storm",
        "lying-peer",
        "region-cut",
        "rolling-restart",
        "swizzle",
    ]
    for name in scenario_names():
        assert len(load_scenario(name).description) > 40


def test_an_operator_s_own_file_is_a_scenario_with_a_policy(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(
        "nodes = 3\n[settings.membership]\nprobe_interval_s = 2.5\n[settings.exchange]\nidle_timeout_s = 5\n"
    )
    scenario = load_scenario(str(file))
    assert (scenario.name, scenario.nodes) == ("mine", 3)
    assert scenario.config.membership.probe_interval_s == 2.5
    shown = options_shown(scenario)
    assert shown["membership.probe_interval_s"] == "2.5"
    assert shown["latency_s"] == "0.002"


@pytest.mark.parametrize(
    ("document", "complaint"),
    [
        ({"node": 3}, r"x.toml: unknown key node; did you mean nodes\?"),
        ({"nodes": 0}, "x.toml: nodes = 0 is not allowed"),
        ({"world": {"latency_s": -1}}, "x.toml: world.latency_s = -1"),
        ({"world": {"latency": 1}}, "unknown key world.latency; did you mean world.latency_s|latency_s"),
        ({"world": 3}, r"x.toml: world = 3 is not allowed: a table; write \[world\]"),
        ({"models": [{"name": "../x", "size_bytes": 1}]}, r"models\[1\].name = '../x'"),
        ({"models": [{"name": "x"}]}, r"models\[1\].size_bytes = 0 is not allowed: a model has bytes"),
        ({"models": [MODEL], "pulls": [{"model": "lama"}]}, r"pulls\[1\].model = 'lama' is not allowed: one of llama"),
        ({"models": [MODEL], "pulls": [{"model": "llama", "hosts": "some"}]}, r"pulls\[1\].hosts = 'some'"),
        ({"faults": [{"kind": "crush", "hosts": "2"}]}, r"faults\[1\].kind = 'crush'"),
        ({"faults": [{"kind": "crash"}]}, r"faults\[1\].hosts = ''"),
        ({"faults": [{"kind": "loss", "value": 2}]}, r"faults\[1\].value = 2.0 is not allowed: share, 0 to 1"),
        ({"faults": [{"kind": "crash", "hosts": "2", "value": 1}]}, "crash has no measure"),
        ({"faults": [{"kind": "disk_full", "hosts": "2"}]}, "world.disk_size_bytes"),
        ({"faults": [{"kind": "crash", "hosts": "2", "times": 3}]}, r"faults\[1\].every_s"),
        ({"drawn": {"kinds": ["swizle"]}}, "drawn.kinds = 'swizle'"),
        ({"drawn": {"from_s": 9, "until_s": 8, "kinds": ["crash"]}}, "drawn.until_s = 8.0 is not allowed"),
        ({"settings": {"member": {}}}, r"unknown section \[settings.member\]"),
        ({"settings": {"membership": {"probe_interval_s": 0}}}, "settings.membership|membership.probe_interval_s = 0"),
    ],
)
def test_a_mistake_is_named_with_file_and_key(document: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        read_scenario("x", document, "x.toml")


def test_an_unknown_scenario_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="there is no scenario regioncut; did you mean region-cut"):
        load_scenario("regioncut")


def test_hosts_are_chosen_by_words_numbers_and_the_seed() -> None:
    def chosen(text: str) -> tuple[int, ...]:
        return select(text, 10, 2, part_rng(1, "here"))

    assert chosen("all") == tuple(range(1, 11))
    assert chosen("first, last") == (1, 10)
    assert chosen("2-4,7") == (2, 3, 4, 7)
    assert chosen("region 2") == (2, 4, 6, 8, 10)
    assert len(chosen("half")) == 5
    assert len(chosen("random 3")) == 3
    assert chosen("30%") == chosen("30%")
    assert 1 not in chosen("90%")
    with pytest.raises(UsageError, match="there are hosts 1 to 10; --nodes makes more"):
        chosen("11")


def test_too_few_nodes_for_a_scenario_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="there are hosts 1 to 3"):
        run_scenario(load_scenario("lying-peer"), 1, nodes=3)
    with pytest.raises(UsageError, match="--nodes 0"):
        run_scenario(load_scenario("lying-peer"), 1, nodes=0)


def test_one_host_after_the_other_and_again() -> None:
    fault = {"kind": "restart", "hosts": "2-4", "at_s": 10, "for_s": 2, "spread_s": 9, "times": 2, "every_s": 20}
    plan = plan_of(read_scenario("x", {"faults": [fault]}, "x.toml"), 1, 4)
    assert [(fault.at_s, fault.hosts) for fault in plan] == [
        (10, (2,)),
        (13, (3,)),
        (16, (4,)),
        (30, (2,)),
        (33, (3,)),
        (36, (4,)),
    ]
