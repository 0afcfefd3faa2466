"""The catalog on disk: one SQLite table of records, so that a restarted node knows at once what it knew.

Nothing here is precious: every record can be learned again from the members. A damaged file is set aside, also when
only a record in it is damaged: members would take that for a forgery of ours.
"""

import logging
import os
import sqlite3
from collections.abc import Mapping
from pathlib import Path

from blake3 import blake3

from node.errors import HerdError
from protocols.catalog.events import Restored
from protocols.catalog.records import Inventory, VersionRecord
from protocols.codec import pack, unpack
from protocols.errors import RemoteProtocolError

log = logging.getLogger("herd.catalog")

SCHEMA = 1

CHECKSUM_SIZE_BYTES = 16

OUTSIDE_CAUSES = (
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN,
)
"""What SQLite reports when not the file's contents but its surroundings are in the way."""

VERSION, INVENTORY = 1, 2

Record = VersionRecord | Inventory
Key = bytes | str


def key_of(record: Record) -> Key:
    """What a record stands under: a version's id, an inventory's owner."""
    return record.id() if isinstance(record, VersionRecord) else record.owner


class CatalogFile:
    """The file; its methods block and are called from one worker thread at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None

    def load(self) -> Restored:
        """Everything in the file. HerdError when a newer release wrote it or it cannot be opened at all."""
        try:
            try:
                return self._load()
            except (sqlite3.Error, RemoteProtocolError, UnicodeDecodeError) as error:
                if getattr(error, "sqlite_errorcode", 0) & 0xFF in OUTSIDE_CAUSES:
                    raise
                self._set_aside(error)
                return self._load()
        except (sqlite3.Error, OSError) as error:
            self.close()
            raise HerdError(
                f"the catalog's file {self._path} cannot be used: {error}; check disk space and permissions"
            ) from error

    def _load(self) -> Restored:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(self._path, check_same_thread=False, isolation_level=None)
        self._connection = connection
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        (schema,) = connection.execute("PRAGMA user_version").fetchone()
        if schema > SCHEMA:
            self.close()
            raise HerdError(f"the catalog's file {self._path} was written by a newer herd; move it away or update herd")
        connection.execute(
            "CREATE TABLE IF NOT EXISTS records (key BLOB PRIMARY KEY, kind INTEGER NOT NULL, record BLOB NOT NULL)"
            " WITHOUT ROWID"
        )
        connection.execute(f"PRAGMA user_version = {SCHEMA}")
        versions: list[VersionRecord] = []
        inventories: list[Inventory] = []
        for kind, stored in connection.execute("SELECT kind, record FROM records ORDER BY key"):
            data = _checked(stored)
            if kind == VERSION:
                versions.append(unpack(data, VersionRecord))
            else:
                inventories.append(unpack(data, Inventory))
        return Restored(versions, inventories)

    def _set_aside(self, error: Exception) -> None:
        self.close()
        damaged = self._path.with_name(self._path.name + ".damaged")
        log.warning("the catalog's file %s is damaged (%s): moved to %s, starting afresh", self._path, error, damaged)
        os.replace(self._path, damaged)
        for suffix in ("-wal", "-shm"):
            self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)

    def write(self, changes: Mapping[Key, Record | None]) -> None:
        """Keep these records, and drop those whose key has None, all or nothing. HerdError when the disk refuses."""
        if self._connection is None:
            raise HerdError(f"the catalog's file {self._path} is not open")
        kept = [
            (_stored(key), VERSION if isinstance(record, VersionRecord) else INVENTORY, _with_checksum(pack(record)))
            for key, record in changes.items()
            if record is not None
        ]
        dropped = [(_stored(key),) for key, record in changes.items() if record is None]
        try:
            with self._connection:
                self._connection.execute("BEGIN IMMEDIATE")
                self._connection.executemany("INSERT OR REPLACE INTO records VALUES (?, ?, ?)", kept)
                self._connection.executemany("DELETE FROM records WHERE key = ?", dropped)
        except sqlite3.Error as error:
            raise HerdError(f"the catalog's file {self._path} cannot be written: {error}") from error

    def close(self) -> None:
        """Let go of the file; idempotent."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _stored(key: Key) -> bytes:
    return key if isinstance(key, bytes) else key.encode()


def _with_checksum(data: bytes) -> bytes:
    return blake3(data).digest(CHECKSUM_SIZE_BYTES) + data


def _checked(stored: object) -> bytes:
    if not isinstance(stored, bytes) or stored != _with_checksum(stored[CHECKSUM_SIZE_BYTES:]):
        raise RemoteProtocolError("a record is not as it was written")
    return stored[CHECKSUM_SIZE_BYTES:]
