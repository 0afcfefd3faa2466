"""File work: in worker threads of its own, durable where it says so, failing with the file and the remedy named."""

import enum
import errno
import fcntl
import os
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import attrs
import trio

from node.ports import StoreError

T = TypeVar("T")

FICLONE = 0x40049409
"""Linux ioctl: let one file share all of another's extents (ioctl_ficlone(2))."""

FICLONERANGE = 0x4020940D
"""Linux ioctl: let one file share some of another's blocks (ioctl_ficlonerange(2))."""

_CANNOT_CLONE = (errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS, errno.EPERM)

COPY_SIZE_BYTES = 4 * 1024 * 1024
WRITE_SIZE_BYTES_MAX = 512 * 1024
TICK_S = 0.1

WRITTEN_BACK_S = 600.0
"""A kernel writes changed pages back within a minute; by then they are on disk whether anybody synced them or not."""

_REMEDIES = {
    errno.ENOSPC: "the disk is full: free some space on it and try again",
    errno.EDQUOT: "the disk quota is used up: free some space and try again",
    errno.EFBIG: "the file would be larger than the file system or a limit of this process allows",
    errno.EROFS: "the file system is read-only: mount it writable, or use another directory of models",
    errno.EACCES: "permission denied: run herd as the user who owns the store",
    errno.EPERM: "not permitted: run herd as the user who owns the store",
    errno.EIO: "the disk reports an error: check its health, then run the operation again",
    errno.EMFILE: "too many open files: raise the limit of open files (ulimit -n)",
    errno.ENOENT: "it does not exist",
    errno.EISDIR: "it is a directory",
    errno.ENOTDIR: "a part of the path is no directory",
    errno.EXDEV: "blobs/ and .herd/ of the store are on different file systems: bring them onto one",
}


def explain(error: OSError, doing: str, path: Path) -> StoreError:
    """The one-line StoreError for a failed system call: what was tried on which file, and what to do about it."""
    code = error.errno or 0
    return StoreError(f"cannot {doing} {path}: {_REMEDIES.get(code) or error.strerror or str(error)}")


@attrs.frozen
class FileKey:
    """What tells one state of a file from another without reading it."""

    device: int
    inode: int
    size_bytes: int
    mtime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> "FileKey":
        """From a stat."""
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)

    @classmethod
    def at(cls, path: Path) -> "FileKey":
        """Of the file a path leads to (links followed). Raises OSError."""
        return cls.of(os.stat(path))


class Lane(enum.Enum):
    """Work of one kind shares threads, and never waits for work of another kind."""

    LOOK = "look"
    """Short: look-ups, renames, and the chunks that others read here."""
    WRITE = "write"
    """Chunks on their way in."""
    LONG = "long"
    """What takes a disk's time: syncs, copies, reading through."""


class Disk:
    """Runs file work in a bounded number of threads a lane, so that the Trio thread never waits for a disk.

    What was begun is finished even when the caller is cancelled: a half-done rename has no owner.
    """

    def __init__(self, threads: int) -> None:
        self._limiters = {lane: trio.CapacityLimiter(threads) for lane in Lane}

    async def run(self, doing: str, path: Path, work: Callable[[], T], lane: Lane = Lane.LOOK) -> T:
        """Do `work` in a thread; an OSError becomes the StoreError that names `doing` and `path`."""
        try:
            return await trio.to_thread.run_sync(work, limiter=self._limiters[lane])
        except OSError as error:
            raise explain(error, doing, path) from error


async def run_stoppable(
    work: Callable[[threading.Event], T], limiter: trio.CapacityLimiter, tick: Callable[[], None] | None = None
) -> T:
    """Do long `work` in a thread that looks at the event now and then, set when the caller is cancelled.

    The thread is waited for in any case. `tick` is called in the Trio thread about ten times a second.
    """
    stop = threading.Event()

    async def watch() -> None:
        try:
            while tick is not None:
                await trio.sleep(TICK_S)
                tick()
            await trio.sleep_forever()
        finally:
            stop.set()

    outcome: list[T] | Exception
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        try:
            outcome = [await trio.to_thread.run_sync(work, stop, limiter=limiter)]
        except Exception as error:  # boundary: the nursery, which would wrap it; raised again below
            outcome = error
        nursery.cancel_scope.cancel()
    if isinstance(outcome, Exception):
        # What a stopped thread raises says nothing that the cancellation does not say better.
        await trio.lowlevel.checkpoint_if_cancelled()
        raise outcome
    return outcome[0]


class OpenFile:
    """A descriptor that several tasks lend to worker threads; closed when the last of them gave it back.

    Closing it under a running pread or pwrite could let the thread touch whatever file gets the number next.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._borrowers = 0
        self._closing = False

    @contextmanager
    def borrow(self) -> Iterator[int]:
        """The descriptor, valid inside the block. Raises ValueError when the file was closed."""
        if self._closing:
            raise ValueError("the file is closed")
        self._borrowers += 1
        try:
            yield self._descriptor
        finally:
            self._borrowers -= 1
            self._close_when_idle()

    def close(self) -> None:
        """Close as soon as nobody uses it; idempotent."""
        self._closing = True
        self._close_when_idle()

    def _close_when_idle(self) -> None:
        if self._closing and not self._borrowers and self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def write_at(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of `data` at `offset`. Raises OSError; a short write goes on where it stopped.

    In small pieces: for one large write, Linux looks for as large a stretch of free memory for the page cache, and
    from 2 MiB on the search cost 4 to 25 times the CPU of the write itself (ext4 with large folios, kernel 6.18).
    """
    left = memoryview(data)
    while left:
        written = os.pwrite(descriptor, left[:WRITE_SIZE_BYTES_MAX], offset)
        offset += written
        left = left[written:]


def read_at(descriptor: int, size_bytes: int, offset: int) -> bytes:
    """Up to `size_bytes` from `offset`; fewer only where the file ends. Raises OSError."""
    buffer = bytearray(size_bytes)
    return bytes(buffer[: read_into(descriptor, memoryview(buffer), offset)])


def read_into(descriptor: int, buffer: memoryview, offset: int) -> int:
    """Fill the buffer from `offset`; how much, which is less only where the file ends. Raises OSError."""
    got = 0
    while got < len(buffer):
        count = os.preadv(descriptor, [buffer[got:]], offset + got)
        if not count:
            break
        got += count
    return got


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    _sync(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))


def _sync(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot sync what is opened for reading; it is as durable as it gets.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Make a file's bytes durable."""
    _sync(os.open(path, os.O_RDONLY | os.O_CLOEXEC))


def durable_key(path: Path) -> FileKey | None:
    """What a file is now, its bytes durable; None when it is gone. Raises OSError.

    Whoever wrote the file may not have synced it, and after a power cut it could have the same size and mtime and
    other bytes. What was not touched for a while has long been written back and costs nothing here.
    """
    try:
        status = os.stat(path)
        if time.time() - status.st_ctime < WRITTEN_BACK_S:
            sync_file(path)
    except FileNotFoundError:
        return None
    return FileKey.of(status)


def remove_file(path: Path) -> bool:
    """Remove a file if it is there; whether it was."""
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    return True


@contextmanager
def temporary_path(directory: Path, purpose: str) -> Iterator[Path]:
    """A fresh name in our own directory; whatever stands under it is removed at the end, however the block ends."""
    # mkstemp makes the name unique; the empty file is removed because a hard link must not find one.
    descriptor, name = tempfile.mkstemp(prefix=purpose + "-", dir=directory)
    os.close(descriptor)
    path = Path(name)
    path.unlink()
    try:
        yield path
    finally:
        with suppress(OSError):
            remove_file(path)


def write_durably(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Write a new file and sync it. Raises OSError; FileExistsError when the name is taken."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        write_at(descriptor, data, 0)
        os.fchmod(descriptor, mode)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def clone_file(source: int, target: int) -> bool:
    """Let `target` (an empty file) share the bytes of `source`; False where the file system cannot."""
    try:
        fcntl.ioctl(target, FICLONE, source)
    except OSError as error:
        if error.errno in _CANNOT_CLONE:
            return False
        raise
    return True


def clone_range(source: int, source_offset: int, target: int, target_offset: int, size_bytes: int) -> bool:
    """Let `target` share whole blocks of `source`; False where the file system cannot."""
    try:
        fcntl.ioctl(target, FICLONERANGE, struct.pack("=qQQQ", source, source_offset, size_bytes, target_offset))
    except OSError as error:
        if error.errno in _CANNOT_CLONE:
            return False
        raise
    return True


def free_bytes(directory: Path) -> int:
    """What an unprivileged process may still write to the directory's file system."""
    status = os.statvfs(directory)
    return status.f_bavail * status.f_frsize
