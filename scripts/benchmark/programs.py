"""Programs of other people: whether they are here, run as daemons, or run once with what they cost."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import attrs
import trio

from scripts.herd_process import end, tail
from scripts.process_cost import cost_of_tree

START_TIMEOUT_S = 15.0
POLL_INTERVAL_S = 0.02
SBIN = "/usr/local/sbin:/usr/sbin:/sbin"
"""Where daemons are installed, which is not in everybody's PATH."""


class CannotMeasure(Exception):
    """This machine lacks what a row needs; the message names it and the remedy in one line."""


class ProgramFailed(Exception):
    """A program ended otherwise than asked for; the message has its last words."""


@attrs.frozen
class Ended:
    """What a program that ran to its end cost; memory as it was seen while it ran, over all its processes."""

    seconds: float
    cpu_s: float
    resident_bytes_peak: int


def program(name: str, package: str) -> str:
    """The path of an installed program. CannotMeasure, naming the Debian package, when it is not here."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:{SBIN}")
    if found is None:
        raise CannotMeasure(
            f"needs the program {name}: run `apt-get install {package}`, or `scripts/setup bench` as root"
        )
    return found


def free_port(address: str = "127.0.0.1") -> int:
    """A TCP port nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def daemon(command: Sequence[str], port: int, log: Path) -> AsyncIterator[int]:
    """A daemon in the foreground, from when it takes connections on 127.0.0.1:`port`; its process id."""
    with log.open("ab") as output:
        process = await trio.lowlevel.open_process(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    try:
        with trio.move_on_after(START_TIMEOUT_S) as waiting:
            while process.poll() is None:
                try:
                    stream = await trio.open_tcp_stream("127.0.0.1", port)
                except OSError:
                    await trio.sleep(POLL_INTERVAL_S)
                else:
                    await stream.aclose()
                    break
        if process.poll() is not None or waiting.cancelled_caught:
            raise ProgramFailed(f"{command[0]} does not serve: {tail(log)}")
        yield process.pid
    finally:
        await end(process)


async def run_measured(command: Sequence[str], log: Path) -> Ended:
    """Run a program to its end. ProgramFailed when its exit code is not 0."""
    began = time.perf_counter()
    process = _start(command, log)
    peak = 0

    async def watch() -> None:
        nonlocal peak
        while True:
            with suppress(OSError):
                peak = max(peak, cost_of_tree(process.pid).resident_bytes_peak)
            await trio.sleep(POLL_INTERVAL_S * 5)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        # wait4 and not Popen.wait: it alone tells what the program, and whoever it waited for, used.
        _, status, usage = await trio.to_thread.run_sync(os.wait4, process.pid, 0)
        seconds = time.perf_counter() - began
        nursery.cancel_scope.cancel()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise ProgramFailed(f"{command[0]} ended with exit code {process.returncode}: {tail(log)}")
    return Ended(seconds, usage.ru_utime + usage.ru_stime, peak)


def _start(command: Sequence[str], log: Path) -> "subprocess.Popen[bytes]":
    with log.open("ab") as output:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
