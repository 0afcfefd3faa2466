"""Whose turn it is to be served: one chunk of each asker in turn, within the memory that serving may take."""

from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

CHUNKS_PER_ASKER_MAX = 2
"""One chunk is read while the one before it is sent."""


class ServeTurns(Generic[T]):
    """Askers (any hashable) take turns. `start` on a turn, `end` when its chunk has left memory."""

    def __init__(self, buffer_size_bytes: int) -> None:
        self._buffer_size_bytes = buffer_size_bytes
        self._order: deque[T] = deque()
        self._running: dict[T, int] = {}
        self.buffered_bytes = 0

    def add(self, asker: T) -> None:
        """An asker that may be served from now on."""
        self._running[asker] = 0
        self._order.append(asker)

    def remove(self, asker: T) -> None:
        """No further turns; those that run still `end`. An unknown asker is fine."""
        if self._running.pop(asker, None) is not None:
            self._order.remove(asker)

    def next(self, size_of_next_bytes: Callable[[T], int | None]) -> T | None:
        """Who is next, given the size of each asker's next chunk (None: it has none); None when nobody can be."""
        for _ in range(len(self._order)):
            asker = self._order[0]
            size_bytes = size_of_next_bytes(asker) if self._running[asker] < CHUNKS_PER_ASKER_MAX else None
            if size_bytes is not None and self.buffered_bytes + size_bytes > self._buffer_size_bytes:
                return None  # Wait for room rather than pass over a large chunk for ever.
            self._order.rotate(-1)
            if size_bytes is not None:
                return asker
        return None

    def start(self, asker: T, size_bytes: int) -> None:
        """The asker's next chunk takes memory now."""
        self._running[asker] += 1
        self.buffered_bytes += size_bytes

    def end(self, asker: T, size_bytes: int) -> None:
        """The chunk has left memory."""
        self.buffered_bytes -= size_bytes
        if asker in self._running:
            self._running[asker] -= 1
