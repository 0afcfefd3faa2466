"""What herd remembers of a store between two runs: which file was read and what was in it, recipes, partial blobs.

SQLite in WAL mode, one connection, used by one worker thread at a time. It is a memory, not the truth: whatever it
says of a file counts only while the file's device, inode, size and mtime are what they were.
"""

import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import attrs
import trio

from node.ports import StoreError
from node.store.files import FileKey
from protocols.bits import Bits
from protocols.errors import RemoteProtocolError
from protocols.ids import Digest
from protocols.recipe.recipe import Recipe

T = TypeVar("T")

SCHEMA_VERSION = 1

_SCHEMA = (
    "CREATE TABLE schema (version INTEGER NOT NULL)",
    # One row a recipe, not one a chunk: 10 GB in chunks of 4 MiB take 90 kB.
    "CREATE TABLE recipes (digest BLOB PRIMARY KEY, chunk_count INTEGER NOT NULL, body BLOB NOT NULL)",
    "CREATE TABLE files (device INTEGER NOT NULL, inode INTEGER NOT NULL, size_bytes INTEGER NOT NULL,"
    " mtime_ns INTEGER NOT NULL, digest BLOB NOT NULL, PRIMARY KEY (device, inode)) WITHOUT ROWID",
    "CREATE TABLE partials (digest BLOB PRIMARY KEY, recipe BLOB NOT NULL, bits BLOB NOT NULL,"
    " started_at REAL NOT NULL)",
    f"INSERT INTO schema VALUES ({SCHEMA_VERSION})",
)


@attrs.frozen
class KnownFile:
    """What was in a file when it was read."""

    digest: Digest
    chunk_count: int


@attrs.frozen
class StoredPartial:
    """A blob being received, as it was last made durable."""

    recipe: Recipe
    bits: Bits


def _raw(digest: Digest) -> bytes:
    return bytes.fromhex(digest.removeprefix("sha256:"))


def _digest(raw: bytes) -> Digest:
    return Digest("sha256:" + raw.hex())


def _signed(number: int) -> int:
    # Device and inode numbers are unsigned 64 bits; SQLite's integers are signed.
    return number - (1 << 64) if number >= 1 << 63 else number


class Index:
    """The memory of one store. Async methods run in the index's own thread; StoreError when SQLite fails."""

    def __init__(self, path: Path) -> None:
        """Open or make the index. Blocking; StoreError when the file is no index or of a later release."""
        self._path = path
        self._limiter = trio.CapacityLimiter(1)
        self._connection = self._open()

    def _open(self) -> sqlite3.Connection:
        try:
            connection = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False, timeout=10)
        except sqlite3.Error as error:
            raise self._failure(error) from error
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA journal_size_limit = 1048576")
            connection.execute("PRAGMA synchronous = NORMAL")
            self._check_schema(connection)
        except (sqlite3.Error, StoreError) as error:
            connection.close()
            raise (error if isinstance(error, StoreError) else self._failure(error)) from error
        return connection

    def _check_schema(self, connection: sqlite3.Connection) -> None:
        connection.execute("BEGIN IMMEDIATE")
        tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        if not tables:
            for statement in _SCHEMA:
                connection.execute(statement)
        row = connection.execute("SELECT version FROM schema").fetchone()
        connection.execute("COMMIT")
        version = row[0] if row else None
        if version != SCHEMA_VERSION:
            raise StoreError(
                f"the index {self._path} has schema version {version}, this release knows {SCHEMA_VERSION}:"
                " use the release that wrote it, or move the file away and herd reads the store anew"
            )

    def _failure(self, error: Exception) -> StoreError:
        if isinstance(error, sqlite3.Error) and getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
            return StoreError(f"cannot write {self._path}: the disk is full: free some space on it and try again")
        return StoreError(
            f"the index {self._path} cannot be used: {error}; check disk space and permissions,"
            " or move the file away and herd reads the store anew"
        )

    async def _run(self, work: Callable[[sqlite3.Connection], T], *, durable: bool = False) -> T:
        def transaction() -> T:
            connection = self._connection
            try:
                # FULL syncs the log at this commit, and with it all commits before; NORMAL leaves that to later.
                connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
                connection.execute("BEGIN IMMEDIATE")
                try:
                    result = work(connection)
                    connection.execute("COMMIT")
                except BaseException:
                    # A full disk makes SQLite roll back by itself; a second time would hide what happened.
                    if connection.in_transaction:
                        connection.execute("ROLLBACK")
                    raise
            except sqlite3.Error as error:
                raise self._failure(error) from error
            return result

        return await trio.to_thread.run_sync(transaction, limiter=self._limiter)

    async def files(self) -> dict[FileKey, KnownFile]:
        """Every file that was read, and what was in it."""

        def work(connection: sqlite3.Connection) -> dict[FileKey, KnownFile]:
            rows = connection.execute(
                "SELECT device, inode, size_bytes, mtime_ns, digest, chunk_count FROM files JOIN recipes USING (digest)"
            )
            return {
                FileKey(device % (1 << 64), inode % (1 << 64), size, mtime): KnownFile(_digest(digest), count)
                for device, inode, size, mtime, digest, count in rows
            }

        return await self._run(work)

    async def record(self, key: FileKey, recipe: Recipe, *, partial_done: bool = False) -> None:
        """A file was read and holds the recipe's blob; with `partial_done` its partial row goes at the same time."""
        body = recipe.to_bytes()

        def work(connection: sqlite3.Connection) -> None:
            raw = _raw(recipe.digest)
            connection.execute("REPLACE INTO recipes VALUES (?, ?, ?)", (raw, len(recipe), body))
            connection.execute("REPLACE INTO files VALUES (?, ?, ?, ?, ?)", (*_columns(key), raw))
            if partial_done:
                connection.execute("DELETE FROM partials WHERE digest = ?", (raw,))

        await self._run(work)

    async def recipe(self, digest: Digest) -> Recipe | None:
        """The stored recipe of a blob that was read."""

        def work(connection: sqlite3.Connection) -> bytes | None:
            row = connection.execute("SELECT body FROM recipes WHERE digest = ?", (_raw(digest),)).fetchone()
            return row[0] if row else None

        body = await self._run(work)
        if body is None:
            return None
        try:
            return Recipe.from_bytes(body)
        except RemoteProtocolError as error:
            raise self._failure(error) from error

    async def recipe_bodies(self, digests: Sequence[Digest]) -> list[bytes]:
        """The stored recipes of these blobs in their canonical form, as many as there are, in no order."""

        def work(connection: sqlite3.Connection) -> list[bytes]:
            # Asked for one by one: the number of placeholders of one statement is limited.
            found = (
                connection.execute("SELECT body FROM recipes WHERE digest = ?", (_raw(digest),)).fetchone()
                for digest in digests
            )
            return [row[0] for row in found if row is not None]

        return await self._run(work)

    async def forget(self, keys: list[FileKey]) -> None:
        """These files are gone; recipes that no file needs any more go with them."""

        def work(connection: sqlite3.Connection) -> None:
            connection.executemany(
                "DELETE FROM files WHERE device = ? AND inode = ? AND size_bytes = ? AND mtime_ns = ?",
                [_columns(key) for key in keys],
            )
            connection.execute("DELETE FROM recipes WHERE digest NOT IN (SELECT digest FROM files)")

        if keys:
            await self._run(work)

    async def move(self, old: FileKey, new: FileKey) -> None:
        """The same bytes have another mtime now, by our own doing."""

        def work(connection: sqlite3.Connection) -> None:
            connection.execute(
                "UPDATE OR REPLACE files SET device = ?, inode = ?, size_bytes = ?, mtime_ns = ?"
                " WHERE device = ? AND inode = ? AND size_bytes = ? AND mtime_ns = ?",
                (*_columns(new), *_columns(old)),
            )

        await self._run(work)

    async def partials(self) -> dict[Digest, StoredPartial]:
        """Every partial blob. StoreError when a row cannot be read."""

        def work(connection: sqlite3.Connection) -> list[tuple[bytes, bytes]]:
            return connection.execute("SELECT recipe, bits FROM partials ORDER BY started_at").fetchall()

        found: dict[Digest, StoredPartial] = {}
        for body, bits in await self._run(work):
            try:
                recipe = Recipe.from_bytes(body)
                found[recipe.digest] = StoredPartial(recipe, Bits.from_bytes(len(recipe), bits))
            except RemoteProtocolError as error:
                raise self._failure(error) from error
        return found

    async def save_partial(self, digest: Digest, bits: bytes, recipe: Recipe | None) -> None:
        """Commit durably which chunks are on disk; the recipe is given the first time only."""
        body = recipe.to_bytes() if recipe is not None else None

        def work(connection: sqlite3.Connection) -> None:
            if body is None:
                connection.execute("UPDATE partials SET bits = ? WHERE digest = ?", (bits, _raw(digest)))
            else:
                connection.execute("REPLACE INTO partials VALUES (?, ?, ?, ?)", (_raw(digest), body, bits, time.time()))

        await self._run(work, durable=True)

    async def begin_partial(self, recipe: Recipe) -> None:
        """Say by which recipe a blob comes in, though nothing is durable yet: kill -9 keeps it, a power cut may not."""
        row = _raw(recipe.digest), recipe.to_bytes(), Bits(len(recipe)).to_bytes(), time.time()
        await self._run(lambda connection: connection.execute("REPLACE INTO partials VALUES (?, ?, ?, ?)", row))

    async def drop_partial(self, digest: Digest) -> None:
        """Forget a partial blob."""
        await self._run(lambda connection: connection.execute("DELETE FROM partials WHERE digest = ?", (_raw(digest),)))

    def close(self) -> None:
        """Let go of the file; nothing is lost that was committed. Blocking."""
        self._connection.close()


def _columns(key: FileKey) -> tuple[int, int, int, int]:
    return _signed(key.device), _signed(key.inode), key.size_bytes, key.mtime_ns
