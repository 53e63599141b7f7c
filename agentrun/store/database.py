"""The store of finished calls: SQLite, `/var/lib/agentrun/calls.db`. Made, opened, migrated, replaced here.

It holds what `ingest` took from the journal, and can be made anew from that: where it is damaged it is moved
aside. What is asked often is in columns of its own; everything is in `record`, the JSON as it was written,
so a new field of a record needs no change here, and a new column is one more migration that fills itself
by `json_extract`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass

from agentrun.base import files, log
from agentrun.base.errors import StateError, StoreError
from agentrun.base.paths import Paths

# `user_version` of a store is how many of these it has seen. Never change one that was released.
MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        # seq: the order in which calls became known, for who follows them. id: the order of their starts.
        """CREATE TABLE calls (
            seq INTEGER PRIMARY KEY AUTOINCREMENT,
            id TEXT NOT NULL UNIQUE,
            container TEXT, exec_id TEXT, tier TEXT, verdict TEXT, command TEXT,
            started REAL, ended REAL,
            record TEXT NOT NULL
        )""",
        "CREATE INDEX calls_container ON calls (container, id)",
        "CREATE INDEX calls_exec_id ON calls (exec_id) WHERE exec_id IS NOT NULL",
        "CREATE INDEX calls_tier ON calls (tier, id)",
        "CREATE INDEX calls_verdict ON calls (verdict, id)",
        "CREATE INDEX calls_command ON calls (command, id)",
        "CREATE INDEX calls_ended ON calls (ended)",
        # How far each file of the journal was read. `journal` names the file whatever its path is by now.
        "CREATE TABLE journals (journal TEXT PRIMARY KEY, position INTEGER NOT NULL) WITHOUT ROWID",
        "CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID",
    ),
    (
        # same: the command's hash, by which a retry finds the call it repeats (`retries`). Filled only for
        # what ended in the last hour and can still be retried: the rest would be written anew for nothing.
        "ALTER TABLE calls ADD COLUMN same TEXT",
        "ALTER TABLE calls ADD COLUMN retry_of TEXT",
        """UPDATE calls SET same = json_extract(record, '$.command.sha256')
            WHERE ended > strftime('%s', 'now') - 3600 AND json_valid(record)""",
        "CREATE INDEX calls_same ON calls (container, same, id) WHERE same IS NOT NULL",
        "CREATE INDEX calls_retry_of ON calls (retry_of, id) WHERE retry_of IS NOT NULL",
    ),
)
BUSY_S = 5.0
_LOCK_POLL_S = 0.01
# SQLite's result codes (https://sqlite.org/rescode.html); the module has names for them from Python 3.11 on.
_READONLY, _IOERR, _CORRUPT, _FULL, _CANTOPEN, _NOTADB = 8, 10, 11, 13, 14, 26
_DAMAGED = (_CORRUPT, _NOTADB)
_NO_ROOM = (_CANTOPEN, _READONLY, _FULL, _IOERR)
_TEXTS = {
    "attempt to write a readonly database": _READONLY,
    "disk I/O error": _IOERR,
    "database disk image is malformed": _CORRUPT,
    "malformed database schema": _CORRUPT,
    "database or disk is full": _FULL,
    "unable to open database file": _CANTOPEN,
    "file is not a database": _NOTADB,
}
_SUFFIXES = ("", "-wal", "-shm")


def _code(error: sqlite3.Error) -> int:
    """SQLite's primary result code; 0 where an error is not of SQLite. Python 3.10 only has its text."""
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:
        return next((code for text, code in _TEXTS.items() if str(error).startswith(text)), 0)
    return int(code) & 0xFF


def _is_damage(error: sqlite3.Error) -> bool:
    return _code(error) in _DAMAGED


def _explain(paths: Paths, error: sqlite3.Error) -> StoreError:
    return StoreError(f"use store {paths.store!r}: {error}", is_damage=_is_damage(error))


@contextlib.contextmanager
def explained(paths: Paths) -> Iterator[None]:
    """Turn SQLite's errors into StoreError, which says whether the store is damaged."""
    try:
        yield
    except sqlite3.Error as error:
        raise _explain(paths, error) from error


def version_of(connection: sqlite3.Connection) -> int:
    """How many migrations a store has seen."""
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _check_version(paths: Paths, connection: sqlite3.Connection) -> int:
    version = version_of(connection)
    if version > len(MIGRATIONS):
        raise StoreError(
            f"use store {paths.store!r}: made by a newer agentrun"
            f" (format {version}, this one knows {len(MIGRATIONS)})"
        )
    return version


def migrate(paths: Paths, connection: sqlite3.Connection) -> None:
    """Bring a store to the newest format, one migration a transaction. Raises StoreError, sqlite3.Error."""
    while _check_version(paths, connection) < len(MIGRATIONS):
        with transaction(connection):
            version = version_of(connection)  # another process may have been faster
            if version < len(MIGRATIONS):
                for statement in MIGRATIONS[version]:
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {version + 1}")


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """One write transaction: all of it or nothing."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        # After an error such as a full disk SQLite has rolled back already.
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def _make_file(paths: Paths) -> None:
    """The empty file, for root alone: SQLite gives -wal and -shm the same mode."""
    try:
        os.close(files.open_private_directory(paths.state, StateError))
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        os.close(os.open(paths.store, flags, 0o600))
    except StateError as error:
        raise StoreError(str(error)) from error
    except OSError as error:
        raise StoreError(f"make store {paths.store!r}: {error.strerror}") from error


def _connect(paths: Paths, mode: str, busy_s: float = BUSY_S) -> sqlite3.Connection:
    address = f"file:{_quoted(paths.store)}?{mode}"
    return sqlite3.connect(address, uri=True, timeout=busy_s, isolation_level=None)


def _quoted(path: str) -> str:
    return path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")


def _set_up(paths: Paths, connection: sqlite3.Connection, busy_s: float) -> None:
    connection.execute("PRAGMA synchronous = NORMAL")  # a checkpoint is on disk before a journal goes
    if _check_version(paths, connection) == len(MIGRATIONS):
        return
    with _lock(paths, busy_s):  # the change to WAL does not wait for others by itself
        if version_of(connection) == 0:
            # Lets a store shrink without being written anew. Counts from the next VACUUM where a crash
            # left a file with a header and no tables.
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
            connection.execute("VACUUM")
        connection.execute("PRAGMA journal_mode = WAL")
        migrate(paths, connection)


@contextlib.contextmanager
def _lock(paths: Paths, wait_s: float) -> Iterator[None]:
    """Be the only one who makes, migrates or replaces the store. Raises StoreError."""
    deadline = time.monotonic() + wait_s
    try:
        fd = os.open(paths.store + ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise StoreError(f"lock store {paths.store!r}: {error.strerror}") from error
    try:
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() >= deadline:
                    raise StoreError(f"lock store {paths.store!r}: another process has it") from error
                time.sleep(_LOCK_POLL_S)
        yield
    finally:
        os.close(fd)


@contextlib.contextmanager
def writing(paths: Paths, busy_s: float = BUSY_S) -> Iterator[sqlite3.Connection]:
    """The store, made or migrated where needed. Raises StoreError, also for SQLite's errors inside."""
    _make_file(paths)
    with explained(paths), contextlib.closing(_connect(paths, "mode=rw", busy_s)) as connection:
        _set_up(paths, connection, busy_s)
        yield connection


@contextlib.contextmanager
def reading(paths: Paths) -> Iterator[sqlite3.Connection | None]:
    """The store as it is, None where there is none. Raises StoreError, also for SQLite's errors inside."""
    if not os.path.exists(paths.store):
        yield None
        return
    with explained(paths), contextlib.closing(_open_for_reading(paths)) as connection:
        yield connection if _check_version(paths, connection) else None


def _open_for_reading(paths: Paths) -> sqlite3.Connection:
    """A disk that is read-only or full has no room for a -shm file: then without it, as nobody writes there.

    What is only in the -wal then is in the journal still: that goes after a checkpoint.
    """
    connection = _connect(paths, "mode=ro")
    try:
        connection.execute("SELECT 1 FROM sqlite_master").fetchone()
    except sqlite3.OperationalError as error:
        connection.close()
        if _code(error) not in _NO_ROOM:
            raise
        return _connect(paths, "immutable=1")
    return connection


@dataclass(frozen=True, slots=True)
class Identity:
    """Which file a store was, so that nobody moves a good new one aside for an old one's damage."""

    device: int
    inode: int


def identity(paths: Paths) -> Identity | None:
    """The file that is the store now; None where there is none."""
    try:
        info = os.lstat(paths.store)
    except OSError:
        return None
    return Identity(info.st_dev, info.st_ino)


def set_aside(paths: Paths, damaged: Identity | None, why: str) -> bool:
    """Rename a damaged store to `calls.db.damaged`, unless another process did. Raises StoreError.

    The last one is kept, for whoever wants to look. Says whether this call did it.
    """
    with _lock(paths, BUSY_S):
        if damaged is None or identity(paths) != damaged:
            return False
        try:
            # The database last: until then the next process finds it damaged again and goes on here.
            for suffix in reversed(_SUFFIXES):
                with contextlib.suppress(FileNotFoundError):
                    os.rename(paths.store + suffix, paths.store + ".damaged" + suffix)
        except OSError as error:
            raise StoreError(f"set store {paths.store!r} aside: {error.strerror}") from error
    log.warn(paths, "damaged store set aside, a new one is made", path=paths.store + ".damaged", error=why)
    return True
