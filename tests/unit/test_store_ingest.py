"""node/store/ingest: a bare GGUF file becomes a model, its bytes shared, its source untouched, or nothing happens."""

import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

from node.errors import NotFound, UsageError
from node.ports import StoreError
from node.store import ingest
from node.store.files import COPY_SIZE_BYTES
from node.store.hashing import Hasher
from protocols.ids import digest_of
from tests.reference_reader import model_names, read_model, stray_files
from tests.support_recipe import LLAMA_METADATA, STRING, UINT32, gguf_bytes
from tests.support_store import (
    Faults,
    blob_file,
    herd_files,
    manifest_file,
    name,
    opened,
    read_all,
    receive_all,
    small_gguf,
)

GGUF = small_gguf()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "my model.gguf"
    path.write_bytes(GGUF)
    os.utime(path, (1_000_000, 1_000_000))
    return path


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return tmp_path / "models"


@pytest.fixture
def other_disk() -> Iterator[Path]:
    """A directory on another file system."""
    memory = Path("/dev/shm")
    if not memory.is_dir():
        pytest.skip("this machine has no second file system to write to")
    with tempfile.TemporaryDirectory(dir=memory) as directory:
        yield Path(directory)


def nothing_happened(models: Path) -> None:
    assert model_names(models) == []
    assert list((models / "blobs").iterdir()) == []
    assert herd_files(models) == []


async def test_a_file_becomes_a_model_by_hard_link(models: Path, source: Path) -> None:
    before = source.stat()
    progress: list[tuple[int, int]] = []
    async with opened(models) as store:
        view = await store.add_gguf(source, name("bob/mine:v1"), lambda done, total: progress.append((done, total)))
        assert (view.name, view.state) == ("bob/mine:v1", "verified")
        assert view.size_bytes > len(GGUF)
        assert await read_all(store, digest_of(GGUF)) == GGUF
    assert progress[-1] == (len(GGUF), len(GGUF))
    model = read_model(models, "bob/mine:v1")
    model.verify()
    assert model.blob_of("model").digest == digest_of(GGUF)
    assert model.blob_of("model").path.samefile(source)
    after = source.stat()
    assert (after.st_mtime_ns, after.st_mode, after.st_size) == (before.st_mtime_ns, before.st_mode, before.st_size)
    assert stray_files(models) == []
    assert herd_files(models) == []
    assert not model.manifest.endswith(b"\n")


async def test_the_same_file_gives_the_same_model_on_every_host(tmp_path: Path, source: Path) -> None:
    digests = []
    for host in ("one", "two"):
        async with opened(tmp_path / host) as store:
            digests.append((await store.add_gguf(source, name(host))).digest)
    assert digests[0] == digests[1]


async def test_a_file_on_another_disk_is_copied(models: Path, other_disk: Path) -> None:
    source = other_disk / "m.gguf"
    source.write_bytes(GGUF)
    async with opened(models) as store:
        await store.add_gguf(source, name("x"))
    model = read_model(models, "x")
    model.verify()
    assert model.blob_of("model").path.stat().st_dev != source.stat().st_dev
    assert source.read_bytes() == GGUF
    assert herd_files(models) == []


async def test_a_file_that_only_its_owner_may_read_is_copied_with_a_mode_ollama_can_read(
    models: Path, source: Path
) -> None:
    source.chmod(0o600)
    if os.geteuid() != 0:
        pytest.skip("only root can give a file to another user")
    os.chown(source, 12345, 12345)
    async with opened(models) as store:
        await store.add_gguf(source, name("x"))
    path = read_model(models, "x").blob_of("model").path
    assert not path.samefile(source)
    assert path.stat().st_mode & 0o777 == 0o644


async def test_a_disk_that_can_share_extents_is_asked_to(
    models: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clones: list[tuple[int, int]] = []

    def clone(original: int, target: int) -> bool:
        clones.append((original, target))
        os.write(target, os.pread(original, len(GGUF), 0))
        return True

    monkeypatch.setattr(ingest, "_link", lambda *_: False)
    monkeypatch.setattr(ingest, "clone_file", clone)
    async with opened(models) as store:
        await store.add_gguf(source, name("x"))
    assert len(clones) == 1
    read_model(models, "x").verify()


async def test_a_second_name_for_the_same_file_shares_its_blobs(models: Path, source: Path) -> None:
    async with opened(models) as store:
        await store.add_gguf(source, name("x"))
        source.unlink()
        source.write_bytes(GGUF)
        await store.add_gguf(source, name("y"))
        assert len(list((models / "blobs").iterdir())) == 2
        await store.remove(name("x"))
        assert await read_all(store, digest_of(GGUF)) == GGUF
    read_model(models, "y").verify()


async def test_adding_over_a_name_replaces_what_it_means(models: Path, source: Path) -> None:
    async with opened(models) as store:
        await store.add_gguf(source, name("x"))
        source.unlink()
        source.write_bytes(small_gguf(7))
        view = await store.add_gguf(source, name("X"))
        assert view.name == "x:latest"
    assert read_model(models, "x").blob_of("model").digest == digest_of(small_gguf(7))


def _split() -> bytes:
    return gguf_bytes([], [*LLAMA_METADATA, ("split.count", UINT32, 3)])


def _projector() -> bytes:
    return gguf_bytes([], [*LLAMA_METADATA, ("general.type", STRING, "mmproj")])


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: path.mkdir(), "is a directory"),
        (lambda path: path.write_bytes(b""), "cannot be added: "),
        (lambda path: path.write_bytes(b"hello, I am a text file, not a model"), "cannot be added: "),
        (lambda path: path.write_bytes(GGUF[:-100]), "cannot be added: truncated"),
        (lambda path: path.write_bytes(GGUF[:9] + b"\xff" * 8 + GGUF[17:]), "cannot be added: "),
        (lambda path: path.write_bytes(_split()), "3 parts"),
        (lambda path: path.write_bytes(_projector()), "projector"),
        (lambda path: os.mkfifo(path), "no regular file"),
    ],
    ids=["directory", "empty", "text", "truncated", "lying", "split", "projector", "fifo"],
)
async def test_what_is_no_usable_gguf_is_refused_by_name(
    tmp_path: Path, models: Path, make: Callable[[Path], object], says: str
) -> None:
    path = tmp_path / "given.gguf"
    make(path)
    async with opened(models) as store:
        with pytest.raises(UsageError, match=says) as caught:
            await store.add_gguf(path, name("x"))
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
    nothing_happened(models)


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.symlink_to("nowhere")])
async def test_a_file_that_is_not_there_is_not_found(
    tmp_path: Path, models: Path, make: Callable[[Path], object]
) -> None:
    path = tmp_path / "given.gguf"
    make(path)
    async with opened(models) as store:
        with pytest.raises(NotFound) as caught:
            await store.add_gguf(path, name("x"))
    assert str(caught.value) == f"{path}: no such file on the node's host"
    nothing_happened(models)


@pytest.mark.parametrize("tag", ["cloud", "local", "27b-cloud", "Cloud"])
async def test_tags_that_ollama_keeps_for_itself_are_refused(models: Path, source: Path, tag: str) -> None:
    async with opened(models) as store:
        with pytest.raises(UsageError, match="choose another tag"):
            await store.add_gguf(source, name(f"x:{tag}"))
    nothing_happened(models)


async def test_a_source_that_changes_after_it_was_read_is_refused(
    models: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_hash = Hasher.hash

    async def hash_then_append(self: Hasher, path: Path, **named: object) -> object:
        result = await real_hash(self, path, **named)  # type: ignore[arg-type]
        with source.open("ab") as file:
            file.write(b"more")
        return result

    monkeypatch.setattr(Hasher, "hash", hash_then_append)
    async with opened(models) as store:
        with pytest.raises(UsageError, match="changed while it was being added"):
            await store.add_gguf(source, name("x"))
    nothing_happened(models)


async def test_a_source_that_is_replaced_while_it_is_linked_is_refused(
    models: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def replacing_link(path: Path, target: Path) -> None:
        path.unlink()
        path.write_bytes(small_gguf(9))
        link(path, target)

    async with opened(models) as store:
        monkeypatch.setattr(os, "link", replacing_link)
        with pytest.raises(UsageError, match="changed while it was being added"):
            await store.add_gguf(source, name("x"))
    nothing_happened(models)


async def test_a_source_that_changes_while_it_is_copied_is_refused(
    models: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def changing_read(descriptor: int, size: int, offset: int) -> bytes:
        data = os.pread(descriptor, size, offset)
        return data.replace(b"\x01", b"\x02") if offset == 0 and size == COPY_SIZE_BYTES else data

    monkeypatch.setattr(ingest, "_link", lambda *_: False)
    monkeypatch.setattr(ingest, "clone_file", lambda *_: False)
    monkeypatch.setattr(ingest, "read_at", changing_read)
    async with opened(models) as store:
        with pytest.raises(UsageError, match="changed while it was being added"):
            await store.add_gguf(source, name("x"))
    nothing_happened(models)


async def test_a_disk_that_fills_up_while_copying_leaves_nothing(
    models: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(ingest, "_link", lambda *_: False)
    monkeypatch.setattr(ingest, "clone_file", lambda *_: False)
    monkeypatch.setattr(ingest, "write_at", full)
    async with opened(models) as store:
        with pytest.raises(StoreError, match=r"cannot copy .*my model.gguf to .*: the disk is full"):
            await store.add_gguf(source, name("x"))
    nothing_happened(models)


async def test_a_disk_without_room_for_a_copy_says_how_much_is_missing(
    models: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest, "_link", lambda *_: False)
    monkeypatch.setattr(ingest, "clone_file", lambda *_: False)
    async with opened(models, reserve_free_bytes=1 << 60) as store:
        with pytest.raises(StoreError, match="bytes are missing"):
            await store.add_gguf(source, name("x"))
    nothing_happened(models)


async def test_an_add_that_fails_leaves_a_pull_the_blob_it_counts_on(models: Path, source: Path) -> None:
    async with opened(models) as store:
        in_the_way = manifest_file(models, "x")
        in_the_way.mkdir(parents=True)
        with store.blobs.keep({digest_of(GGUF): len(GGUF)}):
            with pytest.raises(StoreError, match="cannot write"):
                await store.add_gguf(source, name("x"))
            assert await read_all(store, digest_of(GGUF)) == GGUF


async def test_when_the_name_cannot_be_written_nothing_stays(models: Path, source: Path) -> None:
    async with opened(models) as store:
        in_the_way = manifest_file(models, "x")
        in_the_way.mkdir(parents=True)
        with pytest.raises(StoreError, match="cannot write"):
            await store.add_gguf(source, name("x"))
        in_the_way.rmdir()
        nothing_happened(models)
        assert store.blobs.held(digest_of(GGUF)) is None
        await store.add_gguf(source, name("x"))
    read_model(models, "x").verify()


async def test_cancelling_an_add_leaves_nothing(models: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(models) as store:
        with trio.CancelScope() as scope:
            put_config = ingest.Ingest._put_config

            async def cancel_first(self: ingest.Ingest, model: object, added: object) -> None:
                scope.cancel()
                await put_config(self, model, added)  # type: ignore[arg-type]

            monkeypatch.setattr(ingest.Ingest, "_put_config", cancel_first)
            await store.add_gguf(source, name("x"))
        assert scope.cancelled_caught
    nothing_happened(models)
    assert source.read_bytes() == GGUF


async def test_a_blob_received_before_is_not_brought_in_again(models: Path, source: Path) -> None:
    async with opened(models) as store:
        await receive_all(store, GGUF)
        await store.add_gguf(source, name("x"))
    assert not blob_file(models, GGUF).samefile(source)
    read_model(models, "x").verify()


@pytest.mark.slow
async def test_whatever_step_of_adding_fails_the_store_is_whole_and_the_source_unchanged(tmp_path: Path) -> None:
    for good in range(200):
        models, source = tmp_path / str(good), tmp_path / f"{good}.gguf"
        source.write_bytes(GGUF)
        async with opened(models) as store:
            with pytest.MonkeyPatch.context() as patched:
                faults = Faults(patched, good)
                problem = "the disk reports an error"
                try:
                    await store.add_gguf(source, name("x"))
                except StoreError as error:
                    problem = str(error)
        assert "the disk reports an error" in problem
        assert source.read_bytes() == GGUF
        for found in model_names(models):
            read_model(models, found.removeprefix("registry.ollama.ai/")).verify()
        async with opened(models) as store:
            await store.add_gguf(source, name("x"))
        read_model(models, "x").verify()
        assert stray_files(models) == []
        assert herd_files(models) == []
        if not faults.failed:
            break
    else:
        pytest.fail("adding never came to an end")
    assert good > 15
