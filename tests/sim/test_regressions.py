"""What soaks found, each under the name of its cause: the run that showed it must pass from then on."""

import pytest

from simnet.running import run_scenario
from simnet.scenario import load_scenario
from simnet.showing.summaries import problems

pytestmark = pytest.mark.slow


def passes(scenario: str, seed: int, nodes: int | None = None) -> bool:
    """Whether a run finds nothing; what it finds is printed."""
    report = run_scenario(load_scenario(scenario), seed, nodes=nodes)
    for problem in problems(report):
        print(problem)
    return report.passed


def test_a_liar_that_others_ban_hears_less_and_is_not_expected_to_know_all() -> None:
    assert passes("lying-peer", 2)


def test_a_gossip_writer_whose_reader_banned_it_waits_its_time_and_is_no_leak() -> None:
    assert passes("lying-peer", 4)
