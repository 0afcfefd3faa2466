"""The one command that makes a run again."""

import shlex


def replay_command(scenario: str, seed: int, nodes: int | None = None) -> str:
    """`herd sim run region-cut --seed 7 --nodes 20`; the scenario is a name or a file."""
    size = ["--nodes", str(nodes)] if nodes is not None else []
    return shlex.join(["herd", "sim", "run", scenario, "--seed", str(seed), *size])
