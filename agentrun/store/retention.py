"""How long records are kept: by age and by size (`[records]` of config.toml). The file really shrinks."""

from __future__ import annotations

import sqlite3
import time
from typing import Any

from agentrun.store import database

DAY_S = 86400.0
_BATCH = 500  # records in one transaction
_PAGES = 2000  # given back at a time
_INCREMENTAL = 2  # of PRAGMA auto_vacuum
# Below the limit by so much, so that not every record that comes has to make room for itself.
_ROOM = 0.9

_OLDEST = "DELETE FROM calls WHERE seq IN (SELECT seq FROM calls ORDER BY id LIMIT ?)"
_EXPIRED = "DELETE FROM calls WHERE seq IN (SELECT seq FROM calls WHERE ended < ? LIMIT ?)"


def used_bytes(connection: sqlite3.Connection) -> int:
    """What the records and their indexes take, without what is free in the file."""
    pages = _number(connection, "page_count") - _number(connection, "freelist_count")
    return pages * _number(connection, "page_size")


def _number(connection: sqlite3.Connection, pragma: str) -> int:
    return int(connection.execute(f"PRAGMA {pragma}").fetchone()[0])


def prune(connection: sqlite3.Connection, keep: dict[str, Any], now: float, deadline: float | None) -> int:
    """Delete what is too old or too much, and give its space back; returns how many records went.

    `keep` has `keep_days` and `max_mb`, None for no limit. Stops at `deadline` (time.monotonic), and goes on
    the next time.
    """
    gone = 0
    if keep["keep_days"] is not None:
        while _is_time_left(deadline) and (count := _delete(connection, _EXPIRED, _oldest(keep, now))):
            gone += count
    if keep["max_mb"] is not None and used_bytes(connection) > (limit := keep["max_mb"] << 20):
        while _is_time_left(deadline) and used_bytes(connection) > limit * _ROOM:
            count = _delete(connection, _OLDEST)
            gone += count
            if not count:
                break
    _shrink(connection, deadline)
    return gone


def _oldest(keep: dict[str, Any], now: float) -> float:
    return now - float(keep["keep_days"]) * DAY_S


def _is_time_left(deadline: float | None) -> bool:
    return deadline is None or time.monotonic() < deadline


def _delete(connection: sqlite3.Connection, statement: str, *values: float) -> int:
    with database.transaction(connection):
        return connection.execute(statement, (*values, _BATCH)).rowcount


def _shrink(connection: sqlite3.Connection, deadline: float | None) -> None:
    """Give free pages back to the disk, some at a time; a WAL keeps them until a checkpoint."""
    free = _number(connection, "freelist_count")
    if not free or _number(connection, "auto_vacuum") != _INCREMENTAL:
        return
    while free and _is_time_left(deadline):
        connection.execute(f"PRAGMA incremental_vacuum({_PAGES})").fetchall()
        free = _number(connection, "freelist_count")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
