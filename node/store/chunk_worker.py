"""Compares one mapped file with the hashes of its chunks, in a process of its own, on every processor.

A mapped file that is truncated while it is read kills whoever reads it (SIGBUS); here that is a process that nobody
misses. It starts in milliseconds because it imports the standard library and blake3 and nothing of ours: it is run
as a script. One request comes in on standard input, records go out on standard output.
"""

import mmap
import os
import resource
import struct
import sys
import threading
import time
from array import array
from collections.abc import Sequence

from blake3 import blake3

REQUEST = struct.Struct("<QQQqQIIIi")
"""Device, inode, size and mtime the file must have, rate in bytes/s (0: none), lengths of path and recipe, threads,
and how far to step back (nice). Path, chunk sizes (unsigned 32 bits each) and hashes (32 bytes each) follow."""

RECORD = struct.Struct("<cQ")
CHECKED, WRONG, CHANGED, FAILED, DONE = b"p", b"w", b"c", b"e", b"d"
"""With a value: bytes checked so far, index of a wrong chunk, nothing, errno, bytes checked in all."""

TELL_INTERVAL_S = 0.1


class _Check:
    """One file's chunks, handed out in order to the hashing threads."""

    def __init__(self, mapped: memoryview, sizes: Sequence[int], hashes: bytes, rate_bytes_per_s: int) -> None:
        self._mapped = mapped
        self._sizes = sizes
        self._hashes = hashes
        self._rate = rate_bytes_per_s
        self._lock = threading.Lock()
        self._next = 0
        self._offset = 0
        self._started_at = time.monotonic()
        self.checked_bytes = 0
        self.wrong: list[int] = []

    def claim(self) -> tuple[int, int, int] | None:
        """The next chunk: its index, begin and end."""
        with self._lock:
            index, begin = self._next, self._offset
            if index == len(self._sizes):
                return None
            self._next, self._offset = index + 1, begin + self._sizes[index]
            return index, begin, self._offset

    def work(self) -> None:
        """Hash chunks until none is left."""
        while (chunk := self.claim()) is not None:
            index, begin, end = chunk
            if self._rate:
                time.sleep(max(0.0, self._started_at + begin / self._rate - time.monotonic()))
            with self._mapped[begin:end] as data:
                right = blake3(data).digest() == self._hashes[32 * index : 32 * index + 32]
            with self._lock:
                self.checked_bytes += end - begin
                if not right:
                    self.wrong.append(index)


def main() -> int:
    """Serve the one request; 0 when it was answered, whatever the answer is."""
    # What a mapping's death leaves behind helps nobody and may be as large as the file.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    source = sys.stdin.buffer
    *key, rate, path_length, count, threads, nice = REQUEST.unpack(source.read(REQUEST.size))
    path = source.read(path_length)
    sizes = array("I", source.read(4 * count))
    hashes = source.read(32 * count)
    if nice:
        os.nice(nice)
    try:
        _compare(path, tuple(key), sizes, hashes, rate, threads)
    except OSError as error:
        _tell(FAILED, error.errno or 0)
    return 0


def _compare(
    path: bytes, key: tuple[int, ...], sizes: Sequence[int], hashes: bytes, rate_bytes_per_s: int, threads: int
) -> None:
    # Without O_NONBLOCK, opening a FIFO that stands in for a blob would wait for ever.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if _key(descriptor) != key:
        _tell(CHANGED, 0)
        return
    mapped = mmap.mmap(descriptor, key[2], flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
    mapped.madvise(mmap.MADV_SEQUENTIAL)
    check = _Check(memoryview(mapped), sizes, hashes, rate_bytes_per_s)
    workers = [threading.Thread(target=check.work, daemon=True) for _ in range(max(1, min(threads, len(sizes))))]
    for worker in workers:
        worker.start()
    for worker in workers:
        while worker.is_alive():
            worker.join(TELL_INTERVAL_S)
            # Also where nothing is new: it fails when the node is gone, and then nobody needs the answer.
            _tell(CHECKED, check.checked_bytes)
    for index in sorted(check.wrong):
        _tell(WRONG, index)
    _tell(CHANGED if _key(descriptor) != key else DONE, check.checked_bytes)


def _key(descriptor: int) -> tuple[int, int, int, int]:
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _tell(kind: bytes, value: int) -> None:
    os.write(1, RECORD.pack(kind, value))


if __name__ == "__main__":
    sys.exit(main())
