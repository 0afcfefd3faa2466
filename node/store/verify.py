"""The verify pass: one read of a file gives its SHA-256 and its recipe.

SHA-256 is the slower of the two hashes and cannot be spread over cores, so it runs in a helper thread while the
caller's thread reads the file and cuts and hashes the chunks. Nothing here touches Trio: call it in a worker thread.
"""

import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Self

from node.ports import StoreError
from node.store.files import read_at
from protocols.errors import RemoteProtocolError
from protocols.ids import Digest
from protocols.recipe.hasher import ChunkHasher, WholeHasher
from protocols.recipe.recipe import Recipe
from protocols.recipe.rules import target_of_rule

BUFFER_SIZE_BYTES = 1024 * 1024
BUFFER_COUNT = 8
"""Small enough that a buffer is still in the processor's cache when the second thread hashes it."""


class FileChanged(StoreError):
    """The file was written to while it was being read, so what was hashed never existed; try again later."""


class HashingStopped(Exception):
    """`should_stop` said so; nothing was changed."""


def hash_file(
    path_or_fd: Path | str | int,
    target_size_bytes: int,
    *,
    on_progress: Callable[[int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> tuple[Digest, Recipe]:
    """The digest and the recipe of a file, read once from its beginning.

    `on_progress` is told the bytes hashed so far, `should_stop` is asked, both from the calling thread about once a
    MiB. A descriptor is left open and its position alone. Raises StoreError for what is no regular file or too
    large for a recipe, FileChanged when size or mtime changed meanwhile, HashingStopped, ValueError for a bad
    target; what the system calls raise (OSError) passes.
    """
    if isinstance(path_or_fd, int):
        return _hash_descriptor(path_or_fd, f"descriptor {path_or_fd}", target_size_bytes, on_progress, should_stop)
    # Without O_NONBLOCK, opening a FIFO that stands in for a blob would wait for ever.
    descriptor = os.open(path_or_fd, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        return _hash_descriptor(descriptor, str(path_or_fd), target_size_bytes, on_progress, should_stop)
    finally:
        os.close(descriptor)


def _hash_descriptor(
    descriptor: int,
    name: str,
    target_size_bytes: int,
    on_progress: Callable[[int], None] | None,
    should_stop: Callable[[], bool] | None,
) -> tuple[Digest, Recipe]:
    before = os.fstat(descriptor)
    if not stat.S_ISREG(before.st_mode):
        raise StoreError(f"{name} is no regular file: only regular files can be models")
    size_bytes = before.st_size
    try:
        chunks = ChunkHasher(size_bytes, target_size_bytes)
    except ValueError as error:
        raise StoreError(f"{name}: {error}; choose a larger chunk size") from error
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)
    position = 0
    with _WholeHasherThread(size_bytes) as whole:
        while position < size_bytes:
            if should_stop is not None and should_stop():
                raise HashingStopped(name)
            buffer = whole.free_buffer()
            count = os.preadv(descriptor, [buffer[: size_bytes - position]], position)
            if count == 0:
                raise FileChanged(f"{name} shrank to {position} bytes while it was being read: try again")
            whole.feed(buffer, count)
            chunks.update(buffer[:count])
            position += count
            if on_progress is not None:
                on_progress(position)
        digest = whole.finish()
    after = os.fstat(descriptor)
    if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
        raise FileChanged(f"{name} was written to while it was being read: try again when it is complete")
    return digest, chunks.finish(digest)


def follows_its_rule(path: Path, recipe: Recipe) -> bool:
    """Whether a blob whose bytes are right is cut as the recipe's rule says, as far as its header tells. Blocking.

    Where the bytes decide the cut (`fastcdc-1`) or the rule is not known here, the recipe is left as it came: finding
    out means reading the whole blob again, every chunk of it was checked all the same, and a cut of somebody's own
    costs no more than that other blobs share fewer chunks with this one.
    """
    try:
        target = target_of_rule(recipe.rule, recipe.size_bytes)
    except RemoteProtocolError:
        return True
    if recipe.rule.startswith("fastcdc"):
        return True
    chunks = ChunkHasher(recipe.size_bytes, target)
    with path.open("rb", buffering=0) as file:
        position = 0
        while not chunks.understood:
            data = read_at(file.fileno(), BUFFER_SIZE_BYTES, position)
            chunks.update(data)
            position += len(data)
    rule, sizes_bytes = chunks.planned()
    return rule != recipe.rule or sizes_bytes == recipe.sizes_bytes


class _WholeHasherThread:
    """SHA-256 in a thread of its own, fed with buffers that it hands back; small files do without the thread.

    Used as a context manager; the thread has ended when the block is left, however it is left.
    """

    def __init__(self, size_bytes: int) -> None:
        self._hasher = WholeHasher()
        count = BUFFER_COUNT if size_bytes > BUFFER_SIZE_BYTES else 1
        self._free: SimpleQueue[memoryview] = SimpleQueue()
        for _ in range(count):
            self._free.put(memoryview(bytearray(min(size_bytes, BUFFER_SIZE_BYTES))))
        self._full: SimpleQueue[tuple[memoryview, int] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="herd-sha256", daemon=True) if count > 1 else None

    def __enter__(self) -> Self:
        if self._thread is not None:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._join()

    def free_buffer(self) -> memoryview:
        """A buffer to read into; waits for the thread to hand one back."""
        return self._free.get()

    def feed(self, buffer: memoryview, count: int) -> None:
        """Hash the first `count` bytes of a buffer from `free_buffer`, which the caller may go on reading."""
        if self._thread is None:
            self._hasher.update(buffer[:count])
            self._free.put(buffer)
        else:
            self._full.put((buffer, count))

    def finish(self) -> Digest:
        """The digest of all that was fed."""
        self._join()
        return self._hasher.finish()

    def _join(self) -> None:
        if self._thread is not None and self._thread.is_alive():
            self._full.put(None)
            self._thread.join()

    def _run(self) -> None:
        while (work := self._full.get()) is not None:
            buffer, count = work
            self._hasher.update(buffer[:count])
            self._free.put(buffer)
