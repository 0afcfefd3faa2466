"""How many holders each chunk has, and which of many chunks is the rarest.

Sets of chunks are integers, one bit a chunk, so that a bitfield of 100,000 chunks is counted in microseconds.
The bits are turned so that this node's own place in the blob comes first: the highest bit is the chunk at `start`.
Receivers that start together thus spread over the blob, and the first copy leaves the seed only once (the idea of
Syncthing's block pull reorderer); the rest is BitTorrent's rarest first.
"""

from collections.abc import Iterable, Iterator

from protocols.bits import Bits


class Rarity:
    """Counts holders per chunk; `start` is where this node begins among equally rare chunks."""

    def __init__(self, count: int, start: int) -> None:
        self._count = count
        self._start = start % count if count else 0
        self.all = (1 << count) - 1
        self._levels = [self.all]

    def mask(self, indices: Iterable[int]) -> int:
        """The set of these chunks."""
        data = bytearray((self._count + 7) // 8)
        for index in indices:
            bit = self._count - 1 - (index - self._start) % self._count
            data[bit >> 3] |= 1 << (bit & 7)
        return int.from_bytes(data, "little")

    def bit(self, index: int) -> int:
        """The set of one chunk."""
        return 1 << (self._count - 1 - (index - self._start) % self._count)

    def mask_of_bits(self, bits: Bits) -> int:
        """The set of the chunks held in a bitfield."""
        straight = int.from_bytes(bits.to_bytes(), "big") >> (-self._count % 8)
        return ((straight << self._start) | (straight >> (self._count - self._start))) & self.all

    def indices(self, mask: int) -> Iterator[int]:
        """The chunks of a set, own place first."""
        while mask:
            bit = mask.bit_length() - 1
            mask ^= 1 << bit
            yield (self._count - 1 - bit + self._start) % self._count

    def gained(self, mask: int) -> None:
        """These chunks have one more holder."""
        for level in range(len(self._levels) - 1, -1, -1):
            moved = self._levels[level] & mask
            if moved:
                if level + 1 == len(self._levels):
                    self._levels.append(0)
                self._levels[level] ^= moved
                self._levels[level + 1] |= moved

    def lost(self, mask: int) -> None:
        """These chunks have one holder less."""
        for level in range(1, len(self._levels)):
            moved = self._levels[level] & mask
            self._levels[level] ^= moved
            self._levels[level - 1] |= moved

    def rarest(self, among: int) -> int | None:
        """The chunk with the fewest holders, own place first among equals; None of the empty set."""
        for level in self._levels:
            found = level & among
            if found:
                return (self._count - found.bit_length() + self._start) % self._count
        return None
