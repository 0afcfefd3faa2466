"""scripts/make_gguf: the written llama is one that ggml's own reader, and ours, take for sound."""

from pathlib import Path

import gguf
import numpy as np
import pytest

from node.store.verify import hash_file
from protocols.ids import digest_of
from protocols.manifest import model_from_gguf
from scripts.make_gguf import SIZE_BYTES_MIN, write_fine_tune, write_llama_gguf, write_sparse_gguf
from tests.support_recipe import header_of


@pytest.mark.parametrize("size_bytes", [SIZE_BYTES_MIN, 1_000_000, 3_000_000, 20_000_000], ids=str)
def test_the_file_comes_near_the_asked_size(tmp_path: Path, size_bytes: int) -> None:
    path = tmp_path / "llama.gguf"
    write_llama_gguf(path, size_bytes, seed=1)
    assert path.stat().st_size == pytest.approx(size_bytes, rel=0.07)


def test_ggml_reads_it_and_finds_a_llama_with_numbers_for_weights(tmp_path: Path) -> None:
    path = tmp_path / "llama.gguf"
    write_llama_gguf(path, 1_000_000, seed=1)
    reader = gguf.GGUFReader(path)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    blocks = int(reader.fields["llama.block_count"].contents())
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    width = int(reader.fields["llama.embedding_length"].contents())
    assert list(tensors["token_embd.weight"].shape) == [width, len(tokens)]
    assert f"blk.{blocks - 1}.attn_q.weight" in tensors
    assert f"blk.{blocks}.attn_q.weight" not in tensors
    assert width % int(reader.fields["llama.attention.head_count"].contents()) == 0
    for tensor in reader.tensors:
        assert np.isfinite(tensor.data).all()
        assert np.abs(tensor.data).max() < 2


def test_our_reader_makes_a_model_of_it(tmp_path: Path) -> None:
    path = tmp_path / "llama.gguf"
    write_llama_gguf(path, 1_000_000, seed=1)
    data = path.read_bytes()
    header = header_of(data)
    assert (header.architecture, header.file_type, header.general_type) == ("llama", "F16", "model")
    last = header.tensors[-1]
    assert len(data) - (last.offset_bytes + last.size_bytes) < 32
    assert b'"model_family":"llama"' in model_from_gguf(header, digest_of(data), len(data)).config_bytes


def test_the_same_seed_gives_the_same_file_and_another_seed_other_weights(tmp_path: Path) -> None:
    files = []
    for name, seed in [("a", 7), ("b", 7), ("c", 8)]:
        write_llama_gguf(tmp_path / name, 300_000, seed)
        files.append((tmp_path / name).read_bytes())
    assert files[0] == files[1]
    assert files[0] != files[2]
    assert len(files[0]) == len(files[2])


def test_too_small_a_llama_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 262144 bytes"):
        write_llama_gguf(tmp_path / "llama.gguf", 1000, 0)


def test_a_sparse_model_takes_no_disk_and_marked_no_two_chunks_are_alike(tmp_path: Path) -> None:
    path = tmp_path / "sparse.gguf"
    write_sparse_gguf(path, 300_000_000)
    assert path.stat().st_size == pytest.approx(300_000_000, rel=0.001)
    assert path.stat().st_blocks * 512 < 1_000_000
    write_sparse_gguf(path, 300_000_000, marked=True)
    assert path.stat().st_blocks * 512 < 10_000_000
    _, recipe = hash_file(path, 1024 * 1024)
    chunks = [recipe.chunk_hash(index) for index in range(len(recipe))]
    assert len(chunks) > 250
    assert len(set(chunks)) == len(chunks)


def test_a_fine_tune_has_other_weights_in_a_tenth_of_its_bytes(tmp_path: Path) -> None:
    base, tuned = tmp_path / "base.gguf", tmp_path / "tuned.gguf"
    write_llama_gguf(base, 20_000_000, seed=1)
    share = write_fine_tune(base, tuned, 0.1)
    assert 0.08 < share <= 0.1
    before, after = base.read_bytes(), tuned.read_bytes()
    assert len(before) == len(after)
    different = np.count_nonzero(np.frombuffer(before, np.uint8) != np.frombuffer(after, np.uint8))
    assert different == pytest.approx(share * len(before), rel=0.02)
    changed = [
        bool((one.data != other.data).any())
        for one, other in zip(gguf.GGUFReader(base).tensors, gguf.GGUFReader(tuned).tensors, strict=True)
    ]
    assert 0 < sum(changed) < len(changed) / 2
