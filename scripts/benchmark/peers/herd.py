"""herd as it is: `herd up` processes, asked through their API by helper processes that are there before."""

import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import attrs
import trio

from node.cli.node_file import find_node
from node.views import FoundModel, MemberView, ModelView, PullReport, from_json
from scripts.benchmark.agents import Agent, AgentFailed, agent
from scripts.herd_process import HerdProcess, herd_process, mesh_key_of

OPERATION_TIMEOUT_S = 900.0
WAIT_TIMEOUT_S = 60.0
POLL_INTERVAL_S = 0.1


@attrs.frozen
class Pulled:
    """One pull: seconds from its common start, or its request, to the finished, verified, durable model."""

    seconds: float
    report: PullReport


@attrs.frozen
class Node:
    """A running node and the helper that asks it."""

    process: HerdProcess
    asker: Agent

    @property
    def pid(self) -> int:
        """The node's process."""
        return self.process.process.pid

    async def add(self, path: Path, name: str) -> ModelView:
        """Make a file a model of this node: hashed, linked, announced."""
        arguments = {"path": str(path), "name": name}
        answer = await self.asker.ask(
            "operate", path="/api/mesh/add", arguments=arguments, timeout_s=OPERATION_TIMEOUT_S
        )
        return from_json(answer["report"], ModelView)

    async def pull(self, name: str, at: float | None = None) -> Pulled:
        """Pull a model, at an instant when one is given. AgentFailed when it does not come in verified."""
        answer = await self.asker.ask(
            "operate", path="/api/mesh/pull", arguments={"name": name}, at=at, timeout_s=OPERATION_TIMEOUT_S
        )
        report = from_json(answer["report"], PullReport)
        if not report.verified:
            raise AgentFailed(f"{self.process.home.name} has {name} unverified")
        return Pulled(answer["seconds"], report)

    async def remove(self, name: str) -> None:
        """Remove a model with its blobs."""
        await self.asker.ask("read", path=f"/api/mesh/models?name={quote(name)}", method="DELETE")

    async def counters(self) -> dict[str, float]:
        """The node's metrics without labels."""
        counters: dict[str, float] = await self.asker.ask("counters")
        return counters

    async def wait_members(self, count: int) -> None:
        """Return once so many members are alive for this node, itself included."""

        def all_there(members: list[MemberView]) -> bool:
            return sum(member.state in ("self", "alive") for member in members) == count

        await self._wait("/api/mesh/peers", "members", MemberView, all_there, f"{count} members")

    async def wait_holders(self, name: str, count: int) -> None:
        """Return once this node finds the model with exactly so many others that hold it whole."""

        def held(models: list[FoundModel]) -> bool:
            return any(
                sum(provider.state == "complete" for provider in model.providers) == len(model.providers) == count
                for model in models
                if model.name == name
            )

        path = f"/api/mesh/find?pattern={quote(name)}"
        await self._wait(path, "models", FoundModel, held, f"{name} at {count} holders")

    async def _wait(self, path: str, key: str, kind: type[Any], holds: Callable[[Any], bool], what: str) -> None:
        with trio.move_on_after(WAIT_TIMEOUT_S):
            while True:
                document = json.loads(await self.asker.ask("read", path=path))
                if holds([from_json(entry, kind) for entry in document[key]]):
                    return
                await trio.sleep(POLL_INTERVAL_S)
        raise AgentFailed(f"{self.process.home.name} does not see {what} after {WAIT_TIMEOUT_S:g} s: {document[key]}")


@asynccontextmanager
async def node(
    home: Path,
    *,
    first: Node | None = None,
    mesh_key: str | None = None,
    settings: Mapping[str, str] | None = None,
    inside: Sequence[str] = (),
) -> AsyncIterator[Node]:
    """One node; with `first`, in that one's mesh, whose key a new home needs. In a namespace it serves all links."""
    async with AsyncExitStack() as stack:
        started = herd_process(
            home,
            bootstrap=[] if first is None else [first.process.multiaddr],
            mesh_key=mesh_key,
            options=["--host", "0.0.0.0"] if inside else [],
            settings=settings,
            inside=inside,
        )
        process = await stack.enter_async_context(started)
        api = find_node(home).api
        log = home.with_name(f"{home.name}-asker.log")
        asker = await stack.enter_async_context(agent("asker", log, api, name=home.name, inside=inside))
        yield Node(process, asker)


@asynccontextmanager
async def mesh(
    folder: Path,
    names: Sequence[str],
    *,
    insides: Sequence[Sequence[str]] = (),
    settings: Mapping[str, str] | None = None,
) -> AsyncIterator[list[Node]]:
    """One node a name, in a folder of their own, each seeing all; ended together."""
    places = insides or [()] * len(names)
    await trio.Path(folder).mkdir(parents=True, exist_ok=True)
    async with AsyncExitStack() as stack:
        nodes: list[Node] = []
        mesh_key = None
        for name, inside in zip(names, places, strict=True):
            first = nodes[0] if nodes else None
            joining = node(folder / name, first=first, mesh_key=mesh_key, settings=settings, inside=inside)
            nodes.append(await stack.enter_async_context(joining))
            mesh_key = mesh_key or await mesh_key_of(nodes[0].process)
        for one in nodes:
            await one.wait_members(len(nodes))
        yield nodes
        # Asked all at once, they leave side by side; each is then waited for as the stack unwinds.
        for one in nodes:
            if one.process.process.poll() is None:
                one.process.process.terminate()
