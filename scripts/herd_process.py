"""A real `herd up` as a child process: started, asked through the command line, killed.

The demo, the benchmarks and the end-to-end tests all drive nodes through this one file.
"""

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self, TypeVar

import attrs
import trio

from node.views import FoundModel, MemberView, ModelView, NodeStatus, PullReport, from_json

T = TypeVar("T")

READY_TIMEOUT_S = 60.0
COMMAND_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 20.0
"""Longer than a node takes to give up leaving well, so that a kill from here means that it hangs."""
POLL_INTERVAL_S = 0.1
LOG_TAIL_LINES = 25
LINE_SIZE_BYTES_MAX = 1024 * 1024


class HerdProcessFailed(Exception):
    """A herd process ended or answered otherwise than asked for; carries its exit code and what it said last."""

    def __init__(self, text: str, exit_code: int | None, stderr: str) -> None:
        super().__init__(f"{text}\n{stderr}".rstrip())
        self.exit_code = exit_code
        self.stderr = stderr


@attrs.frozen
class Finished:
    """A command that ended: its exit code, and both outputs as text."""

    command: str
    exit_code: int
    stdout: str
    stderr: str

    def must(self) -> str:
        """The output; HerdProcessFailed when the exit code is not 0."""
        if self.exit_code != 0:
            raise HerdProcessFailed(
                f"`{self.command}` ended with exit code {self.exit_code}", self.exit_code, self.stderr
            )
        return self.stdout

    def document(self) -> Any:
        """The JSON that the command printed."""
        return json.loads(self.must())


def herd_command(*arguments: str | Path) -> list[str]:
    """The command line of the `herd` installed beside the running Python."""
    return [str(Path(sys.executable).with_name("herd")), *map(str, arguments)]


def herd_environment(**settings: str | Path) -> dict[str, str]:
    """This process's environment without anything that would choose another node, and with the settings given."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HERD_", "OLLAMA_"))}
    return {**kept, **{name: str(value) for name, value in settings.items()}}


async def run_herd(
    *arguments: str | Path,
    home: Path,
    models: Path,
    timeout_s: float = COMMAND_TIMEOUT_S,
    cwd: Path | None = None,
    inside: Sequence[str] = (),
) -> Finished:
    """Run one herd command for the node of `home` to its end. HerdProcessFailed when it takes over `timeout_s`."""
    command = [*inside, *herd_command(*arguments)]
    shown = shlex.join(["herd", *map(str, arguments)])
    with trio.move_on_after(timeout_s):
        result = await trio.run_process(
            command,
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            env=herd_environment(HERD_HOME=home, OLLAMA_MODELS=models),
            cwd=cwd,
        )
        return Finished(shown, result.returncode, result.stdout.decode(), result.stderr.decode())
    raise HerdProcessFailed(f"`{shown}` did not end within {timeout_s:g} s", None, "")


async def end(process: trio.Process, first_signal: signal.Signals = signal.SIGTERM) -> int:
    """Ask a process to stop, kill it when it does not, and wait for it; its exit code."""
    with trio.CancelScope(shield=True):
        if process.poll() is None:
            process.send_signal(first_signal)
        with trio.move_on_after(STOP_TIMEOUT_S):
            await process.wait()
        if process.poll() is None:
            process.kill()
        exit_code = await process.wait()
    return exit_code


class Lines:
    """The lines of a pipe as they come; a last line without its end counts too. May be left and taken up again."""

    def __init__(self, stream: trio.abc.ReceiveStream) -> None:
        self._stream = stream
        self._data = b""
        self._ended = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        while b"\n" not in self._data and not self._ended:
            if len(self._data) > LINE_SIZE_BYTES_MAX:
                raise HerdProcessFailed("a herd process printed a line without end", None, "")
            received = await self._stream.receive_some()
            self._data += received
            self._ended = not received
        if not self._data:
            raise StopAsyncIteration
        line, _, self._data = self._data.partition(b"\n")
        return line.decode(errors="replace")


def tail(path: Path, lines: int = LOG_TAIL_LINES) -> str:
    """The last lines of a log; empty when there is none."""
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
    except OSError:
        return ""


class Following:
    """A command that prints NDJSON while it works: iterate over its documents, then ask how it ended."""

    def __init__(self, shown: str, process: trio.Process, stderr: Path) -> None:
        assert process.stdout is not None
        self._shown = shown
        self._process = process
        self._lines = Lines(process.stdout)
        self._stderr = stderr

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(await anext(self._lines))
        return document

    async def finished(self) -> Finished:
        """The end of the command, once its documents are read."""
        return Finished(self._shown, await self._process.wait(), "", self._stderr.read_text(errors="replace"))

    async def interrupt(self) -> int:
        """What Ctrl-C does; the exit code."""
        return await end(self._process, signal.SIGINT)


@attrs.define
class HerdProcess:
    """A running `herd up`. `multiaddr` is where others bootstrap from; the log is a file beside its home.

    `inside` is the command that runs others where the node runs, such as `ip netns exec NAME`.
    """

    home: Path
    models: Path
    log: Path
    multiaddr: str
    process: trio.Process
    inside: Sequence[str] = ()

    @property
    def peer(self) -> str:
        """The node's peer id: the last part of its multiaddr."""
        return self.multiaddr.rsplit("/", 1)[1]

    async def cli(
        self, *arguments: str | Path, timeout_s: float = COMMAND_TIMEOUT_S, cwd: Path | None = None
    ) -> Finished:
        """Run `herd ARGUMENTS` for this node to its end."""
        return await run_herd(
            *arguments, home=self.home, models=self.models, timeout_s=timeout_s, cwd=cwd, inside=self.inside
        )

    @asynccontextmanager
    async def following(self, *arguments: str | Path) -> AsyncIterator[Following]:
        """Start `herd ARGUMENTS` and read along; what still runs at the end of the block is ended."""
        shown = shlex.join(["herd", *map(str, arguments)])
        errors = self.log.with_name(f"{self.log.stem}-{arguments[0]}.log")
        with errors.open("wb") as stderr:
            process = await trio.lowlevel.open_process(
                [*self.inside, *herd_command(*arguments)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=herd_environment(HERD_HOME=self.home, OLLAMA_MODELS=self.models),
            )
        assert process.stdout is not None
        async with process.stdout:
            try:
                yield Following(shown, process, errors)
            finally:
                await end(process)

    async def status(self) -> NodeStatus:
        """The node as a whole."""
        return from_json((await self.cli("status", "--json")).document(), NodeStatus)

    async def members(self) -> list[MemberView]:
        """Every member this node knows, itself included."""
        return self._views((await self.cli("peers", "--json")).document(), "members", MemberView)

    async def model_list(self) -> list[ModelView]:
        """The models of this node's store."""
        return self._views((await self.cli("ls", "--json")).document(), "models", ModelView)

    async def find(self, pattern: str, *options: str) -> list[FoundModel]:
        """The network's models that this node finds; none is an empty list, not a failure."""
        finished = await self.cli("find", pattern, "--json", *options)
        if finished.exit_code == 3:
            return []
        return self._views(finished.document(), "models", FoundModel)

    @staticmethod
    def _views(document: Any, key: str, kind: type[T]) -> list[T]:
        return [from_json(entry, kind) for entry in document[key]]

    async def add(self, path: Path, *options: str) -> ModelView:
        """Make a file a model of this node."""
        last = (await self.cli("add", path, "--json", *options)).must().splitlines()[-1]
        return from_json(json.loads(last)["report"], ModelView)

    async def pull(self, name: str, *, timeout_s: float = COMMAND_TIMEOUT_S) -> PullReport:
        """Pull a model to its end; HerdProcessFailed when it ended otherwise."""
        last = (await self.cli("pull", name, "--json", timeout_s=timeout_s)).must().splitlines()[-1]
        return from_json(json.loads(last)["report"], PullReport)

    async def wait_members(self, count: int, *, timeout_s: float = 30.0) -> None:
        """Return once this node sees `count` members alive, itself included."""
        seen: list[str] = []
        with trio.move_on_after(timeout_s):
            while True:
                seen = [member.peer for member in await self.members() if member.state in ("self", "alive")]
                if len(seen) == count:
                    return
                await trio.sleep(POLL_INTERVAL_S)
        raise HerdProcessFailed(f"{self.home.name} sees {len(seen)} members, not {count}", None, tail(self.log))

    async def wait_found(self, name: str, *, timeout_s: float = 30.0) -> FoundModel:
        """Return once this node finds a model of exactly this name in the network."""
        with trio.move_on_after(timeout_s):
            while True:
                for model in await self.find(name):
                    if model.name == name:
                        return model
                await trio.sleep(POLL_INTERVAL_S)
        raise HerdProcessFailed(f"{self.home.name} does not find {name}", None, tail(self.log))

    async def kill9(self) -> None:
        """End the process as a power cut would: no handler runs."""
        self.process.kill()
        await self.process.wait()

    async def stop(self) -> int:
        """Let the node leave and end; its exit code."""
        return await end(self.process)


async def _read_ready(process: trio.Process, home: Path, log: Path, timeout_s: float) -> str:
    assert process.stdout is not None
    with trio.move_on_after(timeout_s) as waiting:
        async for line in Lines(process.stdout):
            word, _, multiaddr = line.partition(" ")
            if word == "ready" and multiaddr:
                return multiaddr
    if waiting.cancelled_caught:
        raise HerdProcessFailed(f"{home.name} was not ready within {timeout_s:g} s", None, tail(log))
    exit_code = await end(process)
    raise HerdProcessFailed(f"{home.name} ended with exit code {exit_code} before it was ready", exit_code, tail(log))


@asynccontextmanager
async def herd_process(
    home: Path,
    *,
    models: Path | None = None,
    bootstrap: Sequence[str] = (),
    mesh_key: str | None = None,
    options: Sequence[str] = (),
    settings: Mapping[str, str] | None = None,
    inside: Sequence[str] = (),
    ready_timeout_s: float = READY_TIMEOUT_S,
) -> AsyncIterator[HerdProcess]:
    """A node of its own on 127.0.0.1: home, store (`models`, by default inside the home) and free ports.

    `options` are further flags of `herd up`, `settings` further environment variables, `inside` the command that runs
    it elsewhere (`ip netns exec NAME`). Raises HerdProcessFailed,
    with exit code and log, when it does not come to `ready`. At the end of the block the process is asked to leave,
    and killed when it does not.
    """
    models = models or home / "models"
    log = home.with_name(f"{home.name}.log")
    bootstraps = [part for multiaddr in bootstrap for part in ("--bootstrap", multiaddr)]
    arguments: list[str | Path] = ["--home", home, "--models", models]
    arguments += ["--host", "127.0.0.1", "--port", "0", "--api", "127.0.0.1:0"]
    secrets = {"HERD_MESH_KEY": mesh_key} if mesh_key else {}
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as stderr:
        process = await trio.lowlevel.open_process(
            [*inside, *herd_command("up", *arguments, *bootstraps, *options)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=herd_environment(**secrets, **(settings or {})),
            # Ctrl-C in a terminal is for the program that started the node; that one then ends its nodes in order.
            start_new_session=True,
        )
    assert process.stdout is not None
    async with process.stdout:
        try:
            multiaddr = await _read_ready(process, home, log, ready_timeout_s)
            yield HerdProcess(home, models, log, multiaddr, process, inside)
        except BaseException as error:
            # Whatever went wrong in the block, what this node said is part of the story.
            error.add_note(f"--- end of {log}:\n{tail(log)}")
            raise
        finally:
            await end(process)


async def mesh_key_of(node: HerdProcess) -> str:
    """The key that lets others into this node's mesh, as hex."""
    return (await node.cli("config", "mesh-key")).must().strip()
