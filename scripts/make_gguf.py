"""Write a small, valid llama model in GGUF: random F16 weights under real names, with a tokenizer.

The same size and seed give the same bytes, so any two hosts can make the same model without sending it.
"""

import argparse
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path

import attrs
import gguf
import numpy as np
from numpy.typing import NDArray

SIZE_BYTES_MIN = 256 * 1024
DEFAULT_SIZE_BYTES = 200_000_000
CONTEXT_LENGTH = 2048
HEAD_SIZE = 32
BLOCKS_AT_LEAST = 4
SPARSE_TENSOR_SIZE_BYTES = 100_000_000
MARK_INTERVAL_BYTES = 1024 * 1024
MARK_SIZE_BYTES = 8
F16 = 1

_WORDS = ["the", "of", "and", "to", "is", "in", "it", "you", "that", "was", "for", "on", "are", "with", "as", "his"]


@attrs.frozen
class _Shape:
    """The dimensions of a llama: heads of 32 numbers, half as many key-value heads as heads."""

    embedding_length: int
    feed_forward_length: int
    block_count: int
    vocabulary_size: int

    @property
    def head_count(self) -> int:
        return self.embedding_length // HEAD_SIZE

    @property
    def key_value_length(self) -> int:
        return self.embedding_length // 2

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Every tensor's name and shape (rows first), in the order llama.cpp's converter writes them."""
        wide, inner = self.embedding_length, self.feed_forward_length
        yield "token_embd.weight", (self.vocabulary_size, wide)
        for block in range(self.block_count):
            yield f"blk.{block}.attn_norm.weight", (wide,)
            yield f"blk.{block}.ffn_down.weight", (wide, inner)
            yield f"blk.{block}.ffn_gate.weight", (inner, wide)
            yield f"blk.{block}.ffn_up.weight", (inner, wide)
            yield f"blk.{block}.ffn_norm.weight", (wide,)
            yield f"blk.{block}.attn_k.weight", (self.key_value_length, wide)
            yield f"blk.{block}.attn_output.weight", (wide, wide)
            yield f"blk.{block}.attn_q.weight", (wide, wide)
            yield f"blk.{block}.attn_v.weight", (self.key_value_length, wide)
        yield "output_norm.weight", (wide,)
        yield "output.weight", (self.vocabulary_size, wide)


def _shape_for(size_bytes: int, vocabulary_size: int) -> _Shape:
    """The widest llama of at least four blocks (one, when small) that comes near the size."""
    numbers = size_bytes // 2
    for wide in (4096, 2048, 1024, 512, 256, 128, 64):
        left = numbers - 2 * vocabulary_size * wide
        # A block is 3 wide^2 of attention and 3 wide * inner of feed-forward; inner is about 3 wide.
        blocks = left // (12 * wide * wide)
        if blocks >= BLOCKS_AT_LEAST or (wide == 64 and blocks >= 1):
            blocks = min(blocks, 64)
            inner = (left // blocks - 3 * wide * wide) // (3 * wide)
            return _Shape(wide, max(32, inner // 32 * 32), blocks, vocabulary_size)
    return _Shape(64, 128, 1, vocabulary_size)


def _add_vocabulary(writer: gguf.GGUFWriter) -> int:
    """A SentencePiece vocabulary that can spell any text: three control tokens, 256 bytes, a few words."""
    pieces = [("<unk>", gguf.TokenType.UNKNOWN), ("<s>", gguf.TokenType.CONTROL), ("</s>", gguf.TokenType.CONTROL)]
    pieces += [(f"<0x{byte:02X}>", gguf.TokenType.BYTE) for byte in range(256)]
    # An underline block stands for the space before a word, as SentencePiece writes it.
    pieces += [("▁" + word, gguf.TokenType.NORMAL) for word in _WORDS]
    pieces += [(chr(letter), gguf.TokenType.NORMAL) for letter in range(ord("a"), ord("z") + 1)]
    writer.add_tokenizer_model("llama")
    writer.add_token_list([text for text, _ in pieces])
    writer.add_token_scores([-float(rank) for rank in range(len(pieces))])
    writer.add_token_types([int(kind) for _, kind in pieces])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    return len(pieces)


def _add_metadata(writer: gguf.GGUFWriter, shape: _Shape, seed: int) -> None:
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(f"herd test llama {seed}")
    writer.add_context_length(CONTEXT_LENGTH)
    writer.add_embedding_length(shape.embedding_length)
    writer.add_block_count(shape.block_count)
    writer.add_feed_forward_length(shape.feed_forward_length)
    writer.add_rope_dimension_count(HEAD_SIZE)
    writer.add_rope_freq_base(10_000.0)
    writer.add_head_count(shape.head_count)
    writer.add_head_count_kv(shape.head_count // 2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(shape.vocabulary_size)
    writer.add_file_type(int(gguf.LlamaFileType.MOSTLY_F16))
    writer.add_quantization_version(2)


def _random_f16(generator: np.random.Generator, dimensions: tuple[int, ...]) -> NDArray[np.float16]:
    """Random numbers between -2 and 2: any 16 bits with the top bit of the exponent cleared are such a number."""
    count = int(np.prod(dimensions))
    bits = generator.integers(0, 2**64, size=(count + 3) // 4, dtype=np.uint64).view(np.uint16)[:count]
    bits &= np.uint16(0xBFFF)
    return bits.view(np.float16).reshape(dimensions)


def write_llama_gguf(path: Path | str, size_bytes: int = DEFAULT_SIZE_BYTES, seed: int = 0) -> None:
    """Write a llama model of about `size_bytes` (at least 256 KiB) to `path`, replacing what is there.

    Weights are F16, norms F32; the same size and seed give the same file. Raises ValueError for a size under
    the least, OSError when the file cannot be written.
    """
    if size_bytes < SIZE_BYTES_MIN:
        raise ValueError(f"a llama needs at least {SIZE_BYTES_MIN} bytes, not {size_bytes}")
    writer = gguf.GGUFWriter(None, "llama")
    vocabulary_size = _add_vocabulary(writer)
    shape = _shape_for(size_bytes, vocabulary_size)
    _add_metadata(writer, shape, seed)
    for name, dimensions in shape.tensors():
        kind = np.dtype(np.float32 if len(dimensions) == 1 else np.float16)
        writer.add_tensor_info(name, dimensions, kind, int(np.prod(dimensions)) * kind.itemsize)
    generator = np.random.default_rng(seed)
    try:
        writer.write_header_to_file(Path(path))
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        # One tensor at a time: the file may be larger than memory.
        for _name, dimensions in shape.tensors():
            is_norm = len(dimensions) == 1
            writer.write_tensor_data(np.ones(dimensions, np.float32) if is_norm else _random_f16(generator, dimensions))
    finally:
        writer.close()


def write_sparse_gguf(path: Path, size_bytes: int, *, marked: bool = False) -> None:
    """A model of about `size_bytes` that takes no disk: F16 tensors of 100 MB, all zeros, nearly all of it holes.

    `marked` puts a number of its own into every MiB, so that no two chunks of a MiB or more are the same; each
    takes one disk block.
    """

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    tensor_size_bytes = min(SPARSE_TENSOR_SIZE_BYTES, size_bytes // 64 * 64)
    count = max(1, size_bytes // tensor_size_bytes)
    header = b"GGUF" + struct.pack("<IQQ", 3, count, 1)
    header += text("general.architecture") + struct.pack("<I", 8) + text("llama")
    for index in range(count):
        header += text(f"blk.{index}.ffn_up.weight")
        header += struct.pack("<IQIQ", 1, tensor_size_bytes // 2, F16, index * tensor_size_bytes)
    header += bytes(-len(header) % 32)
    with path.open("wb") as file:
        file.write(header)
        file.truncate(len(header) + count * tensor_size_bytes)
        # The end of each tensor too: it may be a chunk shorter than the interval.
        spots = [*range(0, count * tensor_size_bytes, MARK_INTERVAL_BYTES)]
        spots += [index * tensor_size_bytes - MARK_SIZE_BYTES for index in range(1, count + 1)]
        for number, spot in enumerate(spots if marked else ()):
            file.seek(len(header) + spot)
            file.write(number.to_bytes(MARK_SIZE_BYTES, "little"))


def write_fine_tune(base: Path, path: Path, share: float, seed: int = 1) -> float:
    """A copy of a model in which whole tensors, at most `share` of the bytes, have other weights; the share they are.

    The tensors are taken from all over the model, large ones only. OSError when the file cannot be written.
    """
    shutil.copyfile(base, path)
    total, left = base.stat().st_size, int(base.stat().st_size * share)
    generator = np.random.default_rng(seed)
    tensors = [tensor for tensor in gguf.GGUFReader(base).tensors if len(tensor.shape) > 1]
    with path.open("r+b") as file:
        for number in generator.permutation(len(tensors)):
            tensor = tensors[number]
            if tensor.n_bytes <= left:
                left -= int(tensor.n_bytes)
                file.seek(int(tensor.data_offset))
                file.write(_random_f16(generator, (int(tensor.n_bytes) // 2,)).tobytes())
    return share - left / total


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path, help="the file to write")
    parser.add_argument("--size-mb", type=float, default=DEFAULT_SIZE_BYTES / 1e6, help="about how many MB (10^6)")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other weights")
    arguments = parser.parse_args()
    write_llama_gguf(arguments.path, int(arguments.size_mb * 1e6), arguments.seed)
    print(f"{arguments.path}: {arguments.path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
