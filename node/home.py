"""A node's home directory: its identity, keys and memory, held by one process at a time."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from node.errors import UsageError

LOCK_NAME = "node.lock"


@contextmanager
def holding_home(home: Path) -> Iterator[None]:
    """Make the home, and hold it for this process: two nodes of one identity would each pass for the other.

    UsageError when another node runs in it, or when it cannot be made.
    """
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(home / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise UsageError(f"{home}: cannot be the node's home: {error.strerror}; choose another with --home") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(
                f"{home}: a node of this home is already running; stop it or choose another --home"
            ) from error
        yield
    finally:
        os.close(descriptor)
