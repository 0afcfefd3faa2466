"""GGUF headers, read without the weights and without trust.

A header is a claim by whoever made the file: every count and length is held against the file's size before
anything is allocated for it, and every tensor must lie inside the file, which also finds truncated downloads.
Format: the GGUF specification of ggml, versions 2 and 3, either byte order.
"""

import struct
from collections.abc import Callable, Mapping
from itertools import pairwise

import attrs

from protocols.recipe.gguf_types import ARRAY, FILE_TYPES, STRING, TENSOR_TYPES, VALUE_FORMATS

HEADER_SIZE_BYTES_MAX = 128 * 1024 * 1024
"""Eight times the largest vocabularies in use; it bounds what a lying header can make anyone keep."""

STRING_SIZE_BYTES_MAX = 16 * 1024 * 1024
NAME_SIZE_BYTES_MAX = 65_535
ARRAY_LENGTH_MAX = 64 * 1024 * 1024
KEY_COUNT_MAX = 65_536
TENSOR_COUNT_MAX = 262_144
DIMENSIONS_MAX = 4
DEFAULT_ALIGNMENT_BYTES = 32

_PIECE_SIZE_BYTES = 1024 * 1024
# The least a key with its value, and a tensor's entry, can take in the file.
_KEY_SIZE_BYTES_MIN = 13
_TENSOR_SIZE_BYTES_MIN = 24

Read = Callable[[int, int], bytes]
"""`read(offset_bytes, size_bytes)`: at most that many bytes from there, at least one unless the file ends."""


class GgufError(ValueError):
    """The file is no GGUF this house can take; the message is one line saying why."""


@attrs.frozen
class GgufArray:
    """A metadata array: its elements are skipped, what they are and how many is kept."""

    element_type: int
    length: int


GgufValue = int | float | bool | str | GgufArray


@attrs.frozen
class GgufTensor:
    """One tensor: `offset_bytes` is from the beginning of the file, `dimensions` stand fastest first."""

    name: str
    dimensions: tuple[int, ...]
    type: int
    elements: int
    offset_bytes: int
    size_bytes: int


@attrs.frozen
class GgufHeader:
    """What a GGUF file says of itself; `tensors` are in order of offset and do not overlap."""

    version: int
    byte_order: str
    file_size_bytes: int
    data_offset_bytes: int
    metadata: Mapping[str, GgufValue] = attrs.field(repr=False)
    tensors: tuple[GgufTensor, ...] = attrs.field(repr=False)

    def text(self, key: str, default: str = "") -> str:
        """A metadata value that should be text."""
        value = self.metadata.get(key, default)
        return value if isinstance(value, str) else default

    def number(self, key: str, default: int = 0) -> int:
        """A metadata value that should be an integer."""
        value = self.metadata.get(key, default)
        return value if isinstance(value, int) and not isinstance(value, bool) else default

    @property
    def architecture(self) -> str:
        """`general.architecture`, for example `llama`; empty when the file does not say."""
        return self.text("general.architecture")

    @property
    def general_type(self) -> str:
        """`general.type`; a file that does not say is a model."""
        return self.text("general.type", "model")

    @property
    def split_count(self) -> int:
        """Over how many files the model is spread; 1 when it is whole."""
        return max(1, self.number("split.count", 1))

    @property
    def file_type(self) -> str:
        """The quantisation as people write it (`Q4_K_M`), or `unknown`."""
        return FILE_TYPES.get(self.number("general.file_type", -1), "unknown")

    @property
    def parameter_count(self) -> int:
        """The elements of all tensors."""
        return sum(tensor.elements for tensor in self.tensors)

    @property
    def model_type(self) -> str:
        """The parameter count as people write it: `3.2B`, `137M`, `22.70M`, `1K`."""
        return _human_count(self.parameter_count)

    @property
    def is_projector(self) -> bool:
        """Whether this is the vision or audio half of a model, by type or because it has an encoder and no blocks."""
        if self.general_type in ("projector", "mmproj"):
            return True
        if f"{self.architecture}.block_count" in self.metadata:
            return False
        encoders = ("clip.has_vision_encoder", "clip.has_audio_encoder", f"{self.architecture}.vision.block_count")
        return any(self.metadata.get(key) for key in encoders)


def read_gguf_header(read: Read, file_size_bytes: int) -> GgufHeader:
    """The checked header of a GGUF file of `file_size_bytes`, read through `read` in pieces of at most 1 MiB.

    The tensors' bytes are never read. Raises GgufError when the file is no sound GGUF; what `read` raises passes.
    """
    cursor = _Cursor(read, file_size_bytes)
    version = cursor.read_preamble()
    tensor_count = cursor.unsigned64()
    key_count = cursor.unsigned64()
    cursor.check_count("tensors", tensor_count, TENSOR_COUNT_MAX, _TENSOR_SIZE_BYTES_MIN)
    cursor.check_count("metadata keys", key_count, KEY_COUNT_MAX, _KEY_SIZE_BYTES_MIN)
    metadata = _read_metadata(cursor, key_count)
    alignment = _alignment(metadata)
    entries = [_read_tensor_entry(cursor) for _ in range(tensor_count)]
    data_offset = -(-cursor.position // alignment) * alignment
    tensors = sorted(
        (_place_tensor(entry, data_offset, alignment, file_size_bytes) for entry in entries),
        key=lambda tensor: tensor.offset_bytes,
    )
    _check_apart(tensors)
    # A file without tensors (a vocabulary) may end before the padding does.
    data_offset = min(data_offset, file_size_bytes)
    order = "little" if cursor.order == "<" else "big"
    return GgufHeader(version, order, file_size_bytes, data_offset, metadata, tuple(tensors))


class _Cursor:
    """Reads forward through a file in pieces; `position` never passes the header limit or the file's end."""

    def __init__(self, read: Read, file_size_bytes: int) -> None:
        self._read = read
        self._file_size_bytes = file_size_bytes
        self._piece = b""
        self._piece_offset = 0
        self.position = 0
        self.order = "<"

    def take(self, size_bytes: int) -> bytes:
        """The next bytes."""
        start = self.position - self._piece_offset
        if start + size_bytes <= len(self._piece):
            self.position += size_bytes
            return self._piece[start : start + size_bytes]
        self._check_room(size_bytes)
        parts = []
        while size_bytes:
            start = self._fill()
            parts.append(self._piece[start : start + size_bytes])
            self.position += len(parts[-1])
            size_bytes -= len(parts[-1])
        return b"".join(parts)

    def _fill(self) -> int:
        """See that the piece in memory holds the byte at `position`; where in the piece that is."""
        start = self.position - self._piece_offset
        if start < len(self._piece):
            return start
        wanted = min(_PIECE_SIZE_BYTES, self._file_size_bytes - self.position)
        self._piece = self._read(self.position, wanted)
        self._piece_offset = self.position
        if not self._piece:
            raise GgufError(f"truncated: the file ends at byte {self.position}, inside its header")
        return 0

    def skip(self, size_bytes: int) -> None:
        """Pass over bytes without reading them."""
        self._check_room(size_bytes)
        self.position += size_bytes

    def _check_room(self, size_bytes: int) -> None:
        end = self.position + size_bytes
        if end > self._file_size_bytes:
            raise GgufError(f"truncated: the header goes on to byte {end} but the file has {self._file_size_bytes}")
        if end > HEADER_SIZE_BYTES_MAX:
            raise GgufError(f"the header is over {HEADER_SIZE_BYTES_MAX} bytes")

    def check_count(self, what: str, count: int, most: int, size_bytes_min: int) -> None:
        """Refuse a count before anything is made for it."""
        if count > most:
            raise GgufError(f"{count} {what} are over {most}")
        if count * size_bytes_min > self._file_size_bytes - self.position:
            raise GgufError(f"truncated: a file of {self._file_size_bytes} bytes has no room for {count} {what}")

    def read_preamble(self) -> int:
        """The magic and the version, which also tell the byte order."""
        magic = self.take(4) if self._file_size_bytes >= 4 else b""
        if magic not in (b"GGUF", b"FUGG"):
            raise GgufError("not a GGUF file: it does not begin with GGUF")
        raw = self.take(4)
        for order in ("<", ">") if magic == b"GGUF" else (">",):
            version = int(struct.unpack(order + "I", raw)[0])
            if version in (2, 3):
                self.order = order
                return version
        raise GgufError(f"GGUF version {struct.unpack('<I', raw)[0]} is not supported, only 2 and 3")

    def unsigned32(self) -> int:
        return int(struct.unpack(self.order + "I", self.take(4))[0])

    def unsigned64(self) -> int:
        return int(struct.unpack(self.order + "Q", self.take(8))[0])

    def text(self, what: str, size_bytes_max: int) -> str:
        """A length and as many bytes of UTF-8; other bytes are shown as replacement characters."""
        size_bytes = self.unsigned64()
        if size_bytes > size_bytes_max:
            raise GgufError(f"{what} of {size_bytes} bytes is over {size_bytes_max}")
        return self.take(size_bytes).decode("utf-8", "replace")

    def skip_texts(self, count: int) -> None:
        """Pass over many texts: a vocabulary has hundreds of thousands, so the inner loop is kept lean."""
        unpack_length = struct.Struct(self.order + "Q").unpack_from
        while count:
            self._check_room(8)
            start = offset = self._fill()
            piece, last = self._piece, len(self._piece) - 8
            while count and offset <= last:
                offset += 8 + self._checked_length(unpack_length(piece, offset)[0])
                count -= 1
            self.skip(offset - start)
            if count and offset < len(piece):
                # The next length straddles two pieces.
                self.skip(self._checked_length(self.unsigned64()))
                count -= 1

    @staticmethod
    def _checked_length(size_bytes: int) -> int:
        if size_bytes > STRING_SIZE_BYTES_MAX:
            raise GgufError(f"a text of {size_bytes} bytes is over {STRING_SIZE_BYTES_MAX}")
        return size_bytes


def _read_metadata(cursor: _Cursor, count: int) -> dict[str, GgufValue]:
    metadata: dict[str, GgufValue] = {}
    for _ in range(count):
        key = cursor.text("a metadata key", NAME_SIZE_BYTES_MAX)
        if key in metadata:
            raise GgufError(f"the metadata key {_shown(key)} stands twice")
        metadata[key] = _read_value(cursor, key)
    return metadata


def _read_value(cursor: _Cursor, key: str) -> GgufValue:
    kind = cursor.unsigned32()
    if kind == STRING:
        return cursor.text(f"the value of {_shown(key)}", STRING_SIZE_BYTES_MAX)
    if kind == ARRAY:
        return _skip_array(cursor, key)
    form = VALUE_FORMATS.get(kind)
    if form is None:
        raise GgufError(f"the metadata key {_shown(key)} has the unknown type {kind}")
    value: GgufValue = struct.unpack(cursor.order + form, cursor.take(struct.calcsize("=" + form)))[0]
    return value


def _skip_array(cursor: _Cursor, key: str) -> GgufArray:
    kind = cursor.unsigned32()
    length = cursor.unsigned64()
    if length > ARRAY_LENGTH_MAX:
        raise GgufError(f"the array {_shown(key)} of {length} elements is over {ARRAY_LENGTH_MAX}")
    if kind == STRING:
        cursor.skip_texts(length)
    elif kind in VALUE_FORMATS:
        cursor.skip(length * struct.calcsize("=" + VALUE_FORMATS[kind]))
    else:
        raise GgufError(f"the array {_shown(key)} has elements of the type {kind}, which is not supported")
    return GgufArray(kind, length)


def _alignment(metadata: Mapping[str, GgufValue]) -> int:
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT_BYTES)
    if type(alignment) is not int or alignment <= 0 or alignment & (alignment - 1):
        raise GgufError(f"the alignment {_shown(str(alignment))} is no power of two")
    return alignment


def _read_tensor_entry(cursor: _Cursor) -> GgufTensor:
    """A tensor as the header lists it: its offset still counts from where the data begins."""
    name = cursor.text("a tensor name", NAME_SIZE_BYTES_MAX)
    count = cursor.unsigned32()
    if count > DIMENSIONS_MAX:
        raise GgufError(f"tensor {_shown(name)} has {count} dimensions, more than {DIMENSIONS_MAX}")
    dimensions = struct.unpack(f"{cursor.order}{count}Q", cursor.take(8 * count))
    kind = cursor.unsigned32()
    offset_bytes = cursor.unsigned64()
    tensor_type = TENSOR_TYPES.get(kind)
    if tensor_type is None:
        raise GgufError(f"tensor {_shown(name)} has the unknown type {kind}")
    elements = 1
    for dimension in dimensions:
        elements *= dimension
    if elements == 0:
        raise GgufError(f"tensor {_shown(name)} has a dimension of zero")
    if (dimensions[0] if dimensions else 1) % tensor_type.block_length:
        raise GgufError(
            f"tensor {_shown(name)} has rows of {dimensions[0] if dimensions else 1} elements,"
            f" no multiple of {tensor_type.name}'s block of {tensor_type.block_length}"
        )
    size_bytes = elements // tensor_type.block_length * tensor_type.size_bytes
    return GgufTensor(name, dimensions, kind, elements, offset_bytes, size_bytes)


def _place_tensor(entry: GgufTensor, data_offset: int, alignment: int, file_size_bytes: int) -> GgufTensor:
    if entry.offset_bytes % alignment:
        raise GgufError(f"tensor {_shown(entry.name)} begins at {entry.offset_bytes}, not aligned to {alignment}")
    offset_bytes = data_offset + entry.offset_bytes
    end = offset_bytes + entry.size_bytes
    if end > file_size_bytes:
        raise GgufError(f"truncated: tensor {_shown(entry.name)} ends at byte {end} but the file has {file_size_bytes}")
    return attrs.evolve(entry, offset_bytes=offset_bytes)


def _check_apart(tensors: list[GgufTensor]) -> None:
    if len({tensor.name for tensor in tensors}) != len(tensors):
        raise GgufError("two tensors have the same name")
    for before, after in pairwise(tensors):
        if before.offset_bytes + before.size_bytes > after.offset_bytes:
            raise GgufError(f"tensors {_shown(before.name)} and {_shown(after.name)} overlap")


def _shown(text: str) -> str:
    """A name of the file's maker's choice, fit for one line."""
    return ascii(text[:80])


def _human_count(count: int) -> str:
    if count >= 1_000_000_000:
        return f"{count / 1e9:.0f}B" if count % 1_000_000_000 == 0 else f"{count / 1e9:.1f}B"
    if count >= 1_000_000:
        return f"{count / 1e6:.0f}M" if count % 1_000_000 == 0 else f"{count / 1e6:.2f}M"
    return f"{count / 1e3:.0f}K" if count >= 1000 else str(count)
