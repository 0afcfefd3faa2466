"""A host's disk: what was written, what of it is durable, and what a loss of power leaves.

Data, names and records are three things that become durable apart. Of data that were not synced any sectors may be
there after a crash; of names and records that were not synced, the earlier ones (file systems and SQLite keep a log).
What a process wrote outlives the process alone. Whatever waited `WRITTEN_BACK_S` the kernel has written by itself.
"""

import errno
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NoReturn, TypeVar

import attrs
import trio

from protocols.errors import LocalProtocolError
from simnet.files import Change, Opened, Records, SimFile

K = TypeVar("K")
V = TypeVar("V")

WRITTEN_BACK_S = 30.0
"""How old a kernel lets a change become before it writes it unasked."""

UNLIMITED_BYTES = 10**12
"""What is free on a disk without a size."""


@attrs.define
class Speed:
    """What a slow disk takes: so long for every operation, and so long for a byte, one after the other."""

    operation_s: float = 0.0
    byte_s: float = 0.0


class SimDisk:
    """One life of a disk: between two crashes of its host. What fails raises OSError, as system calls do.

    `contents` keeps equal pieces once for all disks that are given the same one.
    """

    def __init__(
        self,
        rng: random.Random | None = None,
        *,
        size_bytes: int | None = None,
        contents: dict[bytes, bytes] | None = None,
    ) -> None:
        self.size_bytes = size_bytes
        self.speed = Speed()
        self.on_power_lost: Callable[[], object] | None = None
        self.operations = 0
        """Writes, syncs, changes of names and commits so far: the moments at which `crash_at_write` may strike."""
        self.log: list[str] | None = None
        """Set it to a list to have every one of them told."""
        self.dead = False
        self._rng = rng if rng is not None else random.Random(0)
        self._contents = {} if contents is None else contents
        self._names: dict[Path, SimFile] = {}
        self._name_changes: list[Change[Path, SimFile]] = []
        self._records: dict[str, Records] = {}
        self._files_made = 0
        self._taken_bytes = 0
        self._strike_at: int | None = None
        self._syncs_to_fail = 0
        self._busy_until_s = 0.0
        self._died = trio.Event()

    # -- faults

    def crash_at_write(self, number: int) -> None:
        """Lose power at the `number`th operation from now on (1: the next), which may be done, half done or not done.

        `on_power_lost` is called then; it has to call `crash`.
        """
        self._strike_at = self.operations + number

    def crash(self, *, power_lost: bool = True) -> "SimDisk":
        """The disk as the host finds it when it comes back; this one serves nobody any more.

        With `power_lost` false only the process died, and what it had written is there.
        """
        if self.dead:
            raise LocalProtocolError("a disk crashes once; the next crash is that of the disk it left")
        after = SimDisk(self._rng, size_bytes=self.size_bytes, contents=self._contents)
        after.speed, after.on_power_lost, after.log = self.speed, self.on_power_lost, self.log
        if power_lost:
            self._lose()
        self.dead = True
        self._died.set()
        after._names, after._name_changes, after._records = self._names, self._name_changes, self._records
        after._files_made, after._taken_bytes = self._files_made, self._taken_bytes
        return after

    def fail_syncs(self, count: int = 1) -> None:
        """The next syncs fail with EIO, and what they should have made durable is given up, as Linux does."""
        self._syncs_to_fail += count

    def fill(self, left_bytes: int = 0) -> None:
        """Another program takes what is free, but for so much."""
        if self.size_bytes is None:
            self.size_bytes = UNLIMITED_BYTES
        self._taken_bytes += self.free_bytes() - left_bytes

    def empty(self) -> None:
        """Another program gives back what `fill` took."""
        self._taken_bytes = 0

    def rot(self, path: Path, offset: int, mask: int = 1) -> None:
        """Flip bits of one byte at rest; nothing that a program can ask of the file shows it."""
        file = self._names[path]
        file.rotten = True
        file.content.put(offset, bytes([file.content.read(offset, 1)[0] ^ mask]))

    def rot_somewhere(self, count: int = 1, *, under: Path = Path("/")) -> list[tuple[Path, int]]:
        """Flip single bits of what stands under a directory, drawn by size; where. Nothing where nothing is."""
        where: list[tuple[Path, int]] = []
        for _ in range(count):
            pieces = [
                (path, start, len(piece)) for path in self.paths(under) for start, piece in self._names[path].pieces()
            ]
            if not pieces:
                break
            path, start, size_bytes = self._rng.choices(pieces, [size for _, _, size in pieces])[0]
            where.append((path, start + self._rng.randrange(size_bytes)))
            self.rot(*where[-1], 1 << self._rng.randrange(8))
        return where

    # -- room and time

    def free_bytes(self) -> int:
        """What may still be written."""
        if self.size_bytes is None:
            return UNLIMITED_BYTES
        return self.size_bytes - self._taken_bytes - self._used_bytes()

    def reserve(self, file: SimFile, size_bytes: int) -> None:
        """Take a file's room before it is written. OSError when it is not there."""
        self._check_alive()
        self._check_room(max(0, size_bytes - file.charged_bytes()))
        file.reserved_bytes = size_bytes

    def give_back(self, file: SimFile) -> None:
        """Give back what was reserved and not written."""
        file.reserved_bytes = 0

    async def pause(self, size_bytes: int = 0) -> None:
        """Let one operation take its time. What was begun ends, cancelled or not; a dead disk ends it at once."""
        await trio.lowlevel.checkpoint()
        if self.speed.operation_s or self.speed.byte_s:
            begin_s = max(self._busy_until_s, trio.current_time())
            self._busy_until_s = begin_s + self.speed.byte_s * size_bytes
            with trio.CancelScope(shield=True, deadline=self._busy_until_s + self.speed.operation_s):
                await self._died.wait()

    # -- files

    def paths(self, under: Path) -> list[Path]:
        """The names under a directory, in order."""
        self._check_alive()
        return sorted(path for path in self._names if path.is_relative_to(under))

    def file(self, path: Path) -> SimFile | None:
        """What stands under a name."""
        self._check_alive()
        return self._names.get(path)

    def make(self, path: Path, size_bytes: int = 0) -> SimFile:
        """A new sparse file under a name that is free."""
        if self.file(path) is not None:
            raise OSError(errno.EEXIST, "the name is taken", str(path))
        self._files_made += 1
        file = SimFile(self._files_made, size_bytes, _now())
        self._change_names({path: file}, f"make {path}")
        return file

    def put(self, path: Path, pieces: Iterable[bytes]) -> SimFile:
        """A file that stands there whole and durable, however it came; no operation of the node."""
        data = list(pieces)
        self._check_room(sum(len(piece) for piece in data))
        self._files_made += 1
        file = self._names[path] = SimFile(self._files_made, 0, _now())
        for piece in data:
            file.content.put(file.size_bytes, piece)
            file.size_bytes += len(piece)
        return file

    def open(self, file: SimFile) -> Opened:
        """A descriptor: it is told once of what the disk could not keep since."""
        self._check_alive()
        return Opened(file, file.errors)

    def write(self, file: SimFile, offset: int, data: bytes) -> None:
        """Write into a file, to be synced. OSError when the disk is full."""
        struck = self._count(f"write {len(data)} to {file.number} at {offset}")
        grown = file.growth_bytes(offset, len(data))
        self._check_room(max(0, file.content.written_bytes + grown - file.charged_bytes()))
        file.write(_now(), offset, data, _now() - WRITTEN_BACK_S)
        if struck:
            self._strike()

    def read(self, file: SimFile, offset: int, size_bytes: int) -> bytes:
        """The bytes as they stand here."""
        self._check_alive()
        return file.content.read(offset, size_bytes)

    def kept_once(self, data: bytes | memoryview, digest: bytes) -> bytes:
        """The bytes with this hash as every disk of this world keeps them."""
        found = self._contents.get(digest)
        if found is None or found != data:
            found = self._contents[digest] = bytes(data)
        return found

    async def sync(self, opened: Opened) -> None:
        """Make durable what a file holds now. OSError when the disk reports an error, now or since the last sync."""
        upto = opened.file.last_write()
        await self.pause()
        if self._count(f"sync {opened.file.number}"):
            self._strike()
        if self._sync_fails():
            opened.file.give_up(upto)
        if opened.seen_errors < opened.file.errors:
            opened.seen_errors = opened.file.errors
            raise OSError(errno.EIO, "input/output error")
        opened.file.synced(upto)

    # -- names

    def rename(self, source: Path, target: Path) -> None:
        """Give a file another name, at once and whole; what stood there is gone."""
        self._change_names({target: self._named(source), source: None}, f"rename {source} to {target}")

    def link(self, source: Path, target: Path) -> None:
        """Give a file one more name."""
        self._change_names({target: self._named(source)}, f"link {source} as {target}")

    def unlink(self, path: Path) -> bool:
        """Remove a name; whether it was there."""
        found = self.file(path) is not None
        if found:
            self._change_names({path: None}, f"unlink {path}")
        return found

    async def sync_names(self) -> None:
        """Make all names durable: file systems keep them in one log. OSError when the disk fails."""
        upto = self._name_changes[-1] if self._name_changes else None
        await self.pause()
        if self._count("sync names"):
            self._strike()
        if self._sync_fails():
            raise OSError(errno.EIO, "input/output error")
        if upto in self._name_changes:
            del self._name_changes[: self._name_changes.index(upto) + 1]

    def replace(self, path: Path, data: bytes) -> None:
        """A small file, whole, old or new after a crash: most file systems order a rename after the data it names."""
        before = self.file(path)
        self._check_room(len(data) - (before.charged_bytes() if before is not None else 0))
        self._files_made += 1
        file = SimFile(self._files_made, len(data), _now())
        file.content.put(0, data)
        self._change_names({path: file}, f"replace {path}")

    # -- records

    def records(self, name: str) -> Records:
        """A database of that name, made if there is none."""
        self._check_alive()
        return self._records.setdefault(name, Records())

    async def commit(self, name: str, changes: Mapping[object, object], *, durable: bool) -> None:
        """One transaction: None drops a record. Durable syncs it and all before it, or is undone with OSError."""
        await self.pause()
        records = self.records(name)
        struck = self._count(f"commit {'durably ' if durable else ''}to {name}")
        if self.size_bytes is not None and self.free_bytes() <= 0:
            raise OSError(errno.ENOSPC, "no space left")
        records.change(Change.of(_now(), records.live, changes), _now() - WRITTEN_BACK_S)
        if struck:
            self._strike()
        if durable and self._sync_fails():
            records.changes.pop().undo(records.live)
            raise OSError(errno.EIO, "input/output error")
        if durable:
            records.changes.clear()

    def settle(self) -> None:
        """Everything is durable, as on a host that nothing happened to for a while."""
        self._name_changes.clear()
        for records in self._records.values():
            records.changes.clear()
        for file in self._files():
            file.synced(file.last_write())

    # -- within

    def _count(self, what: str) -> bool:
        """One more operation; whether it is the one at which the power goes."""
        self._check_alive()
        self.operations += 1
        if self.log is not None:
            self.log.append(what)
        return self.operations == self._strike_at

    def _strike(self) -> NoReturn:
        if self.on_power_lost is None:
            raise LocalProtocolError("a disk at which the power goes needs somebody to tell: set on_power_lost")
        self.on_power_lost()
        if not self.dead:
            raise LocalProtocolError("who is told that a disk lost its power calls its crash()")
        self._check_alive()
        raise LocalProtocolError("unreachable")

    def _check_alive(self) -> None:
        if self.dead:
            raise OSError(errno.ENODEV, "this host has no power")

    def _check_room(self, size_bytes: int) -> None:
        if size_bytes > 0 and size_bytes > self.free_bytes():
            raise OSError(errno.ENOSPC, "no space left")

    def _sync_fails(self) -> bool:
        fails = self._syncs_to_fail > 0
        self._syncs_to_fail -= fails
        return fails

    def _named(self, path: Path) -> SimFile:
        file = self.file(path)
        if file is None:
            raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
        return file

    def _change_names(self, changes: Mapping[Path, SimFile | None], what: str) -> None:
        struck = self._count(what)
        change = Change.of(_now(), self._names, changes)
        while self._name_changes and self._name_changes[0].at_s <= _now() - WRITTEN_BACK_S:
            del self._name_changes[0]
        self._name_changes.append(change)
        if struck:
            self._strike()

    def _files(self) -> Iterator[SimFile]:
        return iter({file.number: file for file in self._names.values()}.values())

    def _used_bytes(self) -> int:
        return sum(file.charged_bytes() for file in self._files())

    def _lose(self) -> None:
        """The power goes: draw what of the changes that nobody synced is there."""
        since_s = _now() - WRITTEN_BACK_S
        _lose_later(self._name_changes, self._names, since_s, self._rng)
        for records in self._records.values():
            _lose_later(records.changes, records.live, since_s, self._rng)
        for file in sorted(self._files(), key=lambda each: each.number):
            file.lose(since_s, self._rng)


def _lose_later(changes: list[Change[K, V]], live: dict[K, V], since_s: float, rng: random.Random) -> None:
    """Undo the later ones of a log's changes, as many as the draw says; what remains is durable."""
    unsure = sum(change.at_s > since_s for change in changes)
    for _ in range(rng.randint(0, unsure)):
        changes.pop().undo(live)
    changes.clear()


def _now() -> float:
    """Stores are filled before a world begins, too."""
    return trio.current_time() if trio.lowlevel.in_trio_run() else 0.0
