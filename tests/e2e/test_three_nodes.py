"""Three nodes, three processes: they find each other and carry a model, whole and as Ollama lays it out."""

import hashlib
import json
from pathlib import Path

import pytest
import trio

from tests.e2e.support import (
    add_llama,
    held_model,
    herd_process,
    mesh,
    mesh_key_of,
    pull_at_once,
    stored_alike,
    write_llama,
)
from tests.reference_reader import model_names

pytestmark = [pytest.mark.processes, pytest.mark.slow]


async def test_two_nodes_pull_at_once_what_the_third_holds(tmp_path: Path) -> None:
    with trio.fail_after(120):
        async with mesh(tmp_path, ["one", "two", "three"]) as (one, two, three):
            added = await add_llama(one, "llama", size_mb=48)
            size_bytes = sum(blob.size_bytes for blob in added.blobs)

            reports = await pull_at_once([two, three], "llama:latest")

            assert (await stored_alike([one, two, three], "llama:latest")).manifest == added.manifest
            for node, other in ((two, three), (three, two)):
                report = reports[node.peer]
                assert report.verified
                assert report.digest == f"sha256:{added.model_id}"
                assert report.size_bytes == size_bytes
                assert (report.fetched_bytes, report.resumed_bytes, report.local_bytes) == (size_bytes, 0, 0)
                assert sum(report.sources.values()) == size_bytes
                assert set(report.sources) <= {one.peer, other.peer}
                assert [(model.name, model.state) for model in await node.model_list()] == [
                    ("llama:latest", "verified")
                ]

            # Everything is there: a second pull finds nothing left to fetch.
            again = await two.pull("llama:latest")
            assert (again.fetched_bytes, again.verified) == (0, True)

            # What is removed on one host stays on the others.
            (await two.cli("rm", "llama:latest")).must()
            assert model_names(two.models) == []
            assert list((two.models / "blobs").iterdir()) == []
            await stored_alike([one, three], "llama:latest")


async def test_an_ollama_store_is_adopted_untouched_and_shared(tmp_path: Path) -> None:
    """A store that somebody else filled: its templates and licences travel as well, and no byte of it changes."""
    models = tmp_path / "ollama" / "models"
    weights = await write_llama(tmp_path / "weights.gguf", size_mb=8)
    ollama_create(models, "assistant", "7b", weights.read_bytes(), "{{ .Prompt }}", '{"stop": ["</s>"]}')
    before = snapshot(models)
    with trio.fail_after(120):
        async with herd_process(tmp_path / "one", models=models) as one:
            key = await mesh_key_of(one)
            async with herd_process(tmp_path / "two", bootstrap=[one.multiaddr], mesh_key=key) as two:
                found = await two.wait_found("assistant:7b")
                assert [provider.peer for provider in found.providers] == [one.peer]
                report = await two.pull("assistant:7b")
                assert report.verified
                pulled = await held_model(two, "assistant:7b")
                assert len(pulled.blobs) == 4
                assert pulled.manifest == (await held_model(one, "assistant:7b")).manifest
    assert snapshot(models) == before


async def test_a_node_that_comes_back_knows_its_mesh_and_its_models(tmp_path: Path) -> None:
    """A restart needs no bootstrap peer and no key: the home remembers both, and nothing is fetched again."""
    with trio.fail_after(180):
        async with mesh(tmp_path, ["one", "two"]) as (one, two):
            await add_llama(one, "llama", size_mb=8)
            await two.wait_found("llama:latest")
            await two.pull("llama:latest")
            assert await two.stop() == 0
            async with herd_process(tmp_path / "two") as returned:
                assert returned.peer == two.peer
                await returned.wait_members(2)
                await one.wait_members(2)
                assert (await returned.pull("llama:latest")).fetched_bytes == 0


async def test_a_file_that_is_no_model_is_refused_by_name(tmp_path: Path) -> None:
    notes = tmp_path / "notes.gguf"
    notes.write_text("not a model at all\n")
    with trio.fail_after(60):
        async with herd_process(tmp_path / "one") as one:
            refused = await one.cli("add", notes, "--json")
            assert refused.exit_code == 2
            assert "notes.gguf" in refused.stderr
            assert refused.stderr.count("\n") == 1
            assert await one.model_list() == []
            assert notes.read_text() == "not a model at all\n"


def ollama_create(models: Path, model: str, tag: str, weights: bytes, template: str, parameters: str) -> None:
    """Write a model into a store the way Ollama does, without herd."""

    def blob(media_type: str, data: bytes) -> dict[str, object]:
        digest = hashlib.sha256(data).hexdigest()
        (models / "blobs").mkdir(parents=True, exist_ok=True)
        (models / "blobs" / f"sha256-{digest}").write_bytes(data)
        return {"mediaType": f"application/vnd.{media_type}", "digest": f"sha256:{digest}", "size": len(data)}

    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
        "config": blob("docker.container.image.v1+json", b'{"model_format":"gguf","os":"linux"}'),
        "layers": [
            blob("ollama.image.model", weights),
            blob("ollama.image.template", template.encode()),
            blob("ollama.image.params", parameters.encode()),
        ],
    }
    folder = models / "manifests" / "registry.ollama.ai" / "library" / model
    folder.mkdir(parents=True)
    (folder / tag).write_text(json.dumps(manifest))


def snapshot(models: Path) -> dict[str, tuple[int, bytes]]:
    """Time of change and bytes of every file outside herd's own folder."""
    files = [path for path in sorted(models.rglob("*")) if path.is_file() and ".herd" not in path.parts]
    return {str(path.relative_to(models)): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}
