"""SHA-256 of a blob while it comes in: it follows the front, the first chunk that is still missing.

Every byte is read back once, soon after it was written and so from the page cache. At the end only what came behind
a late chunk is left, where reading a finished blob of 40 GB again would take longer than fetching it.
"""

from collections import deque
from contextlib import ExitStack, suppress
from pathlib import Path

import trio

from node.ports import StoreError
from node.store.files import OpenFile, explain, read_into
from protocols.bits import Bits
from protocols.ids import Digest
from protocols.recipe.hasher import WholeHasher
from protocols.recipe.recipe import Recipe

PIECE_SIZE_BYTES = 1024 * 1024
"""Read and hashed at a time: it stays in a core's own cache, and a front that must stop does so within 1 ms."""

TURN_SIZE_BYTES = 64 * 1024 * 1024
"""How far one front runs before another that waits has its turn."""


class FrontThreads:
    """The threads of all fronts of one store. A front with nothing to read occupies none."""

    def __init__(self, threads: int) -> None:
        self._free = threads
        self._waiting: deque[Front] = deque()

    def submit(self, front: "Front") -> None:
        """Let a front run when its turn comes."""
        self._waiting.append(front)
        self._start()

    def withdraw(self, front: "Front") -> bool:
        """Forget a front whose turn has not come; whether it waited."""
        with suppress(ValueError):
            self._waiting.remove(front)
            return True
        return False

    def _start(self) -> None:
        while self._free and self._waiting:
            front = self._waiting.popleft()
            self._free -= 1
            self._run(front)

    def _run(self, front: "Front") -> None:
        token = trio.lowlevel.current_trio_token()
        descriptor = front.begin_turn()

        def ended() -> None:
            self._free += 1
            front.end_turn()
            self._start()

        def deliver(_: object) -> None:
            with suppress(trio.RunFinishedError):
                token.run_sync_soon(ended)

        trio.lowlevel.start_thread_soon(lambda: front.run_turn(descriptor), deliver, "herd-front")


class Front:
    """The running SHA-256 of one partial blob. Its state belongs to the Trio thread, save while a turn runs.

    It begins at the first byte whenever the partial blob is opened: OpenSSL's state cannot be kept on disk, and what
    is read again after a restart is read while the rest is fetched.
    """

    def __init__(self, recipe: Recipe, bits: Bits, file: OpenFile, path: Path, threads: FrontThreads) -> None:
        self.hashed_bytes = 0
        self._recipe = recipe
        self._bits = bits
        self._file = file
        self._path = path
        self._threads = threads
        self._hasher = WholeHasher()
        self._buffer = memoryview(b"")
        self._next = 0
        self._end_bytes = 0
        self._turn = ExitStack()
        self._running = False
        self._stopped = False
        self._problem: Exception | None = None
        self._turned = trio.Event()

    def follow(self) -> None:
        """Go on as far as there are chunks without a gap. To be called after a chunk's bit was set."""
        while self._next in self._bits:
            self._end_bytes += self._recipe.sizes_bytes[self._next]
            self._next += 1
        if self.hashed_bytes < self._end_bytes and not (self._running or self._stopped or self._problem):
            self._running = True
            self._threads.submit(self)

    async def finish(self) -> Digest:
        """The digest of the complete blob, when its last byte was hashed. StoreError when it cannot be read."""
        self.follow()
        while self._running:
            await self._turned.wait()
        if self._problem is not None:
            # Whoever tries again goes on behind the last byte that could be read.
            problem, self._problem = self._problem, None
            raise problem
        if self.hashed_bytes < self._recipe.size_bytes:
            raise StoreError(f"{self._path} is no longer being received")
        await trio.lowlevel.checkpoint()
        return self._hasher.finish()

    def stop(self) -> None:
        """Hash no more; a turn that runs ends after its piece."""
        self._stopped = True
        if self._threads.withdraw(self):
            self._running = False

    async def wait_stopped(self) -> None:
        """Until no thread reads the file any more."""
        while self._running:
            await self._turned.wait()

    def begin_turn(self) -> int:
        """The descriptor to read from; the file stays open until the turn ends."""
        if not self._buffer:
            self._buffer = memoryview(bytearray(min(PIECE_SIZE_BYTES, self._recipe.size_bytes)))
        return self._turn.enter_context(self._file.borrow())

    def run_turn(self, descriptor: int) -> None:
        """Read and hash, in a thread, all there is or as much as a turn has."""
        end_bytes = self.hashed_bytes + TURN_SIZE_BYTES
        try:
            while not self._stopped and self.hashed_bytes < min(end_bytes, self._end_bytes):
                self._hash_piece(descriptor)
        except OSError as error:
            self._problem = explain(error, "read", self._path)
        except Exception as error:  # boundary: a thread nobody waits for; `finish` raises it
            self._problem = error

    def _hash_piece(self, descriptor: int) -> None:
        piece = self._buffer[: self._end_bytes - self.hashed_bytes]
        if read_into(descriptor, piece, self.hashed_bytes) != len(piece):
            raise StoreError(f"{self._path} was cut short while it was being received")
        self._hasher.update(piece)
        self.hashed_bytes += len(piece)

    def end_turn(self) -> None:
        """The thread is done; back in the Trio thread."""
        self._turn.close()
        self._running = False
        self.follow()
        self._turned.set()
        self._turned = trio.Event()
