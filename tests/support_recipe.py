"""Small GGUF and safetensors files made by hand, byte for byte after the specifications, right or wrong on purpose."""

import json
import struct
from collections.abc import Sequence
from typing import Any

import attrs

from protocols.ids import Digest
from protocols.recipe.gguf import GgufHeader, read_gguf_header
from protocols.recipe.hasher import Buffer, ChunkHasher, WholeHasher
from protocols.recipe.recipe import Recipe

UINT32, STRING, ARRAY, BOOL, FLOAT32 = 4, 8, 9, 7, 6
FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
F32, F16, Q4_K = 0, 1, 12


@attrs.frozen
class Tensor:
    """A tensor to write: `data` as it stands in the file, `offset` only where the layout shall be wrong."""

    name: str
    dimensions: tuple[int, ...]
    type: int
    data: bytes
    offset: int | None = None


def text(order: str, value: str) -> bytes:
    encoded = value.encode()
    return struct.pack(order + "Q", len(encoded)) + encoded


def value_bytes(order: str, kind: int, value: Any) -> bytes:
    """A metadata value; an array is `(element type, [elements])`."""
    if kind == STRING:
        return text(order, value)
    if kind == ARRAY:
        element_type, elements = value
        head = struct.pack(order + "IQ", element_type, len(elements))
        return head + b"".join(value_bytes(order, element_type, element) for element in elements)
    return struct.pack(order + FORMATS[kind], value)


LLAMA_METADATA: list[tuple[str, int, Any]] = [
    ("general.architecture", STRING, "llama"),
    ("general.name", STRING, "a test"),
    ("general.file_type", UINT32, 15),
    ("llama.block_count", UINT32, 2),
    ("llama.rope.freq_base", FLOAT32, 10000.0),
    ("tokenizer.ggml.tokens", ARRAY, (STRING, ["<unk>", "", "▁the", "x" * 300])),
    ("tokenizer.ggml.scores", ARRAY, (FLOAT32, [0.0, -1.0, -2.0, -3.0])),
    ("tokenizer.ggml.add_bos_token", BOOL, True),
]


def gguf_bytes(
    tensors: Sequence[Tensor] = (),
    metadata: Sequence[tuple[str, int, Any]] = tuple(LLAMA_METADATA),
    *,
    version: int = 3,
    order: str = "<",
    magic: bytes = b"GGUF",
    alignment: int = 32,
) -> bytes:
    """A whole file; tensors follow one another, each padded to the alignment, the last one too."""
    head = magic + struct.pack(order + "IQQ", version, len(tensors), len(metadata))
    for key, kind, value in metadata:
        head += text(order, key) + struct.pack(order + "I", kind) + value_bytes(order, kind, value)
    data = b""
    for tensor in tensors:
        offset = len(data) if tensor.offset is None else tensor.offset
        head += text(order, tensor.name) + struct.pack(order + "I", len(tensor.dimensions))
        head += struct.pack(f"{order}{len(tensor.dimensions)}Q", *tensor.dimensions)
        head += struct.pack(order + "IQ", tensor.type, offset)
        data += tensor.data + bytes(-len(tensor.data) % alignment)
    return head + bytes(-len(head) % alignment) + data if tensors else head


def f16_tensor(name: str, data: bytes) -> Tensor:
    """A vector of half-precision numbers."""
    return Tensor(name, (len(data) // 2,), F16, data)


def header_of(data: bytes) -> GgufHeader:
    """What our reader makes of a file in memory."""
    return read_gguf_header(lambda offset, size: data[offset : offset + size], len(data))


def safetensors_bytes(tensors: dict[str, bytes], metadata: dict[str, str] | None = None) -> bytes:
    """A whole file of one-dimensional U8 tensors."""
    fields: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    position = 0
    for name, data in tensors.items():
        fields[name] = {"dtype": "U8", "shape": [len(data)], "data_offsets": [position, position + len(data)]}
        position += len(data)
    return safetensors_from_header(json.dumps(fields).encode(), b"".join(tensors.values()))


def safetensors_from_header(header: bytes, data: bytes) -> bytes:
    """Prefix, the given JSON whatever it says, and the data."""
    return struct.pack("<Q", len(header)) + header + data


class BlobHasher:
    """Digest and recipe of a blob of `size_bytes`, both halves fed from one thread."""

    def __init__(self, size_bytes: int, target_size_bytes: int) -> None:
        self._whole = WholeHasher()
        self._chunks = ChunkHasher(size_bytes, target_size_bytes)

    def update(self, data: Buffer) -> None:
        """The next bytes of the blob; LocalProtocolError when there are more than it should have."""
        self._chunks.update(data)
        self._whole.update(data)

    def finish(self) -> tuple[Digest, Recipe]:
        """Digest and recipe; LocalProtocolError when bytes are missing."""
        digest = self._whole.finish()
        return digest, self._chunks.finish(digest)
