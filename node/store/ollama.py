"""Where Ollama keeps things and how names become paths; the one room that knows the layout.

`manifests/<host>/<namespace>/<model>/<tag>` and `blobs/sha256-<hex>`, exactly. Ollama looks at nothing else in
its directory, so herd's own files live beside them in `.herd/`, on the same file system.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import attrs

from node.store.files import remove_file, sync_directory, temporary_path, write_durably
from protocols.errors import RemoteProtocolError
from protocols.ids import Digest, blob_file_name, parse_digest
from protocols.names import InvalidName, ModelName

MKDIR_ATTEMPTS = 10
"""A starting Ollama removes empty directories under `manifests/`; more often than this in a row it does not."""


@attrs.frozen
class Layout:
    """The paths of one store. Nothing here reads or writes."""

    models: Path

    @property
    def manifests(self) -> Path:
        """Ollama's tree of names."""
        return self.models / "manifests"

    @property
    def blobs(self) -> Path:
        """Ollama's blobs."""
        return self.models / "blobs"

    @property
    def herd(self) -> Path:
        """Our own corner."""
        return self.models / ".herd"

    @property
    def partial(self) -> Path:
        """Blobs being received."""
        return self.herd / "partial"

    @property
    def whole(self) -> Path:
        """Verified blobs that no manifest names yet."""
        return self.herd / "whole"

    @property
    def temporary(self) -> Path:
        """Files of one operation; emptied at every start."""
        return self.herd / "tmp"

    @property
    def damaged(self) -> Path:
        """What stood under a blob's name with other bytes."""
        return self.herd / "damaged"

    @property
    def index(self) -> Path:
        """The SQLite index."""
        return self.herd / "index.sqlite"

    @property
    def lock(self) -> Path:
        """Held by the one node that uses the store."""
        return self.herd / "lock"

    def blob(self, digest: Digest) -> Path:
        """The final name of a blob."""
        return self.blobs / blob_file_name(digest)

    def whole_blob(self, digest: Digest) -> Path:
        """Where a verified blob waits for its manifest."""
        return self.whole / blob_file_name(digest)

    def partial_blob(self, digest: Digest) -> Path:
        """Where a blob grows."""
        return self.partial / blob_file_name(digest)

    def manifest(self, name: ModelName) -> Path:
        """The file of a name, spelled as given."""
        return self.manifests.joinpath(*name.path_parts())

    def candidates(self, digest: Digest) -> tuple[Path, ...]:
        """Where a whole blob may stand, in the order in which it moves; a reader that goes this way cannot miss it.

        The last is the spelling of Ollama before 0.1.32, which the next Ollama start renames.
        """
        return self.whole_blob(digest), self.blob(digest), self.blobs / digest


def digest_of_file_name(name: str) -> Digest | None:
    """The digest a file is named after, or None for partial, temporary and foreign files.

    Only the exact lower-case spelling is Ollama's; everything else in `blobs/` is somebody's unfinished work.
    """
    try:
        digest = parse_digest(name)
    except RemoteProtocolError:
        return None
    return digest if name in (blob_file_name(digest), digest) else None


def name_of_path(parts: tuple[str, ...]) -> ModelName | None:
    """The model name four path components spell, or None when Ollama would not accept them."""
    try:
        return ModelName(*parts)
    except (InvalidName, TypeError):
        return None


def spelled_as_stored(layout: Layout, name: ModelName) -> ModelName:
    """The name with each part spelled as the store already spells it, so that no two names differ only in case.

    A spelling under the directory reached so far wins; else, as Ollama does, any at that depth. Blocking.
    """
    parts: list[str] = []
    here: Path = layout.manifests
    level = [layout.manifests]
    for part in name.path_parts():
        siblings = _names_in(here)
        everywhere = {directory: _names_in(directory) for directory in level}
        part = _spelling(part, siblings) or _spelling(part, [e for names in everywhere.values() for e in names]) or part
        parts.append(part)
        here = here / part
        level = [directory / entry for directory, names in everywhere.items() for entry in names]
    return ModelName(*parts)


def _spelling(part: str, stored: list[str]) -> str | None:
    same = [entry for entry in stored if entry.lower() == part.lower()]
    return part if part in same else min(same, default=None)


def _names_in(directory: Path) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except OSError:
        return []


def write_manifest(layout: Layout, name: ModelName, data: bytes) -> Path:
    """Give a manifest its name atomically and durably; the path. Raises OSError. Blocking."""
    target = layout.manifest(name)
    with temporary_path(layout.temporary, "manifest") as temporary:
        write_durably(temporary, data)
        take_owner_of(layout.models, temporary)
        for attempt in range(MKDIR_ATTEMPTS):
            make_directories(layout.models, target.parent)
            try:
                os.rename(temporary, target)
                break
            except OSError as error:
                # A starting Ollama pruned the empty directory between the two calls.
                if error.errno != errno.ENOENT or attempt + 1 == MKDIR_ATTEMPTS:
                    raise
    for directory in _up_to(target.parent, layout.manifests):
        sync_directory(directory)
    return target


def remove_manifest(layout: Layout, name: ModelName) -> bool:
    """Remove a name durably, and the directories it leaves empty; whether it was there. Blocking."""
    target = layout.manifest(name)
    if not remove_file(target):
        return False
    with suppress(FileNotFoundError):
        sync_directory(target.parent)
    for directory in list(_up_to(target.parent, layout.manifests))[:-1]:
        try:
            directory.rmdir()
        except OSError:
            # Not empty, or already gone: either way there is nothing left to tidy above it.
            break
    return True


def _up_to(directory: Path, top: Path) -> Iterator[Path]:
    while directory != top:
        yield directory
        directory = directory.parent
    yield top


def make_directories(models: Path, directory: Path) -> None:
    """Make a directory of the store and its missing parents, 0755, owned like the store. Blocking."""
    missing = []
    while not directory.is_dir():
        missing.append(directory)
        directory = directory.parent
    for path in reversed(missing):
        with suppress(FileExistsError):
            path.mkdir(0o755)
            take_owner_of(models, path)


def take_owner_of(models: Path, path: Path) -> None:
    """Give a new file the owner of the store. Only root can, and only root needs to."""
    if os.geteuid() != 0:
        return
    owner = os.stat(models)
    if (owner.st_uid, owner.st_gid) != (0, 0):
        os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)
