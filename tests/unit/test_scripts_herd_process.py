"""The harness that starts nodes as processes: tried with programs of three lines in place of herd."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
import trio.testing

from scripts import herd_process as harness
from scripts.herd_process import HerdProcessFailed, Lines, herd_environment, herd_process, run_herd

READY = "print('noise'); print('ready /ip4/127.0.0.1/tcp/1/p2p/ann', flush=True);"
FOREVER = "import signal; signal.pause()"

Play = Callable[[str], None]


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Play:
    """Let every herd command run this Python instead."""

    def chosen(program: str) -> None:
        monkeypatch.setattr(
            harness, "herd_command", lambda *arguments: [sys.executable, "-c", program, *map(str, arguments)]
        )

    return chosen


async def test_a_node_is_there_from_ready_until_the_end_of_the_block(tmp_path: Path, play: Play) -> None:
    play(READY + FOREVER)
    async with herd_process(tmp_path / "one") as node:
        assert node.multiaddr == "/ip4/127.0.0.1/tcp/1/p2p/ann"
        assert node.peer == "ann"
        assert node.process.poll() is None
    assert node.process.returncode == -15


async def test_what_a_node_said_before_it_failed_is_told(tmp_path: Path, play: Play) -> None:
    play("import sys; print('herd: the reason', file=sys.stderr); sys.exit(6)")
    with pytest.raises(HerdProcessFailed, match="exit code 6 before it was ready") as failed:
        async with herd_process(tmp_path / "one"):
            pass
    assert failed.value.exit_code == 6
    assert failed.value.stderr == "herd: the reason"


async def test_a_node_that_is_never_ready_is_ended(tmp_path: Path, play: Play) -> None:
    play(f"import os; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); {FOREVER}")
    with pytest.raises(HerdProcessFailed, match=r"not ready within 0\.5 s"):
        async with herd_process(tmp_path / "one", ready_timeout_s=0.5):
            pass
    pid = int((tmp_path / "pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_a_node_that_does_not_leave_is_killed(
    tmp_path: Path, play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness, "STOP_TIMEOUT_S", 0.1)
    play("import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN);" + READY + "signal.pause()")
    async with herd_process(tmp_path / "one") as node:
        pass
    assert node.process.returncode == -9


async def test_a_failure_inside_the_block_carries_the_nodes_log(tmp_path: Path, play: Play) -> None:
    play("import sys; print('what the node said', file=sys.stderr);" + READY + FOREVER)
    with pytest.raises(ValueError, match="wrong") as failed:
        async with herd_process(tmp_path / "one"):
            raise ValueError("wrong")
    assert "what the node said" in "".join(failed.value.__notes__)


async def test_a_followed_command_gives_its_documents_and_can_be_interrupted(tmp_path: Path, play: Play) -> None:
    play(READY + FOREVER)
    async with herd_process(tmp_path / "one") as node:
        play("print('{\"held_bytes\": 1}', flush=True); " + FOREVER)
        async with node.following("pull", "llama") as pulling:
            assert await anext(pulling) == {"held_bytes": 1}
            assert await pulling.interrupt() != 0
        play("print('{\"report\": {}}'); import sys; print('herd: no', file=sys.stderr); sys.exit(3)")
        async with node.following("pull", "llama") as pulling:
            assert [document async for document in pulling] == [{"report": {}}]
            finished = await pulling.finished()
        assert (finished.exit_code, finished.stderr) == (3, "herd: no\n")
        with pytest.raises(HerdProcessFailed, match="`herd pull llama` ended with exit code 3"):
            finished.must()


async def test_a_command_that_hangs_is_ended_and_named(tmp_path: Path, play: Play) -> None:
    play(FOREVER)
    with pytest.raises(HerdProcessFailed, match=r"`herd ls --json` did not end within 0\.3 s"):
        await run_herd("ls", "--json", home=tmp_path, models=tmp_path, timeout_s=0.3)


def test_the_callers_own_node_is_never_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERD_HOME", "mine")
    monkeypatch.setenv("HERD_MESH_KEY", "secret")
    monkeypatch.setenv("OLLAMA_MODELS", "mine")
    environment = herd_environment(HERD_HOME="theirs")
    assert environment["HERD_HOME"] == "theirs"
    assert {"HERD_MESH_KEY", "OLLAMA_MODELS"}.isdisjoint(environment)


async def test_lines_come_whole_however_they_are_cut() -> None:
    sender, receiver = trio.testing.memory_stream_pair()
    lines = Lines(receiver)
    for piece in (b"on", b"e\ntwo\nth", b"ree"):
        await sender.send_all(piece)
    await sender.aclose()
    assert [line async for line in lines] == ["one", "two", "three"]
