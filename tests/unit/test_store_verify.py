"""node/store/verify: the verify pass over real files, and files that will not hold still."""

import hashlib
import os
import random
import threading
from pathlib import Path

import pytest

from node.ports import StoreError
from node.store import verify
from node.store.verify import BUFFER_SIZE_BYTES, FileChanged, HashingStopped, hash_file
from tests.support_recipe import BlobHasher, f16_tensor, gguf_bytes

MIB = 1024 * 1024


def model_bytes() -> bytes:
    """A GGUF of some 20 buffers."""
    rng = random.Random(5)
    return gguf_bytes([f16_tensor(f"blk.{index}.ffn_up.weight", rng.randbytes(5_000_002)) for index in range(4)])


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(model_bytes())
    return path


def hashing_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "herd-sha256"]


@pytest.mark.parametrize(
    "size", [0, 1, BUFFER_SIZE_BYTES, BUFFER_SIZE_BYTES + 1, 3 * BUFFER_SIZE_BYTES, 9_000_001], ids=str
)
def test_a_file_of_any_size_gets_the_recipe_of_its_bytes(tmp_path: Path, size: int) -> None:
    data = random.Random(size).randbytes(size)
    path = tmp_path / "blob"
    path.write_bytes(data)
    blob = BlobHasher(size, MIB)
    blob.update(data)
    assert hash_file(path, MIB) == blob.finish()
    assert hash_file(str(path), MIB)[0] == "sha256:" + hashlib.sha256(data).hexdigest()


def test_a_model_is_cut_at_its_tensors_and_progress_ends_at_its_size(model: Path) -> None:
    told: list[int] = []
    digest, recipe = hash_file(model, MIB, on_progress=told.append)
    assert digest == "sha256:" + hashlib.sha256(model.read_bytes()).hexdigest()
    assert recipe.rule == f"gguf-1:{MIB}"
    assert told == sorted(told)
    assert told[-1] == model.stat().st_size
    assert hashing_threads() == []


def test_a_descriptor_is_hashed_from_its_beginning_and_left_as_it_was(model: Path) -> None:
    with model.open("rb") as file:
        file.seek(77)
        assert hash_file(file.fileno(), MIB) == hash_file(model, MIB)
        assert os.lseek(file.fileno(), 0, os.SEEK_CUR) == 77


def test_small_reads_give_the_same_recipe(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = hash_file(model, MIB)
    whole_read = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, at: whole_read(fd, [buffers[0][:70_001]], at))
    assert hash_file(model, MIB) == expected


def test_it_stops_when_told_and_leaves_no_thread(model: Path) -> None:
    told: list[int] = []
    with pytest.raises(HashingStopped):
        hash_file(model, MIB, on_progress=told.append, should_stop=lambda: len(told) == 3)
    assert len(told) == 3
    assert hashing_threads() == []


def test_an_error_in_the_callers_progress_passes_and_leaves_no_thread(model: Path) -> None:
    def fail(hashed_bytes: int) -> None:
        raise RuntimeError("the bar broke")

    with pytest.raises(RuntimeError, match="the bar broke"):
        hash_file(model, MIB, on_progress=fail)
    assert hashing_threads() == []


def test_a_disk_error_passes_and_leaves_no_thread(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole_read = os.preadv

    def failing(fd: int, buffers: list[memoryview], at: int) -> int:
        if at > 4 * MIB:
            raise OSError(5, "Input/output error")
        return whole_read(fd, buffers, at)

    monkeypatch.setattr(os, "preadv", failing)
    with pytest.raises(OSError, match="Input/output error"):
        hash_file(model, MIB)
    assert hashing_threads() == []


def test_a_file_that_grows_meanwhile_is_not_believed(model: Path) -> None:
    def grow(hashed_bytes: int) -> None:
        with model.open("ab") as file:
            file.write(b"more")

    with pytest.raises(FileChanged, match=r"model\.gguf was written to while it was being read"):
        hash_file(model, MIB, on_progress=grow)


def test_a_file_that_shrinks_meanwhile_is_not_believed(model: Path) -> None:
    with pytest.raises(FileChanged, match=r"model\.gguf shrank to [0-9]+ bytes"):
        hash_file(model, MIB, on_progress=lambda hashed: os.truncate(model, hashed))


def test_a_file_rewritten_in_place_meanwhile_is_not_believed(model: Path) -> None:
    def flip(hashed_bytes: int) -> None:
        with model.open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            file.write(b"!")

    with pytest.raises(FileChanged, match="was written to"):
        hash_file(model, MIB, on_progress=flip)


def test_what_is_no_file_is_refused_without_waiting_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(StoreError, match=f"{path} is no regular file"):
            hash_file(path, MIB)
    with pytest.raises(FileNotFoundError):
        hash_file(tmp_path / "nothing", MIB)


def test_a_file_too_large_for_a_recipe_is_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(2**40 + 1)
    with pytest.raises(StoreError, match=r"sparse: a blob of 1099511627777 bytes has too many chunks .* larger chunk"):
        hash_file(path, MIB)


def test_memory_is_a_few_buffers_whatever_the_file(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    buffers: list[int] = []

    def counted(size: int) -> bytearray:
        buffers.append(size)
        return bytearray(size)

    monkeypatch.setattr(verify, "bytearray", counted, raising=False)
    hash_file(model, MIB)
    assert sum(buffers) == verify.BUFFER_COUNT * BUFFER_SIZE_BYTES
