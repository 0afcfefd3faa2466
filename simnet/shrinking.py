"""From a plan that fails to a shorter one that still does: what is left is what it takes."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import attrs

from simnet.report import Report
from simnet.running import plan_of, run_scenario
from simnet.scenario import Scenario
from simnet.stage import Fault, Plan

RUNS_MAX = 60
SHORTEST_S = 1.0

T = TypeVar("T")


class _Budget:
    """Asks `fails` at most so many times; past that nothing fails any more, and so nothing else is dropped."""

    def __init__(self, fails: Callable[[Plan], bool], runs_max: int) -> None:
        self._fails = fails
        self._left = runs_max

    def fails(self, plan: Sequence[Fault]) -> bool:
        self._left -= 1
        return self._left >= 0 and self._fails(tuple(plan))


def shrink(plan: Plan, fails: Callable[[Plan], bool], *, runs_max: int = RUNS_MAX) -> Plan:
    """A shorter plan that still fails: halves are dropped, then smaller parts, then single faults; then times shrink.

    `plan` fails. `fails` is asked at most `runs_max` times.
    """
    budget = _Budget(fails, runs_max)
    left = drop(plan, budget.fails)
    for place, fault in enumerate(left):
        while fault.for_s > SHORTEST_S:
            fault = attrs.evolve(fault, for_s=max(SHORTEST_S, round(fault.for_s / 2, 1)))
            shorter = (*left[:place], fault, *left[place + 1 :])
            if not budget.fails(shorter):
                break
            left = shorter
    return left


def drop(things: Sequence[T], fails: Callable[[tuple[T, ...]], bool]) -> tuple[T, ...]:
    """What is left of them when no part can be dropped and it still fails: halves first, single ones last."""
    left = tuple(things)
    if left and fails(()):
        return ()
    size = len(left) // 2
    while size:
        at = 0
        while at < len(left):
            without = (*left[:at], *left[at + size :])
            if without and fails(without):
                left = without
            else:
                at += size
        size //= 2
    return left


def shrink_run(
    scenario: Scenario,
    seed: int,
    *,
    nodes: int | None = None,
    runs_max: int = RUNS_MAX,
    run: Callable[..., Report] = run_scenario,
) -> Report:
    """The report of the shortest part of a failing run's plan that still fails; its `replay` names the faults left.

    A run that passes, and one whose plan is empty, is reported as it is.
    """
    report = run(scenario, seed, nodes=nodes)
    numbers = range(1, len(plan_of(scenario, seed, report.nodes)) + 1)
    if report.passed or not numbers:
        return report
    tried: dict[tuple[int, ...], Report] = {tuple(numbers): report}

    def fails(only: tuple[int, ...]) -> bool:
        if only not in tried:
            if len(tried) > runs_max:
                return False
            tried[only] = run(scenario, seed, nodes=nodes, only=only)
        return not tried[only].passed

    return tried[drop(tuple(numbers), fails)]
