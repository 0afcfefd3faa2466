"""One small file of a node's home that is replaced whole: `node.ports.SmallFile` on a real disk."""

import os
from pathlib import Path


class DiskFile:
    """A file that a crash leaves as it was before or as it is after, never in between."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __str__(self) -> str:
        return str(self._path)

    def read(self, size_bytes_max: int) -> bytes | None:
        """Its first bytes; None when there is no file. Raises OSError."""
        try:
            with open(self._path, "rb") as file:
                return file.read(size_bytes_max)
        except FileNotFoundError:
            return None

    def replace(self, data: bytes) -> None:
        """Make these its bytes. Raises OSError, and then the old ones stand."""
        temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        try:
            temporary.write_bytes(data)
            temporary.replace(self._path)
        finally:
            temporary.unlink(missing_ok=True)
