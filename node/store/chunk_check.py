"""Comparing a whole file with a recipe, fast: every chunk's BLAKE3, on every processor, in a process of its own.

When every chunk is right every byte is, so the SHA-256 that was seen with the recipe stands without being computed.
"""

import os
import signal
import subprocess
import sys
from array import array
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import trio

from node.ports import StoreError
from node.store import chunk_worker
from node.store.chunk_worker import CHANGED, CHECKED, DONE, FAILED, RECORD, REQUEST, WRONG
from node.store.files import FileKey, explain
from node.store.verify import FileChanged
from protocols.recipe.recipe import Recipe

BACKGROUND_NICE = 10
"""What nobody waits for gives way to everybody else."""

RECEIVE_SIZE_BYTES = 64 * 1024


class WorkerEnded(StoreError):
    """The process that read the file did not come to an answer, which says nothing of the file."""


class ChunkChecker:
    """Checks files one at a time, since one takes every processor; one more in the background."""

    def __init__(self, rate_bytes_per_s: int) -> None:
        self._rate_bytes_per_s = rate_bytes_per_s
        self._background = trio.CapacityLimiter(1)
        self._waited_for = trio.CapacityLimiter(1)

    async def check(
        self,
        path: Path,
        key: FileKey,
        recipe: Recipe,
        *,
        background: bool = False,
        on_progress: Callable[[int], None] | None = None,
    ) -> list[int]:
        """The indexes of the chunks that are wrong in a file that is not empty, ascending.

        `on_progress` gets the bytes checked so far. In the background the configured rate holds. FileChanged when
        the file is not, or does not stay, what `key` says; StoreError when it cannot be read; WorkerEnded. Cancelling
        kills the worker.
        """
        if key.size_bytes != recipe.size_bytes:
            raise FileChanged(f"{path} has {key.size_bytes} bytes, its recipe {recipe.size_bytes}")
        request = _request(path, key, recipe, self._rate_bytes_per_s if background else 0, background)
        async with self._background if background else self._waited_for:
            conversation = _Conversation(path, key, on_progress)
            try:
                code = await _run_worker(request, conversation.take)
            except OSError as error:
                raise WorkerEnded(f"cannot start a process to check {path}: {error.strerror}") from error
            return conversation.outcome(code)


def _request(path: Path, key: FileKey, recipe: Recipe, rate_bytes_per_s: int, background: bool) -> bytes:
    name = os.fsencode(path)
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    head = REQUEST.pack(
        key.device,
        key.inode,
        key.size_bytes,
        key.mtime_ns,
        rate_bytes_per_s,
        len(name),
        len(recipe),
        threads,
        BACKGROUND_NICE if background else 0,
    )
    return b"".join([head, name, array("I", recipe.sizes_bytes).tobytes(), recipe.hashes])


async def _run_worker(request: bytes, take: Callable[[bytes], None]) -> int:
    """Have a worker answer one request, every record given to `take`; the code it ended with."""
    process = await trio.lowlevel.open_process(
        # -P: what lies beside the script must not stand in for a module of the standard library.
        [sys.executable, "-P", chunk_worker.__file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        # Ctrl-C is for the node, which ends its workers itself.
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        async with process.stdin, process.stdout:
            with suppress(trio.BrokenResourceError):
                # A worker that died early is told by how it ended.
                await process.stdin.send_all(request)
            rest = b""
            while data := await process.stdout.receive_some(RECEIVE_SIZE_BYTES):
                rest += data
                whole = len(rest) - len(rest) % RECORD.size
                for offset in range(0, whole, RECORD.size):
                    take(rest[offset : offset + RECORD.size])
                rest = rest[whole:]
        return await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()


class _Conversation:
    """What one worker said of one file."""

    def __init__(self, path: Path, key: FileKey, on_progress: Callable[[int], None] | None) -> None:
        self._path = path
        self._key = key
        self._on_progress = on_progress
        self._wrong: list[int] = []
        self._ending: tuple[bytes, int] = (b"", 0)

    def take(self, record: bytes) -> None:
        kind, value = RECORD.unpack(record)
        if kind == CHECKED and self._on_progress is not None:
            self._on_progress(value)
        elif kind == WRONG:
            self._wrong.append(value)
        elif kind in (CHANGED, FAILED, DONE):
            self._ending = kind, value

    def outcome(self, code: int) -> list[int]:
        """The wrong chunks, or the error that says why they are not known."""
        kind, value = self._ending
        if kind == DONE and value == self._key.size_bytes and code == 0:
            return self._wrong
        if kind == CHANGED:
            raise FileChanged(f"{self._path} was written to while it was being read: try again when it is complete")
        if kind == FAILED:
            raise explain(OSError(value, os.strerror(value)), "read", self._path)
        if code == -signal.SIGBUS:
            raise self._bus_error()
        raise WorkerEnded(f"cannot check {self._path}: the process that read it ended with code {code}")

    def _bus_error(self) -> StoreError:
        """A mapping fails where the file no longer is, and where the disk cannot give what should be there."""
        with suppress(OSError):
            if FileKey.at(self._path) == self._key:
                return StoreError(
                    f"cannot read {self._path}: the disk does not give all of its bytes: check the disk's health"
                )
        return FileChanged(f"{self._path} shrank while it was being read")
