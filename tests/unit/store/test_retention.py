"""How long records are kept."""

from __future__ import annotations

import os
import time

import pytest

from agentrun.base.paths import Paths
from agentrun.store import database, ingest, retention

FOREVER = {"keep_days": None, "max_mb": None}
NOW = 1e9


@pytest.fixture
def paths(tmp_path) -> Paths:
    (tmp_path / "var/log").mkdir(parents=True)
    return Paths(str(tmp_path))


def fill(paths: Paths, count: int, size: int = 1000) -> None:
    """Records that ended a day apart, the last one now."""
    rows = [
        (f"{n:06}", "c", None, None, None, None, None, None, NOW, NOW - (count - 1 - n) * 86400, "x" * size)
        for n in range(count)
    ]
    with database.writing(paths) as connection, database.transaction(connection):
        connection.executemany(ingest.INSERT, rows)


def prune(paths: Paths, **keep: int) -> list[str]:
    """Prune; returns the ids that stay."""
    with database.writing(paths) as connection:
        retention.prune(connection, {**FOREVER, **keep}, NOW, None)
        return [row[0] for row in connection.execute("SELECT id FROM calls ORDER BY id")]


def test_old_records_go(paths):
    fill(paths, 10)
    assert prune(paths, keep_days=3) == ["000006", "000007", "000008", "000009"]


def test_nothing_goes_without_a_limit(paths):
    fill(paths, 10)
    assert len(prune(paths)) == 10


def test_oldest_go_where_there_are_too_many_and_the_file_shrinks(paths):
    fill(paths, 6000)
    before = os.path.getsize(paths.store)
    left = prune(paths, max_mb=2)
    assert left and left == [f"{n:06}" for n in range(6000 - len(left), 6000)]
    assert before > 6 << 20
    assert 1 << 20 < os.path.getsize(paths.store) < 2 << 20


def test_records_within_the_limit_stay(paths):
    fill(paths, 500)
    assert len(prune(paths, max_mb=2)) == 500


def test_turn_ends_at_its_deadline(paths):
    fill(paths, 2000)
    with database.writing(paths) as connection:
        gone = retention.prune(connection, {**FOREVER, "keep_days": 1}, NOW, time.monotonic())
    assert gone == 0
    assert len(prune(paths, keep_days=1)) == 2
