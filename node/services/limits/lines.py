"""Lines to wait in: who came first goes first, and only the first of each line watches what it waits for."""

from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager

import attrs
import trio


@attrs.define
class _Line:
    """Who holds the lock is first; the lock hands itself on in the order of coming."""

    lock: trio.Lock = attrs.field(factory=trio.Lock)
    length: int = 0


class Lines:
    """A line for each key, as long as somebody stands in it."""

    def __init__(self) -> None:
        self._lines: dict[Hashable, _Line] = {}

    def __contains__(self, key: Hashable) -> bool:
        """Whether somebody stands in the line of this key."""
        return key in self._lines

    @asynccontextmanager
    async def first_of(self, key: Hashable) -> AsyncIterator[None]:
        """Wait to be the first in a line, and stay it until the block ends. Leaving is no checkpoint."""
        line = self._lines.setdefault(key, _Line())
        line.length += 1
        try:
            async with line.lock:
                yield
        finally:
            line.length -= 1
            if line.length == 0:
                del self._lines[key]
