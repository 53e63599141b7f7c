"""Which calls are asked for, as SQL for the store and as a predicate for what is not in it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from agentrun.store.ingest import text_of

_HIGHEST = "\U0010ffff"  # no character: sorts behind all that begins the same
_EXACT = ("tier", "verdict", "exec_id", "retry_of")
_BEGINS = {"id_prefix": "id", "container": "container"}
_COLUMNS = "seq, id, record"


@dataclass(frozen=True, slots=True)
class Query:
    """Calls that fit all that is given.

    `container` and `id_prefix` are how an id begins, `command` is a program's name, `since` is when it ended
    at the earliest (seconds since the epoch; what still runs always fits), `last` is the most calls (the
    latest), `after` leaves out what the store knew at that `seq` already, `retry_of` is the id of the call
    that they tried again.
    """

    container: str | None = None
    tier: str | None = None
    verdict: str | None = None
    exec_id: str | None = None
    retry_of: str | None = None
    command: str | None = None
    since: float | None = None
    id_prefix: str | None = None
    last: int | None = None
    after: int | None = None


def to_sql(query: Query) -> tuple[str, list[Any]]:
    """The statement for the store and its values; the rows (seq, id, record) come latest first. Pure."""
    terms: list[str] = []
    values: list[Any] = []
    for name in (*_EXACT, "command"):
        if (value := getattr(query, name)) is not None:
            terms.append(f"{name} = ?")
            values.append(text_of(value))
    for name, column in _BEGINS.items():
        if (value := getattr(query, name)) is not None:
            terms.append(f"{column} >= ? AND {column} < ?")
            values += [text_of(value), f"{text_of(value)}{_HIGHEST}"]
    for name, test in (("since", "ended >= ?"), ("after", "seq > ?")):
        if (value := getattr(query, name)) is not None:
            terms.append(test)
            values.append(value)
    where = f" WHERE {' AND '.join(terms)}" if terms else ""
    statement = f"SELECT {_COLUMNS} FROM calls{where} ORDER BY id DESC"  # noqa: S608 - no value is in it
    if query.last is not None:
        statement += " LIMIT ?"
        values.append(query.last)
    return statement, values


def matches(query: Query, row: Mapping[str, Any]) -> bool:
    """Whether a record, or the state of a live call, is one that is asked for. Pure."""
    command, ended = row.get("command"), row.get("end")
    name = command.get("name") if isinstance(command, Mapping) else None
    return (
        all(getattr(query, key) in (None, row.get(key)) for key in _EXACT)
        and query.command in (None, name)
        and all(
            prefix is None or str(row.get(key)).startswith(prefix)
            for key, prefix in (("id", query.id_prefix), ("container", query.container))
        )
        and (query.since is None or not isinstance(ended, (int, float)) or ended >= query.since)
    )


def select(connection: sqlite3.Connection, query: Query) -> Iterator[tuple[int | None, str, str]]:
    """The store's rows (seq, id, record as JSON), oldest first. Raises sqlite3.Error."""
    statement, values = to_sql(query)
    if query.last is None:
        statement = statement.removesuffix(" DESC")
        yield from connection.execute(statement, values)
    else:
        yield from reversed(connection.execute(statement, values).fetchall())
