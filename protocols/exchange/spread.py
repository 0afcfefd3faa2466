"""How a giver spreads a blob over those who ask for it: a place to begin for each, and first copies first.

Places: the first asker begins at the front, the second at the half, then a quarter, three quarters, and so on (the
van der Corput sequence), so that however many come, each takes another part and they meet late. A place that is left
is given again. Copies: what was given least often goes first, for whoever gets it can give it on.
"""

from collections import Counter
from collections.abc import Hashable

import attrs
from blake3 import blake3

from protocols.ids import Digest, PeerId

PLACES_MAX = 1 << 20
"""More askers than this do not begin apart any more."""


def place_of(turn: int, chunk_count: int) -> int:
    """The chunk at which the asker of this turn (from 0) begins: the turn's bits, mirrored, as a fraction."""
    fraction, step = 0.0, 0.5
    while turn:
        fraction += step * (turn & 1)
        turn, step = turn >> 1, step / 2
    return int(fraction * chunk_count)


def own_place(me: PeerId, digest: Digest, chunk_count: int) -> int:
    """Where in the blob this node begins: anywhere, but always the same."""
    seed = blake3(f"{me} {digest}".encode()).digest(8)
    return int.from_bytes(seed, "big") % chunk_count if chunk_count else 0


@attrs.define
class _Blob:
    turns: dict[Hashable, int] = attrs.field(factory=dict)
    copies: Counter[int] = attrs.field(factory=Counter)


class Spread:
    """Who has which blob open at this node, and how often each chunk was given while anybody had."""

    def __init__(self) -> None:
        self._blobs: dict[Digest, _Blob] = {}
        self._opened: Counter[Hashable] = Counter()

    @property
    def load(self) -> int:
        """How many askers have anything open."""
        return len(self._opened)

    def join(self, digest: Digest, asker: Hashable) -> int:
        """An asker opens a blob: its turn, the lowest that nobody has now."""
        turns = self._blobs.setdefault(digest, _Blob()).turns
        if asker not in turns:
            taken = set(turns.values())
            turns[asker] = next(turn for turn in range(len(taken) + 1) if turn not in taken)
            self._opened[asker] += 1
        return min(turns[asker], PLACES_MAX)

    def part(self, digest: Digest, asker: Hashable) -> None:
        """An asker closes a blob; with the last one its counts are forgotten."""
        blob = self._blobs.get(digest)
        if blob is None or blob.turns.pop(asker, None) is None:
            return
        if not blob.turns:
            del self._blobs[digest]
        self._opened[asker] -= 1
        if not self._opened[asker]:
            del self._opened[asker]

    def copies(self, digest: Digest, index: int) -> int:
        """How often a chunk was given, or is being given."""
        blob = self._blobs.get(digest)
        return blob.copies[index] if blob is not None else 0

    def gives(self, digest: Digest, index: int) -> None:
        """A chunk is on its way to an asker."""
        if digest in self._blobs:
            self._blobs[digest].copies[index] += 1

    def gave_not(self, digest: Digest, index: int) -> None:
        """It did not go after all."""
        blob = self._blobs.get(digest)
        if blob is not None and blob.copies[index]:
            blob.copies[index] -= 1
