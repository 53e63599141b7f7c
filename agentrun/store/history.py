"""Finished calls, oldest first: from the store, or, where that cannot be used, also from the journal."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator

from agentrun.base import fastjson
from agentrun.base.errors import StoreError
from agentrun.base.paths import Paths
from agentrun.store import database, ingest
from agentrun.store.query import Query, matches, select

# (seq, id, record as JSON); seq is None where the store does not have it.
Row = tuple[int | None, str, str]


def read(paths: Paths, query: Query, problems: list[str]) -> Iterator[Row]:
    """The calls that a query asks for, after what is new was taken into the store.

    What is wrong with the store is added to `problems`, and the journal helps out: it has the last few
    thousand calls. Raises StoreError where that cannot be read either.
    """
    last_id = ""
    seen = database.identity(paths)
    try:
        ingest.ingest(paths)
        seen = database.identity(paths)
        with database.reading(paths) as connection:
            for row in select(connection, query) if connection else ():
                last_id = row[1]
                yield row
        return
    except StoreError as error:
        problems.append(str(error))
        if error.is_damage:
            with contextlib.suppress(StoreError):  # the journal is all that counts now
                database.set_aside(paths, seen, str(error))
    for row in _without_store(paths, query):
        if row[1] > last_id:
            yield row


def _without_store(paths: Paths, query: Query) -> list[Row]:
    """What the store has, as far as it can be read, and what the journal has besides."""
    found: dict[str, Row] = {}
    unlimited = dataclasses.replace(query, last=None)
    # Why it cannot be read is known already.
    with contextlib.suppress(StoreError), database.reading(paths) as connection:
        for row in select(connection, unlimited) if connection else ():
            found[row[1]] = row
    for line in _journal_lines(paths):
        record = ingest.parse_record(line)
        if record is not None and matches(query, record):
            call_id = str(ingest.text_of(record["id"]))
            found.setdefault(call_id, (None, call_id, fastjson.dumps(record)))
    rows = [found[call_id] for call_id in sorted(found)]
    return rows if query.last is None else rows[-query.last :]


def _journal_lines(paths: Paths) -> Iterator[bytes]:
    for path in ingest.journals(paths):
        fd = ingest.open_journal(path)
        if fd is not None:
            with os.fdopen(fd, "rb") as file:
                yield from file
