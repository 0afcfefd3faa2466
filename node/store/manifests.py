"""Looking at the tree of manifests again and again, cheaply.

Ollama, its users and other tools create, copy, change and delete models without telling anybody. Polling sees it
all, on every file system: a directory is listed again only when its mtime changed, every manifest costs one stat.
"""

import logging
import os
import stat
import time
from pathlib import Path

import attrs

from node.store.files import FileKey
from node.store.ollama import Layout, name_of_path
from protocols.manifest import MANIFEST_SIZE_BYTES_MAX
from protocols.names import ModelName

log = logging.getLogger("herd.store")

RACY_NS = 2_000_000_000
"""A directory listed this soon after its last change may have changed again under the same mtime: list it anew."""

DEPTH = 4


@attrs.frozen
class ManifestFile:
    """One manifest as a scan found it."""

    name: ModelName
    path: Path
    key: FileKey


@attrs.frozen
class _Listing:
    inode: int
    mtime_ns: int
    listed_at_ns: int
    names: tuple[str, ...]

    def still_holds(self, status: os.stat_result) -> bool:
        return (self.inode, self.mtime_ns) == (
            status.st_ino,
            status.st_mtime_ns,
        ) and self.listed_at_ns - self.mtime_ns > RACY_NS


class ManifestTree:
    """The names of one store. Used from one thread at a time; every method blocks."""

    def __init__(self, layout: Layout) -> None:
        self._root = layout.manifests
        self._listings: dict[Path, _Listing] = {}
        self._ignored: dict[Path, str] = {}

    def scan(self) -> dict[ModelName, ManifestFile]:
        """Every manifest Ollama would look at. What vanishes meanwhile is left out; what is foreign is logged once."""
        found: dict[ModelName, ManifestFile] = {}
        listings: dict[Path, _Listing] = {}
        self._walk(self._root, (), found, listings)
        self._listings = listings
        return found

    def _walk(
        self,
        directory: Path,
        parts: tuple[str, ...],
        found: dict[ModelName, ManifestFile],
        listings: dict[Path, _Listing],
    ) -> None:
        listing = self._list(directory)
        if listing is None:
            return
        listings[directory] = listing
        for entry in listing.names:
            path, below = directory / entry, (*parts, entry)
            if len(below) < DEPTH:
                self._walk(path, below, found, listings)
                continue
            try:
                status = os.stat(path)
            except FileNotFoundError:
                continue
            except OSError as error:
                self._ignore(path, error.strerror or str(error))
                continue
            name = name_of_path(below)
            if name is None or not stat.S_ISREG(status.st_mode):
                self._ignore(path, "this is no name or no file Ollama could read as a manifest")
                continue
            found[name] = ManifestFile(name, path, FileKey.of(status))

    def _list(self, directory: Path) -> _Listing | None:
        known = self._listings.get(directory)
        try:
            status = os.stat(directory)
            if known is not None and known.still_holds(status):
                return known
            now_ns = time.time_ns()
            return _Listing(status.st_ino, status.st_mtime_ns, now_ns, tuple(sorted(os.listdir(directory))))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            # A directory that cannot be read for a moment has not lost its models.
            self._ignore(directory, error.strerror or str(error))
            return known

    def _ignore(self, path: Path, reason: str) -> None:
        if self._ignored.get(path) != reason and len(self._ignored) < 10_000:
            self._ignored[path] = reason
            log.warning("%s is left out: %s", path, reason)


def read_manifest(path: Path) -> tuple[bytes, FileKey]:
    """The bytes of a manifest file and the state of the file they are from. Raises OSError. Blocking."""
    with path.open("rb", buffering=0) as file:
        key = FileKey.of(os.fstat(file.fileno()))
        data = bytearray()
        while len(data) <= MANIFEST_SIZE_BYTES_MAX:
            part = file.read(MANIFEST_SIZE_BYTES_MAX + 1 - len(data))
            if not part:
                break
            data += part
    return bytes(data), key
