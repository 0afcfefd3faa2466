"""Safetensors headers: where each tensor lies, checked against the file's size.

Format: eight bytes of little-endian length, that many bytes of JSON, then the data. The specification caps the
JSON at 100 MB and wants the tensors to cover the data without holes; recipes only need them not to overlap.
"""

import json
from itertools import pairwise
from typing import Any

import attrs

FORMAT_HEADER_SIZE_BYTES_MAX = 100_000_000
HEADER_SIZE_BYTES_MAX = 16 * 1024 * 1024
"""The largest header taken apart here: room for 100,000 tensors. Parsing JSON takes some twenty times its size in
memory and a blob's maker chooses the JSON, so the format's own 100 MB would cost too much."""

PREFIX_SIZE_BYTES = 8


class SafetensorsError(ValueError):
    """The file is no safetensors file this house can take apart; the message is one line saying why."""


@attrs.frozen
class SafetensorsHeader:
    """Where the data begins, and each tensor's first byte and the byte after its last, from the file's beginning."""

    data_offset_bytes: int
    tensors: tuple[tuple[int, int], ...] = attrs.field(repr=False)


def looks_like_safetensors(beginning: bytes | bytearray, file_size_bytes: int) -> bool:
    """Whether nine bytes may begin a safetensors file: a length that fits, and the brace of a JSON object."""
    if len(beginning) <= PREFIX_SIZE_BYTES or beginning[PREFIX_SIZE_BYTES] != ord("{"):
        return False
    length = header_length(beginning)
    return 2 <= length <= min(FORMAT_HEADER_SIZE_BYTES_MAX, file_size_bytes - PREFIX_SIZE_BYTES)


def header_length(beginning: bytes | bytearray) -> int:
    """How many bytes of JSON follow the first eight."""
    return int.from_bytes(beginning[:PREFIX_SIZE_BYTES], "little")


def parse_safetensors_header(header: bytes | bytearray, file_size_bytes: int) -> SafetensorsHeader:
    """The tensors of a file of `file_size_bytes` whose first bytes (prefix and JSON, exactly) are `header`.

    Raises SafetensorsError when the two do not fit together.
    """
    length = header_length(header)
    if length > HEADER_SIZE_BYTES_MAX:
        raise SafetensorsError(f"a header of {length} bytes is over {HEADER_SIZE_BYTES_MAX}")
    if len(header) != PREFIX_SIZE_BYTES + length or len(header) > file_size_bytes:
        raise SafetensorsError("truncated: the file ends inside its header")
    try:
        fields = json.loads(header[PREFIX_SIZE_BYTES:].decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise SafetensorsError(f"the header is no JSON: {error}") from error
    if not isinstance(fields, dict):
        raise SafetensorsError("the header is no JSON object")
    fields.pop("__metadata__", None)
    room = file_size_bytes - len(header)
    tensors = sorted(_extent(name, fields[name], room) for name in fields)
    for before, after in pairwise(tensors):
        if before[1] > after[0]:
            raise SafetensorsError("two tensors overlap")
    return SafetensorsHeader(len(header), tuple((begin + len(header), end + len(header)) for begin, end in tensors))


def _extent(name: str, entry: Any, room: int) -> tuple[int, int]:
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(offset) is int for offset in offsets):
        raise SafetensorsError(f"tensor {name[:80]!a} has no data_offsets")
    begin, end = offsets
    if not 0 <= begin <= end <= room:
        raise SafetensorsError(f"tensor {name[:80]!a} lies outside the file: {str(offsets)[:60]}")
    return begin, end
