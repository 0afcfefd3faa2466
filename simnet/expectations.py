"""What a scenario expects, against what was seen: each with its figures in words."""

from collections.abc import Callable, Sequence

import attrs

from simnet.report import Convergence, Expectation, Finish, Traffic
from simnet.scenario import Expected


@attrs.frozen(kw_only=True)
class Facts:
    """What was seen in a run, as far as a scenario may expect something of it."""

    false_positives: int
    convergences: tuple[Convergence, ...]
    finishes: tuple[Finish, ...]
    unfinished: int
    traffic: dict[str, Traffic]
    origins: dict[str, tuple[str, int]]
    """For each model that has one first holder alone: that host's name, and the model's declared size."""
    blamers: int


def judge(expected: Expected, facts: Facts) -> tuple[Expectation, ...]:
    """Every expectation of the scenario, met or not."""
    told = [
        rule(getattr(expected, name), facts)
        for name, rule in _RULES.items()
        if getattr(expected, name) is not None and getattr(expected, name) >= 0
    ]
    return tuple(told)


def _false_positives(limit: float, facts: Facts) -> Expectation:
    seen = facts.false_positives
    return Expectation("false positives", f"at most {limit:g}", f"{seen}", seen <= limit)


def _convergence(kind: str) -> Callable[[float, Facts], Expectation]:
    def rule(limit_s: float, facts: Facts) -> Expectation:
        took = [each.took_s for each in facts.convergences if each.what.endswith(kind)]
        return _within(f"until all know: {kind}", limit_s, took)

    return rule


def _within(name: str, limit_s: float, took: Sequence[float | None]) -> Expectation:
    wanted = f"within {limit_s:g} s"
    never = sum(each is None for each in took)
    if never:
        return Expectation(name, wanted, f"{never} of {len(took)} not by the end of the run", False)
    longest_s = max((each for each in took if each is not None), default=0.0)
    seen = f"at most {longest_s:.1f} s ({len(took)} times)" if took else "it never happened"
    return Expectation(name, wanted, seen, longest_s <= limit_s)


def _pulled(limit_s: float, facts: Facts) -> Expectation:
    took: list[float | None] = [finish.took_s for finish in facts.finishes]
    return _within("until each has the model it wants", limit_s, took + [None] * facts.unfinished)


def _of_ideal(limit: float, facts: Facts) -> Expectation:
    name, wanted = "T* / last finisher", f"at least {limit:.0%}"
    parts: dict[str, float] = {}
    for finish in facts.finishes:
        if finish.ideal_s is not None:
            part = finish.ideal_s / finish.took_s if finish.took_s else 1.0
            parts[finish.model] = min(parts.get(finish.model, part), part)
    if facts.unfinished or not parts:
        return Expectation(name, wanted, f"{facts.unfinished} never finished", False)
    worst = min(parts.values())
    return Expectation(name, wanted, f"{worst:.0%}", worst >= limit)


def _origin_copies(limit: float, facts: Facts) -> Expectation:
    copies = {
        model: facts.traffic[host].chunk_sent_bytes / size_bytes for model, (host, size_bytes) in facts.origins.items()
    }
    most = max(copies.values(), default=0.0)
    return Expectation(
        "copies that left the origin", f"at most {limit:g}", f"{most:.2f}", bool(copies) and most <= limit
    )


def _blamed(limit: float, facts: Facts) -> Expectation:
    return Expectation("hosts that blamed a liar", f"at least {limit:g}", f"{facts.blamers}", facts.blamers >= limit)


_RULES: dict[str, Callable[[float, Facts], Expectation]] = {
    "false_positives_max": _false_positives,
    "join_within_s": _convergence("started"),
    "detect_within_s": _convergence("crashed"),
    "heal_within_s": _convergence("over"),
    "pulled_within_s": _pulled,
    "of_ideal_min": _of_ideal,
    "origin_copies_max": _origin_copies,
    "blamed_min": _blamed,
}
