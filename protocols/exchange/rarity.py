"""How many holders each chunk has, and which of many chunks is the rarest.

Sets of chunks are integers, one bit a chunk (the highest is chunk 0), so that a bitfield of 100,000 chunks is counted
in microseconds. Among equally rare chunks this node takes those that follow a place of its own: receivers that start
together spread over the blob, and the first copy leaves the seed once (the idea of Syncthing's block pull reorderer).
Where others have got chunks on that way it takes equals by chance, since two that went on side by side would ask the
seed for the same chunks from there on.
"""

from collections.abc import Iterable
from random import Random

from protocols.bits import Bits


class Rarity:
    """Counts holders per chunk; `start` is where this node begins among equally rare chunks."""

    def __init__(self, count: int, start: int, rng: Random) -> None:
        self._count = count
        self._start = start % count if count else 0
        self._rng = rng
        self.all = (1 << count) - 1
        self._levels = [self.all]
        self._walked = 0

    def begin_at(self, start: int) -> None:
        """Walk from another place."""
        self._start = start % self._count if self._count else 0

    def mask(self, indices: Iterable[int]) -> int:
        """The set of these chunks."""
        data = bytearray((self._count + 7) // 8)
        for index in indices:
            bit = self._count - 1 - index
            data[bit >> 3] |= 1 << (bit & 7)
        return int.from_bytes(data, "little")

    def bit(self, index: int) -> int:
        """The set of one chunk."""
        return 1 << (self._count - 1 - index)

    def mask_of_bits(self, bits: Bits) -> int:
        """The set of the chunks held in a bitfield."""
        return int.from_bytes(bits.to_bytes(), "big") >> (-self._count % 8)

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

    def rarest(self, among: int, left: int | None = None) -> int | None:
        """One of the chunks with the fewest holders; None of the empty set. `left` is all that may be taken at all."""
        commoner = self.all
        left = among if left is None else left
        lowest = True
        for chunks in self._levels:
            commoner ^= chunks
            lowest = lowest and not chunks & left & ~among
            found = chunks & among
            if found:
                index = self._first_from(self._start, found)
                if self._between(self._start, index) & commoner & ~self._walked:
                    index = self._first_from(self._rng.randrange(self._count), found)
                elif lowest:
                    # What it took itself on its way has more holders only since it gave it on.
                    self._walked |= self.bit(index)
                return index
        return None

    def _from(self, place: int) -> int:
        return (1 << (self._count - place)) - 1

    def _between(self, place: int, index: int) -> int:
        if index >= place:
            return self._from(place) ^ self._from(index)
        return self._from(place) | (self.all ^ self._from(index))

    def _first_from(self, place: int, found: int) -> int:
        return self._count - (found & self._from(place) or found).bit_length()
