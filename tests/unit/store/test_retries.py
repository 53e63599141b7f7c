"""A call that limits ended, and the same command tried again: the records name each other."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from agentrun.base import journal
from agentrun.base.paths import Paths
from agentrun.calls import record as records
from agentrun.cli import main as ctl
from agentrun.client import Client
from agentrun.decision import inforce, intent
from agentrun.store import database, ingest
from agentrun.store.retries import WITHIN_S, is_retry, was_limited

NOW = time.time()
BIG = 1 << 30


@pytest.fixture
def paths(tmp_path, monkeypatch) -> Paths:
    for folder in ("var/log", "run/agentrun", "var/lib/agentrun"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder).chmod(0o700)
    made = Paths(str(tmp_path))
    monkeypatch.setattr("agentrun.client.host_paths", lambda: made)
    inforce.load(made)
    return made


def record(call_id: str, at: float, verdict: str | None = "oom-killed", **more: Any) -> dict[str, Any]:
    """A call of one second that started `at` seconds after NOW."""
    made: dict[str, Any] = {
        "id": call_id,
        "container": "c1",
        "command": {"sha256": "f00d"},
        "verdict": verdict,
        "flags": [],
        "start": NOW + at,
        "end": NOW + at + 1,
        "retry_of": None,
    }
    return {**made, **more}


def links(paths: Paths, *rows: dict[str, Any], turns: int = 1) -> dict[str, str | None]:
    """What the rows retry, taken into the store in so many turns."""
    for turn in range(turns):
        for row in rows[turn::turns] if turns > 1 else rows:
            journal.append(paths.records, json.dumps(row), BIG)
        ingest.ingest(paths)
    with database.reading(paths) as connection:
        assert connection
        found = connection.execute("SELECT id, retry_of, record FROM calls").fetchall()
    assert all(json.loads(text)["retry_of"] == retry for _, retry, text in found)
    return {call_id: retry for call_id, retry, _ in found}


ENDS: dict[str, tuple[dict[str, Any], bool]] = {
    "killed for memory": ({"verdict": "oom-killed"}, True),
    "out of time": ({"verdict": "timed-out"}, True),
    "stalled and killed": ({"verdict": "stalled"}, True),
    "slowed down, then failed": ({"verdict": "failed", "flags": ["memory-throttled"]}, True),
    "stalled, then given up": ({"verdict": "killed", "flags": ["stalled"]}, True),
    "slowed down, and nobody saw its end": ({"verdict": None, "flags": ["memory-throttled"]}, True),
    "slowed down, and well": ({"verdict": "ok", "flags": ["memory-throttled"]}, False),
    "slowed down at a learned start, then failed": (
        {"verdict": "failed", "flags": ["memory-throttled"], "learned": {"memory_high": 1}},
        False,
    ),
    "failed by itself": ({"verdict": "failed", "flags": ["cpu-throttled"]}, False),
    "flags that are none": ({"verdict": "failed", "flags": {"stalled": 1}}, False),
    "well": ({"verdict": "ok"}, False),
}


@pytest.mark.parametrize("name", ENDS)
def test_only_what_limits_ended_is_retried(paths, name):
    more, expected = ENDS[name]
    assert was_limited(record("01", 0, **more)) == expected
    found = links(paths, record("01", 0, **more), record("02", 5, "ok"))
    assert found == {"01": None, "02": "01" if expected else None}


OTHERS: dict[str, dict[str, Any]] = {
    "another command": {"command": {"sha256": "beef"}},
    "a command that is not stored": {"command": None},
    "another container": {"container": "c2"},
    "much later": {"start": NOW + 2 + WITHIN_S, "end": NOW + 3 + WITHIN_S},
    "beside it": {"start": NOW - 2.5},
    "no start": {"start": None},
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_retry_is_not_called_one(paths, name):
    assert links(paths, record("01", 0), record("02", 5, **OTHERS[name]))["02"] is None


def test_each_retry_names_the_one_before_it(paths):
    rows = [record("01", 0), record("02", 5), record("03", 10, "ok"), record("04", 15, "ok")]
    assert links(paths, *rows) == {"01": None, "02": "01", "03": "02", "04": None}


def test_link_is_found_in_another_turn_and_made_once(paths):
    links(paths, record("01", 0))
    assert links(paths, record("02", 5, "ok"), record("02", 5, "ok"))["02"] == "01"


def test_call_recorded_late_is_not_taken_for_the_latest(paths):
    """By start, not by the order in which they became known."""
    found = links(paths, record("02", 5, "ok"), record("01", 0), record("03", 10, "ok"))
    assert found == {"01": None, "02": "01", "03": None}


def test_inspect_and_client_show_both_directions(paths):
    if os.geteuid() != 0:
        pytest.skip("needs root")
    links(paths, record("01", 0), record("02", 5, "ok"))
    shown = [json.loads(CliRunner().invoke(ctl.cli, ["inspect", name]).stdout) for name in ("01", "02")]
    assert [(row["retry_of"], row["retried_by"]) for row in shown] == [(None, ["02"]), ("01", [])]
    assert Client(paths).retried_by("01") == ["02"]


def test_repeated_command_is_found_by_its_index():
    connection = sqlite3.connect(":memory:")
    for statement in (statement for migration in database.MIGRATIONS for statement in migration):
        connection.execute(statement)
    plan = str(connection.execute("EXPLAIN QUERY PLAN " + ingest._REPEATED, (1,)).fetchall())
    connection.close()
    assert "calls_same" in plan and "SCAN" not in plan


def test_store_of_before_links_to_what_just_ended(paths, monkeypatch):
    """A migrated store knows the commands of the last hour."""
    migrations = database.MIGRATIONS
    monkeypatch.setattr(database, "MIGRATIONS", migrations[:1])
    rows = [("01", NOW - 60, json.dumps(record("01", -61))), ("00", NOW - 9999, "{}"), ("02", NOW, "no JSON")]
    with database.writing(paths) as connection:
        statement = (
            "INSERT INTO calls (id, container, verdict, ended, record) VALUES (?, 'c1', 'failed', ?, ?)"
        )
        connection.executemany(statement, rows)
    monkeypatch.setattr(database, "MIGRATIONS", migrations)
    journal.append(paths.records, json.dumps(record("03", 5)), BIG)
    ingest.ingest(paths)
    with database.reading(paths) as connection:
        assert connection
        assert connection.execute("SELECT id, retry_of FROM calls WHERE same = 'f00d'").fetchall() == [
            ("01", None),
            ("03", "01"),
        ]


SAME = [
    (["pytest", "-q"], ["env", "AGENTRUN_INTENT=memory=2g", "pytest", "-q"]),
    (["env", "A=1", "x"], ["env", "A=1", 'AGENTRUN_INTENT={"memory": "2g"}', "x"]),
    (["bash", "-lc", "pytest -q"], ["bash", "-lc", "AGENTRUN_INTENT=memory=2g pytest -q"]),
    (
        ["bash", "-lc", "cd /x && pytest"],
        ["bash", "-lc", 'cd /x && AGENTRUN_INTENT="memory=2g, cpu=2" pytest'],
    ),
    (["sh", "-c", "cd /x && pytest"], ["sh", "-c", "cd /x && env AGENT_RESOURCE_HINT=memory:high pytest"]),
    (["sh", "-c", "pytest; echo"], ["sh", "-c", "export AGENTRUN_INTENT=memory=1g; pytest; echo"]),
    (["sh", "-c", "a; b"], ["sh", "-c", "AGENTRUN_INTENT=cpu=1 a; AGENTRUN_INTENT='cpu=2' b"]),
]


@pytest.mark.parametrize("plain, asking", SAME, ids=[" ".join(asking) for _, asking in SAME])
def test_command_with_an_intent_is_the_same_command(plain, asking):
    assert intent.without(asking) == intent.without(plain) == plain
    hashes = {records.describe_command(words, "x", "hash")["sha256"] for words in (plain, asking)}  # type: ignore[index]
    assert len(hashes) == 1


def test_words_that_only_look_like_an_intent_stay():
    for words in (
        ["echo", "MY_AGENTRUN_INTENT=1"],
        ["grep", "AGENTRUN_INTENT", "x"],
        ["env", "A=1"],
        ["env"],
    ):
        assert intent.without(words) == words


PIECES = st.sampled_from(
    ["AGENTRUN_INTENT=", "AGENT_RESOURCE_HINT=", " ", "'", '"', ";", "env", "export", "x", "-c", "\n"]
)


@given(st.lists(st.lists(PIECES, max_size=8).map("".join), max_size=6))
def test_cutting_never_fails_adds_nothing_and_ends(words):
    kept = intent.without(words)
    assert len(kept) <= len(words) and sum(map(len, kept)) <= sum(map(len, words))


def test_hostile_command_costs_no_time():
    words = ["sh", "-c", "AGENTRUN_INTENT=a;" * 8192 + "xAGENTRUN_INTENT=" * 8192]
    began = time.perf_counter()
    intent.without(words)
    assert time.perf_counter() - began < 0.2


VALUES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=3)
    | st.lists(st.text(max_size=3))
)


@given(*[st.fixed_dictionaries(dict.fromkeys(("start", "end", "verdict", "flags"), VALUES))] * 2)
def test_any_two_records_can_be_compared(later, earlier):
    assert is_retry(later, earlier) in (True, False)
