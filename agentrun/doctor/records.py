"""The store and the journal."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator

from agentrun.base.errors import StoreError
from agentrun.base.paths import Paths
from agentrun.doctor.finding import Finding
from agentrun.store import database, ingest, retention

_BACKLOG_LIMIT = 64 << 20


def records(paths: Paths) -> Iterator[Finding]:
    """The store and the journal: what is wrong, what waits, what was lost."""
    try:
        with database.reading(paths) as connection:
            waiting = ingest.backlog(paths, connection)
            if connection is None:
                yield Finding("note", "records", f"no store yet, {waiting} bytes wait in the journal")
                return
            yield _state_of_store(connection, waiting)
            lost = connection.execute(
                "SELECT value FROM counters WHERE name = ?", (ingest.DAMAGED_LINES,)
            ).fetchone()
    except StoreError as error:
        yield Finding("problem", "records", f"{error}\nthey are kept in the journal and read from there")
        return
    if lost:
        yield Finding("note", "records", f"{lost[0]} damaged lines of the journal were passed over")
    if os.path.exists(paths.store + ".damaged"):
        text = f"{paths.store}.damaged was set aside; delete it once you have looked at it"
        yield Finding("note", "records", text)


def _state_of_store(connection: sqlite3.Connection, waiting: int) -> Finding:
    wrong = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if wrong != "ok":
        return Finding("problem", "records", f"the store is damaged: {wrong}")
    if waiting > _BACKLOG_LIMIT:
        text = f"{waiting >> 20} MiB wait in the journal; the oldest are lost beyond some 128 MiB"
        return Finding("problem", "records", f"{text}\nagentrund and `agentrunctl calls` take them in")
    count, oldest = connection.execute("SELECT count(*), min(ended) FROM calls").fetchone()
    since = time.strftime("%Y-%m-%d", time.gmtime(oldest)) if oldest else "-"
    size = retention.used_bytes(connection) >> 20
    return Finding("ok", "records", f"{count} since {since}, {size} MiB, {waiting} bytes wait in the journal")
