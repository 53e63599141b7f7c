"""`agentrunctl calls`."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from agentrun import terminal
from agentrun.base.errors import CallNotFoundError
from agentrun.base.paths import Paths
from agentrun.cli import main as ctl
from agentrun.client import Client, blame

NOW = time.time()


def record(number: int, **more: object) -> dict[str, object]:
    base = {
        "id": f"{number:04d}",
        "container": f"c{number}",
        "command": {"name": "pytest", "sha256": "0"},
        "start": NOW - 1,
        "end": NOW,
        "limits": {"memory": 64 << 20},
        "memory_peak": 1 << 20,
        "cpu_usage_us": 1_500_000,
        "verdict": None,
        "level": None,
    }
    return {**base, **more}


@pytest.fixture
def host(tmp_path, monkeypatch):
    monkeypatch.setenv("AGENTRUN_ROOT", str(tmp_path))
    monkeypatch.setattr("agentrun.client.host_paths", lambda: Paths(str(tmp_path)))
    folder = tmp_path / "var/lib/agentrun"
    folder.mkdir(parents=True)

    def write(*rows: object) -> None:
        text = "".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows)
        (folder / "calls.jsonl").write_text(text)

    return write


def test_json_is_one_record_a_line_oldest_first(host):
    host(record(2), record(1), record(3))
    out = CliRunner().invoke(ctl.cli, ["calls", "--json"]).stdout
    assert [json.loads(line)["id"] for line in out.splitlines()] == ["0001", "0002", "0003"]


def test_call_recorded_twice_counts_once(host):
    host(record(1), record(1))
    assert len(CliRunner().invoke(ctl.cli, ["calls", "--json"]).stdout.splitlines()) == 1


def test_damaged_line_is_passed_over_and_said(host, tmp_path):
    host(record(1), "{", record(2))
    (tmp_path / "var/log").mkdir()
    assert len(CliRunner().invoke(ctl.cli, ["calls", "--json"]).stdout.splitlines()) == 2
    assert "damaged record passed over" in (tmp_path / "var/log/agentrun.log").read_text()


def test_table_says_what_happened(host):
    host(record(1, verdict="oom-killed", level="call"))
    out = CliRunner().invoke(ctl.cli, ["calls"]).stdout
    assert "oom-killed (its own limit)" in out and "64 MiB" in out and "1.50 s" in out


def test_container_and_last_choose(host):
    host(record(1), record(2), record(3))
    run = CliRunner().invoke
    assert len(run(ctl.cli, ["calls", "--json", "--container", "c2"]).stdout.splitlines()) == 1
    assert len(run(ctl.cli, ["calls", "--json", "--last", "2"]).stdout.splitlines()) == 2


@pytest.mark.parametrize(("size", "text"), [(None, "-"), (0, "0 B"), (1536, "1.5 KiB"), (64 << 20, "64 MiB")])
def test_size_is_for_people(size, text):
    assert terminal.format_size(size) == text


def test_inspect_shows_one_call_by_the_beginning_of_its_id(host):
    host(record(12, exit_code=3), record(13))
    out = CliRunner().invoke(ctl.cli, ["inspect", "0012"]).stdout
    assert json.loads(out)["exit_code"] == 3
    for prefix, reason in (("001", "several begin so"), ("9", "no such call")):
        result = CliRunner().invoke(ctl.cli, ["inspect", prefix])
        assert reason in str(result.exception)


def test_wait_gives_the_record_of_a_call_that_has_ended(host):
    host(record(1))
    assert json.loads(CliRunner().invoke(ctl.cli, ["wait", "0001"]).stdout)["id"] == "0001"


@pytest.mark.parametrize("arguments", [[], ["0001", "--all-calls"], ["--container", "c", "--all-calls"]])
def test_kill_wants_exactly_one_target(host, arguments):
    result = CliRunner().invoke(ctl.cli, ["kill", *arguments])
    assert result.exit_code == 2 and "name one" in result.output


def test_kill_of_nothing_is_an_error(host):
    assert "no such call is running" in str(CliRunner().invoke(ctl.cli, ["kill", "--all-calls"]).exception)


def break_store(folder: Path, how: str) -> None:
    """A store with one record that the journal does not have, made unusable."""
    path = folder / "calls.db"
    if how == "damaged":
        path.write_bytes(b"no database " * 1000)
    elif how == "newer":
        with contextlib.closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA user_version = 99")
    else:
        path.unlink()
        path.mkdir()


@pytest.mark.parametrize("how", ["damaged", "newer", "a directory"])
def test_journal_answers_where_the_store_cannot(host, tmp_path, how):
    (tmp_path / "var/log").mkdir()
    host(record(1, verdict="ok"), record(2, verdict="failed"))
    assert CliRunner().invoke(ctl.cli, ["calls", "--json"]).stderr == ""
    break_store(tmp_path / "var/lib/agentrun", how)
    for arguments, ids in (
        ([], ["0001", "0002"]),
        (["--verdict", "ok"], ["0001"]),
        (["--last", "1"], ["0002"]),
    ):
        done = CliRunner().invoke(ctl.cli, ["calls", "--json", *arguments])
        assert [json.loads(line)["id"] for line in done.stdout.splitlines()] == ids
        assert ("use store" in done.stderr or "make store" in done.stderr) == (how != "damaged")
    assert (tmp_path / "var/lib/agentrun/calls.db.damaged").exists() == (how == "damaged")


def test_damage_that_is_met_while_reading_ends_in_the_journal(host, tmp_path):
    """Each call once: those that were read already, and the rest from the journal."""
    (tmp_path / "var/log").mkdir()
    rows = [record(n) for n in range(3000)]
    host(*rows)
    client = Client()
    assert len(client.calls()) == 3000
    path = tmp_path / "var/lib/agentrun/calls.db"
    data = bytearray(path.read_bytes())
    middle = len(data) // 2 // 4096 * 4096
    data[middle : middle + 40960] = b"\xff" * 40960
    path.write_bytes(data)
    assert [row["id"] for row in client.calls()] == [row["id"] for row in rows]
    assert "malformed" in client.problems[0]
    assert len(client.calls()) == 3000 and client.problems == []


def test_table_shows_the_last_hundred(host):
    host(*(record(n) for n in range(150)))
    done = CliRunner().invoke(ctl.cli, ["calls"])
    assert len(done.stdout.splitlines()) == 101 and "the last 100" in done.stderr
    assert len(CliRunner().invoke(ctl.cli, ["calls", "--last", "120"]).stdout.splitlines()) == 121


def test_command_and_exec_id_choose(host):
    host(record(1, command={"name": "git"}), record(2, exec_id="e2"))
    run = CliRunner().invoke
    assert json.loads(run(ctl.cli, ["calls", "--json", "--command", "git"]).stdout)["id"] == "0001"
    assert json.loads(run(ctl.cli, ["calls", "--json", "--exec-id", "e2"]).stdout)["id"] == "0002"


def test_since_wants_a_unit(host):
    result = CliRunner().invoke(ctl.cli, ["calls", "--since", "10"])
    assert result.exit_code == 2 and "expected a duration with a unit" in result.output


def test_follow_prints_each_finished_call_once(host, monkeypatch):
    host(record(1))
    turns = iter([lambda: host(record(1), record(2)), lambda: None])

    def next_turn(_: float) -> None:
        try:
            next(turns)()
        except StopIteration:
            raise KeyboardInterrupt from None

    monkeypatch.setattr("time.sleep", next_turn)
    out = CliRunner().invoke(ctl.cli, ["calls", "--follow"]).stdout
    assert [json.loads(line)["id"] for line in out.splitlines() if line.startswith("{")] == ["0001", "0002"]


ENDS = [
    ({"verdict": "failed", "exit_code": 7}, "failed, exit code 7"),
    ({"verdict": "oom-killed", "level": "session"}, "oom-killed (the container's limit)"),
    ({"verdict": "killed", "level": "operator"}, "killed (by agentrunctl)"),
    ({"verdict": "killed", "level": "client"}, "killed (its client was gone)"),
    ({"verdict": "ok", "exit_code": 0}, "ok"),
    ({}, "ended"),
    ({"end": None}, "running"),
    ({"end": None, "waiting": {"until": 0}}, "waiting to start (0 s more at most)"),
    ({"verdict": "refused", "level": "host"}, "refused (the host's limit)"),
]


@pytest.mark.parametrize(("more", "text"), ENDS, ids=range(len(ENDS)))
def test_table_says_how_a_call_ended(host, more, text):
    host(record(1, **more))
    assert text in CliRunner().invoke(ctl.cli, ["calls"]).stdout


def test_hostile_names_do_not_steer_the_terminal(host):
    host(record(1, command={"name": "\x1b[2J[bold]x[/nope]\n", "sha256": "0"}))
    out = CliRunner().invoke(ctl.cli, ["calls"]).stdout
    assert "\x1b" not in out and "?[2J[bold]x[/nope]?" in out


BLAMES = [
    ({"verdict": "ok"}, None),
    ({"verdict": None}, None),
    ({"verdict": "failed"}, "agent"),
    ({"verdict": "timed-out", "level": "call"}, "agent"),
    ({"verdict": "oom-killed", "level": "call"}, "agent"),
    ({"verdict": "oom-killed", "level": "session"}, "infrastructure"),
    ({"verdict": "oom-killed", "level": "host"}, "infrastructure"),
    ({"verdict": "killed", "level": None}, "agent"),
    ({"verdict": "killed", "level": "operator"}, "operator"),
    ({"verdict": "killed", "level": "engine"}, "infrastructure"),
    ({"verdict": "refused", "level": "session"}, "infrastructure"),
]


@pytest.mark.parametrize(("ended", "whose"), BLAMES, ids=range(len(BLAMES)))
def test_blame_is_where_the_limit_was(ended, whose):
    assert blame(ended) == whose


def test_client_finds_a_call_by_the_engines_exec_id(host):
    host(record(1, exec_id="e1"), record(2, exec_id="e2"))
    assert Client().call(exec_id="e2")["id"] == "0002"
    assert Client().wait(exec_id="e1", timeout_s=1)["id"] == "0001"
    with pytest.raises(CallNotFoundError, match="find call 'e3': no such call"):
        Client().wait(exec_id="e3")
