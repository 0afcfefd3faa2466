"""Small helper processes that stand where the benchmark cannot: inside a network namespace, or around a library.

They are started before anything is timed. A request is one line of JSON on their stdin, the answer one on stdout.
"""

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from scripts.herd_process import Lines, end, herd_environment, tail

ROOT = Path(__file__).resolve().parents[2]
ANSWER_TIMEOUT_S = 60.0


class AgentFailed(Exception):
    """A helper process refused or ended; the message says which and why."""


class Agent:
    """One helper process. One request at a time."""

    def __init__(self, name: str, process: trio.Process, log: Path) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self.pid = process.pid
        self._name = name
        self._stdin = process.stdin
        self._lines = Lines(process.stdout)
        self._log = log
        self._asking = trio.Lock()

    async def ask(self, do: str, *, timeout_s: float = ANSWER_TIMEOUT_S, **arguments: Any) -> Any:
        """Have one thing done and wait for its answer. AgentFailed when it fails or takes over `timeout_s`."""
        async with self._asking:
            with trio.move_on_after(timeout_s):
                try:
                    await self._stdin.send_all(json.dumps({"do": do, **arguments}).encode() + b"\n")
                    answer = json.loads(await anext(self._lines))
                except (StopAsyncIteration, trio.BrokenResourceError) as error:
                    raise AgentFailed(f"{self._name} ended: {tail(self._log)}") from error
                if "failed" in answer:
                    raise AgentFailed(f"{self._name} could not {do}: {answer['failed']}")
                return answer["done"]
        raise AgentFailed(f"{self._name} did not {do} within {timeout_s:g} s")


@asynccontextmanager
async def agent(
    module: str, log: Path, *arguments: str, name: str = "", inside: Sequence[str] = ()
) -> AsyncIterator[Agent]:
    """`scripts.benchmark.<module>` as a process, run by `inside` (such as `ip netns exec NAME`), ended with the block.

    What it writes to stderr goes to `log`.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as stderr:
        process = await trio.lowlevel.open_process(
            [*inside, sys.executable, "-P", "-W", "ignore", "-m", f"scripts.benchmark.{module}", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=herd_environment(PYTHONPATH=os.fspath(ROOT)),
            start_new_session=True,
        )
    assert process.stdin is not None
    assert process.stdout is not None
    async with process.stdin, process.stdout:
        try:
            yield Agent(name or module, process, log)
        finally:
            await end(process)
