"""Stores for tests: made by hand after Ollama's layout, and snapshots that show whether anything was touched."""

import errno
import hashlib
import json
import os
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from blake3 import blake3

from node.events import EventBus, Listener, StoreChanged
from node.ports import PartialBlob
from node.store.config import StoreConfig
from node.store.store import Store, open_store
from protocols.ids import Digest, digest_of
from protocols.names import ModelName
from protocols.recipe.recipe import Recipe
from tests.support_blobs import read_chunk
from tests.support_recipe import f16_tensor, gguf_bytes

CHUNK = 1000


def name(text: str) -> ModelName:
    return ModelName.parse(text)


def random_bytes(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def small_gguf(seed: int = 1, size: int = 40_000) -> bytes:
    return gguf_bytes(
        [f16_tensor(f"blk.{index}.ffn_up.weight", random_bytes(size, seed + index)) for index in range(3)]
    )


def cut(data: bytes, chunk_size_bytes: int = CHUNK) -> Recipe:
    """A recipe in fixed pieces, as some peer might offer it."""
    chunks = chunks_of(data, chunk_size_bytes)
    hashes = b"".join(blake3(chunk).digest() for chunk in chunks)
    return Recipe(digest_of(data), len(data), f"fixed:{chunk_size_bytes}", tuple(map(len, chunks)), hashes)


def chunks_of(data: bytes, chunk_size_bytes: int = CHUNK) -> list[bytes]:
    return [data[offset : offset + chunk_size_bytes] for offset in range(0, len(data), chunk_size_bytes)]


def config_for(models: Path, **settings: Any) -> StoreConfig:
    """Fast intervals, and no reserve: the test's disk may be small."""
    fast = {"reserve_free_bytes": 0, "scan_interval_s": 0.05, "sweep_interval_s": 0.1, "settle_s": 0.3}
    return StoreConfig(models_path=str(models), **{**fast, **settings})


@asynccontextmanager
async def opened(models: Path, bus: EventBus | None = None, **settings: Any) -> AsyncIterator[Store]:
    """An open store whose background does not run."""
    with trio.fail_after(30):
        async with open_store(config_for(models, **settings), bus or EventBus()) as store:
            yield store


@asynccontextmanager
async def running(models: Path, bus: EventBus | None = None, **settings: Any) -> AsyncIterator[Store]:
    """An open store that watches and verifies."""
    async with opened(models, bus, **settings) as store, trio.open_nursery() as nursery:
        await nursery.start(store.run)
        yield store
        nursery.cancel_scope.cancel()


async def receive_all(store: Store, data: bytes, chunk_size_bytes: int = CHUNK) -> Digest:
    """Have the store receive a blob whole."""
    recipe = cut(data, chunk_size_bytes)
    partial = await store.blobs.receive(recipe)
    await write_all(partial, data, chunk_size_bytes)
    await partial.finish()
    await partial.close()
    return recipe.digest


async def write_all(partial: PartialBlob, data: bytes, chunk_size_bytes: int = CHUNK) -> None:
    for index, chunk in enumerate(chunks_of(data, chunk_size_bytes)):
        await partial.write(index, chunk)


async def read_all(store: Store, digest: Digest) -> bytes:
    """A blob as the store serves it."""
    recipe = await store.blobs.recipe(digest)
    return b"".join([await read_chunk(store.blobs, digest, index) for index in range(len(recipe))])


def manifest_for(layers: Sequence[bytes], config: bytes = b'{"model_format":"gguf"}') -> bytes:
    """A manifest as a registry sends it, with a field of its own that must survive."""

    def entry(kind: str, data: bytes) -> dict[str, Any]:
        return {"mediaType": kind, "digest": digest_of(data), "size": len(data)}

    kinds = ["model", "template", "license", "params"]
    return json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
            "config": entry("application/vnd.docker.container.image.v1+json", config),
            "layers": [
                entry("application/vnd.ollama.image." + kinds[min(index, 3)], data) for index, data in enumerate(layers)
            ],
            "annotations": {"kept": True},
        },
        indent=1,
    ).encode()


def make_model(models: Path, text: str, layers: Sequence[bytes], config: bytes = b'{"model_format":"gguf"}') -> bytes:
    """Write a model as Ollama would, blobs first; the manifest's bytes."""
    blobs = models / "blobs"
    blobs.mkdir(parents=True, exist_ok=True)
    for data in (*layers, config):
        path = blobs / f"sha256-{hashlib.sha256(data).hexdigest()}"
        if not path.exists():
            path.write_bytes(data)
    path = manifest_file(models, text)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(manifest_for(layers, config))
    return path.read_bytes()


def manifest_file(models: Path, text: str) -> Path:
    return models.joinpath("manifests", *name(text).path_parts())


def blob_file(models: Path, data: bytes) -> Path:
    return models / "blobs" / f"sha256-{hashlib.sha256(data).hexdigest()}"


def snapshot(models: Path) -> dict[str, tuple[int, ...]]:
    """Everything outside `.herd/` with what changes when it is touched, link counts and ctimes included."""
    found: dict[str, tuple[int, ...]] = {}
    for path in sorted(models.rglob("*")):
        if ".herd" in path.relative_to(models).parts:
            continue
        status = path.lstat()
        found[str(path)] = (status.st_ino, status.st_mode, status.st_nlink, status.st_mtime_ns, status.st_ctime_ns)
    return found


def herd_files(models: Path) -> list[str]:
    """What lies in herd's corner besides index and lock."""
    herd = models / ".herd"
    return sorted(
        str(path.relative_to(herd))
        for path in herd.rglob("*")
        if path.is_file() and not path.name.startswith(("index.sqlite", "lock"))
    )


def heard(listener: Listener) -> list[tuple[str, str]]:
    """Model and change of every event so far."""
    return [(event.model, event.change) for event in listener._queue if isinstance(event, StoreChanged)]


async def until_state(store: Store, text: str, state: str) -> str:
    """Wait until a model has a state; its detail."""
    seen = 0
    while True:
        for view in await store.models():
            if view.name == name(text).display() and view.state == state:
                return view.detail
        seen = await store.wait_changed(seen)


async def until_gone(store: Store, text: str) -> None:
    seen = 0
    while any(view.name == name(text).display() for view in await store.models()):
        seen = await store.wait_changed(seen)


def keep_mtime_and_write(path: Path, offset: int, data: bytes) -> None:
    """Change bytes the way a failing disk does: no time of change tells."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


class Faults:
    """Lets the first `good` calls of some system calls pass and fails every later one, as a dying disk does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, good: int) -> None:
        self.left = good
        self.failed = False
        for call in ("rename", "link", "fsync", "mkdir", "pwrite", "unlink", "chmod"):
            monkeypatch.setattr(os, call, self.wrap(getattr(os, call)))

    def wrap(self, call: Callable[..., object]) -> Callable[..., object]:
        def counted(*arguments: object, **named: object) -> object:
            self.left -= 1
            if self.left < 0:
                self.failed = True
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return call(*arguments, **named)

        return counted
