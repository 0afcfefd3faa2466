"""What a run of a world says at its end: plain data, made by the runner, shown and plotted by others.

Times are virtual seconds from the start of the run unless they say otherwise; bytes are what travelled or, for chunks,
what they were declared to be.
"""

from typing import Any

import attrs


@attrs.frozen
class Convergence:
    """How long it took until all who should know something did; None when they did not by the end of the run."""

    what: str
    since_s: float
    took_s: float | None


@attrs.frozen
class Finish:
    """One host had a model whole, so long after it began to pull; `ideal_s` is T* where there is such a bound."""

    host: str
    model: str
    took_s: float
    ideal_s: float | None = None


@attrs.frozen
class Traffic:
    """What one host sent and received."""

    sent_bytes: int
    received_bytes: int
    datagrams_sent: int
    chunk_sent_bytes: int
    chunk_received_bytes: int


@attrs.frozen
class FaultShown:
    """One fault as a timeline shows it."""

    at_s: float
    for_s: float
    kind: str
    hosts: tuple[str, ...]
    text: str


@attrs.frozen
class Check:
    """One invariant; `violation` is empty when it held."""

    name: str
    violation: str = ""

    @property
    def held(self) -> bool:
        """Whether the invariant held throughout."""
        return not self.violation


@attrs.frozen
class Expectation:
    """One thing a scenario expects, what was wanted and what was seen, in words with units."""

    name: str
    wanted: str
    seen: str
    met: bool


@attrs.frozen(kw_only=True)
class Report:
    """One run. `agreement` is a curve: at a virtual second, which part of the live nodes agree on who is alive."""

    scenario: str
    seed: int
    nodes: int
    options: dict[str, str]
    digest: str
    virtual_s: float
    wall_s: float
    convergences: tuple[Convergence, ...] = ()
    finishes: tuple[Finish, ...] = ()
    traffic: dict[str, Traffic] = attrs.field(factory=dict)
    false_positives: int = 0
    faults: tuple[FaultShown, ...] = ()
    checks: tuple[Check, ...] = ()
    expectations: tuple[Expectation, ...] = ()
    agreement: tuple[tuple[float, float], ...] = ()
    failure: str = ""
    replay: str = ""
    """The one command that does the same again."""

    @property
    def passed(self) -> bool:
        """Whether every invariant held, every expectation was met, and the run came to its end."""
        return (
            not self.failure
            and all(check.held for check in self.checks)
            and all(expectation.met for expectation in self.expectations)
        )


def report_document(report: Report) -> dict[str, Any]:
    """The report as plain JSON data."""
    return {**attrs.asdict(report), "passed": report.passed}
