"""Memory for chunks on their way in and out: lent for one chunk, given back, lent again.

A fresh buffer of 4 MiB costs a thousand page faults at its first use, as much as checking its hash; a lent one none.
Whoever uses a buffer after it was given back gets a ValueError, never the bytes of another chunk.
"""

import mmap
from collections import defaultdict, deque

SMALLEST_SIZE_BYTES = 64 * 1024
KEPT_BYTES_MAX = 32 * 1024 * 1024
"""How much stays with a pool while nobody uses it."""


class Buffer:
    """One loan: `view` has exactly the size that was asked for, until `release`."""

    def __init__(self, pool: "BufferPool", memory: mmap.mmap, size_bytes: int) -> None:
        self._pool = pool
        self._memory = memory
        self.view = memoryview(memory)[:size_bytes]

    def release(self) -> None:
        """Give the memory back; idempotent. What a call still reads or writes is left to it, and lent no more."""
        try:
            self.view.release()
        except BufferError:
            return
        memory, self._memory = self._memory, _NOTHING
        if memory is not _NOTHING:
            self._pool._take_back(memory)


class BufferPool:
    """Lends memory in steps of powers of two, untouched beyond what is used; keeps a bounded rest for the next loan."""

    def __init__(self, kept_bytes_max: int = KEPT_BYTES_MAX) -> None:
        self._kept_bytes_max = kept_bytes_max
        self._kept: defaultdict[int, deque[mmap.mmap]] = defaultdict(deque)
        self.kept_bytes = 0

    def lend(self, size_bytes: int) -> Buffer:
        """Memory for `size_bytes`, with whatever an earlier loan left in it."""
        step = max(SMALLEST_SIZE_BYTES, 1 << (size_bytes - 1).bit_length() if size_bytes else 0)
        kept = self._kept[step]
        if kept:
            self.kept_bytes -= step
            # The newest is the one most likely still in the processor's cache.
            return Buffer(self, kept.pop(), size_bytes)
        return Buffer(self, mmap.mmap(-1, step), size_bytes)

    def _take_back(self, memory: mmap.mmap) -> None:
        if self.kept_bytes + len(memory) <= self._kept_bytes_max:
            self._kept[len(memory)].append(memory)
            self.kept_bytes += len(memory)


_NOTHING = mmap.mmap(-1, 1)
"""Stands in the place of memory that went back."""
