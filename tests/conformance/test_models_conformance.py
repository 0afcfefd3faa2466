"""One contract for `node.ports.Models`: the store on disk and its twin in memory."""

import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path

import attrs
import pytest
import trio

from node.errors import HerdError, NotFound, UsageError
from node.events import EventBus, StoreChanged
from node.ports import Blobs, Models, StoreError
from node.store.config import StoreConfig
from node.store.store import open_store
from protocols.ids import Digest, digest_of
from protocols.manifest import parse_manifest
from protocols.names import ModelName
from scripts.make_gguf import write_llama_gguf
from simnet.blobs import MemoryBlobs, cut
from simnet.models import MemoryModels

TINY = ModelName.parse("tiny")
OTHER = ModelName.parse("other:1b")


@attrs.frozen
class Shelf:
    models: Models
    blobs: Blobs
    bus: EventBus


@pytest.fixture(params=["disk", "memory"])
async def shelf(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Shelf]:
    bus = EventBus()
    if request.param == "memory":
        blobs = MemoryBlobs(chunk_size_bytes=64 * 1024)
        yield Shelf(MemoryModels(blobs, bus), blobs, bus)
        return
    config = StoreConfig(models_path=str(tmp_path / "models"), chunk_size_bytes=1024 * 1024, reserve_free_bytes=0)
    async with open_store(config, bus) as store, trio.open_nursery() as nursery:
        await nursery.start(store.run)
        yield Shelf(store, store.blobs, bus)
        nursery.cancel_scope.cancel()


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.gguf"
    write_llama_gguf(path, 512 * 1024, seed=3)
    return path


async def receive(shelf: Shelf, data: bytes) -> Digest:
    """Bring a blob in as a transfer does."""
    recipe = cut(data, 1024 * 1024)
    partial = await shelf.blobs.receive(recipe)
    for index in range(len(recipe)):
        offset = recipe.offset_bytes(index)
        await partial.write(index, data[offset : offset + recipe.sizes_bytes[index]])
    await partial.finish()
    await partial.close()
    return recipe.digest


def manifest_of(*blobs: bytes) -> bytes:
    layers = [
        {"mediaType": "application/vnd.ollama.image.license", "digest": str(digest_of(blob)), "size": len(blob)}
        for blob in blobs
    ]
    return json.dumps({"schemaVersion": 2, "layers": layers}).encode()


async def test_a_file_becomes_a_model_with_its_digest_kept(shelf: Shelf, gguf: Path) -> None:
    told: list[tuple[int, int]] = []
    view = await shelf.models.add_gguf(gguf, TINY, lambda done, size: told.append((done, size)))
    assert (view.name, view.state) == ("tiny:latest", "verified")
    assert told[-1][0] == told[-1][1] == gguf.stat().st_size
    manifest = (await shelf.models.complete_manifests())[TINY]
    digest = Digest("sha256:" + hashlib.sha256(gguf.read_bytes()).hexdigest())
    assert digest in [blob.digest for blob in parse_manifest(manifest).blobs()]
    assert view.digest == digest_of(manifest)
    held = shelf.blobs.held(digest)
    assert held is not None
    assert held.complete()
    assert [model.name for model in await shelf.models.models()] == ["tiny:latest"]


async def test_what_is_no_gguf_is_refused_by_name_and_leaves_nothing(shelf: Shelf, tmp_path: Path) -> None:
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"GGUF, it says")
    with pytest.raises(UsageError, match=r"bad\.gguf"):
        await shelf.models.add_gguf(bad, TINY)
    with pytest.raises(HerdError, match=r"absent\.gguf"):
        await shelf.models.add_gguf(tmp_path / "absent.gguf", TINY)
    assert await shelf.models.models() == []
    assert await shelf.models.complete_manifests() == {}


async def test_a_model_is_placed_when_its_blobs_are_here_and_not_before(shelf: Shelf) -> None:
    manifest = manifest_of(b"first", b"second")
    await receive(shelf, b"first")
    with pytest.raises(StoreError, match=digest_of(b"second").removeprefix("sha256:")):
        await shelf.models.place_model(OTHER, manifest)
    assert await shelf.models.complete_manifests() == {}
    await receive(shelf, b"second")
    view = await shelf.models.place_model(OTHER, manifest)
    assert (view.name, view.digest, view.state) == ("other:1b", digest_of(manifest), "verified")
    assert await shelf.models.complete_manifests() == {OTHER: manifest}


async def test_removing_keeps_what_another_model_names(shelf: Shelf) -> None:
    for blob in (b"shared", b"alone"):
        await receive(shelf, blob)
    await shelf.models.place_model(TINY, manifest_of(b"shared", b"alone"))
    await shelf.models.place_model(OTHER, manifest_of(b"shared"))
    await shelf.models.remove(TINY)
    assert shelf.blobs.held(digest_of(b"alone")) is None
    assert shelf.blobs.held(digest_of(b"shared")) is not None
    assert list(await shelf.models.complete_manifests()) == [OTHER]
    with pytest.raises(NotFound, match="tiny"):
        await shelf.models.remove(TINY)


async def test_removing_keeps_what_a_pull_still_needs(shelf: Shelf) -> None:
    await receive(shelf, b"shared")
    await shelf.models.place_model(TINY, manifest_of(b"shared"))
    with shelf.blobs.keep({digest_of(b"shared"): len(b"shared")}):
        await shelf.models.remove(TINY)
        assert shelf.blobs.held(digest_of(b"shared")) is not None
        await shelf.models.place_model(OTHER, manifest_of(b"shared"))
    assert list(await shelf.models.complete_manifests()) == [OTHER]
    await shelf.models.remove(OTHER)
    assert shelf.blobs.held(digest_of(b"shared")) is None


async def test_changes_are_told(shelf: Shelf, gguf: Path) -> None:
    with shelf.bus.subscribe() as events:
        await shelf.models.add_gguf(gguf, TINY)
        await shelf.models.remove(TINY)
        changes: list[str] = []
        with trio.fail_after(10):
            while "removed" not in changes:
                event = await anext(events)
                if isinstance(event, StoreChanged):
                    changes.append(event.change)
    assert changes[0] in ("added", "verified")
