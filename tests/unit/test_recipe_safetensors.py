"""protocols/recipe/safetensors: where tensors lie, and what is no safetensors file."""

import json

import pytest

from protocols.recipe.safetensors import (
    HEADER_SIZE_BYTES_MAX,
    SafetensorsError,
    looks_like_safetensors,
    parse_safetensors_header,
)
from tests.support_recipe import safetensors_bytes, safetensors_from_header


def parse(data: bytes) -> list[bytes]:
    """The tensors' bytes, in order, as our reader finds them."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = parse_safetensors_header(data[:end], len(data))
    assert header.data_offset_bytes == end
    return [data[begin:stop] for begin, stop in header.tensors]


def test_tensors_are_found_in_order_of_offset_whatever_the_order_of_names() -> None:
    header = {
        "__metadata__": {"format": "pt"},
        "second": {"dtype": "U8", "shape": [3], "data_offsets": [5, 8]},
        "first": {"dtype": "U8", "shape": [5], "data_offsets": [0, 5]},
    }
    assert parse(safetensors_from_header(json.dumps(header).encode(), b"helloyou")) == [b"hello", b"you"]


def test_empty_tensors_and_spaces_after_the_header_are_sound() -> None:
    assert parse(safetensors_bytes({"a": b"", "b": b"xyz", "c": b""}, {"k": "v"})) == [b"", b"xyz", b""]
    assert parse(safetensors_from_header(b"{}   ", b"")) == []


def entry(begin: object, end: object) -> bytes:
    return json.dumps({"t": {"dtype": "U8", "shape": [1], "data_offsets": [begin, end]}}).encode()


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (b"{", "no JSON"),
        (b"{\xff}", "no JSON"),
        (b"{" + b'"a":[' * 100_000, "no JSON"),
        (b"[1]", "no JSON object"),
        (b'{"t":1}', "no data_offsets"),
        (b'{"t":{"dtype":"U8"}}', "no data_offsets"),
        (b'{"t":{"data_offsets":[0]}}', "no data_offsets"),
        (entry(0, 1.0), "no data_offsets"),
        (entry(0, True), "no data_offsets"),
        (entry(-1, 4), "lies outside the file"),
        (entry(4, 2), "lies outside the file"),
        (entry(0, 11), "lies outside the file"),
        (entry(0, 2**70), "lies outside the file"),
        (b'{"a":{"data_offsets":[0,5]},"b":{"data_offsets":[4,6]}}', "overlap"),
    ],
)
def test_a_lying_header_is_refused(header: bytes, reason: str) -> None:
    with pytest.raises(SafetensorsError, match=reason):
        parse(safetensors_from_header(header, bytes(10)))


def test_a_header_longer_than_the_file_or_than_we_parse_is_refused() -> None:
    with pytest.raises(SafetensorsError, match="truncated"):
        parse_safetensors_header((100).to_bytes(8, "little") + b"{}", 10)
    with pytest.raises(SafetensorsError, match="is over 16777216"):
        parse_safetensors_header((HEADER_SIZE_BYTES_MAX + 1).to_bytes(8, "little") + b"{}", 2**40)


@pytest.mark.parametrize(
    ("beginning", "size", "expected"),
    [
        (safetensors_bytes({"a": b"x"}), 1000, True),
        (safetensors_bytes({"a": b"x"})[:8], 1000, False),
        (safetensors_bytes({"a": b"x"}), 20, False),
        ((100_000_001).to_bytes(8, "little") + b"{", 2**40, False),
        (b"GGUF\3\0\0\0\0", 1000, False),
        (b"{" * 9, 2**63, False),
    ],
    ids=["one", "too short to tell", "longer than the file", "over the format's limit", "gguf", "text"],
)
def test_the_first_nine_bytes_tell(beginning: bytes, size: int, expected: bool) -> None:
    assert looks_like_safetensors(beginning, size) is expected
