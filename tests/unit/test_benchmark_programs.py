"""What the benchmark builds on: costs of processes and their children, programs run to their end, helper processes."""

import sys
import time
from pathlib import Path

import pytest
import trio

from scripts.benchmark.agents import AgentFailed, agent
from scripts.benchmark.answering import begin_at
from scripts.benchmark.programs import CannotMeasure, ProgramFailed, daemon, free_port, program, run_measured
from scripts.herd_process import end
from scripts.process_cost import cost_of, cost_of_tree, reset_peak

BURN = "import time\nended = time.process_time() + 0.3\nwhile time.process_time() < ended: pass\n"
MIB = 1024 * 1024


@pytest.mark.slow
async def test_a_program_that_ended_is_charged_for_its_children_too(tmp_path: Path) -> None:
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {BURN!r}]); {BURN}"
    ended = await run_measured([sys.executable, "-c", parent], tmp_path / "log")
    assert ended.cpu_s >= 0.6
    assert ended.seconds > 0
    assert ended.resident_bytes_peak > MIB


async def test_a_program_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(ProgramFailed, match=r"exit code 3: the reason"):
        await run_measured([sys.executable, "-c", "print('the reason'); raise SystemExit(3)"], tmp_path / "log")


@pytest.mark.slow
async def test_a_daemon_is_there_when_it_takes_connections_and_gone_after_the_block(tmp_path: Path) -> None:
    port = free_port()
    serve = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", str(port)]
    async with daemon(serve, port, tmp_path / "log") as pid:
        assert cost_of_tree(pid).cpu_s > 0
    with pytest.raises(OSError, match=r"refused|all attempts"):
        await trio.open_tcp_stream("127.0.0.1", port)


async def test_a_daemon_that_does_not_start_is_told_with_its_words(tmp_path: Path) -> None:
    with pytest.raises(ProgramFailed, match="no such thing"):
        async with daemon([sys.executable, "-c", "raise SystemExit('no such thing')"], 1, tmp_path / "log"):
            pass


def test_a_missing_program_is_named_with_its_package() -> None:
    with pytest.raises(CannotMeasure, match="needs the program no-such-program: run `apt-get install the-package`"):
        program("no-such-program", "the-package")
    assert Path(program("sh", "dash")).exists()


@pytest.mark.slow
async def test_a_peak_is_remembered_until_it_begins_anew() -> None:
    grow = "import sys; held = bytearray(64 << 20); del held; print(flush=True); sys.stdin.read()"
    process = await trio.lowlevel.open_process([sys.executable, "-c", grow], stdin=-1, stdout=-1)
    try:
        assert process.stdout is not None
        await process.stdout.receive_some()
        cost = cost_of(process.pid)
        assert cost.resident_bytes_peak > 64 * MIB > cost.resident_bytes
        reset_peak(process.pid)
        assert cost_of(process.pid).resident_bytes_peak < 64 * MIB
        assert cost_of(process.pid).since(cost).cpu_s < 1
    finally:
        await end(process)


@pytest.mark.slow
async def test_a_helper_answers_refuses_and_is_missed_when_it_ends(tmp_path: Path) -> None:
    (tmp_path / "metrics").write_text('# HELP x y\nherd_x_total 3.0\nherd_y{peer="one"} 4.0\n')
    port = free_port()
    serve = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", "--directory", str(tmp_path), str(port)]
    async with (
        daemon(serve, port, tmp_path / "serve.log"),
        agent("asker", tmp_path / "log", f"http://127.0.0.1:{port}", name="asker") as asked,
    ):
        assert await asked.ask("counters") == {"herd_x_total": 3.0}
        with pytest.raises(AgentFailed, match="asker could not read: OSError: GET /nothing is answered with 404"):
            await asked.ask("read", path="/nothing")
        assert (await asked.ask("read", path="/metrics")).startswith("# HELP")
    async with agent("asker", tmp_path / "gone.log", name="no address") as gone:
        with pytest.raises(AgentFailed, match=r"(?s)no address ended: .*IndexError"):
            await gone.ask("counters")


def test_a_common_start_that_is_over_is_no_common_start() -> None:
    with pytest.raises(ValueError, match=r"was .* ago"):
        begin_at(time.monotonic() - 1)
    at = time.monotonic() + 0.01
    assert begin_at(at) == at <= time.monotonic()
