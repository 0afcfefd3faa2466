"""The demo is what a newcomer runs first: it ends well, it ends on Ctrl-C, and it leaves nothing behind."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from scripts.demo import parse_options
from scripts.herd_process import Lines
from scripts.store_reader import StoreProblem, check_blob, read_stored_model

pytestmark = [pytest.mark.processes, pytest.mark.slow]

CHECKOUT = Path(__file__).resolve().parents[2]


async def start_demo(folder: Path, *arguments: str | Path) -> trio.Process:
    """The demo as its own process, with `folder` as the only place for temporary files."""
    return await trio.lowlevel.open_process(
        [sys.executable, "-P", "-m", "scripts.demo", *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT), "TMPDIR": str(folder), "COLUMNS": "120"},
    )


async def output_of(process: trio.Process) -> str:
    assert process.stdout is not None
    async with process.stdout:
        return "\n".join([line async for line in Lines(process.stdout)])


async def test_once_shows_three_stores_with_one_verified_model(tmp_path: Path) -> None:
    with trio.fail_after(120):
        demo = await start_demo(tmp_path, "--once", "--size-mb", "24")
        shown = await output_of(demo)
        assert await demo.wait() == 0, shown
    for row in ("one", "two", "three"):
        assert any(row in line and "yes, " in line for line in shown.splitlines()), shown
    assert left_in(tmp_path) == []


async def test_a_bad_file_ends_it_with_herds_own_word_and_code(tmp_path: Path) -> None:
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"GGUF and then nothing")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with trio.fail_after(120):
        demo = await start_demo(scratch, bad, "--once")
        shown = await output_of(demo)
        assert await demo.wait() == 2, shown
    assert "bad.gguf" in shown
    assert "Traceback" not in shown
    assert left_in(scratch) == []


async def test_ctrl_c_ends_the_demo_and_its_nodes(tmp_path: Path) -> None:
    with trio.fail_after(120):
        demo = await start_demo(tmp_path, "--size-mb", "24")
        assert demo.stdout is not None
        async with demo.stdout:
            lines = Lines(demo.stdout)
            seen = [await anext(lines)]
            while "until Ctrl-C" not in seen[-1]:
                seen.append(await anext(lines))
            assert len(running_herds(tmp_path)) == 3
            demo.send_signal(signal.SIGINT)
            seen += [line async for line in lines]
        assert await demo.wait() == 0, seen
    assert running_herds(tmp_path) == []
    assert left_in(tmp_path) == []


def left_in(folder: Path) -> list[str]:
    """What the demo forgot to remove."""
    return sorted(path.name for path in folder.iterdir())


def running_herds(folder: Path) -> list[str]:
    """The command lines of processes that name the folder."""
    listing = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    return [line for line in listing.splitlines() if "herd up" in line and str(folder) in line]


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
