"""What a simulated disk is made of: files with the writes that are not durable yet, and logs of changes."""

import random
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Generic, TypeVar

import attrs

from simnet.extents import Extents

K = TypeVar("K")
V = TypeVar("V")

SECTOR_SIZE_BYTES = 512
"""What a disk writes whole or not at all."""

PENDING, GIVEN_UP, DURABLE = "pending", "given up", "durable"


@attrs.define(eq=False)
class _Write:
    at_s: float
    offset: int
    data: bytes
    before: list[tuple[int, bytes]]
    state: str = PENDING


@attrs.define(eq=False)
class SimFile:
    """An inode: it may have several names, or none while somebody has it open."""

    number: int
    size_bytes: int
    made_at_s: float
    reserved_bytes: int = 0
    errors: int = 0
    rotten: bool = False
    content: Extents = attrs.field(factory=Extents)
    _log: deque[_Write] = attrs.field(factory=deque)

    def charged_bytes(self) -> int:
        """What it takes of the disk."""
        return max(self.reserved_bytes, self.content.written_bytes)

    def growth_bytes(self, offset: int, size_bytes: int) -> int:
        """How much of a range was never written."""
        return size_bytes - self.content.written_in(offset, size_bytes)

    def pieces(self) -> Iterator[tuple[int, bytes]]:
        """What was written, ascending."""
        return self.content.pieces()

    def write(self, now_s: float, offset: int, data: bytes, written_back_s: float) -> None:
        """Change the bytes; what was changed before `written_back_s` is durable by now."""
        while self._log and (self._log[0].state == DURABLE or self._is_written_back(self._log[0], written_back_s)):
            self._log.popleft()
        self.size_bytes = max(self.size_bytes, offset + len(data))
        self._log.append(_Write(now_s, offset, data, self.content.put(offset, data)))

    def last_write(self) -> object:
        """A mark for `synced` and `give_up`: what was written up to now."""
        return self._log[-1] if self._log else None

    def synced(self, upto: object) -> None:
        """What was written up to a mark is durable."""
        self._mark(upto, DURABLE)
        while self._log and self._log[0].state == DURABLE:
            self._log.popleft()

    def give_up(self, upto: object) -> None:
        """What was written up to a mark could not be kept: it can be read until the power goes, and no sync helps."""
        self._mark(upto, GIVEN_UP)
        self.errors += 1

    def lose(self, written_back_s: float, rng: random.Random) -> None:
        """The power goes: of each write that is not durable all, some sectors, a beginning or nothing is there."""
        writes = list(self._log)
        self._log.clear()
        for write in reversed(writes):
            self.content.cut(write.offset, len(write.data))
            for start, piece in write.before:
                self.content.put(start, piece)
        kept = rng.random()
        for write in writes:
            durable = write.state == DURABLE or self._is_written_back(write, written_back_s)
            if durable or rng.random() < kept:
                self.content.put(write.offset, write.data)
            else:
                _tear(self.content, write, rng)

    def _mark(self, upto: object, state: str) -> None:
        if upto is None or upto not in self._log:
            return  # A sync that was overtaken by another has nothing left to do.
        for write in self._log:
            if write.state == PENDING:
                write.state = state
            if write is upto:
                break

    def _is_written_back(self, write: _Write, written_back_s: float) -> bool:
        return write.state == PENDING and write.at_s <= written_back_s


def _tear(content: Extents, write: _Write, rng: random.Random) -> None:
    """Of a write nothing, a beginning, or any of its sectors gets there."""
    sectors = range(-(-len(write.data) // SECTOR_SIZE_BYTES))
    how = rng.randrange(3)
    if how == 0:
        return
    if how == 1:
        content.put(write.offset, write.data[: rng.randrange(len(sectors) + 1) * SECTOR_SIZE_BYTES])
        return
    for sector in sectors:
        if rng.random() < 0.5:
            begin = sector * SECTOR_SIZE_BYTES
            content.put(write.offset + begin, write.data[begin : begin + SECTOR_SIZE_BYTES])


@attrs.define(eq=False)
class Opened:
    """A descriptor of a file, and how many of the file's errors it was told of."""

    file: SimFile
    seen_errors: int


@attrs.define(eq=False)
class Change(Generic[K, V]):
    """One change of a table that was made at once, and how to undo it."""

    at_s: float
    before: dict[K, V | None]

    @classmethod
    def of(cls, now_s: float, live: dict[K, V], changes: Mapping[K, V | None]) -> "Change[K, V]":
        """Make the change; None drops."""
        change = cls(now_s, {key: live.get(key) for key in changes})
        _apply(live, changes)
        return change

    def undo(self, live: dict[K, V]) -> None:
        """As it was before."""
        _apply(live, self.before)


def _apply(live: dict[K, V], changes: Mapping[K, V | None]) -> None:
    for key, value in changes.items():
        if value is None:
            live.pop(key, None)
        else:
            live[key] = value


@attrs.define(eq=False)
class Records:
    """A database: what it says now, and the transactions that are not durable, oldest first."""

    live: dict[object, object] = attrs.field(factory=dict)
    changes: list[Change[object, object]] = attrs.field(factory=list)

    def change(self, change: Change[object, object], written_back_s: float) -> None:
        """One more transaction; those before `written_back_s` are durable by now."""
        while self.changes and self.changes[0].at_s <= written_back_s:
            del self.changes[0]
        self.changes.append(change)
