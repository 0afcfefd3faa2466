"""Room on the disk for a blob to come: taken before its first byte, and what was not written of it given back.

Python's own `posix_fallocate` writes zeros where the file system cannot reserve; the system call behind it does not.
"""

import ctypes
import errno
import os
from collections.abc import Callable, Iterator
from typing import Any

BLOCK_SIZE_BYTES = 4096
"""Room is given back in whole blocks of at least this, so that no byte beside it is touched."""

_KEEP_SIZE, _PUNCH_HOLE = 1, 2
_CANNOT = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EPERM, errno.ENODEV)


def reserve(descriptor: int, size_bytes: int) -> bool:
    """Take the room of a file now; False where the file system cannot. Raises OSError when there is none. Blocking."""
    return size_bytes == 0 or _allocate(descriptor, 0, 0, size_bytes)


def give_back(descriptor: int) -> None:
    """Give back what was reserved and never written; what was written stays. Raises OSError. Blocking."""
    size_bytes = os.fstat(descriptor).st_size
    end = 0
    for begin, data_end in [*written_spans(descriptor), (size_bytes, size_bytes)]:
        first = -(-end // BLOCK_SIZE_BYTES) * BLOCK_SIZE_BYTES
        last = begin if begin == size_bytes else begin // BLOCK_SIZE_BYTES * BLOCK_SIZE_BYTES
        if first < last and not _allocate(descriptor, _PUNCH_HOLE | _KEEP_SIZE, first, last - first):
            return
        end = data_end


def written_spans(descriptor: int) -> Iterator[tuple[int, int]]:
    """Begin and end of what was ever written, ascending; the whole file where the file system cannot tell. Blocking."""
    size_bytes = os.fstat(descriptor).st_size
    end = 0
    while end < size_bytes:
        try:
            begin = os.lseek(descriptor, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return  # Nothing but holes up to the end.
        end = os.lseek(descriptor, begin, os.SEEK_HOLE)
        yield begin, end


def _find_fallocate() -> Callable[..., int] | None:
    library = ctypes.CDLL(None, use_errno=True)
    call: Any = getattr(library, "fallocate64", None) or getattr(library, "fallocate", None)
    if call is None:
        return None
    call.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    call.restype = ctypes.c_int
    found: Callable[..., int] = call
    return found


_fallocate = _find_fallocate()


def _allocate(descriptor: int, mode: int, offset: int, size_bytes: int) -> bool:
    """fallocate(2); False where it cannot be done here, OSError when it failed."""
    if _fallocate is None:
        return False
    while _fallocate(descriptor, mode, offset, size_bytes) != 0:
        code = ctypes.get_errno()
        if code in _CANNOT:
            return False
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))
    return True
