"""Which chunks of a blob are held: one bit a chunk, set once and never cleared (0 -> 1 only, so sources commute)."""

from collections.abc import Iterable, Iterator
from typing import Self

from protocols.errors import RemoteProtocolError


class Bits:
    """A set of chunk indices below `count`. Chunk 0 is the highest bit of the first byte on the wire."""

    __slots__ = ("_held", "_value", "count")

    def __init__(self, count: int, held: Iterable[int] = ()) -> None:
        if count < 0:
            raise ValueError("a blob has no negative number of chunks")
        self.count = count
        self._value = bytearray((count + 7) // 8)
        self._held = 0
        for index in held:
            self.add(index)

    @classmethod
    def full(cls, count: int) -> Self:
        """All chunks held."""
        return cls.from_bytes(count, _all_ones(count))

    @classmethod
    def from_bytes(cls, count: int, data: bytes) -> Self:
        """From the wire form; RemoteProtocolError when length or padding do not fit the count."""
        if len(data) != (count + 7) // 8:
            raise RemoteProtocolError(f"a bitfield of {count} chunks has {(count + 7) // 8} bytes, not {len(data)}")
        if count % 8 and data[-1] & (0xFF >> (count % 8)):
            raise RemoteProtocolError("a bitfield has bits set past its last chunk")
        bits = cls(count)
        bits._value[:] = data
        bits._held = int.from_bytes(data, "big").bit_count()
        return bits

    def to_bytes(self) -> bytes:
        """The wire form."""
        return bytes(self._value)

    def add(self, index: int) -> bool:
        """Set a bit; True when it was not set before. IndexError outside the blob."""
        if not 0 <= index < self.count:
            raise IndexError(f"chunk {index} of {self.count}")
        mask = 0x80 >> (index & 7)
        if self._value[index >> 3] & mask:
            return False
        self._value[index >> 3] |= mask
        self._held += 1
        return True

    def __contains__(self, index: object) -> bool:
        return (
            isinstance(index, int) and 0 <= index < self.count and bool(self._value[index >> 3] & (0x80 >> (index & 7)))
        )

    def __len__(self) -> int:
        """How many are held."""
        return self._held

    def __iter__(self) -> Iterator[int]:
        return (index for index in range(self.count) if index in self)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Bits) and self.count == other.count and self._value == other._value

    __hash__ = None  # type: ignore[assignment]  # it changes

    def missing(self) -> Iterator[int]:
        """The indices not held, ascending."""
        return (index for index in range(self.count) if index not in self)

    def complete(self) -> bool:
        """Whether every chunk is held."""
        return self._held == self.count

    def copy(self) -> "Bits":
        """An independent copy."""
        return Bits.from_bytes(self.count, bytes(self._value))

    def __repr__(self) -> str:
        return f"Bits({self._held}/{self.count})"


def _all_ones(count: int) -> bytes:
    data = bytearray(b"\xff" * ((count + 7) // 8))
    if count % 8:
        data[-1] = 0xFF & ~(0xFF >> (count % 8))
    return bytes(data)
