"""A report made by hand: what a small region cut might have found."""

from typing import Any

import attrs

from simnet.report import Check, Convergence, Expectation, FaultShown, Finish, Report, Traffic


def report_of(**changes: Any) -> Report:
    """A run of 12 hosts that passed, with whatever is to be different."""
    hosts = [f"h{number}" for number in range(1, 13)]
    agreement = [(float(at_s), 1.0) for at_s in range(60)]
    agreement[:4] = [(0.0, 0.2), (1.0, 0.4), (2.0, 0.8), (3.0, 0.9)]
    agreement[20:32] = [(20.0 + step, max(0.0, 0.9 - 0.1 * step)) for step in range(12)]
    made = Report(
        scenario="region-cut",
        seed=7,
        nodes=12,
        options={"latency_s": "0.02", "loss": "0.05"},
        digest="0123456789abcdef0123456789abcdef",
        virtual_s=60.0,
        wall_s=2.5,
        convergences=(
            Convergence("h3 crashed", 20.0, 11.5),
            Convergence("h4 started", 41.0, 0.6),
            Convergence("h5 started", 42.0, 0.9),
        ),
        finishes=tuple(Finish(host, "llama:latest", 6.0 + 0.45 * n, 8.2) for n, host in enumerate(hosts[1:])),
        traffic={
            host: Traffic(4_000_000 + n * 10_000, 4_100_000, 900, 3_900_000, 4_000_000) for n, host in enumerate(hosts)
        },
        faults=(
            FaultShown(20.0, 15.0, "crash", ("h3",), "h3 crashes"),
            FaultShown(22.0, 18.0, "region_cut", ("h4", "h8", "h12"), "region 4 is cut off"),
            FaultShown(41.0, 0.0, "leave", ("h9",), "h9 leaves"),
            FaultShown(10.0, 5.0, "loss", (), "5 % of datagrams are lost"),
        ),
        checks=(Check("no wrong byte"), Check("members agree")),
        expectations=(Expectation("detection", "within 15 s", "11.5 s", True),),
        agreement=tuple(agreement),
    )
    return attrs.evolve(made, **changes)


def failed_report() -> Report:
    """The same run, with one invariant broken and one expectation missed."""
    return report_of(
        checks=(Check("no wrong byte", "h4 served chunk 3 with wrong bytes"), Check("members agree")),
        expectations=(Expectation("detection", "within 10 s", "11.5 s", False),),
    )
