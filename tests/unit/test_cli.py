"""node/cli as scripts and people meet it: real processes, a served fake node, exact lines and exit codes."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from node.cli.node_file import NodeFile, announced, find_node
from node.cli.root import run
from node.errors import NodeUnreachable, UsageError, VerificationFailed
from node.events import MemberChanged
from node.home import holding_home
from node.views import DamagedBlob
from tests.support_node import BOB, PEER, FakeNode, served_node

ROOT = Path(__file__).parents[2]


@attrs.frozen
class Ran:
    """How a command ended."""

    code: int
    out: str
    err: str

    def document(self) -> Any:
        return json.loads(self.out)


def environment(home: Path, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HERD_", "OLLAMA_"))}
    # A proxy that answers nothing: commands must reach their node without it.
    return {**kept, "HERD_HOME": str(home), "http_proxy": "http://127.0.0.1:9", "COLUMNS": "80", **more}


async def herd(home: Path, *arguments: str, program: str = "node.cli", **more: str) -> Ran:
    """Run one command in a process of its own."""
    with trio.fail_after(60):
        ended = await trio.run_process(
            [sys.executable, "-m", program, *arguments],
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            cwd=ROOT,
            env=environment(home, **more),
        )
    return Ran(ended.returncode, ended.stdout.decode(), ended.stderr.decode())


@asynccontextmanager
async def running(home: Path) -> AsyncIterator[FakeNode]:
    """A fake node served in this process and announced in `home`."""
    async with served_node() as (node, url):
        with announced(home, NodeFile(os.getpid(), url, PEER, ["/ip4/127.0.0.1/tcp/4701"])):
            yield node


async def test_what_every_command_prints_for_people_and_for_programs(tmp_path: Path) -> None:
    file = tmp_path / "Tiny Model.gguf"
    file.write_bytes(b"GGUF" + bytes(1996))
    async with running(tmp_path) as node:
        added = await herd(tmp_path, "add", str(file))
        assert (added.code, added.out.splitlines()[-1][:33]) == (0, "added tiny-model:latest (2.0 KB, ")
        named = await herd(tmp_path, "add", str(file), "--name", "bob/x:1b", "--json")
        assert json.loads(named.out.splitlines()[-1])["report"]["name"] == "bob/x:1b"

        listed = await herd(tmp_path, "ls")
        assert [line.split()[0] for line in listed.out.splitlines()] == ["NAME", "tiny-model:latest", "bob/x:1b"]
        assert len((await herd(tmp_path, "ls", "--json")).document()["models"]) == 2

        removed = await herd(tmp_path, "rm", "bob/x:1b")
        assert (removed.code, removed.out) == (0, "removed bob/x:1b\n")
        assert (await herd(tmp_path, "rm", "tiny-model", "--json")).document() == {"removed": "tiny-model:latest"}
        assert node.models == {}

        shown = await herd(tmp_path, "status")
        assert f"peer       {PEER}" in shown.out
        assert "mesh       1 other member alive" in shown.out
        assert (await herd(tmp_path, "status", "--json")).document()["peer"] == PEER

        members = await herd(tmp_path, "peers")
        assert "alive (banned)" in members.out
        assert "chunk 2" in members.out
        assert all(len(line) <= 80 for line in members.out.splitlines())
        assert (await herd(tmp_path, "peers", "--json")).document()["members"][1]["blame"] == {"chunk": 2}

        found = await herd(tmp_path, "find", "llama*")
        assert "llama3.2:latest" in found.out
        through = await herd(tmp_path, "find", "llama3.2", "--through", "dht", "--json")
        assert through.document()["models"][0]["source"] == "dht"


async def test_limits_are_shown_and_set(tmp_path: Path) -> None:
    async with running(tmp_path):
        shown = (await herd(tmp_path, "limits")).out.splitlines()
        assert shown[0].split() == ["KEY", "SETTING", "NOW", "PERIOD"]
        assert shown[1].split() == ["up", "unlimited", "unlimited"]
        assert shown[-1] == "periods: night=22:00-06:00; it is fri 23:05 on the node's host"
        told = await herd(tmp_path, "limits", "set", "up=50MB/s", "pull_down=20MB/s, night=unlimited", "--json")
        assert (told.code, told.document()["changed"]) == (0, ["up", "pull_down"])
        other = tmp_path / "other"
        again = await herd(other, "limits", "--home", str(tmp_path), "set", "repair_up=8Mbit/s")
        rows = {line.split()[0]: line.split()[1:] for line in again.out.splitlines()}
        assert rows["up"] == ["50MB/s", "50MB/s"]
        assert rows["pull_down"] == ["20MB/s,", "night=unlimited", "unlimited", "night"]
        assert rows["repair_up"] == ["8Mbit/s", "1MB/s"]
        assert again.out.splitlines()[-1] == (
            "up, pull_down, repair_up set while running: changes hold until this node stops;"
            " to keep them, write them under [limits] in /fake/herd.toml"
        )
        assert (await herd(tmp_path, "limits", "--json")).document()["limits"][0]["bytes_per_s"] == 50_000_000


async def test_verify_tells_what_was_read_what_is_wrong_and_the_remedy(tmp_path: Path) -> None:
    async with running(tmp_path) as node:
        await node.pull("llama3.2:latest")
        recorded = await herd(tmp_path, "verify")
        assert (recorded.code, recorded.err) == (0, "")
        assert recorded.out.splitlines()[-2:] == [
            "verified llama3.2:latest (3.0 MB)",
            "3.0 MB from the record, nothing read",
        ]
        again = await herd(tmp_path, "verify", "llama3.2", "--again")
        assert "verifying 1 models: 1.5 MB of 3.0 MB (50 %)" in again.out
        assert again.out.splitlines()[-1] == "0 B from the record, 3.0 MB read in 0.50 s (6.0 MB/s)"

        detail = "/models/blobs/x is damaged: 1 of 3 chunks is wrong, bytes 0 to 9"
        node.models["llama3.2:latest"] = attrs.evolve(node.models["llama3.2:latest"], state="damaged", detail=detail)
        node.damaged["llama3.2:latest"] = DamagedBlob("sha256:0", "/models/blobs/x", 3_000_000, [(0, 10)], detail)
        wrong = await herd(tmp_path, "verify", "llama3.2")
        assert wrong.out.splitlines()[-3:-1] == ["damaged llama3.2:latest (3.0 MB)", f"  {detail}"]
        assert (wrong.code, wrong.err) == (
            5,
            "herd: not right: llama3.2:latest; `herd pull llama3.2:latest` fetches what is damaged or missing again\n",
        )
        *_, report, error = (await herd(tmp_path, "verify", "--json")).out.splitlines()
        assert json.loads(report)["report"]["damaged"][0]["wrong_ranges"] == [[0, 10]]
        assert json.loads(error)["exit_code"] == 5
        node.models["llama3.2:latest"] = attrs.evolve(node.models["llama3.2:latest"], state="verifying", detail="")
        changed = await herd(tmp_path, "verify")
        assert (changed.code, changed.err) == (
            1,
            "herd: not verified: llama3.2:latest changed while being read; run `herd verify` again\n",
        )
        assert (await herd(tmp_path, "verify", "ghost")).code == 3


async def test_a_row_is_a_line_for_a_program_and_no_encoding_ends_a_command(tmp_path: Path) -> None:
    name = f"registry.example.com/{'n' * 60}/{'m' * 60}:latest"
    async with running(tmp_path) as node:
        node.remote[name] = 3_000_000
        await node.pull(name)
        listed = await herd(tmp_path, "ls")
        assert [line.split()[0] for line in listed.out.splitlines()] == ["NAME", name]
        assert not any(line.endswith(" ") for line in listed.out.splitlines())
        members = await herd(tmp_path, "peers", PYTHONIOENCODING="latin-1")
        assert (members.code, members.err) == (0, "")
        assert members.out.splitlines()[1].startswith("\\u2026")


async def test_pull_prints_plain_lines_where_nobody_looks_and_documents_with_json(tmp_path: Path) -> None:
    async with running(tmp_path) as node:
        node.step_s = 0.15
        pulled = await herd(tmp_path, "pull", "llama3.2")
        lines = pulled.out.splitlines()
        assert pulled.code == 0
        assert lines[0] == "fetching llama3.2:latest: 1.0 MB of 3.0 MB (33 %) from 1 peer"
        assert lines[-3].startswith("pulled llama3.2:latest (3.0 MB, ")
        assert lines[-2] == "3.0 MB fetched in 0 s (6.0 MB/s), 0 B resumed, 0 B were here"
        assert lines[-1] == f"  3.0 MB from {BOB}"
        told = [json.loads(line) for line in (await herd(tmp_path, "pull", "llama3.2", "--json")).out.splitlines()]
        assert told[-1]["report"]["verified"] is True


async def test_pull_says_what_other_models_here_had(tmp_path: Path) -> None:
    async with running(tmp_path) as node:
        node.copied_bytes = 2_500_000
        lines = (await herd(tmp_path, "pull", "llama3.2")).out.splitlines()
        assert lines[-2].startswith("500 KB fetched in ")
        assert lines[-2].endswith(", 0 B resumed, 0 B were here, 2.5 MB copied from other models here")


async def test_ctrl_c_cancels_the_pull_and_says_how_to_resume(tmp_path: Path) -> None:
    async with running(tmp_path) as node:
        node.step_s = 0.3
        async with trio.open_nursery() as nursery:

            async def interrupted() -> Ran:
                process = await trio.lowlevel.open_process(
                    [sys.executable, "-m", "node.cli", "pull", "llama3.2", "--json"],
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    cwd=ROOT,
                    env=environment(tmp_path),
                )
                assert process.stdout is not None
                assert process.stderr is not None
                out = await process.stdout.receive_some()
                process.send_signal(signal.SIGINT)
                err = b"".join([piece async for piece in process.stderr])
                await process.wait()
                await process.stdout.aclose()
                await process.stderr.aclose()
                return Ran(await process.wait(), out.decode(), err.decode())

            with trio.fail_after(60):
                ended = await interrupted()
                await node.pull_cancelled.wait()
            nursery.cancel_scope.cancel()
        assert '"held_bytes": 1000000' in ended.out
        assert (ended.code, ended.err) == (
            130,
            "herd: interrupted; what was checked is kept, `herd pull llama3.2` goes on from there\n",
        )


def test_ctrl_c_of_an_add_promises_nothing(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    def interrupted(home: Path | None) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("node.cli.root._client", interrupted)
    with pytest.raises(SystemExit) as ended:
        run(["add", "x.gguf"])
    assert ended.value.code == 130
    assert capfd.readouterr().err == "herd: interrupted; nothing was added; repeat the command\n"


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (("pull", "ghost"), 3, "ghost:latest: nobody in the mesh holds it"),
        (("rm", "ghost"), 3, "ghost:latest: no such model in this store; `herd pull ghost:latest` fetches it"),
        (("find", "gh*"), 3, "nothing in the mesh matches 'gh*'"),
        (("add", "/nowhere/x.gguf"), 3, "/nowhere/x.gguf: no such file"),
        (("add", "/dev/null", "--name", "a b"), 2, "invalid model name 'registry.ollama.ai/library/a b:latest': model"),
        (("pull",), 2, "Missing argument 'NAME'; see `herd pull --help`"),
        (("pul",), 2, "no such command 'pul', did you mean pull?; see `herd --help`"),
        (("ls", "--jsn"), 2, "No such option '--jsn'. Did you mean '--json'?; see `herd ls --help`"),
        (("find", "x", "--through", "air"), 2, "Invalid value for '--through': 'air' is not one of 'auto',"),
        (("config", "show", "--home", "{bad}"), 2, "{bad}/herd.toml: unknown key network.prot; did you mean port?"),
        (("config", "mesh-key"), 3, "{home}/mesh.key: this home has no mesh key yet; `herd up` without --bootstrap"),
        (("limits", "set", "upp=1MB/s"), 2, "unknown limit 'upp'; did you mean up?"),
        (
            ("limits", "set", "up=fast"),
            2,
            "limits.up: 'fast' is not allowed: a rate such as 50MB/s, 50MiB/s, 400Mbit/s,",
        ),
        (("limits", "set", "up=5MB/s,evening=1MB/s"), 2, "limits.up: no period is named 'evening'; known are night"),
        (("limits", "set", "up"), 2, "limits set: 'up' is not allowed: KEY=RATE, such as up=50MB/s"),
        (("limits", "up=5MB/s"), 2, "'up=5MB/s' is no command; did you mean `herd limits set up=5MB/s`?"),
        (("limits", "set"), 2, "Missing argument 'KEY=RATE...'; see `herd limits set --help`"),
        (("up", "--port", "http"), 2, "--port: network.port = 'http' is not allowed: a whole number, 0 to 65535"),
        (("up", "--label", "zone"), 2, "--label: 'zone' is not allowed: KEY=VALUE"),
        (("up", "--set", "network.prot=1"), 2, "--set: unknown key network.prot; did you mean network.port?"),
        (("up", "--mesh-key-file", "/nowhere"), 2, "--mesh-key-file /nowhere: cannot read the mesh key: No such file"),
        (("pull", "x", "--home", "{bad}"), 4, "no node of {bad} is running; start one with `herd up`"),
    ],
)
async def test_each_error_is_one_line_and_a_code(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    code: int,
    line: str,
) -> None:
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "herd.toml").write_text("[network]\nprot = 1\n")
    places = {"home": str(tmp_path), "bad": str(bad)}
    for name in [*os.environ]:
        if name.startswith(("HERD_", "OLLAMA_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HERD_HOME", str(tmp_path))
    async with running(tmp_path):
        command = [argument.format(**places) for argument in arguments]
        # In a thread of this process: a process for each of these lines would make a slow test.
        ended = await trio.to_thread.run_sync(run, command)
    printed = capfd.readouterr()
    assert ended == code
    assert printed.err.startswith(f"herd: {line.format(**places)}")
    assert printed.err.count("\n") == 1
    assert printed.out == ""


async def test_with_json_an_error_is_a_document_too(tmp_path: Path) -> None:
    async with running(tmp_path) as node:
        lost = await herd(tmp_path, "pull", "ghost", "--json")
        assert lost.document() == {"error": "ghost:latest: nobody in the mesh holds it", "exit_code": 3}
        none = await herd(tmp_path, "find", "ghost*", "--json")
        assert (none.code, none.document()) == (3, {"models": []})
        node.failure = VerificationFailed("llama3.2: every holder sent wrong bytes")
        assert (await herd(tmp_path, "ls", "--json")).code == 5


async def test_a_node_that_is_gone_is_told_from_one_that_hangs_and_from_a_stranger(tmp_path: Path) -> None:
    dead = await trio.run_process([sys.executable, "-c", "import os; print(os.getpid())"], capture_stdout=True)
    stale = NodeFile(int(dead.stdout), "http://127.0.0.1:9", PEER, [])
    with announced(tmp_path, stale):
        ended = await herd(tmp_path, "status")
    assert (ended.code, ended.err) == (
        4,
        f"herd: the node of {tmp_path} is gone without saying so; start it again with `herd up`\n",
    )
    with announced(tmp_path, attrs.evolve(stale, pid=os.getpid())):
        hung = await herd(tmp_path, "status")
    assert hung.code == 4
    assert f"(process {os.getpid()}) does not answer at http://127.0.0.1:9: " in hung.err
    async with served_node() as (_, url):
        with announced(tmp_path, NodeFile(os.getpid(), url, BOB, [])):
            other = await herd(tmp_path, "rm", "llama3.2")
    assert (other.code, other.err) == (
        4,
        f"herd: the node of {tmp_path} is gone and another one answers at {url}; start it with `herd up`\n",
    )


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"pid":1}', '{"pid":1,"api":2,"peer":"","addresses":[]}', "[" * 9999]
)
def test_a_node_file_of_somebody_else_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "node.json").write_text(text)
    with pytest.raises(NodeUnreachable, match="not written by a node; remove it and start one with `herd up`"):
        find_node(tmp_path)


def test_one_home_has_one_node(tmp_path: Path) -> None:
    with (
        holding_home(tmp_path / "new"),
        pytest.raises(UsageError, match="a node of this home is already running"),
        holding_home(tmp_path / "new"),
    ):
        pass
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700
    with holding_home(tmp_path / "new"):
        assert not (tmp_path / "new" / "node.json").exists()


async def test_help_names_every_command_and_every_exit_code(tmp_path: Path) -> None:
    told = await herd(tmp_path, "--help")
    for command in ("up", "status", "peers", "ls", "find", "add", "pull", "rm", "limits", "config"):
        assert f"\n  {command} " in told.out
        assert (await herd(tmp_path, command, "--help")).code == 0
    for code in (0, 1, 2, 3, 4, 5, 6, 130):
        assert f"\n    {code} " in told.out


async def test_configuration_commands(tmp_path: Path) -> None:
    (tmp_path / "herd.toml").write_text("[network]\nport = 7\n")
    shown = (await herd(tmp_path, "config", "show", "--json", HERD_LABELS_ZONE="a", OLLAMA_MODELS="/m")).document()
    assert shown["values"]["network.port"] == {"value": 7, "origin": f"file {tmp_path}/herd.toml"}
    assert shown["values"]["labels.zone"] == {"value": "a", "origin": "environment HERD_LABELS_ZONE"}
    assert shown["values"]["store.models_path"] == {"value": "/m", "origin": "environment OLLAMA_MODELS"}
    checked = await herd(tmp_path, "config", "check", HERD_API_PORT="tcp://10.96.0.7:80")
    assert (checked.code, checked.out) == (0, f"{tmp_path}/herd.toml: right\n")
    assert checked.err == "herd: environment: ignored, since no setting is named so: HERD_API_PORT\n"
    default = await herd(tmp_path, "config", "default")
    (tmp_path / "herd.toml").write_text(default.out)
    assert (await herd(tmp_path, "config", "check", "--json")).document()["valid"] is True
    key = tmp_path / "mesh.key"
    key.write_text("ab" * 32 + "\n")
    key.chmod(0o600)
    assert (await herd(tmp_path, "config", "mesh-key")).out == "ab" * 32 + "\n"


async def test_a_command_without_a_node_never_imports_the_engine(tmp_path: Path) -> None:
    program = "import sys, node.cli.root, node.config, node.cli.client; print('libp2p' in sys.modules)"
    ended = await trio.run_process([sys.executable, "-c", program], capture_stdout=True, cwd=ROOT)
    assert ended.stdout == b"False\n"


@asynccontextmanager
async def up(home: Path, *arguments: str, **more: str) -> AsyncIterator[trio.Process]:
    """`herd up` over a fake node, with its pipes; killed when the block ends before it does."""
    process = await trio.lowlevel.open_process(
        [sys.executable, "-m", "tests.fake_herd", "up", "--api", "127.0.0.1:0", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        env=environment(home, **more),
    )
    assert process.stdout is not None
    assert process.stderr is not None
    async with process.stdout, process.stderr:
        try:
            with trio.fail_after(60):
                yield process
        finally:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()


async def rest(stream: Any) -> str:
    return b"".join([piece async for piece in stream]).decode()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
async def test_up_says_ready_serves_its_home_and_leaves_well(tmp_path: Path, how: signal.Signals) -> None:
    async with up(tmp_path) as process:
        assert process.stdout is not None
        ready = (await process.stdout.receive_some()).decode()
        assert ready == f"ready /ip4/127.0.0.1/tcp/4701/p2p/{PEER}\n"
        node = find_node(tmp_path)
        assert (node.pid, node.peer, node.addresses) == (process.pid, PEER, [ready.split()[1]])
        assert (tmp_path / "node.json").stat().st_mode & 0o777 == 0o600
        assert (await herd(tmp_path, "status", "--json")).document()["api"] == node.api
        second = await herd(tmp_path, "up", program="tests.fake_herd")
        assert second.code == 2
        assert "a node of this home is already running" in second.err
        process.send_signal(how)
        assert "left well" in await rest(process.stderr)
        assert await process.wait() == 0
        assert await rest(process.stdout) == ""
    assert not (tmp_path / "node.json").exists()


async def test_up_that_may_not_join_ends_with_its_reason(tmp_path: Path) -> None:
    ended = await herd(tmp_path, "up", "--log-level", "error", program="tests.fake_herd", FAKE_START="refused")
    assert (ended.code, ended.out, ended.err) == (
        6,
        "",
        "herd: the mesh keys differ; give this host the mesh key of the mesh\n",
    )


async def test_up_that_meets_a_bug_shows_where(tmp_path: Path) -> None:
    ended = await herd(tmp_path, "up", program="tests.fake_herd", FAKE_START="broken")
    assert ended.code == 1
    assert "RuntimeError: a bug" in ended.err
    assert ended.err.splitlines()[-1].startswith("herd: internal error: ")


async def test_up_where_the_api_cannot_listen_names_the_address(tmp_path: Path) -> None:
    async with served_node() as (_, url):
        taken = url.removeprefix("http://")
        ended = await herd(tmp_path, "up", "--api", taken, "--log-level", "error", program="tests.fake_herd")
    assert (ended.code, ended.err) == (
        2,
        f"herd: api.listen = '{taken}': cannot listen there: Address already in use;"
        " choose another with --api HOST:PORT\n",
    )


async def test_a_signal_while_starting_ends_at_once(tmp_path: Path) -> None:
    async with up(tmp_path, FAKE_START="slow") as process:
        assert process.stderr is not None
        assert "herd starts in" in (await process.stderr.receive_some()).decode()
        process.send_signal(signal.SIGTERM)
        await rest(process.stderr)
        assert await process.wait() == 0
        assert await rest(process.stdout) == ""


async def test_a_second_signal_does_not_wait_for_a_leave_that_hangs(tmp_path: Path) -> None:
    async with up(tmp_path, FAKE_START="stuck") as process:
        assert process.stdout is not None
        assert (await process.stdout.receive_some()).startswith(b"ready ")
        process.send_signal(signal.SIGTERM)
        told = ""
        while "left well" not in told:
            told += (await process.stderr.receive_some()).decode()  # type: ignore[union-attr]
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0


async def test_watch_follows_events_across_a_restart_of_the_node(tmp_path: Path) -> None:
    process = None
    told: list[dict[str, Any]] = []
    seen = trio.Event()

    async def read(stream: Any) -> None:
        nonlocal seen
        pending = b""
        async for piece in stream:
            *lines, pending = (pending + piece).split(b"\n")
            told.extend(json.loads(line) for line in lines)
            seen.set()
            seen = trio.Event()

    async def wait_for(kind: str, count: int) -> None:
        with trio.fail_after(60):
            while [event["event"] for event in told].count(kind) < count:
                await seen.wait()

    async with trio.open_nursery() as nursery:
        async with running(tmp_path) as node:
            process = await trio.lowlevel.open_process(
                [sys.executable, "-m", "node.cli", "status", "--watch", "--json"],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=ROOT,
                env=environment(tmp_path),
            )
            nursery.start_soon(read, process.stdout)
            await wait_for("Connected", 1)
            node.events.publish(MemberChanged(BOB, "suspect", 2))
            await wait_for("MemberChanged", 1)
        await wait_for("Disconnected", 2)
        await trio.sleep(1.2)  # real time: one more try to reconnect goes by
        async with running(tmp_path) as node:
            await wait_for("Connected", 2)
            node.events.publish(MemberChanged(BOB, "alive", 3))
            await wait_for("MemberChanged", 2)
            process.send_signal(signal.SIGINT)
            assert process.stderr is not None
            with trio.fail_after(60):
                assert await rest(process.stderr) == "herd: interrupted\n"
                assert await process.wait() == 130
    assert process.stderr is not None
    assert process.stdout is not None
    await process.stderr.aclose()
    await process.stdout.aclose()
    kinds = [event["event"] for event in told]
    assert kinds[0] == "Connected"
    # Why it is gone, and that none is there: each once, however often it was tried.
    assert kinds.count("Disconnected") == 2
    assert [event["state"] for event in told if event["event"] == "MemberChanged"] == ["suspect", "alive"]


async def test_watch_without_any_node_is_an_error_at_once(tmp_path: Path) -> None:
    ended = await herd(tmp_path, "status", "--watch")
    assert (ended.code, ended.err) == (4, f"herd: no node of {tmp_path} is running; start one with `herd up`\n")
