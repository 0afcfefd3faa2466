"""The state of a run on standard error: one live line on a terminal, a plain line every few seconds in a log."""

import logging
import shutil
import sys
import time
from types import TracebackType

from node.cli.output import seconds_text, visible

PLAIN_INTERVAL_S = 5.0
LIVE_INTERVAL_S = 0.1


class ProgressLine:
    """Shows the newest state and forgets it; use as a context, so that the live line is gone when something follows."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._began_s = self._shown_s = time.monotonic()
        self._standing = False

    def __enter__(self) -> "ProgressLine":
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self.clear()

    def show(self, text: str) -> None:
        """The newest state; left out when the last one was shown a moment ago."""
        now_s = time.monotonic()
        if now_s - self._shown_s < (LIVE_INTERVAL_S if self._live else PLAIN_INTERVAL_S):
            return
        self._shown_s = now_s
        whole = f"{seconds_text(now_s - self._began_s)}: {visible(text)}"
        if self._live:
            width = shutil.get_terminal_size().columns
            sys.stderr.write(f"\r{whole[: width - 1]}\x1b[K")
            self._standing = True
        else:
            sys.stderr.write(f"{whole}\n")
        sys.stderr.flush()

    def clear(self) -> None:
        """Take the live line away, for other text."""
        if self._standing:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
            self._standing = False


def keep_nodes_quiet() -> None:
    """What simulated nodes log is in the trace; on standard error it would stand across the live line."""
    logging.getLogger("herd").addHandler(logging.NullHandler())
