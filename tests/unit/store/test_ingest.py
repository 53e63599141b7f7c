"""From the journal into the store: each record once, whatever happens in between."""

from __future__ import annotations

import itertools
import json
import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from crash import die_at_line, in_child
from hypothesis import given
from hypothesis import strategies as st

from agentrun.base import journal
from agentrun.base.errors import StoreError
from agentrun.base.paths import Paths
from agentrun.decision import inforce
from agentrun.store import database, ingest, retention

TREE = Path(__file__).parents[3]
BIG = 1 << 30


@pytest.fixture
def paths(tmp_path) -> Paths:
    for folder in ("var/log", "run"):
        (tmp_path / folder).mkdir(parents=True)
    made = Paths(str(tmp_path))
    os.mkdir(made.run, 0o700)
    os.makedirs(made.state, 0o700)
    inforce.load(made)
    return made


def line(call_id: str, **more: object) -> str:
    return json.dumps({"id": call_id, "container": "c1", "end": time.time(), **more})


def write(paths: Paths, *ids: str, path: str = "") -> None:
    for call_id in ids:
        journal.append(path or paths.records, line(call_id), BIG)


def stored(paths: Paths) -> list[str]:
    with database.reading(paths) as connection:
        return [r[0] for r in connection.execute("SELECT id FROM calls ORDER BY seq")] if connection else []


def log_of(paths: Paths) -> list[dict[str, object]]:
    file = Path(paths.log)
    return [json.loads(row) for row in file.read_text().splitlines()] if file.exists() else []


def test_only_what_is_new_is_taken(paths):
    write(paths, "a", "b")
    assert ingest.ingest(paths).added == 2
    assert ingest.ingest(paths).added == 0
    write(paths, "c")
    assert ingest.ingest(paths).added == 1
    assert stored(paths) == ["a", "b", "c"]


def test_first_record_of_a_call_stays(paths):
    """A call recorded again after a crash is measured when its cgroup may be gone."""
    for peak in (5, None):
        journal.append(paths.records, line("a", memory_peak=peak), BIG)
        ingest.ingest(paths)
    journal.append(paths.records, line("a", memory_peak=7), BIG)
    ingest.ingest(paths)
    with database.reading(paths) as connection:
        assert connection
        records = [json.loads(r[0]) for r in connection.execute("SELECT record FROM calls")]
    assert [r["memory_peak"] for r in records] == [5]


def test_line_without_its_end_waits_for_it(paths):
    write(paths, "a")
    with open(paths.records, "a") as file:
        file.write(line("b"))
        file.flush()
        assert ingest.ingest(paths).added == 1
        file.write("\n")
    assert ingest.ingest(paths).added == 1
    assert log_of(paths) == []


DAMAGED = {
    "torn": '{"id": "x", "sta',
    "no object": "[1]",
    "no id": '{"container": "c"}',
    "id that is no text": '{"id": 7}',
    "empty id": '{"id": ""}',
    "zeros of a crash": "\0\0\0\0",
    "nested": "[" * 100_000,
    "no UTF-8 outside a string": "\udcff",
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_line_is_passed_over_once_and_said(paths, name):
    write(paths, "a")
    with open(paths.records, "a", errors="surrogateescape") as file:
        file.write(DAMAGED[name] + "\n\n")
    write(paths, "b")
    for _ in range(2):
        ingest.ingest(paths)
    assert stored(paths) == ["a", "b"]
    assert [(row["msg"], row["count"]) for row in log_of(paths)] == [("damaged record passed over", 1)]
    with database.reading(paths) as connection:
        assert connection and connection.execute("SELECT * FROM counters").fetchall() == [
            (ingest.DAMAGED_LINES, 1)
        ]


def test_megabytes_without_a_line_end_hold_nothing_up(paths):
    Path(paths.records).write_bytes(b"x" * (ingest._CHUNK * 2 + 5) + b"\n")
    write(paths, "a")
    ingest.ingest(paths)
    assert stored(paths) == ["a"]


ODD = {
    "bytes that are no UTF-8": '{"id": "a\udcff", "container": "\udcff", "command": {"name": "\udcff"}}',
    "half a surrogate pair": '{"id": "\\ud800", "tier": "\\ud800"}',
    "null in a text": '{"id": "a\\u0000b", "verdict": "\\u0000"}',
    "times that are none": '{"id": "a", "start": "x", "end": true}',
    "number too large": '{"id": "a", "start": 1' + "0" * 400 + "}",
    "lists for texts": '{"id": "a", "container": [], "exec_id": {}, "command": "x"}',
}


@pytest.mark.parametrize("name", ODD)
def test_odd_record_is_kept(paths, name):
    with open(paths.records, "w", errors="surrogateescape") as file:
        file.write(ODD[name] + "\n")
    assert ingest.ingest(paths).added == 1 and log_of(paths) == []


@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda t: t.encode("utf-8", "surrogatepass")))
def test_no_line_is_too_odd(data):
    row = ingest.row_of(data)
    assert row is None or len(row) == 11


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
KEYS = ("container", "exec_id", "tier", "verdict", "command", "start", "end")


@given(st.fixed_dictionaries({"id": st.text(min_size=1), **dict.fromkeys(KEYS, VALUES)}))
def test_every_record_with_an_id_can_be_stored(record):
    row = ingest.row_of(json.dumps(record).encode())
    assert row is not None
    connection = sqlite3.connect(":memory:")
    for statement in itertools.chain(*database.MIGRATIONS):
        connection.execute(statement)
    connection.execute(ingest.INSERT, row)
    connection.close()


def test_renamed_journal_is_read_to_its_end(paths):
    write(paths, "a", "b")
    ingest.ingest(paths)
    write(paths, "c")
    os.rename(paths.records, paths.records + ".1")
    write(paths, "d")
    assert ingest.ingest(paths).added == 2
    assert stored(paths) == ["a", "b", "c", "d"]


def test_new_journal_on_an_old_inode_is_read_from_its_start(paths):
    """Inode numbers come again; the position of another file would hide records."""
    write(paths, "a", "b", "c")
    ingest.ingest(paths)
    with open(paths.records, "r+") as file:  # the same inode, as if unlinked and made anew
        file.truncate()
    write(paths, "d", "e", "f", "g")
    ingest.ingest(paths)
    assert stored(paths) == list("abcdefg")


def test_journal_that_was_cut_is_read_again(paths):
    write(paths, "a", "b")
    ingest.ingest(paths)
    with open(paths.records, "r+") as file:
        file.truncate(len(line("a")) + 20)
    write(paths, "c")
    ingest.ingest(paths)
    assert stored(paths) == ["a", "b", "c"]


def test_records_from_the_time_of_a_full_disk_are_taken_too(paths):
    write(paths, "a")
    write(paths, "b", path=paths.spill)
    write(paths, "c", path=paths.spill + ".1")
    assert ingest.ingest(paths).added == 3


def test_large_journal_is_renamed_once_its_predecessor_is_in_the_store(paths, monkeypatch):
    monkeypatch.setattr(ingest, "_ROTATE_AT", 10)
    for call_id in "abc":
        write(paths, call_id)
        ingest.ingest(paths)
    assert json.loads(Path(paths.records + ".1").read_text())["id"] == "c"
    assert not os.path.exists(paths.records)
    with database.reading(paths) as connection:
        assert connection and connection.execute("SELECT count(*) FROM journals").fetchone() == (1,)
    assert stored(paths) == ["a", "b", "c"]


def test_turn_ends_with_its_budget_and_goes_on_the_next_time(paths, monkeypatch):
    monkeypatch.setattr(ingest, "_CHUNK", 200)
    write(paths, *map(str, range(10)))
    first = ingest.ingest(paths, budget_s=0)
    assert (first.added, first.is_complete) == (0, False)
    assert ingest.ingest(paths).is_complete and len(stored(paths)) == 10


def test_damaged_store_is_made_anew_from_the_journal(paths):
    write(paths, "a", "b")
    ingest.ingest(paths)
    Path(paths.store).write_bytes(b"\0" * 50_000)
    write(paths, "c")
    assert ingest.ingest(paths).added == 3
    assert stored(paths) == ["a", "b", "c"] and os.path.exists(paths.store + ".damaged")
    assert [row["msg"] for row in log_of(paths)] == ["damaged store set aside, a new one is made"]


def test_death_at_any_step_costs_no_record_and_doubles_none(paths, monkeypatch):
    """Before every other line of what takes part, as if by SIGKILL; with a rename in every turn."""
    monkeypatch.setattr(ingest, "_ROTATE_AT", 100)
    modules = (ingest, journal, retention, database)
    number, finished = 0, False
    for step in range(0, 1000, 2):
        write(paths, f"{number:05}", f"{number + 1:05}")
        number += 2

        def work(step=step):
            die_at_line(step, *modules)
            ingest.ingest(paths)

        finished = in_child(work) == 0
        ingest.ingest(paths)
        assert len(stored(paths)) == number
        if finished:
            break
    assert finished and number > 200
    assert sorted(stored(paths)) == [f"{n:05}" for n in range(number)]
    assert log_of(paths) == []


WRITER = """
import os, sys, time
sys.path.insert(0, sys.argv[1])
from agentrun.base import journal
number = 0
while not os.path.exists(sys.argv[4]):
    for _ in range(5):
        journal.append(sys.argv[2], '{"id":"%s-%d","end":4e9}' % (sys.argv[3], number), 1 << 30)
        number += 1
    time.sleep(0.02)
print(number)
"""


def turn(paths: Paths) -> None:
    """Ingest, or leave it to the other process where that has the store for too long (a busy machine)."""
    try:
        ingest.ingest(paths, busy_s=1)
    except StoreError as error:
        assert "locked" in str(error) or "another process" in str(error)


def test_no_line_is_lost_while_others_read_and_rename(paths, monkeypatch, tmp_path):
    """Six processes append, two take, until the journal was renamed some times."""
    monkeypatch.setattr(ingest, "_ROTATE_AT", 1000)
    stop = tmp_path / "stop"
    command = [sys.executable, "-I", "-S", "-c", WRITER, str(TREE), paths.records]
    writers = [
        subprocess.Popen([*command, str(n), str(stop)], stdout=subprocess.PIPE, text=True) for n in range(6)
    ]
    second = os.fork()
    if second == 0:
        try:
            while not stop.exists():
                turn(paths)
                time.sleep(0.01)
        finally:
            os._exit(0)
    renames: set[int] = set()
    deadline = time.monotonic() + 60
    try:
        while len(renames) < 5 and time.monotonic() < deadline:
            turn(paths)
            if os.path.exists(paths.records + ".1"):
                renames.add(os.stat(paths.records + ".1").st_ctime_ns)
    finally:
        stop.touch()
        counts = [int(writer.communicate()[0]) for writer in writers]
        os.waitpid(second, 0)
    ingest.ingest(paths)
    assert sorted(stored(paths)) == sorted(f"{n}-{i}" for n in range(6) for i in range(counts[n]))
    assert len(renames) >= 2 and log_of(paths) == []
