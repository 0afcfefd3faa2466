"""Reading a whole file once for its SHA-256 and its recipe, off the Trio thread, cancellable and paced."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import trio

from node.store.config import StoreConfig
from node.store.files import explain, run_stoppable
from node.store.verify import hash_file
from protocols.ids import Digest
from protocols.recipe.recipe import Recipe

PAUSE_S_MAX = 0.1
"""The longest sleep between two looks at whether to stop."""


class Pace:
    """Slows a reader down to a rate. Used inside the reading thread."""

    def __init__(self, rate_bytes_per_s: int, stop: threading.Event) -> None:
        self._rate = rate_bytes_per_s
        self._stop = stop
        self._started_at = time.monotonic()

    def wait(self, read_bytes: int) -> None:
        """Wait until reading `read_bytes` in all is within the rate, or until told to stop."""
        if self._rate <= 0:
            return
        due = self._started_at + read_bytes / self._rate
        while not self._stop.is_set() and (left := due - time.monotonic()) > 0:
            time.sleep(min(left, PAUSE_S_MAX))


class Hasher:
    """Hashes files in threads of its own, two at a time: one for the background, one for somebody who waits."""

    def __init__(self, config: StoreConfig) -> None:
        self._config = config
        self._background = trio.CapacityLimiter(1)
        self._waited_for = trio.CapacityLimiter(2)

    async def hash(
        self,
        path: Path,
        *,
        target_size_bytes: int | None = None,
        background: bool = False,
        on_progress: Callable[[int], None] | None = None,
    ) -> tuple[Digest, Recipe]:
        """Digest and recipe of a file, in chunks of the configured target size or the one given.

        `on_progress` gets the bytes read so far, in the Trio thread, about ten times a second. In the background the
        configured rate holds. StoreError when the file cannot be read. Cancelling stops the reading thread soon after.
        """
        target = target_size_bytes or self._config.chunk_size_bytes
        rate = self._config.verify_rate_bytes_per_s if background else 0
        done_bytes = 0

        def work(stop: threading.Event) -> tuple[Digest, Recipe]:
            pace = Pace(rate, stop)

            def progressed(read_bytes: int) -> None:
                nonlocal done_bytes
                done_bytes = read_bytes
                pace.wait(read_bytes)

            return hash_file(path, target, on_progress=progressed, should_stop=stop.is_set)

        def report() -> None:
            if on_progress is not None:
                on_progress(done_bytes)

        limiter = self._background if background else self._waited_for
        try:
            result = await run_stoppable(work, limiter, report if on_progress is not None else None)
        except OSError as error:
            raise explain(error, "read", path) from error
        report()
        return result
