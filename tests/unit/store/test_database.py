"""The SQLite store: format, migrations, damage, disks that cannot be written."""

from __future__ import annotations

import os
import sqlite3
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from crash import die_at_line, in_child

from agentrun.base.errors import StoreError
from agentrun.base.paths import Paths
from agentrun.store import database

LATER = (*database.MIGRATIONS, ("ALTER TABLE calls ADD COLUMN class TEXT", "CREATE INDEX c ON calls (class)"))


@pytest.fixture
def paths(tmp_path) -> Paths:
    (tmp_path / "var/log").mkdir(parents=True)
    return Paths(str(tmp_path))


def add(paths: Paths, call_id: str) -> None:
    with database.writing(paths) as connection:
        connection.execute("INSERT INTO calls (id, record) VALUES (?, '{}')", (call_id,))


def ids(paths: Paths) -> list[str]:
    with database.reading(paths) as connection:
        assert connection
        return [row[0] for row in connection.execute("SELECT id FROM calls ORDER BY seq")]


def test_store_is_for_root_alone_and_can_shrink(paths):
    with database.writing(paths) as connection:
        names = ("journal_mode", "auto_vacuum", "user_version")
        values = [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in names]
        connection.execute("INSERT INTO counters VALUES ('x', 1)")
        files = [paths.store + suffix for suffix in ("", "-wal", "-shm")]
        assert {stat.S_IMODE(os.stat(file).st_mode) for file in files} == {0o600}
    assert values == ["wal", 2, len(database.MIGRATIONS)]


def test_older_store_is_migrated_and_keeps_what_it_has(paths, monkeypatch):
    add(paths, "a")
    monkeypatch.setattr(database, "MIGRATIONS", LATER)
    add(paths, "b")
    assert ids(paths) == ["a", "b"]
    with database.reading(paths) as connection:
        assert connection and database.version_of(connection) == len(LATER)
        assert connection.execute("SELECT class FROM calls").fetchall() == [(None,), (None,)]


def test_migration_that_fails_changes_nothing(paths, monkeypatch):
    add(paths, "a")
    monkeypatch.setattr(database, "MIGRATIONS", (*database.MIGRATIONS, (*LATER[-1], "nonsense")))
    with pytest.raises(StoreError, match="syntax error"):
        add(paths, "b")
    with sqlite3.connect(paths.store) as connection:
        columns = [row[1] for row in connection.execute("PRAGMA table_info(calls)")]
        assert database.version_of(connection) == len(LATER) - 1 and "class" not in columns
    connection.close()


def test_store_of_a_newer_agentrun_is_left_alone(paths, monkeypatch):
    monkeypatch.setattr(database, "MIGRATIONS", LATER)
    add(paths, "a")
    monkeypatch.undo()
    for use in (database.writing, database.reading):
        with pytest.raises(StoreError, match="made by a newer agentrun") as caught, use(paths):
            pass
        assert not caught.value.is_damage


def test_many_may_make_it_at_once(paths):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: add(paths, str(n)), range(32)))
    assert sorted(ids(paths), key=int) == [str(n) for n in range(32)]


def test_death_at_any_step_of_making_it_leaves_one_that_can_be_used(paths):
    for step in range(0, 300, 3):
        for file in Path(paths.state).glob("*"):
            file.unlink()

        def work(step=step):
            die_at_line(step, database)
            add(paths, "a")

        status = in_child(work)
        add(paths, "b")
        assert ids(paths)[-1] == "b"
        with database.reading(paths) as connection:
            assert connection and connection.execute("PRAGMA auto_vacuum").fetchone() == (2,)
        if status == 0:
            assert step > 20
            return
    pytest.fail("it never came to its end")


DAMAGES = {
    "no database": lambda data: b"not a database at all, but as long as a page " * 100,
    "overwritten header": lambda data: b"\0" * 100 + data[100:],
    "overwritten tables": lambda data: data[:100] + b"\xff" * (len(data) - 100),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_told_from_other_errors(paths, name):
    add(paths, "a")
    file = Path(paths.store)
    file.write_bytes(DAMAGES[name](file.read_bytes()))
    with pytest.raises(StoreError) as caught:
        add(paths, "b")
    assert caught.value.is_damage
    told = caught.value.__cause__
    assert isinstance(told, sqlite3.Error)
    assert database._code(sqlite3.DatabaseError(str(told))) == database._code(told)


@pytest.mark.parametrize(
    ("text", "is_damage"),
    [
        ("database disk image is malformed", True),
        ("malformed database schema (calls)", True),
        ("file is not a database", True),
        ("malformed JSON", False),
        ("unable to open database file", False),
        ("Cannot operate on a closed database.", False),
    ],
)
def test_damage_is_known_by_its_text_where_python_has_no_code(text, is_damage):
    """Python 3.10."""
    assert database._is_damage(sqlite3.DatabaseError(text)) is is_damage


def test_damaged_store_is_moved_aside_once(paths):
    add(paths, "a")
    seen = database.identity(paths)
    assert database.set_aside(paths, seen, "why")
    add(paths, "b")
    assert not database.set_aside(paths, seen, "another process found it too")
    assert ids(paths) == ["b"] and os.path.exists(paths.store + ".damaged")
    assert "damaged store set aside" in Path(paths.log).read_text()


def test_store_that_is_not_there_is_no_error_to_a_reader(paths):
    with database.reading(paths) as connection:
        assert connection is None
    assert not os.path.exists(paths.state)


def test_store_where_a_directory_is_says_so(paths):
    os.makedirs(paths.store, 0o700)
    os.chmod(paths.state, 0o700)
    with pytest.raises(StoreError, match="make store"):
        add(paths, "a")


def test_planted_link_is_not_followed(paths, tmp_path):
    os.makedirs(paths.state, 0o700)
    os.symlink(tmp_path / "elsewhere", paths.store)
    with pytest.raises(StoreError):
        add(paths, "a")
    assert not (tmp_path / "elsewhere").exists()


def test_directory_of_others_is_refused(paths):
    os.makedirs(paths.state)
    os.chmod(paths.state, 0o777)
    with pytest.raises(StoreError, match="owned or writable by others|not allowed"):
        add(paths, "a")


def test_path_with_signs_of_an_address_is_a_path(tmp_path):
    made = Paths(str(tmp_path / "a?b#c%41"))
    add(made, "a")
    assert ids(made) == ["a"]
