"""node/store/adopt, census and manifests: an existing store is taken as it is, and what others do to it is noticed."""

import os
import shutil
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from node.events import EventBus
from node.ports import BlobMissing
from node.store import hashing
from node.store.files import FileKey
from node.store.index import Index
from node.store.manifests import ManifestTree
from node.store.ollama import Layout
from node.store.store import Store
from node.store.verify import FileChanged, hash_file
from protocols.ids import blob_file_name, digest_of
from protocols.recipe.recipe import Recipe
from tests.support_blobs import read_chunk
from tests.support_store import (
    blob_file,
    chunks_of,
    cut,
    heard,
    herd_files,
    keep_mtime_and_write,
    make_model,
    manifest_file,
    manifest_for,
    name,
    opened,
    random_bytes,
    read_all,
    receive_all,
    running,
    small_gguf,
    snapshot,
    until_gone,
    until_state,
)

WEIGHTS, TEMPLATE = small_gguf(), b"{{ .Prompt }}"


async def until_verified(store: Store, text: str) -> None:
    await until_state(store, text, "verified")


async def test_an_existing_store_is_adopted_without_touching_it(tmp_path: Path) -> None:
    manifest = make_model(tmp_path, "llama3.2", [WEIGHTS, TEMPLATE, TEMPLATE])
    make_model(tmp_path, "hf.co/bob/x:Q4_K_M", [WEIGHTS])
    before = snapshot(tmp_path)
    bus = EventBus()
    with bus.subscribe() as events:
        async with running(tmp_path, bus) as store:
            await until_verified(store, "llama3.2")
            await until_verified(store, "hf.co/bob/x:Q4_K_M")
            complete = await store.complete_manifests()
            assert set(complete) == {name("llama3.2"), name("hf.co/bob/x:Q4_K_M")}
            assert complete[name("llama3.2")] == store.manifest(name("llama3.2")) == manifest
            assert store.manifest(name("llama3.2")) == manifest
            assert await read_all(store, digest_of(WEIGHTS)) == WEIGHTS
            assert store.unverified_bytes() == 0
            assert store.stored_bytes() == len(WEIGHTS) + len(TEMPLATE) + len(b'{"model_format":"gguf"}')
            assert store.statistics().verified_bytes_total == store.stored_bytes()
        assert ("llama3.2:latest", "added") in heard(events)
        assert ("llama3.2:latest", "verified") in heard(events)
    assert snapshot(tmp_path) == before
    assert herd_files(tmp_path) == []


async def test_nothing_is_announced_before_it_was_read(tmp_path: Path) -> None:
    make_model(tmp_path, "llama3.2", [WEIGHTS])
    async with opened(tmp_path) as store:
        [view] = await store.models()
        assert view.state == "verifying"
        assert await store.complete_manifests() == {}
        assert store.blobs.held(digest_of(WEIGHTS)) is None
        assert store.unverified_bytes() > len(WEIGHTS)
        with pytest.raises(BlobMissing):
            await read_chunk(store.blobs, digest_of(WEIGHTS), 0)
        with pytest.raises(BlobMissing):
            await store.blobs.recipe(digest_of(WEIGHTS))


async def test_a_second_start_reads_nothing_again_but_what_changed(tmp_path: Path) -> None:
    make_model(tmp_path, "llama3.2", [WEIGHTS, TEMPLATE])
    async with running(tmp_path) as store:
        await until_verified(store, "llama3.2")
    os.utime(blob_file(tmp_path, TEMPLATE))
    async with opened(tmp_path) as store:
        assert store.blobs.held(digest_of(WEIGHTS)) is not None
        assert store.unverified_bytes() == len(TEMPLATE)
    async with running(tmp_path) as store:
        await until_verified(store, "llama3.2")
        assert store.statistics().verified_bytes_total == len(TEMPLATE)


async def test_what_was_there_before_is_one_line_of_the_log_and_what_comes_later_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    for number in range(3):
        make_model(tmp_path, f"old-{number}", [WEIGHTS, TEMPLATE])
    async with running(tmp_path) as store:
        await until_verified(store, "old-2")
    caplog.clear()
    async with running(tmp_path) as store:
        assert [record.message for record in caplog.records] == ["the store has 3 models, 3 of them verified"]
        make_model(tmp_path, "new", [WEIGHTS])
        await until_verified(store, "new")
    assert caplog.records[1].message.startswith("model new:latest added: manifest sha256:")


async def test_unfinished_and_foreign_files_are_ignored(tmp_path: Path) -> None:
    make_model(tmp_path, "llama3.2", [WEIGHTS])
    digest = blob_file_name(digest_of(b"unfinished"))
    for stray in (f"{digest}-partial", f"{digest}-partial-0", f"{digest}.tmp", "sha256-123", "COPY12", "Q4_K_M9"):
        (tmp_path / "blobs" / stray).write_bytes(b"{}")
    (tmp_path / "blobs" / "split-gguf-1").mkdir()
    (tmp_path / "manifests" / ".DS_Store").write_bytes(b"\0")
    (manifest_file(tmp_path, "llama3.2").parent / ".hidden").write_bytes(b"{}")
    (tmp_path / "manifests" / "host").mkdir()
    async with running(tmp_path) as store:
        await until_verified(store, "llama3.2")
        assert [view.name for view in await store.models()] == ["llama3.2:latest"]
        assert store.statistics().blobs_verified == 2


async def test_a_missing_blob_is_named_and_other_models_go_on(tmp_path: Path) -> None:
    make_model(tmp_path, "broken", [WEIGHTS, TEMPLATE])
    make_model(tmp_path, "good", [WEIGHTS])
    missing = blob_file(tmp_path, TEMPLATE)
    missing.unlink()
    bus = EventBus()
    with bus.subscribe() as events:
        async with running(tmp_path, bus) as store:
            await until_verified(store, "good")
            detail = await until_state(store, "broken", "incomplete")
            assert digest_of(TEMPLATE) in detail
            assert str(manifest_file(tmp_path, "broken")) in detail
            assert list(await store.complete_manifests()) == [name("good")]
            missing.write_bytes(TEMPLATE)  # Ollama pulls it again
            await until_verified(store, "broken")
        assert heard(events).count(("broken:latest", "damaged")) == 1


@pytest.mark.parametrize("size_differs", [False, True])
async def test_wrong_bytes_are_named_and_never_served(tmp_path: Path, size_differs: bool) -> None:
    make_model(tmp_path, "broken", [WEIGHTS, TEMPLATE])
    make_model(tmp_path, "good", [WEIGHTS])
    path = blob_file(tmp_path, TEMPLATE)
    path.write_bytes(b"x" * (len(TEMPLATE) + size_differs))
    async with running(tmp_path) as store:
        await until_verified(store, "good")
        detail = await until_state(store, "broken", "damaged")
        assert str(path) in detail
        assert store.blobs.held(digest_of(TEMPLATE)) is None
        assert list(await store.complete_manifests()) == [name("good")]
    async with opened(tmp_path) as store:  # and it is not forgotten
        assert {view.name: view.state for view in await store.models()}["broken:latest"] == "damaged"


async def test_blobs_may_be_links_and_one_that_leads_nowhere_is_missing(tmp_path: Path) -> None:
    models, elsewhere = tmp_path / "models", tmp_path / "elsewhere"
    for text, layer in (("linked", WEIGHTS), ("broken", b"broken"), ("looped", b"looped"), ("odd", b"odd")):
        make_model(models, text, [layer])
    elsewhere.mkdir()
    shutil.move(blob_file(models, WEIGHTS), elsewhere / "weights")
    blob_file(models, WEIGHTS).symlink_to(elsewhere / "weights")
    for layer, target in ((b"broken", "gone"), (b"looped", blob_file(models, b"looped").name), (b"odd", "x" * 300)):
        blob_file(models, layer).unlink()
        blob_file(models, layer).symlink_to(target)
    async with running(models) as store:
        await until_verified(store, "linked")
        assert await read_all(store, digest_of(WEIGHTS)) == WEIGHTS
        for text in ("broken", "looped", "odd"):
            assert "is missing" in await until_state(store, text, "incomplete")
        await store.remove(name("linked"))
    assert not os.path.lexists(blob_file(models, WEIGHTS))
    assert (elsewhere / "weights").read_bytes() == WEIGHTS


async def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    make_model(tmp_path, "broken", [WEIGHTS, TEMPLATE])
    path = blob_file(tmp_path, TEMPLATE)
    path.unlink()
    os.mkfifo(path)
    manifest = manifest_for([WEIGHTS, b""])
    assert str(len(TEMPLATE)).encode() not in manifest
    manifest_file(tmp_path, "broken").write_bytes(
        manifest.replace(digest_of(b"").encode(), digest_of(TEMPLATE).encode())
    )
    async with running(tmp_path) as store:
        detail = await until_state(store, "broken", "damaged")
        assert f"{path} is no regular file" in detail


async def test_models_created_copied_changed_and_deleted_behind_our_back(tmp_path: Path) -> None:
    bus = EventBus()
    with bus.subscribe() as events:
        async with running(tmp_path, bus) as store:
            assert await store.models() == []
            make_model(tmp_path, "one", [WEIGHTS])
            await until_verified(store, "one")
            shutil.copytree(manifest_file(tmp_path, "one").parent, manifest_file(tmp_path, "two").parent)
            await until_verified(store, "two")
            changed = make_model(tmp_path, "one", [WEIGHTS, TEMPLATE])
            while store.manifest(name("one")) != changed:
                await store.wait_changed(await store.wait_changed(0))
            await until_verified(store, "one")
            manifest_file(tmp_path, "two").unlink()
            await until_gone(store, "two")
            shutil.rmtree(tmp_path / "manifests")
            await until_gone(store, "one")
    assert heard(events) == [
        ("one:latest", "added"),
        ("one:latest", "verified"),
        ("two:latest", "added"),
        ("two:latest", "verified"),
        ("one:latest", "added"),
        ("one:latest", "verified"),
        ("two:latest", "removed"),
        ("one:latest", "removed"),
    ]


async def test_a_half_written_manifest_gets_a_moment(tmp_path: Path) -> None:
    whole = make_model(tmp_path, "one", [WEIGHTS])
    path = manifest_file(tmp_path, "one")
    path.write_bytes(b"")
    bus = EventBus()
    with bus.subscribe() as events:
        async with running(tmp_path, bus, settle_s=20) as store:
            await store.scan()
            path.write_bytes(whole[: len(whole) // 2])
            await store.scan()
            assert await store.models() == []
            path.write_bytes(whole)
            await until_verified(store, "one")
        assert ("one:latest", "damaged") not in heard(events)


async def test_a_manifest_rewritten_in_place_stays_what_it_was_until_it_is_whole(tmp_path: Path) -> None:
    make_model(tmp_path, "one", [WEIGHTS])
    bus = EventBus()
    async with running(tmp_path, bus, settle_s=20) as store:
        await until_verified(store, "one")
        with bus.subscribe() as events:
            manifest_file(tmp_path, "one").write_bytes(b"")  # Ollama truncates, then writes
            await store.scan()
            assert await store.complete_manifests() == {name("one"): manifest_for([WEIGHTS])}
            make_model(tmp_path, "one", [WEIGHTS, TEMPLATE])
            await events.__anext__()  # added
            await until_verified(store, "one")
            assert heard(events) == [("one:latest", "verified")]


async def test_a_start_while_a_manifest_is_rewritten_forgets_nothing(tmp_path: Path) -> None:
    manifest = make_model(tmp_path, "one", [WEIGHTS])
    async with running(tmp_path) as store:
        await until_verified(store, "one")
    manifest_file(tmp_path, "one").write_bytes(manifest[:40])
    async with opened(tmp_path) as store:
        assert await store.models() == []
        manifest_file(tmp_path, "one").write_bytes(manifest)
        await store.scan()
        assert [view.state for view in await store.models()] == ["verified"]


async def test_a_blob_that_is_still_being_written_is_read_when_it_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_model(tmp_path, "one", [WEIGHTS])
    attempts: list[Path] = []

    def changing(path: Path, *arguments: Any, **named: Any) -> Any:
        attempts.append(path)
        if len(attempts) == 1:
            raise FileChanged(f"{path} was written to")
        return hash_file(path, *arguments, **named)

    monkeypatch.setattr(hashing, "hash_file", changing)
    bus = EventBus()
    with bus.subscribe() as events:
        async with running(tmp_path, bus) as store:
            await until_verified(store, "one")
        assert len(attempts) == 3
        assert heard(events) == [("one:latest", "added"), ("one:latest", "verified")]


async def test_a_blob_replaced_while_it_is_read_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_model(tmp_path, "one", [WEIGHTS])
    path = blob_file(tmp_path, WEIGHTS)
    path.write_bytes(bytes(len(WEIGHTS)))
    attempts: list[Path] = []

    def replaced(read: Path, *arguments: Any, **named: Any) -> Any:
        result = hash_file(read, *arguments, **named)
        attempts.append(read)
        if attempts.count(path) == 1:
            path.with_suffix(".new").write_bytes(WEIGHTS)
            path.with_suffix(".new").rename(path)
        return result

    monkeypatch.setattr(hashing, "hash_file", replaced)
    bus = EventBus()
    with bus.subscribe() as events:
        async with running(tmp_path, bus) as store:
            await until_verified(store, "one")
        assert heard(events) == [("one:latest", "added"), ("one:latest", "verified")]


async def test_blobs_of_very_old_stores_are_adopted_under_their_old_names(tmp_path: Path) -> None:
    make_model(tmp_path, "one", [WEIGHTS])
    blob_file(tmp_path, WEIGHTS).rename(tmp_path / "blobs" / digest_of(WEIGHTS))
    async with running(tmp_path) as store:
        await until_verified(store, "one")
        assert await read_all(store, digest_of(WEIGHTS)) == WEIGHTS


async def test_a_manifest_that_stays_broken_is_reported_once_and_can_be_removed(tmp_path: Path) -> None:
    make_model(tmp_path, "one", [WEIGHTS])
    path = manifest_file(tmp_path, "one")
    path.write_bytes(b'{"layers": [')
    bus = EventBus()
    with bus.subscribe() as events:
        async with running(tmp_path, bus, settle_s=0.1) as store:
            detail = await until_state(store, "one", "damaged")
            assert detail.startswith(f"{path} cannot be used: the manifest is no JSON")
            await store.remove(name("one"))
            assert await store.models() == []
        assert heard(events).count(("one:latest", "damaged")) == 1
    assert blob_file(tmp_path, WEIGHTS).exists()


async def test_a_blob_that_changes_is_not_served_until_it_was_read_again(tmp_path: Path) -> None:
    make_model(tmp_path, "one", [WEIGHTS])
    path = blob_file(tmp_path, WEIGHTS)
    async with running(tmp_path) as store:
        await until_verified(store, "one")
    async with opened(tmp_path) as store:
        path.write_bytes(bytes(len(WEIGHTS)))
        with pytest.raises(BlobMissing, match="has changed"):
            await read_chunk(store.blobs, digest_of(WEIGHTS), 0)
        assert store.blobs.held(digest_of(WEIGHTS)) is None
        path.unlink()
        make_model(tmp_path, "one", [WEIGHTS])
        async with trio.open_nursery() as nursery:
            await nursery.start(store.run)
            await until_verified(store, "one")
            path.unlink()
            assert digest_of(WEIGHTS) in await until_state(store, "one", "incomplete")
            nursery.cancel_scope.cancel()
        with pytest.raises(BlobMissing):
            await read_chunk(store.blobs, digest_of(WEIGHTS), 0)


async def test_silent_rot_is_served_as_it_stands_so_that_the_receiver_sees_it(tmp_path: Path) -> None:
    make_model(tmp_path, "one", [WEIGHTS])
    async with running(tmp_path) as store:
        await until_verified(store, "one")
        recipe = await store.blobs.recipe(digest_of(WEIGHTS))
        keep_mtime_and_write(blob_file(tmp_path, WEIGHTS), 10, b"rotten")
        assert (await read_chunk(store.blobs, digest_of(WEIGHTS), 0))[10:16] == b"rotten"
        assert len(recipe) == 1


async def test_an_unread_blob_that_is_here_is_read_before_it_is_fetched(tmp_path: Path) -> None:
    make_model(tmp_path, "one", [WEIGHTS])
    manifest_file(tmp_path, "one").unlink()
    async with opened(tmp_path) as store:
        partial = await store.blobs.receive(cut(WEIGHTS))
        assert partial.held().complete()
        await partial.finish()
        await partial.close()
        assert await read_all(store, digest_of(WEIGHTS)) == WEIGHTS
        assert herd_files(tmp_path) == []


async def test_an_unread_blob_with_wrong_bytes_is_fetched(tmp_path: Path) -> None:
    make_model(tmp_path, "one", [WEIGHTS])
    blob_file(tmp_path, WEIGHTS).write_bytes(bytes(len(WEIGHTS)))
    async with opened(tmp_path) as store:
        assert await receive_all(store, WEIGHTS) == digest_of(WEIGHTS)
        assert await read_all(store, digest_of(WEIGHTS)) == WEIGHTS


async def test_what_is_remembered_as_verified_was_made_durable_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, record = os.fsync, Index.record

    def watched_sync(descriptor: int) -> None:
        fsync(descriptor)
        steps.append(f"synced inode {os.fstat(descriptor).st_ino}")

    async def watched_record(index: Index, key: FileKey, recipe: Recipe, *, partial_done: bool = False) -> None:
        steps.append(f"recorded inode {key.inode}")
        await record(index, key, recipe, partial_done=partial_done)

    make_model(tmp_path, "one", [WEIGHTS])  # written just now and not synced: an Ollama need not do that
    monkeypatch.setattr(os, "fsync", watched_sync)
    monkeypatch.setattr(Index, "record", watched_record)
    async with running(tmp_path) as store:
        await until_verified(store, "one")
    inode = blob_file(tmp_path, WEIGHTS).stat().st_ino
    assert steps.index(f"synced inode {inode}") < steps.index(f"recorded inode {inode}")


async def test_the_background_reads_at_the_configured_rate(tmp_path: Path) -> None:
    data = random_bytes(3_000_000)
    make_model(tmp_path, "one", [data])
    async with running(tmp_path, verify_rate_bytes_per_s=10_000_000) as store:
        started = trio.current_time()
        await until_verified(store, "one")
        assert trio.current_time() - started > 0.25
    started = trio.current_time()
    os.utime(blob_file(tmp_path, data))
    async with running(tmp_path, verify_rate_bytes_per_s=1):
        await trio.sleep(0.05)  # real time: until a worker thread is in the middle of reading
    assert trio.current_time() - started < 5  # a slow reader is stopped, not waited for


async def test_a_scan_of_an_unchanged_store_lists_no_directory_and_reads_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in range(20):
        make_model(tmp_path, f"model{index}", [WEIGHTS])
    for path in [*sorted((tmp_path / "manifests").rglob("*")), tmp_path / "manifests", tmp_path / "blobs"]:
        if path.is_dir():
            os.utime(path, (1, 1))
    async with running(tmp_path, sweep_interval_s=3600) as store:
        for index in range(20):
            await until_verified(store, f"model{index}")
        os.utime(tmp_path / ".herd" / "whole", (1, 1))
        await store.scan()
        calls: list[Any] = []
        monkeypatch.setattr(os, "listdir", calls.append)
        monkeypatch.setattr(os, "open", calls.append)
        await store.scan()
        monkeypatch.undo()
        assert calls == []


def test_a_directory_that_cannot_be_read_for_a_moment_keeps_its_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_model(tmp_path, "one", [WEIGHTS])
    tree = ManifestTree(Layout(tmp_path))
    assert list(tree.scan()) == [name("one")]
    listdir = os.listdir

    def refused(path: Path) -> list[str]:
        if path.name == "library":
            raise PermissionError(13, "Permission denied")
        return listdir(path)

    monkeypatch.setattr(os, "listdir", refused)
    assert list(tree.scan()) == [name("one")]
    monkeypatch.undo()
    shutil.rmtree(tmp_path / "manifests" / "registry.ollama.ai" / "library")
    assert list(tree.scan()) == []


async def test_a_model_of_hundreds_of_small_blobs(tmp_path: Path) -> None:
    tensors = [index.to_bytes(4, "big") for index in range(500)]
    make_model(tmp_path, "tensors", tensors)
    async with running(tmp_path, sweep_interval_s=60) as store:
        await until_verified(store, "tensors")
        assert attrs.asdict(store.statistics())["blobs_verified"] == 501
        assert chunks_of(await read_chunk(store.blobs, digest_of(tensors[7]), 0)) == [tensors[7]]
