"""protocols/recipe/gguf: what a sound header tells, and every way a file may lie."""

import struct
from typing import Any

import gguf
import pytest

from protocols.recipe.gguf import (
    ARRAY_LENGTH_MAX,
    HEADER_SIZE_BYTES_MAX,
    STRING_SIZE_BYTES_MAX,
    GgufArray,
    GgufError,
    read_gguf_header,
)
from protocols.recipe.gguf_types import FILE_TYPES, TENSOR_TYPES
from tests.support_recipe import (
    ARRAY,
    F16,
    F32,
    LLAMA_METADATA,
    Q4_K,
    STRING,
    UINT32,
    Tensor,
    f16_tensor,
    gguf_bytes,
    header_of,
    text,
)

Metadata = list[tuple[str, int, Any]]

TWO_TENSORS = [
    Tensor("token_embd.weight", (256, 4), Q4_K, bytes(range(144)) * 4),
    Tensor("output_norm.weight", (5,), F32, b"abcd" * 5),
]


def test_a_header_tells_what_the_model_is() -> None:
    header = header_of(gguf_bytes(TWO_TENSORS))
    assert (header.version, header.byte_order, header.architecture) == (3, "little", "llama")
    assert (header.general_type, header.split_count, header.file_type) == ("model", 1, "Q4_K_M")
    assert header.metadata["llama.rope.freq_base"] == 10000.0
    assert header.metadata["tokenizer.ggml.add_bos_token"] is True
    assert header.parameter_count == 256 * 4 + 5
    assert header.model_type == "1K"
    assert not header.is_projector


def test_an_array_is_passed_over_and_only_its_length_kept() -> None:
    header = header_of(gguf_bytes(TWO_TENSORS))
    assert header.metadata["tokenizer.ggml.tokens"] == GgufArray(STRING, 4)
    assert header.metadata["tokenizer.ggml.scores"] == GgufArray(6, 4)


def test_tensors_lie_where_the_header_says() -> None:
    data = gguf_bytes(TWO_TENSORS)
    header = header_of(data)
    for tensor, written in zip(header.tensors, TWO_TENSORS, strict=True):
        assert (tensor.name, tensor.dimensions, tensor.type) == (written.name, written.dimensions, written.type)
        assert data[tensor.offset_bytes : tensor.offset_bytes + tensor.size_bytes] == written.data
    assert header.tensors[0].offset_bytes == header.data_offset_bytes
    assert header.data_offset_bytes % 32 == 0


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize(
    ("order", "magic", "name"),
    [("<", b"GGUF", "little"), (">", b"GGUF", "big"), (">", b"FUGG", "big")],
    ids=["little", "big", "big with swapped magic"],
)
def test_both_byte_orders_are_read(version: int, order: str, magic: bytes, name: str) -> None:
    header = header_of(gguf_bytes(TWO_TENSORS, version=version, order=order, magic=magic))
    assert (header.version, header.byte_order) == (version, name)
    assert header.model_type == "1K"
    assert header.metadata["llama.block_count"] == 2


def test_a_vocabulary_without_tensors_is_sound() -> None:
    data = gguf_bytes()
    header = header_of(data)
    assert header.tensors == ()
    assert header.parameter_count == 0
    assert header.data_offset_bytes == len(data)


def test_another_alignment_moves_the_data() -> None:
    aligned: Metadata = [*LLAMA_METADATA, ("general.alignment", UINT32, 4096)]
    header = header_of(gguf_bytes(TWO_TENSORS, aligned, alignment=4096))
    assert header.data_offset_bytes == 4096
    assert [tensor.offset_bytes for tensor in header.tensors] == [4096, 8192]


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (0, "0"),
        (999, "999"),
        (1_000, "1K"),
        (22_700_000, "22.70M"),
        (137_000_000, "137M"),
        (3_212_749_888, "3.2B"),
        (7_000_000_000, "7B"),
        (405_853_388_800, "405.9B"),
    ],
)
def test_parameters_are_counted_as_people_write_them(count: int, shown: str) -> None:
    tensors = [Tensor("t", (count,), 24, b"")] if count else []
    data = gguf_bytes(tensors, [])
    header = read_gguf_header(lambda offset, size: data[offset : offset + size], len(data) + count)
    assert header.model_type == shown


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ([("general.type", STRING, "mmproj")], True),
        ([("general.architecture", STRING, "clip"), ("clip.has_vision_encoder", 7, True)], True),
        ([("general.architecture", STRING, "x"), ("x.vision.block_count", UINT32, 2)], True),
        (
            [
                ("general.architecture", STRING, "x"),
                ("x.vision.block_count", UINT32, 2),
                ("x.block_count", UINT32, 2),
            ],
            False,
        ),
    ],
    ids=["by type", "by encoder", "by vision blocks", "a whole model with eyes"],
)
def test_a_projector_is_known(metadata: Metadata, expected: bool) -> None:
    assert header_of(gguf_bytes([], metadata)).is_projector is expected


def test_metadata_of_the_wrong_type_counts_as_absent() -> None:
    wrong: Metadata = [
        ("general.architecture", UINT32, 7),
        ("general.file_type", STRING, "Q4_K_M"),
        ("split.count", 7, True),
    ]
    header = header_of(gguf_bytes([], wrong))
    assert (header.architecture, header.file_type, header.split_count) == ("", "unknown", 1)


def test_a_large_file_costs_only_its_header() -> None:
    head = gguf_bytes([Tensor("big", (2**34,), F16, b"")])
    asked: list[tuple[int, int]] = []

    def read(offset: int, size: int) -> bytes:
        asked.append((offset, size))
        return head[offset : offset + size]

    header = read_gguf_header(read, len(head) + 2**35)
    assert header.parameter_count == 2**34
    assert asked == [(0, 1024 * 1024)]


def with_entry(entry: bytes, *, tensors: int = 0, keys: int = 0) -> bytes:
    """A file whose counts are right and whose only entry is the given bytes, with room behind."""
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, keys) + entry + bytes(64)


def tensor_entry(name: str, dimensions: tuple[int, ...], kind: int, offset: int = 0) -> bytes:
    shape = struct.pack(f"<I{len(dimensions)}Q", len(dimensions), *dimensions)
    return text("<", name) + shape + struct.pack("<IQ", kind, offset)


def key_entry(key: str, kind: int, value: bytes) -> bytes:
    return text("<", key) + struct.pack("<I", kind) + value


LIES = {
    "empty": (b"", "not a GGUF file"),
    "another format": (b"PK\x03\x04" + bytes(40), "not a GGUF file"),
    "only the magic": (b"GGUF", "truncated: the header goes on to byte 8 but the file has 4"),
    "version 1": (gguf_bytes(version=1), "GGUF version 1 is not supported"),
    "version 4": (gguf_bytes(version=4), "GGUF version 4 is not supported"),
    "more tensors than bytes": (with_entry(b"", tensors=5), "no room for 5 tensors"),
    "2^63 tensors": (with_entry(b"", tensors=2**63), "are over 262144"),
    "more keys than bytes": (with_entry(b"", keys=50), "no room for 50 metadata keys"),
    "2^64-1 keys": (with_entry(b"", keys=2**64 - 1), "are over 65536"),
    "a long key": (with_entry(struct.pack("<Q", 70_000), keys=1), "a metadata key of 70000 bytes is over 65535"),
    "a key past the end": (with_entry(struct.pack("<Q", 60_000), keys=1), "truncated"),
    "a repeated key": (with_entry(key_entry("a", 0, b"\1") * 2, keys=2), "'a' stands twice"),
    "an unknown value type": (with_entry(key_entry("a", 13, b""), keys=1), "'a' has the unknown type 13"),
    "a huge text": (
        with_entry(key_entry("a", STRING, struct.pack("<Q", STRING_SIZE_BYTES_MAX + 1)), keys=1),
        "is over 16777216",
    ),
    "a huge array": (
        with_entry(key_entry("a", ARRAY, struct.pack("<IQ", 0, ARRAY_LENGTH_MAX + 1)), keys=1),
        "is over 67108864",
    ),
    "an array past the end": (
        with_entry(key_entry("a", ARRAY, struct.pack("<IQ", 10, 1000)), keys=1),
        "truncated: the header goes on to byte",
    ),
    "texts past the end": (
        with_entry(key_entry("a", ARRAY, struct.pack("<IQ", STRING, 1000)), keys=1),
        "truncated: the header goes on to byte",
    ),
    "a huge text in an array": (
        with_entry(key_entry("a", ARRAY, struct.pack("<IQQ", STRING, 1, 2**60)), keys=1),
        f"a text of {2**60} bytes",
    ),
    "an array of arrays": (
        with_entry(key_entry("a", ARRAY, struct.pack("<IQ", ARRAY, 1)), keys=1),
        "elements of the type 9, which is not supported",
    ),
    "an alignment of zero": (with_entry(key_entry("general.alignment", UINT32, bytes(4)), keys=1), "no power of two"),
    "an alignment of 24": (
        with_entry(key_entry("general.alignment", UINT32, struct.pack("<I", 24)), keys=1),
        "the alignment '24' is no power of two",
    ),
    "an alignment of text": (
        with_entry(key_entry("general.alignment", STRING, text("<", "32\n")), keys=1),
        r"the alignment '32\\n' is no power",
    ),
    "five dimensions": (with_entry(tensor_entry("t", (1, 1, 1, 1, 1), F32), tensors=1), "'t' has 5 dimensions"),
    "a dimension of zero": (with_entry(tensor_entry("t", (4, 0), F32), tensors=1), "dimension of zero"),
    "an unknown tensor type": (with_entry(tensor_entry("t", (4,), 99), tensors=1), "'t' has the unknown type 99"),
    "a withdrawn tensor type": (with_entry(tensor_entry("t", (32,), 4), tensors=1), "'t' has the unknown type 4"),
    "a broken block": (
        with_entry(tensor_entry("t", (255,), Q4_K), tensors=1),
        "rows of 255 elements, no multiple of Q4_K's block of 256",
    ),
    "a crooked offset": (with_entry(tensor_entry("t", (1,), F32, 4), tensors=1), "begins at 4, not aligned to 32"),
    "dimensions whose product overflows 64 bits": (
        with_entry(tensor_entry("t", (2**63, 2**63, 2**63, 2**63), F32), tensors=1),
        "truncated: tensor 't' ends at byte",
    ),
    "an offset at the end of 64 bits": (
        with_entry(tensor_entry("t", (1,), F32, 2**64 - 32), tensors=1),
        "truncated: tensor 't' ends at byte",
    ),
    "a download that stopped": (
        gguf_bytes(TWO_TENSORS)[:-13],
        "truncated: tensor 'output_norm.weight' ends at byte [0-9]+ but the file has [0-9]+",
    ),
    "overlapping tensors": (
        gguf_bytes([f16_tensor("one", b"ab" * 40), Tensor("two", (2,), F16, b"abcd", offset=64)]),
        "'one' and 'two' overlap",
    ),
    "one tensor twice": (gguf_bytes([f16_tensor("one", b"ab"), f16_tensor("one", b"cd")]), "the same name"),
    "a name made to forge a log line": (
        with_entry(tensor_entry("t\nERROR \x1b[2J", (4,), 99), tensors=1),
        r"'t\\nERROR \\x1b\[2J' has the unknown type",
    ),
}


@pytest.mark.parametrize(("data", "reason"), LIES.values(), ids=LIES.keys())
def test_a_lying_file_is_refused_in_one_line(data: bytes, reason: str) -> None:
    with pytest.raises(GgufError, match=reason) as caught:
        header_of(data)
    assert "\n" not in str(caught.value)


def test_a_file_that_shrinks_while_it_is_read_is_truncated() -> None:
    data = gguf_bytes(TWO_TENSORS)
    with pytest.raises(GgufError, match="the file ends at byte 40, inside its header"):
        read_gguf_header(lambda offset, size: data[:40][offset : offset + size], len(data))


def test_a_header_without_end_is_refused_before_it_fills_the_memory() -> None:
    endless = with_entry(key_entry("a", ARRAY, struct.pack("<IQ", 12, ARRAY_LENGTH_MAX)), keys=1)
    with pytest.raises(GgufError, match=f"the header is over {HEADER_SIZE_BYTES_MAX} bytes"):
        read_gguf_header(lambda offset, size: endless[offset : offset + size], 2**40)


@pytest.mark.parametrize("piece", [1, 7, 64, 1000])
def test_texts_may_straddle_the_pieces_they_are_read_in(piece: int) -> None:
    data = gguf_bytes(TWO_TENSORS)
    header = read_gguf_header(lambda offset, size: data[offset : offset + min(size, piece)], len(data))
    assert header == header_of(data)


def test_our_tables_agree_with_those_of_ggml() -> None:
    theirs = {int(kind): (kind.name, *sizes) for kind, sizes in gguf.GGML_QUANT_SIZES.items()}
    ours = {number: (kind.name, kind.block_length, kind.size_bytes) for number, kind in TENSOR_TYPES.items()}
    # ggml's own block_q8_1 is two halves and 32 bytes; the Python package still counts two floats.
    assert theirs.pop(9) == ("Q8_1", 32, 40)
    shared = ours.keys() & theirs.keys()
    assert len(shared) >= 31
    assert {number: ours[number] for number in shared} == {number: theirs[number] for number in shared}
    names = {int(kind): kind.name.removeprefix("MOSTLY_").removeprefix("ALL_") for kind in gguf.LlamaFileType}
    assert {number: FILE_TYPES[number] for number in FILE_TYPES.keys() & names.keys()} == {
        number: name for number, name in names.items() if number in FILE_TYPES
    }
