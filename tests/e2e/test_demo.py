"""The demo is what a newcomer runs first: it ends well, it ends on Ctrl-C, and it leaves nothing behind."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from scripts.demo import parse_options
from scripts.herd_process import Lines, end
from scripts.store_reader import StoreProblem, check_blob, read_stored_model

pytestmark = [pytest.mark.processes, pytest.mark.slow]

CHECKOUT = Path(__file__).resolve().parents[2]


class Demo:
    """A running demo: its lines as they come, and all of them so far."""

    def __init__(self, process: trio.Process) -> None:
        assert process.stdout is not None
        self.process = process
        self.seen: list[str] = []
        self._lines = Lines(process.stdout)

    async def read_to(self, text: str) -> None:
        """Read on until a line holds the text; fails with everything said when the demo ends before."""
        async for line in self._lines:
            self.seen.append(line)
            if text in line:
                return
        pytest.fail("the demo ended early:\n" + "\n".join(self.seen))

    async def ended(self) -> tuple[int, str]:
        """Read to the end: exit code, and everything that was said."""
        self.seen += [line async for line in self._lines]
        return await self.process.wait(), "\n".join(self.seen)


@asynccontextmanager
async def running_demo(folder: Path, *arguments: str | Path) -> AsyncIterator[Demo]:
    """The demo as its own process, with `folder` as the only place for temporary files."""
    process = await trio.lowlevel.open_process(
        [sys.executable, "-P", "-m", "scripts.demo", *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT), "TMPDIR": str(folder), "COLUMNS": "120"},
    )
    assert process.stdout is not None
    async with process.stdout:
        try:
            yield Demo(process)
        finally:
            await end(process)


async def test_once_shows_three_stores_with_one_verified_model(tmp_path: Path) -> None:
    with trio.fail_after(120):
        async with running_demo(tmp_path, "--once", "--size-mb", "24") as demo:
            exit_code, shown = await demo.ended()
    assert exit_code == 0, shown
    for row in ("one", "two", "three"):
        assert any(row in line and " yes " in line for line in shown.splitlines()), shown
    assert left_in(tmp_path) == []


async def test_a_bad_file_ends_it_with_herds_own_word_and_code(tmp_path: Path) -> None:
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"GGUF and then nothing")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with trio.fail_after(120):
        async with running_demo(scratch, bad, "--once") as demo:
            exit_code, shown = await demo.ended()
    assert exit_code == 2, shown
    assert "bad.gguf" in shown
    assert "Traceback" not in shown
    assert left_in(scratch) == []


async def test_ctrl_c_ends_the_demo_and_its_nodes(tmp_path: Path) -> None:
    with trio.fail_after(120):
        async with running_demo(tmp_path, "--size-mb", "24") as demo:
            await demo.read_to("until Ctrl-C")
            assert len(running_herds(tmp_path)) == 3
            demo.process.send_signal(signal.SIGINT)
            exit_code, shown = await demo.ended()
    assert exit_code == 0, shown
    assert running_herds(tmp_path) == []
    assert left_in(tmp_path) == []


def left_in(folder: Path) -> list[str]:
    """What the demo forgot to remove."""
    return sorted(path.name for path in folder.iterdir())


def running_herds(folder: Path) -> list[str]:
    """The command lines of nodes whose homes are in the folder, from the process table."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        # A process may end while it is looked at.
        with contextlib.suppress(OSError):
            command = entry.read_text(errors="replace").replace("\0", " ")
            if "/herd up " in command and str(folder) in command:
                found.append(command)
    return found


def test_the_options_have_limits() -> None:
    assert parse_options(["--once"]).size_bytes == 200_000_000
    with pytest.raises(SystemExit) as refused:
        parse_options(["--size-mb", "0"])
    assert refused.value.code == 2


def test_the_demos_own_reader_sees_a_wrong_byte(tmp_path: Path) -> None:
    blob = tmp_path / "blob"
    blob.write_bytes(b"right")
    digest = "sha256:" + "0" * 64
    with pytest.raises(StoreProblem, match="holds sha256:"):
        check_blob(blob, digest, 5)
    with pytest.raises(StoreProblem, match="has 5 bytes"):
        check_blob(blob, digest, 6)
    with pytest.raises(StoreProblem, match="no manifest"):
        read_stored_model(tmp_path, "none:latest")
