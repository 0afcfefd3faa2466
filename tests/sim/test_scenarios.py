"""Each scenario at a small size: it passes, and the same seed is the same run."""

import pytest

from simnet.running import run_scenario
from simnet.scenario import load_scenario, scenario_names

NODES = {"region-cut": 6}


@pytest.mark.slow
@pytest.mark.parametrize("name", scenario_names())
def test_a_scenario_passes_and_is_the_same_again(name: str) -> None:
    one = run_scenario(load_scenario(name), 7, nodes=NODES.get(name))
    again = run_scenario(load_scenario(name), 7, nodes=NODES.get(name))
    assert one.passed, (one.failure, one.checks, one.expectations)
    assert one.digest == again.digest
    assert one.convergences == again.convergences
