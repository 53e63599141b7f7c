"""Read from the store what `learning` needs: a few fields of the latest records."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

from agentrun.base import fastjson
from agentrun.base.paths import Paths
from agentrun.learning.usage import Sample, sample_of
from agentrun.store import database

ROWS_LIMIT = 20_000  # latest records that are looked at: some 0.2 s
# Field by name, as a path into the record.
FIELDS = {
    "image": "$.image",
    "family": "$.command.family",
    "mode": "$.mode",
    "class": "$.class",
    "rule": "$.rule",
    "policy": "$.policy",
    "asked_class": "$.intent.accepted.class",
    "asked_memory": "$.intent.accepted.memory",
    "peak": "$.memory_peak",
    "cpu_us": "$.cpu_usage_us",
    "limit": "$.limits.memory",
    "verdict": "$.verdict",
    "level": "$.level",
}
# SQLite looks for them much faster than a record is parsed here, and lets other threads run meanwhile.
_SELECT = f"""SELECT json_extract(record, {", ".join(["?"] * len(FIELDS))}) FROM calls
    WHERE ended >= ? AND json_valid(record) ORDER BY id DESC LIMIT ?"""  # noqa: S608 - no value is in it


def samples(paths: Paths, since: float, most: int = ROWS_LIMIT) -> list[Sample]:
    """What ended after `since` (seconds since the epoch), newest first. Raises StoreError."""
    with database.reading(paths) as connection:
        return [] if connection is None else list(_select(connection, since, most))


def _select(connection: sqlite3.Connection, since: float, most: int) -> Iterator[Sample]:
    for (row,) in connection.execute(_SELECT, (*FIELDS.values(), since, most)):
        sample = sample_of(dict(zip(FIELDS, fastjson.loads(row), strict=True)))
        if sample is not None:
            yield sample
