"""node/store/placing and ollama: models get their names in the order that is safe beside Ollama, and lose them so."""

import errno
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import trio

from node.errors import NotFound
from node.events import EventBus
from node.ports import StoreError
from node.store import ollama, placing
from node.store.files import FileKey
from node.store.ollama import Layout, digest_of_file_name, spelled_as_stored
from node.store.store import Store
from protocols.errors import RemoteProtocolError
from protocols.ids import blob_file_name, digest_of
from tests.reference_reader import model_names, read_model, stray_files
from tests.support_store import (
    Faults,
    blob_file,
    heard,
    herd_files,
    make_model,
    manifest_file,
    manifest_for,
    name,
    opened,
    random_bytes,
    read_all,
    receive_all,
    running,
    snapshot,
    until_state,
)

WEIGHTS, TEMPLATE, CONFIG = random_bytes(30_000), b"{{ .Prompt }}", b'{"model_format":"gguf"}'
MANIFEST = manifest_for([WEIGHTS, TEMPLATE, b""])


async def receive_blobs(store: Store, blobs: Sequence[bytes] = (WEIGHTS, TEMPLATE, b"", CONFIG)) -> None:
    for data in blobs:
        await receive_all(store, data)


async def test_a_received_model_stands_as_ollama_lays_it_out(tmp_path: Path) -> None:
    bus = EventBus()
    with bus.subscribe() as events:
        async with opened(tmp_path, bus) as store:
            await receive_blobs(store)
            view = await store.place_model(name("bob/x:1b"), MANIFEST)
            assert (view.name, view.state, view.digest) == ("bob/x:1b", "verified", digest_of(MANIFEST))
            assert view.size_bytes == len(WEIGHTS) + len(TEMPLATE) + len(CONFIG)
            assert await store.models() == [view]
            assert await store.complete_manifests() == {name("bob/x:1b"): MANIFEST}
            assert await read_all(store, digest_of(WEIGHTS)) == WEIGHTS
        assert heard(events) == [("bob/x:1b", "added"), ("bob/x:1b", "verified")]
    model = read_model(tmp_path, "bob/x:1b")
    model.verify()
    assert model.manifest == MANIFEST
    assert stray_files(tmp_path) == []
    assert herd_files(tmp_path) == []
    assert model.manifest_path.stat().st_mode & 0o777 == 0o644
    for blob in model.blobs:
        assert blob.path.stat().st_mode & 0o777 == 0o644
        assert blob.path.stat().st_nlink == 1
        assert time.time() - blob.path.stat().st_mtime < 60


async def test_a_model_lacking_a_blob_is_not_placed(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await receive_blobs(store, [WEIGHTS, b"", CONFIG])
        with pytest.raises(StoreError, match=blob_file_name(digest_of(TEMPLATE))):
            await store.place_model(name("x"), MANIFEST)
        wrong_size = MANIFEST.replace(b'"size": %d' % len(WEIGHTS), b'"size": 7')
        await receive_blobs(store, [TEMPLATE])
        with pytest.raises(StoreError, match="7 bytes"):
            await store.place_model(name("x"), wrong_size)
        with pytest.raises(RemoteProtocolError):
            await store.place_model(name("x"), b"{")
    assert model_names(tmp_path) == []
    assert list((tmp_path / "blobs").iterdir()) == []


async def test_a_blob_long_received_is_placed_young_enough_for_ollamas_pruning(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await receive_blobs(store)
    os.utime(tmp_path / ".herd" / "whole" / blob_file_name(digest_of(WEIGHTS)), (1, 1))
    async with running(tmp_path) as store:
        await receive_all(store, WEIGHTS)  # read again, for its mtime changed
        await store.place_model(name("x"), MANIFEST)
        assert time.time() - blob_file(tmp_path, WEIGHTS).stat().st_mtime < 60
        assert await read_all(store, digest_of(WEIGHTS)) == WEIGHTS
    async with opened(tmp_path) as store:
        assert store.unverified_bytes() == 0
    read_model(tmp_path, "x").verify()


async def test_a_pull_cancelled_while_it_places_an_old_blob_costs_no_second_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placing, "FRESH_S", -1.0)  # every blob counts as old and gets a new mtime
    place = placing._place
    async with opened(tmp_path) as store:
        await receive_blobs(store)
        with trio.CancelScope() as pull:

            def place_and_cancel(*arguments: Any) -> FileKey:
                key = place(*arguments)
                trio.from_thread.run_sync(pull.cancel)
                return key

            monkeypatch.setattr(placing, "_place", place_and_cancel)
            await store.place_model(name("x"), MANIFEST)
        assert pull.cancelled_caught
        assert blob_file(tmp_path, WEIGHTS).exists()
    async with opened(tmp_path) as store:
        assert store.unverified_bytes() == 0
        assert await read_all(store, digest_of(WEIGHTS)) == WEIGHTS


async def test_a_final_name_taken_by_the_right_bytes_is_kept(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await receive_blobs(store)
        final = blob_file(tmp_path, WEIGHTS)
        final.write_bytes(WEIGHTS)  # Ollama pulled the same blob meanwhile
        inode = final.stat().st_ino
        await store.place_model(name("x"), MANIFEST)
        assert final.stat().st_ino == inode
        assert await read_all(store, digest_of(WEIGHTS)) == WEIGHTS
    assert herd_files(tmp_path) == []


def _directory(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize(
    "occupy",
    [
        lambda path: path.write_bytes(bytes(len(WEIGHTS))),
        lambda path: path.write_bytes(b""),
        lambda path: path.symlink_to("nowhere"),
        _directory,
    ],
    ids=["wrong", "empty", "dangling", "directory"],
)
async def test_a_final_name_taken_by_something_else_is_set_aside_and_reported(
    tmp_path: Path, occupy: Callable[[Path], object]
) -> None:
    bus = EventBus()
    with bus.subscribe() as events:
        async with opened(tmp_path, bus) as store:
            await receive_blobs(store)
            occupy(blob_file(tmp_path, WEIGHTS))
            await store.place_model(name("x"), MANIFEST)
            assert await read_all(store, digest_of(WEIGHTS)) == WEIGHTS
        assert ("", "damaged") in heard(events)
    read_model(tmp_path, "x").verify()
    [aside] = (tmp_path / ".herd" / "damaged").iterdir()
    assert aside.name.startswith(blob_file_name(digest_of(WEIGHTS)))


async def test_names_never_differ_only_in_case(tmp_path: Path) -> None:
    make_model(tmp_path, "Hub.example/Bob/Llama:Q4", [WEIGHTS])
    async with opened(tmp_path) as store:
        await receive_blobs(store)
        view = await store.place_model(name("hub.EXAMPLE/bob/llama:q4"), MANIFEST)
        assert view.name == "Hub.example/Bob/Llama:Q4"
        await store.place_model(name("hub.example/alice/llama:latest"), MANIFEST)
        await store.remove(name("HUB.example/BOB/llama:Q4"))
    assert model_names(tmp_path) == ["Hub.example/alice/Llama:latest"]


def test_a_name_is_spelled_as_under_the_directory_it_goes_to(tmp_path: Path) -> None:
    make_model(tmp_path, "bob/Llama", [WEIGHTS])
    make_model(tmp_path, "alice/llama", [WEIGHTS])
    layout = Layout(tmp_path)
    assert spelled_as_stored(layout, name("bob/llama")) == name("bob/Llama")
    assert spelled_as_stored(layout, name("ALICE/LLAMA:Latest")) == name("alice/llama")
    assert spelled_as_stored(layout, name("carol/llama")) == name("carol/llama")
    assert spelled_as_stored(layout, name("carol/LLAMA")) == name("carol/Llama")
    assert spelled_as_stored(Layout(tmp_path / "nowhere"), name("Carol/X")) == name("Carol/X")


@pytest.mark.parametrize(
    ("text", "is_blob"),
    [
        ("sha256-" + "a" * 64, True),
        ("sha256:" + "a" * 64, True),
        ("sha256-" + "A" * 64, False),
        ("sha256-" + "a" * 64 + "-partial", False),
        ("sha256-" + "a" * 63, False),
        ("../sha256-" + "a" * 64, False),
    ],
)
def test_only_a_digest_is_the_name_of_a_blob(text: str, is_blob: bool) -> None:
    assert (digest_of_file_name(text) is not None) == is_blob


async def test_a_starting_ollama_may_prune_between_our_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename, write_manifest = os.rename, ollama.write_manifest
    pruned: list[Path] = []

    def pruning_rename(source: Path, target: Path) -> None:
        if target == manifest_file(tmp_path, "x") and not pruned:
            pruned.append(target.parent)
            target.parent.rmdir()
        rename(source, target)

    def pruning_write(layout: Layout, model: object, data: bytes) -> Path:
        blob_file(tmp_path, WEIGHTS).unlink()
        return write_manifest(layout, name("x"), data)

    monkeypatch.setattr(os, "rename", pruning_rename)
    monkeypatch.setattr(placing, "write_manifest", pruning_write)
    async with opened(tmp_path) as store:
        await receive_blobs(store)
        await store.place_model(name("x"), MANIFEST)
        assert pruned
        assert await read_all(store, digest_of(WEIGHTS)) == WEIGHTS
    read_model(tmp_path, "x").verify()


async def test_a_file_system_without_hard_links_moves_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refused)
    async with opened(tmp_path) as store:
        await receive_blobs(store)
        await store.place_model(name("x"), MANIFEST)
        assert await read_all(store, digest_of(WEIGHTS)) == WEIGHTS
    read_model(tmp_path, "x").verify()
    assert herd_files(tmp_path) == []


@pytest.mark.slow
async def test_whatever_step_of_placing_fails_the_store_is_whole_and_the_blobs_are_kept(tmp_path: Path) -> None:
    for good in range(200):
        models = tmp_path / str(good)
        async with opened(models) as store:
            await receive_blobs(store)
            with pytest.MonkeyPatch.context() as patched:
                faults = Faults(patched, good)
                problem = "the disk reports an error"
                try:
                    await store.place_model(name("x"), MANIFEST)
                except StoreError as error:
                    problem = str(error)
        assert "the disk reports an error" in problem
        for found in model_names(models):
            read_model(models, found.removeprefix("registry.ollama.ai/")).verify()
        async with opened(models) as store:
            await store.place_model(name("x"), MANIFEST)  # nothing was lost: it needs no byte from anywhere
            assert await read_all(store, digest_of(WEIGHTS)) == WEIGHTS
        read_model(models, "x").verify()
        assert stray_files(models) == []
        assert herd_files(models) == []
        if not faults.failed:
            break
    else:
        pytest.fail("placing never came to an end")
    assert good > 15


async def test_removing_takes_the_manifest_and_only_its_own_blobs(tmp_path: Path) -> None:
    make_model(tmp_path, "bob/one", [WEIGHTS, TEMPLATE])
    make_model(tmp_path, "bob/two", [WEIGHTS])
    bus = EventBus()
    with bus.subscribe() as events:
        async with running(tmp_path, bus) as store:
            await until_state(store, "bob/one", "verified")
            await store.remove(name("bob/one"))
            assert model_names(tmp_path) == ["registry.ollama.ai/bob/two:latest"]
            assert not blob_file(tmp_path, TEMPLATE).exists()
            assert blob_file(tmp_path, WEIGHTS).exists()
            assert store.blobs.held(digest_of(TEMPLATE)) is None
            with pytest.raises(NotFound, match="bob/one:latest is not in this store"):
                await store.remove(name("bob/one"))
            await store.remove(name("bob/two"))
        assert heard(events)[-1] == ("bob/two:latest", "removed")
    assert list((tmp_path / "blobs").iterdir()) == []
    assert list((tmp_path / "manifests").iterdir()) == []


async def test_a_blob_in_use_survives_the_removal_of_its_model(tmp_path: Path) -> None:
    make_model(tmp_path, "one", [WEIGHTS, TEMPLATE])
    async with running(tmp_path) as store:
        await until_state(store, "one", "verified")
        with store.blobs.keep({digest_of(TEMPLATE): len(TEMPLATE)}):
            await store.remove(name("one"))
        assert blob_file(tmp_path, TEMPLATE).exists()
        assert not blob_file(tmp_path, WEIGHTS).exists()
        assert await read_all(store, digest_of(TEMPLATE)) == TEMPLATE


async def test_while_a_manifest_cannot_be_read_no_blob_is_called_unreferenced(tmp_path: Path) -> None:
    make_model(tmp_path, "one", [WEIGHTS])
    make_model(tmp_path, "broken", [WEIGHTS])
    manifest_file(tmp_path, "broken").write_bytes(b"")
    async with opened(tmp_path) as store:
        await store.remove(name("one"))
    assert not manifest_file(tmp_path, "one").exists()
    assert blob_file(tmp_path, WEIGHTS).exists()


async def test_a_model_copied_a_moment_ago_keeps_its_blobs(tmp_path: Path) -> None:
    make_model(tmp_path, "one", [WEIGHTS])
    async with opened(tmp_path) as store:
        make_model(tmp_path, "copy", [WEIGHTS])  # no scan has seen it yet
        await store.remove(name("one"))
    read_model(tmp_path, "copy").verify()


async def test_a_link_left_by_a_crash_after_placing_is_let_go(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await receive_blobs(store)
        await store.place_model(name("x"), MANIFEST)
    os.link(blob_file(tmp_path, WEIGHTS), tmp_path / ".herd" / "whole" / blob_file_name(digest_of(WEIGHTS)))
    async with opened(tmp_path) as store:
        assert await read_all(store, digest_of(WEIGHTS)) == WEIGHTS
    assert herd_files(tmp_path) == []


async def test_a_failing_write_leaves_an_older_manifest_of_the_name_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = make_model(tmp_path, "x", [TEMPLATE])
    async with opened(tmp_path) as store:
        await receive_blobs(store)
        before = snapshot(tmp_path / "manifests")

        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(ollama, "write_durably", full)
        with pytest.raises(StoreError, match="the disk is full"):
            await store.place_model(name("x"), MANIFEST)
        assert snapshot(tmp_path / "manifests") == before
        assert store.manifest(name("x")) == old
