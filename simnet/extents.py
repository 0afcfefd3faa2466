"""The bytes of a sparse file, as pieces that never overlap: many files may share the same piece of memory."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator


class Extents:
    """What was never written reads as zeros."""

    def __init__(self) -> None:
        self.written_bytes = 0
        self._starts: list[int] = []
        self._pieces: list[bytes] = []

    def cut(self, offset: int, size_bytes: int) -> list[tuple[int, bytes]]:
        """Take the written bytes of a range out; where each piece stood, and the piece."""
        end = offset + size_bytes
        first, last = self._overlapping(offset, end)
        taken: list[tuple[int, bytes]] = []
        left: list[tuple[int, bytes]] = []
        for start, piece in zip(self._starts[first:last], self._pieces[first:last], strict=True):
            begin, stop = max(start, offset), min(start + len(piece), end)
            taken.append((begin, piece[begin - start : stop - start]))
            if start < offset:
                left.append((start, piece[: offset - start]))
            if start + len(piece) > end:
                left.append((end, piece[end - start :]))
        self._starts[first:last] = [start for start, _ in left]
        self._pieces[first:last] = [piece for _, piece in left]
        self.written_bytes -= sum(len(piece) for _, piece in taken)
        return taken

    def put(self, offset: int, data: bytes) -> list[tuple[int, bytes]]:
        """Write; what stood there before, as `cut` gives it."""
        if not data:
            return []
        before = self.cut(offset, len(data))
        place = bisect_left(self._starts, offset)
        self._starts.insert(place, offset)
        self._pieces.insert(place, data)
        self.written_bytes += len(data)
        return before

    def read(self, offset: int, size_bytes: int) -> bytes:
        """The bytes of a range."""
        first, last = self._overlapping(offset, offset + size_bytes)
        if last == first + 1 and self._starts[first] == offset and len(self._pieces[first]) == size_bytes:
            return self._pieces[first]
        data = bytearray(size_bytes)
        for start, piece in zip(self._starts[first:last], self._pieces[first:last], strict=True):
            begin, stop = max(start, offset), min(start + len(piece), offset + size_bytes)
            data[begin - offset : stop - offset] = piece[begin - start : stop - start]
        return bytes(data)

    def written_in(self, offset: int, size_bytes: int) -> int:
        """How many bytes of a range were written."""
        end = offset + size_bytes
        first, last = self._overlapping(offset, end)
        here = zip(self._starts[first:last], self._pieces[first:last], strict=True)
        return sum(min(start + len(piece), end) - max(start, offset) for start, piece in here)

    def pieces(self) -> Iterator[tuple[int, bytes]]:
        """Where each piece stands, and the piece, ascending."""
        return zip(list(self._starts), list(self._pieces), strict=True)

    def spans(self) -> list[tuple[int, int]]:
        """Begin and end of what is written, neighbours joined, ascending."""
        spans: list[tuple[int, int]] = []
        for start, piece in self.pieces():
            if spans and spans[-1][1] == start:
                spans[-1] = (spans[-1][0], start + len(piece))
            else:
                spans.append((start, start + len(piece)))
        return spans

    def _overlapping(self, offset: int, end: int) -> tuple[int, int]:
        """The places of the pieces that have a byte in a range: from the first to before the last."""
        if end <= offset:
            return 0, 0
        first = bisect_right(self._starts, offset) - 1
        if first < 0 or self._starts[first] + len(self._pieces[first]) <= offset:
            first += 1
        return first, bisect_left(self._starts, end)
