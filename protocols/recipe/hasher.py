"""A blob's SHA-256 and its recipe in one pass, whatever pieces the bytes come in.

The two halves are separate objects so that a caller with two cores can feed them from two threads: both hashes
let other threads run while they work. Memory is bounded: one header, or one window of content-defined chunks.
"""

import hashlib
from collections.abc import Sequence
from typing import Final, Protocol

from blake3 import blake3
from pyfastcdc import FastCDC

from protocols.errors import LocalProtocolError
from protocols.ids import Digest
from protocols.recipe.gguf import GgufError, read_gguf_header
from protocols.recipe.recipe import CHUNK_COUNT_MAX, Recipe
from protocols.recipe.rules import (
    WHOLE_RULE,
    boundaries_gguf,
    boundaries_safetensors,
    check_target,
    choose_rule,
    fastcdc_sizes,
)
from protocols.recipe.safetensors import (
    HEADER_SIZE_BYTES_MAX,
    PREFIX_SIZE_BYTES,
    SafetensorsError,
    header_length,
    looks_like_safetensors,
    parse_safetensors_header,
)

Buffer = bytes | bytearray | memoryview

FIRST_LOOK_BYTES = 1024 * 1024
"""How much of a header is collected before it is first taken apart; each further look waits for twice as much."""

# Level 2 of normalised chunking, as the FastCDC paper recommends; the seed keeps the published gear table.
_NORMALIZED_CHUNKING: Final = 2
_SEED = 0


class WholeHasher:
    """The SHA-256 of a blob."""

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()

    def update(self, data: Buffer) -> None:
        """The next bytes of the blob."""
        self._sha256.update(data)

    def finish(self) -> Digest:
        """The digest of all bytes so far."""
        return Digest("sha256:" + self._sha256.hexdigest())


class ChunkHasher:
    """The chunks of a blob of `size_bytes` and their BLAKE3 hashes.

    The first bytes tell the kind. A header that turns out unsound makes the blob opaque, never unusable: recipes
    are for any blob. Raises ValueError for a target no rule can have, or a blob of more chunks than a recipe holds.
    """

    def __init__(self, size_bytes: int, target_size_bytes: int) -> None:
        check_target(target_size_bytes)
        if size_bytes > CHUNK_COUNT_MAX * (target_size_bytes // 4):
            raise ValueError(f"a blob of {size_bytes} bytes has too many chunks of {target_size_bytes}")
        self._size_bytes = size_bytes
        self._target_size_bytes = target_size_bytes
        self._position = 0
        self._rule = WHOLE_RULE
        self._cutter: _Cutter | None = None
        self._beginning = bytearray()
        self._look_at_bytes = min(size_bytes, FIRST_LOOK_BYTES)
        if size_bytes <= target_size_bytes:
            self._cutter = _FixedCutter((size_bytes,) if size_bytes else ())

    def update(self, data: Buffer) -> None:
        """The next bytes of the blob; LocalProtocolError when there are more than it should have."""
        view = memoryview(data)
        self._position += len(view)
        if self._position > self._size_bytes:
            raise LocalProtocolError(f"a blob of {self._size_bytes} bytes was fed {self._position}")
        while self._cutter is None:
            missing = self._look_at_bytes - len(self._beginning)
            self._beginning += view[:missing]
            view = view[missing:]
            if len(self._beginning) < self._look_at_bytes:
                return
            self._look()
        self._cutter.update(view)

    @property
    def understood(self) -> bool:
        """Whether enough of the blob's beginning has come to know its rule."""
        return self._cutter is not None

    def planned(self) -> tuple[str, tuple[int, ...] | None]:
        """The rule, and the sizes of all chunks where the header alone tells them: None where the bytes decide.

        LocalProtocolError before the beginning is `understood`.
        """
        if self._cutter is None:
            raise LocalProtocolError("a blob whose beginning was not understood has no plan")
        return self._rule, self._cutter.planned()

    def finish(self, digest: Digest) -> Recipe:
        """The recipe of the blob under its digest; LocalProtocolError when bytes are missing."""
        if self._position != self._size_bytes:
            raise LocalProtocolError(f"a blob of {self._size_bytes} bytes was fed {self._position}")
        if self._cutter is None:
            raise LocalProtocolError("a blob that is whole was never understood")
        sizes_bytes, hashes = self._cutter.finish()
        return Recipe(digest, self._size_bytes, self._rule, sizes_bytes, hashes)

    def _look(self) -> None:
        """Decide how to cut, or decide to look again when more of the header is here."""
        beginning, size_bytes, target = self._beginning, self._size_bytes, self._target_size_bytes
        cutter: _Cutter
        try:
            if bytes(beginning[:4]) in (b"GGUF", b"FUGG"):
                header = read_gguf_header(self._read_beginning, size_bytes)
                self._rule = choose_rule(size_bytes, target, header)
                cutter = _FixedCutter(boundaries_gguf(header, size_bytes, target))
            elif looks_like_safetensors(beginning, size_bytes) and header_length(beginning) <= HEADER_SIZE_BYTES_MAX:
                end = PREFIX_SIZE_BYTES + header_length(beginning)
                if end > len(beginning):
                    raise _HeaderContinues
                layout = parse_safetensors_header(beginning[:end], size_bytes)
                self._rule = choose_rule(size_bytes, target, layout)
                cutter = _FixedCutter(boundaries_safetensors(layout, size_bytes, target))
            else:
                cutter = self._opaque()
        except _HeaderContinues:
            if len(beginning) == size_bytes:
                raise LocalProtocolError("a header was read past the end of its blob") from None
            self._look_at_bytes = min(size_bytes, 2 * self._look_at_bytes)
            return
        except (GgufError, SafetensorsError):
            cutter = self._opaque()
        cutter.update(memoryview(beginning))
        self._cutter = cutter
        self._beginning = bytearray()

    def _opaque(self) -> "_ContentCutter":
        self._rule = choose_rule(self._size_bytes, self._target_size_bytes, None)
        return _ContentCutter(self._size_bytes, self._target_size_bytes)

    def _read_beginning(self, offset_bytes: int, size_bytes: int) -> bytes:
        if offset_bytes >= len(self._beginning):
            raise _HeaderContinues
        return bytes(self._beginning[offset_bytes : offset_bytes + size_bytes])


class _HeaderContinues(Exception):
    """The header goes on where no bytes have come yet."""


class _Cutter(Protocol):
    def update(self, view: memoryview) -> None: ...

    def planned(self) -> tuple[int, ...] | None: ...

    def finish(self) -> tuple[tuple[int, ...], bytes]: ...


class _FixedCutter:
    """Cuts where it was told to; copies nothing."""

    def __init__(self, ends: Sequence[int]) -> None:
        starts = (0, *ends[:-1])
        self._sizes_bytes = tuple(end - start for start, end in zip(starts, ends, strict=False))
        self._hashes = bytearray()
        self._index = 0
        self._left_bytes = self._sizes_bytes[0] if self._sizes_bytes else 0
        self._hasher = blake3()

    def update(self, view: memoryview) -> None:
        while len(view):
            part = view[: self._left_bytes]
            self._hasher.update(part)
            self._left_bytes -= len(part)
            view = view[len(part) :]
            if self._left_bytes == 0:
                self._hashes += self._hasher.digest()
                self._hasher = blake3()
                self._index += 1
                if self._index < len(self._sizes_bytes):
                    self._left_bytes = self._sizes_bytes[self._index]

    def planned(self) -> tuple[int, ...]:
        return self._sizes_bytes

    def finish(self) -> tuple[tuple[int, ...], bytes]:
        return self._sizes_bytes, bytes(self._hashes)


class _ContentCutter:
    """Cuts where the bytes say so: a window of at most two of the largest chunks slides over the blob."""

    def __init__(self, size_bytes: int, target_size_bytes: int) -> None:
        sizes = fastcdc_sizes(target_size_bytes)
        self._largest = sizes.maximum
        # Nearly every chunk ends within two averages. Waiting for no more than that spreads the work evenly over
        # the calls, which keeps a second thread fed, and hardly ever looks at a byte twice.
        self._usual = 2 * sizes.average
        self._look_at_bytes = self._usual
        self._chunker = FastCDC(
            sizes.average,
            min_size=sizes.minimum,
            max_size=sizes.maximum,
            normalized_chunking=_NORMALIZED_CHUNKING,
            seed=_SEED,
        )
        self._window = memoryview(bytearray(min(size_bytes, 2 * sizes.maximum)))
        self._start = 0
        self._end = 0
        self._sizes_bytes: list[int] = []
        self._hashes = bytearray()

    def update(self, view: memoryview) -> None:
        while len(view):
            if self._end == len(self._window):
                self._slide()
            part = view[: len(self._window) - self._end]
            self._window[self._end : self._end + len(part)] = part
            self._end += len(part)
            view = view[len(part) :]
            while self._end - self._start >= self._look_at_bytes:
                self._cut(final=False)

    def planned(self) -> None:
        return None

    def finish(self) -> tuple[tuple[int, ...], bytes]:
        while self._start < self._end:
            self._cut(final=True)
        return tuple(self._sizes_bytes), bytes(self._hashes)

    def _cut(self, *, final: bool) -> None:
        pending = self._window[self._start : self._end]
        length = next(iter(self._chunker.cut_buf(pending))).length
        # A cut inside the window stands whatever follows. One at its very end may only mean that the window
        # ended, unless the chunk can grow no more.
        if length == len(pending) < self._largest and not final:
            self._look_at_bytes = self._largest
            return
        self._sizes_bytes.append(length)
        self._hashes += blake3(pending[:length]).digest()
        self._start += length
        self._look_at_bytes = self._usual

    def _slide(self) -> None:
        # What is pending is shorter than the largest chunk, so at least half of the window becomes free.
        pending = bytes(self._window[self._start : self._end])
        self._window[: len(pending)] = pending
        self._start, self._end = 0, len(pending)
