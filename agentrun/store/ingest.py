"""Take records from the journal into the store: each exactly once, whatever crashes when.

The journal is `calls.jsonl`, its predecessor `calls.jsonl.1`, and the same two below /run (written while the
disk was full). How far each was read is committed together with the records; a record that comes again (a
call recorded twice after a crash, a journal read again) is known by its id, and the first one stays: later
ones are measured when less is left to measure.

Once all of it is in the store, a journal of some size is renamed, so that the last few thousand records can
be read again if the store is lost.

Here a record also learns which call it is a retry of (`retries`): the journal does not know.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from agentrun.base import fastjson, journal, log
from agentrun.base.errors import StoreError
from agentrun.base.paths import Paths
from agentrun.decision import inforce
from agentrun.store import database, retention
from agentrun.store.retries import is_retry

_CHUNK = 1 << 20  # bytes of journal in one transaction
_ROTATE_AT = 8 << 20
_SPILL_ROTATE_AT = 2 << 20
_HEAD_LIMIT = 4096

DAMAGED_LINES = "damaged_lines"

INSERT = """INSERT OR IGNORE INTO calls
    (id, container, exec_id, tier, verdict, command, same, retry_of, started, ended, record)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"""
# The calls after a `seq` that repeat the command of one before them in their container, with the latest such;
# what ended well is nothing to retry.
_REPEATED = """SELECT later.seq, later.record, earlier.record FROM calls AS later
    JOIN calls AS earlier ON earlier.seq = (
        SELECT seq FROM calls
        WHERE container = later.container AND same = later.same AND same IS NOT NULL AND id < later.id
        ORDER BY id DESC LIMIT 1
    )
    WHERE later.seq > ? AND earlier.verdict IS NOT 'ok'"""
_LINK = "UPDATE calls SET retry_of = ?, record = ? WHERE seq = ?"
_COUNT = """INSERT INTO counters VALUES (?, ?)
    ON CONFLICT (name) DO UPDATE SET value = value + excluded.value"""


@dataclass(slots=True)
class Progress:
    """What one turn did: new records, and whether it stopped at its time budget."""

    added: int = 0
    is_complete: bool = True


@dataclass(slots=True)
class Chunk:
    """Whole lines of a journal: what they said, where damaged ones were, and the position after them."""

    rows: list[tuple[Any, ...]] = field(default_factory=list)
    damaged: list[int] = field(default_factory=list)
    position: int = 0


def journals(paths: Paths) -> list[str]:
    """The files of the journal, oldest first."""
    return [base + suffix for base in (paths.records, paths.spill) for suffix in (".1", "")]


def text_of(value: object) -> str | None:
    """A record's string as SQLite can hold it: what was no UTF-8 becomes `\\udcff`, in letters."""
    if not isinstance(value, str):
        return None
    return value.encode("utf-8", "backslashreplace").decode()


def parse_record(line: bytes | str) -> dict[str, Any] | None:
    """The record in a line, None where it is none. Pure."""
    try:
        record = fastjson.loads(line)
    except (ValueError, RecursionError):
        return None
    if not (isinstance(record, dict) and isinstance(record.get("id"), str) and record["id"]):
        return None
    return record


def row_of(line: bytes) -> tuple[Any, ...] | None:
    """A line of the journal as the row of `INSERT`, None where it is damaged. Pure."""
    record = parse_record(line)
    if record is None:
        return None
    command = record.get("command")
    names = [record["id"], *(record.get(key) for key in ("container", "exec_id", "tier", "verdict"))]
    described = command if isinstance(command, dict) else {}
    names += [described.get("name"), described.get("sha256"), record.get("retry_of")]
    started = _time_of(record.get("start"))
    ended = _time_of(record.get("end"))
    kept = line.decode("ascii") if line.isascii() else fastjson.dumps(record)
    return (*map(text_of, names), started, started if ended is None else ended, kept.strip())


def _time_of(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value)
    except OverflowError:
        return None


def parse_chunk(data: bytes, position: int) -> Chunk:
    """The whole lines of `data`, read at `position`. Pure.

    What follows the last line end is still being written, or was cut off and will get its end.
    """
    end = data.rfind(b"\n") + 1
    chunk = Chunk(position=position + end)
    at = position
    for line in data[:end].split(b"\n")[:-1]:
        row = row_of(line)
        if row is not None:
            chunk.rows.append(row)
        elif line.strip():
            chunk.damaged.append(at)
        at += len(line) + 1
    return chunk


def ingest(paths: Paths, budget_s: float | None = None, busy_s: float = database.BUSY_S) -> Progress:
    """Take what is new in the journal into the store, and let go of what is too old. Raises StoreError.

    Stops after about `budget_s` (one transaction more at most; None: when all is done), and waits `busy_s`
    for another process that writes. A damaged store is moved aside and made anew.
    """
    seen = database.identity(paths)
    try:
        return _ingest(paths, budget_s, busy_s)
    except StoreError as error:
        if not error.is_damage:
            raise
        database.set_aside(paths, seen, str(error))
    return _ingest(paths, budget_s, busy_s)


def _ingest(paths: Paths, budget_s: float | None, busy_s: float) -> Progress:
    deadline = None if budget_s is None else time.monotonic() + budget_s
    progress = Progress()
    with database.writing(paths, busy_s) as connection:
        for path, fd in _opened(paths):
            _take(paths, connection, path, fd, deadline, progress)
        retention.prune(connection, inforce.load(paths).records, time.time(), deadline)
        if progress.is_complete:
            for base, limit in ((paths.records, _ROTATE_AT), (paths.spill, _SPILL_ROTATE_AT)):
                _rotate(paths, connection, base, limit)
    return progress


def _opened(paths: Paths) -> Iterator[tuple[str, int]]:
    """The journal's files (path, descriptor), oldest first.

    Opened newest first: one that is renamed meanwhile is then met twice, and not missed.
    """
    with contextlib.ExitStack() as stack:
        found = []
        for path in reversed(journals(paths)):
            fd = open_journal(path)
            if fd is not None:
                stack.callback(os.close, fd)
                found.append((path, fd))
        yield from reversed(found)


def open_journal(path: str) -> int | None:
    """Open one file of the journal; None where it is not there. Raises StoreError."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(f"read journal {path!r}: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise StoreError(f"read journal {path!r}: not a regular file")
    return fd


def name_of(fd: int) -> str | None:
    """What names a journal whatever its path is, None as long as there is no whole line in it.

    An inode's number comes again; its first line does not, there is a new call's id in it.
    """
    head = os.pread(fd, _HEAD_LIMIT, 0)
    line, end, _ = head.partition(b"\n")
    if not end and len(head) < _HEAD_LIMIT:
        return None
    info = os.fstat(fd)
    return f"{info.st_dev}:{info.st_ino}:{hashlib.sha256(line).hexdigest()[:16]}"


def position_of(connection: sqlite3.Connection, name: str) -> int:
    """How far a journal was read, in bytes."""
    row = connection.execute("SELECT position FROM journals WHERE journal = ?", (name,)).fetchone()
    return row[0] if row else 0


def _take(
    paths: Paths,
    connection: sqlite3.Connection,
    path: str,
    fd: int,
    deadline: float | None,
    progress: Progress,
) -> None:
    """Take one journal, chunk by chunk, each with the position behind it in one transaction."""
    name = name_of(fd)
    while name is not None:
        known = position_of(connection, name)
        position = known if _is_line_end(fd, known) else 0  # somebody cut it: read it again
        data = os.pread(fd, _CHUNK, position)
        chunk = parse_chunk(data, position)
        if chunk.position == position:
            end = _next_line(fd, position + len(data)) if len(data) == _CHUNK else None
            if end is None:
                return
            chunk = Chunk(damaged=[position], position=end)  # so long is no record of ours
        if deadline is not None and time.monotonic() >= deadline:
            progress.is_complete = False
            return
        with database.transaction(connection):
            if position_of(connection, name) != known:
                continue  # another process was faster
            progress.added += _insert(connection, chunk)
            connection.execute("INSERT OR REPLACE INTO journals VALUES (?, ?)", (name, chunk.position))
        if chunk.damaged:
            where = {"path": path, "at": chunk.damaged[0], "count": len(chunk.damaged)}
            log.warn(paths, "damaged record passed over", **where)


def _next_line(fd: int, position: int) -> int | None:
    """Where the next line begins, None where this one has no end yet."""
    while data := os.pread(fd, _CHUNK, position):
        if (end := data.find(b"\n")) >= 0:
            return position + end + 1
        position += len(data)
    return None


def _is_line_end(fd: int, position: int) -> bool:
    return position == 0 or os.pread(fd, 1, position - 1) == b"\n"


def _insert(connection: sqlite3.Connection, chunk: Chunk) -> int:
    before = connection.total_changes
    last = connection.execute("SELECT coalesce(max(seq), 0) FROM calls").fetchone()[0]
    connection.executemany(INSERT, chunk.rows)
    added = connection.total_changes - before
    _link_retries(connection, last)
    if chunk.damaged:
        connection.execute(_COUNT, (DAMAGED_LINES, len(chunk.damaged)))
    return added


def _link_retries(connection: sqlite3.Connection, after: int) -> None:
    """Name in the records behind a `seq` which call each is a retry of."""
    for seq, later, earlier in connection.execute(_REPEATED, (after,)).fetchall():
        record, before = parse_record(later), parse_record(earlier)
        if record is not None and before is not None and is_retry(record, before):
            linked = fastjson.dumps({**record, "retry_of": before["id"]})
            connection.execute(_LINK, (text_of(before["id"]), linked, seq))


def backlog(paths: Paths, connection: sqlite3.Connection | None) -> int:
    """Bytes of journal that are not in the store yet. Raises StoreError."""
    left = 0
    for _, fd in _opened(paths):
        name = name_of(fd)
        known = position_of(connection, name) if connection and name else 0
        left += max(0, os.fstat(fd).st_size - known)
    return left


def _rotate(paths: Paths, connection: sqlite3.Connection, base: str, limit: int) -> None:
    """Rename a large journal, once its predecessor, which goes, is in the store and that is on the disk."""
    try:
        if os.stat(base).st_size <= limit or not _is_taken(connection, base + ".1"):
            return
        # With synchronous = NORMAL what is committed is on the disk from the checkpoint on.
        is_busy = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
        if is_busy or not journal.rotate(base, limit):
            return
    except FileNotFoundError:
        return
    except OSError as error:
        raise StoreError(f"rename journal {base!r}: {error.strerror}") from error
    there = [name for _, fd in _opened(paths) if (name := name_of(fd))]
    places = ", ".join("?" * len(there))
    with database.transaction(connection):
        connection.execute(f"DELETE FROM journals WHERE journal NOT IN ({places})", there)  # noqa: S608


def _is_taken(connection: sqlite3.Connection, path: str) -> bool:
    fd = open_journal(path)
    if fd is None:
        return True
    try:
        name = name_of(fd)
        return name is not None and position_of(connection, name) >= os.fstat(fd).st_size
    finally:
        os.close(fd)
