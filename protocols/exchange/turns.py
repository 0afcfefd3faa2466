"""Whose turn it is to be served: one chunk of each asker in turn, within the memory that serving may take."""

from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

AHEAD_CHUNKS = 1
"""One chunk of an asker is read while those before it are sent, as many at a time as its link has lanes."""
PASSED_MAX = 32
"""How often an asker is passed over for others whose chunks were given less often."""


class ServeTurns(Generic[T]):
    """Askers (any hashable) take turns. `start` on a turn, `end` when its chunk has left memory."""

    def __init__(self, buffer_size_bytes: int) -> None:
        self._buffer_size_bytes = buffer_size_bytes
        self._order: deque[T] = deque()
        self._running: dict[T, int] = {}
        self._passed: dict[T, int] = {}
        self.buffered_bytes = 0
        self.running = 0

    def add(self, asker: T) -> None:
        """An asker that may be served from now on, and next: whoever has nothing yet can give nothing on."""
        self._running[asker] = self._passed[asker] = 0
        self._order.appendleft(asker)

    def remove(self, asker: T) -> None:
        """No further turns; those that run still `end`. An unknown asker is fine."""
        if self._running.pop(asker, None) is not None:
            del self._passed[asker]
            self._order.remove(asker)

    def next(
        self, next_of: Callable[[T], tuple[int, int] | None], lanes_of: Callable[[T], int] = lambda _asker: 1
    ) -> T | None:
        """Who is next; None when nobody can be. `next_of` gives the size of an asker's next chunk and how often that
        chunk was given already (None: it wants nothing), `lanes_of` how many of its chunks travel side by side. What
        was given least goes first, and equals take turns.
        """
        best: tuple[T, int] | None = None
        least = 0
        before_best: list[T] = []
        waiting: list[T] = []
        for asker in self._order:
            found = next_of(asker) if self._running[asker] < lanes_of(asker) + AHEAD_CHUNKS else None
            if found is None:
                continue
            size_bytes, copies = found
            too_long = self._passed[asker] >= PASSED_MAX
            if best is None or copies < least or too_long:
                best, least, before_best = (asker, size_bytes), copies, list(waiting)
            waiting.append(asker)
            if not least or too_long:
                break
        if best is None or self.buffered_bytes + best[1] > self._buffer_size_bytes:
            return None  # Wait for room rather than pass over a large chunk for ever.
        for asker in before_best:
            self._passed[asker] += 1
        self._passed[best[0]] = 0
        self._order.remove(best[0])
        self._order.append(best[0])
        return best[0]

    def start(self, asker: T, size_bytes: int) -> None:
        """The asker's next chunk takes memory now."""
        self._running[asker] += 1
        self.running += 1
        self.buffered_bytes += size_bytes

    def end(self, asker: T, size_bytes: int) -> None:
        """The chunk has left memory."""
        self.buffered_bytes -= size_bytes
        self.running -= 1
        if asker in self._running:
            self._running[asker] -= 1
