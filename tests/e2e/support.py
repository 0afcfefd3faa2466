"""What the stories with real processes share: nodes that know each other, models, and an independent look at stores."""

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

import httpx
import trio

from node.views import MemberView, PullReport
from scripts.herd_process import (
    POLL_INTERVAL_S,
    Finished,
    Following,
    HerdProcess,
    HerdProcessFailed,
    herd_process,
    mesh_key_of,
)
from scripts.make_gguf import write_llama_gguf
from tests.reference_reader import StoredModel, read_model, stray_files

__all__ = [
    "Finished",
    "Following",
    "HerdProcess",
    "HerdProcessFailed",
    "add_llama",
    "blob_of",
    "flip_bytes",
    "held_model",
    "herd_process",
    "mesh",
    "mesh_key_of",
    "pull_at_once",
    "served_bytes",
    "stored_alike",
    "wait_member",
    "write_llama",
]


@asynccontextmanager
async def mesh(folder: Path, names: Sequence[str]) -> AsyncIterator[list[HerdProcess]]:
    """One running node a name, the first of them making the mesh, each seeing all; ended together."""
    async with AsyncExitStack() as stack:
        nodes = [await stack.enter_async_context(herd_process(folder / names[0]))]
        mesh_key = await mesh_key_of(nodes[0])
        for name in names[1:]:
            joining = herd_process(folder / name, bootstrap=[nodes[0].multiaddr], mesh_key=mesh_key)
            nodes.append(await stack.enter_async_context(joining))
        for node in nodes:
            await node.wait_members(len(nodes))
        yield nodes
        # Asked all at once, they leave side by side; each is then waited for as the stack unwinds.
        for node in nodes:
            if node.process.poll() is None:
                node.process.terminate()


async def write_llama(path: Path, size_mb: float, seed: int = 0) -> Path:
    """A valid llama of about this size, other weights for another seed."""
    await trio.to_thread.run_sync(partial(write_llama_gguf, path, int(size_mb * 1_000_000), seed=seed))
    return path


async def add_llama(node: HerdProcess, name: str, size_mb: float, seed: int = 0) -> StoredModel:
    """Write a llama, make it a model of the node, and see it there with independent eyes."""
    path = await write_llama(node.home.with_name(f"{name}.gguf"), size_mb, seed)
    added = await node.add(path, "--name", name)
    assert added.name == f"{name}:latest"
    assert added.state == "verified"
    return await held_model(node, added.name)


async def held_model(node: HerdProcess, name: str) -> StoredModel:
    """The model as Ollama would find it in this node's store; BrokenStore when it is not whole, or something strays."""

    def look() -> StoredModel:
        model = read_model(node.models, name)
        model.verify()
        assert stray_files(node.models) == []
        return model

    return await trio.to_thread.run_sync(look)


async def stored_alike(nodes: Sequence[HerdProcess], name: str) -> StoredModel:
    """The model, once every node's store holds it whole and under the same manifest bytes."""
    held = [await held_model(node, name) for node in nodes]
    assert {model.manifest for model in held} == {held[0].manifest}
    return held[0]


def blob_of(node: HerdProcess, name: str) -> Path:
    """The file of the model's weights in this node's store."""
    return read_model(node.models, name).blob_of("model").path


async def pull_at_once(nodes: Sequence[HerdProcess], name: str) -> dict[str, PullReport]:
    """Pull on all of these nodes at the same time; each node's report under its peer id."""
    reports: dict[str, PullReport] = {}

    async def pull(node: HerdProcess) -> None:
        reports[node.peer] = await node.pull(name)

    for node in nodes:
        await node.wait_found(name)
    async with trio.open_nursery() as nursery:
        for node in nodes:
            nursery.start_soon(pull, node)
    return reports


async def served_bytes(node: HerdProcess, *, timeout_s: float = 30.0) -> int:
    """How many bytes of chunks this node has sent to whomever, once no more are going out."""
    before = -1
    async with httpx.AsyncClient(base_url=(await node.status()).api) as client:
        with trio.fail_after(timeout_s):
            while True:
                text = (await client.get("/metrics")).text
                figures = dict(line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("herd_exchange_"))
                served = int(float(figures["herd_exchange_served_bytes_total"]))
                if float(figures["herd_exchange_serve_buffered_bytes"]) == 0 and served == before:
                    return served
                before = served
                await trio.sleep(POLL_INTERVAL_S)  # real time: another process sends


async def wait_member(node: HerdProcess, peer: str, states: Sequence[str], *, timeout_s: float = 60.0) -> MemberView:
    """Return a member's view once this node sees it in one of the states; HerdProcessFailed when it never does."""
    seen = "nothing"
    with trio.move_on_after(timeout_s):
        while True:
            # Each look is a process of its own, which is pause enough.
            for member in await node.members():
                if member.peer == peer:
                    seen = member.state
                    if seen in states:
                        return member
    raise HerdProcessFailed(f"{node.home.name} sees {peer[-8:]} {seen}, not {' or '.join(states)}", None, "")


def flip_bytes(path: Path, offsets: Sequence[int]) -> None:
    """Let a file rot in place: bits flip at the offsets, while size and time of change stay what they were."""
    before = path.stat()
    mode = before.st_mode
    path.chmod(0o644)
    with path.open("r+b") as file:
        for offset in offsets:
            file.seek(offset)
            byte = file.read(1)[0]
            file.seek(offset)
            file.write(bytes([byte ^ 0x40]))
    path.chmod(mode)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
