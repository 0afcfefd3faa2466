"""The one command that makes a run again."""

import shlex
from collections.abc import Sequence


def replay_command(scenario: str, seed: int, nodes: int | None = None, only: Sequence[int] | None = None) -> str:
    """`herd sim run region-cut --seed 7 --nodes 20`; the scenario is a name or a file.

    `only` are the numbers of the faults that are kept, from 1.
    """
    size = ["--nodes", str(nodes)] if nodes is not None else []
    faults = ["--only", ",".join(map(str, only)) or "0"] if only is not None else []
    return shlex.join(["herd", "sim", "run", scenario, "--seed", str(seed), *size, *faults])
