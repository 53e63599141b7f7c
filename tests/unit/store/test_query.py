"""Which calls are asked for: the same ones, whether the store or the journal answers."""

from __future__ import annotations

import itertools
import json
import os
import sqlite3
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrun.base.paths import Paths
from agentrun.decision import inforce
from agentrun.store import database, history, ingest
from agentrun.store.query import Query, matches, select, to_sql

NOW = time.time()
ROWS = [
    {"id": "01a", "container": "c1", "tier": "low", "verdict": "ok", "end": NOW - 50, "exec_id": "e1"},
    {"id": "01b", "container": "c12", "tier": "high", "end": NOW - 40, "command": {"name": "pytest"}},
    {"id": "02a", "container": "d", "tier": "low", "verdict": "failed", "end": NOW - 30, "command": None},
    {
        "id": "03\udcff",
        "container": "\udcff",
        "tier": "",
        "verdict": None,
        "end": NOW - 20,
        "retry_of": "01b",
    },
    {"id": "04%", "container": "c_", "exec_id": "e2", "end": NOW - 10, "command": {"sha256": "0"}},
]
QUERIES = {
    "all": (Query(), ["01a", "01b", "02a", "03\udcff", "04%"]),
    "container by its beginning": (Query(container="c1"), ["01a", "01b"]),
    "no wildcards": (Query(container="%"), []),
    "bytes that are no UTF-8": (Query(container="\udcff"), ["03\udcff"]),
    "tier": (Query(tier="low"), ["01a", "02a"]),
    "empty tier": (Query(tier=""), ["03\udcff"]),
    "verdict": (Query(verdict="failed"), ["02a"]),
    "tier and verdict": (Query(tier="low", verdict="ok"), ["01a"]),
    "retries": (Query(retry_of="01b"), ["03\udcff"]),
    "exec id": (Query(exec_id="e2"), ["04%"]),
    "command": (Query(command="pytest"), ["01b"]),
    "since": (Query(since=NOW - 35), ["02a", "03\udcff", "04%"]),
    "id by its beginning": (Query(id_prefix="01"), ["01a", "01b"]),
    "last": (Query(last=2), ["03\udcff", "04%"]),
    "last of some": (Query(tier="low", last=1), ["02a"]),
}


@pytest.fixture
def paths(tmp_path) -> Paths:
    for folder in ("var/log", "run"):
        (tmp_path / folder).mkdir(parents=True)
    made = Paths(str(tmp_path))
    os.makedirs(made.state, 0o700)
    inforce.load(made)
    Path(made.records).write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return made


def ids(rows: list[history.Row]) -> list[str]:
    return [json.loads(text)["id"] for _, _, text in rows]


@pytest.mark.parametrize("name", QUERIES)
def test_store_and_journal_give_the_same(paths, name):
    query, expected = QUERIES[name]
    problems: list[str] = []
    assert ids(list(history.read(paths, query, problems))) == expected
    assert ids(history._without_store(paths, query)) == expected
    os.unlink(paths.store)
    assert ids(history._without_store(paths, query)) == expected
    assert problems == []


TEXT = st.sampled_from(["", "a", "ab", "b", "\udcff", "\U0010fffd"])
RECORD = st.fixed_dictionaries(
    {"id": TEXT.filter(bool)},
    optional={
        **dict.fromkeys(("container", "tier", "verdict", "exec_id"), TEXT),
        "command": st.none() | st.fixed_dictionaries({"name": TEXT}),
        "end": st.floats(0, 9),
    },
)
WANTED = st.builds(
    Query,
    **{name: st.none() | TEXT for name in ("container", "tier", "verdict", "exec_id", "command")},
    id_prefix=st.none() | TEXT,
    since=st.none() | st.floats(0, 9),
)


@given(RECORD.filter(lambda r: "container" in r and "end" in r), WANTED)
def test_sql_and_predicate_agree(record, query):
    connection = empty_store()
    connection.execute(ingest.INSERT, ingest.row_of(json.dumps(record).encode()) or ())
    found = list(select(connection, query))
    connection.close()
    assert bool(found) == matches(query, record)


def empty_store() -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:")
    for statement in itertools.chain(*database.MIGRATIONS):
        connection.execute(statement)
    return connection


INDEXED = {
    "container": (Query(container="x", last=20), "calls_container"),
    "tier": (Query(tier="x", last=20), "calls_tier"),
    "verdict": (Query(verdict="x", last=20), "calls_verdict"),
    "exec_id": (Query(exec_id="x", last=2), "calls_exec_id"),
    "command": (Query(command="x", last=20), "calls_command"),
    "retry_of": (Query(retry_of="x", last=20), "calls_retry_of"),
    "id_prefix": (Query(id_prefix="x", last=2), "sqlite_autoindex_calls_1"),
}


@pytest.mark.parametrize("name", INDEXED)
def test_filter_uses_its_index(name):
    connection = empty_store()
    statement, values = to_sql(INDEXED[name][0])
    plan = str(connection.execute("EXPLAIN QUERY PLAN " + statement, values).fetchall())
    connection.close()
    assert INDEXED[name][1] in plan and "SCAN" not in plan


def test_only_what_is_new_is_read_again(paths):
    ingest.ingest(paths)
    with database.reading(paths) as connection:
        assert connection
        newest = connection.execute("SELECT max(seq) FROM calls").fetchone()[0]
    with open(paths.records, "a") as file:
        file.write(json.dumps({"id": "00", "end": NOW}) + "\n")
    assert ids(list(history.read(paths, Query(after=newest), []))) == ["00"]
