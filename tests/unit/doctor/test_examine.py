"""What `agentrunctl doctor` finds."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sqlite3
import time
from pathlib import Path

import pytest

from agentrun.base.paths import Paths
from agentrun.daemon import status as daemonstatus
from agentrun.decision import inforce
from agentrun.doctor import daemon, examine, host
from agentrun.doctor.bpf import describe_drops
from agentrun.service.loop import Loop
from agentrun.store import ingest


@pytest.fixture
def paths(tmp_path) -> Paths:
    """A healthy host below a directory."""
    cgroup = tmp_path / "cgroup"
    cgroup.mkdir()
    (cgroup / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    for folder in ("etc/agentrun/policy.d", "var/log", "run"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "etc/agentrun/config.toml").write_text('version = 1\nbackends = ["/bin/true"]\n')
    made = Paths(str(tmp_path), str(cgroup))
    os.mkdir(made.run, 0o700)
    inforce.load(made)
    return made


def findings(paths: Paths, what: str) -> list[tuple[str, str]]:
    return [(f.level, f.text) for f in examine.examine(paths) if f.what.startswith(what)]


def test_healthy_host_has_no_problem(paths):
    assert [f for f in examine.examine(paths) if f.level == "problem"] == []
    assert findings(paths, "agentrund")[0][0] == "note"


def test_missing_controller_is_a_problem(paths):
    (Path(paths.cgroup_root) / "cgroup.controllers").write_text("cpu memory pids\n")
    assert findings(paths, "cgroup v2") == [("problem", "no io controller: these limits do not hold")]


def test_host_without_cgroup_v2_is_named(paths):
    os.unlink(paths.cgroup_root + "/cgroup.controllers")
    assert findings(paths, "cgroup v2")[0][0] == "problem"


def test_broken_policy_is_shown_until_it_is_mended(paths):
    file = Path(paths.policy) / "a.yaml"
    file.write_text("version: 1\nclases: {}\n")
    level, text = findings(paths, "configuration")[0]
    assert level == "problem" and "a.yaml:2:1: unknown key 'clases'" in text and "last good one" in text
    file.write_text("version: 1\n")
    assert findings(paths, "configuration") == []


def test_directory_that_others_can_write_is_a_problem(paths):
    os.chmod(paths.state, 0o777)
    assert ("problem", "belongs to others or can be written by them: agentrun will not use it") in findings(
        paths, f"directory {paths.state}"
    )


def test_recent_warnings_are_counted(paths):
    Path(paths.log).write_text(
        '{"time":"2001-01-01T00:00:00Z","msg":"old"}\n{"time":"2999-01-01T00:00:00Z","msg":"new"}\n'
    )
    level, text = findings(paths, "log")[0]
    assert level == "note" and text.startswith("1 in the last day") and '"new"' in text


def write_records(paths: Paths, *ids: str) -> None:
    with open(paths.records, "a") as file:
        file.writelines(json.dumps({"id": call_id, "end": time.time()}) + "\n" for call_id in ids)


def test_records_are_counted(paths):
    assert findings(paths, "records") == [("note", "no store yet, 0 bytes wait in the journal")]
    write_records(paths, "a", "b")
    ingest.ingest(paths)
    write_records(paths, "c")
    ((level, text),) = findings(paths, "records")
    assert level == "ok" and re.fullmatch(r"2 since 2\d+-.*, 0 MiB, \d\d bytes wait in the journal", text)


def test_damaged_line_is_shown(paths):
    write_records(paths, "a")
    with open(paths.records, "a") as file:
        file.write("{\n")
    ingest.ingest(paths)
    assert ("note", "1 damaged lines of the journal were passed over") in findings(paths, "records")


@pytest.mark.parametrize("damage", [b"no database", b"\0" * 8192])
def test_damaged_store_is_a_problem_until_it_was_set_aside(paths, damage):
    write_records(paths, "a")
    ingest.ingest(paths)
    Path(paths.store).write_bytes(damage * 100)
    ((level, text),) = findings(paths, "records")
    assert level == "problem" and "not a database" in text and "kept in the journal" in text
    ingest.ingest(paths)
    assert [level for level, _ in findings(paths, "records")] == ["ok", "note"]


def test_damage_inside_the_store_is_found(paths):
    write_records(paths, *map(str, range(3000)))
    ingest.ingest(paths)
    data = bytearray(Path(paths.store).read_bytes())
    data[-40960:] = b"\xff" * 40960
    Path(paths.store).write_bytes(data)
    assert findings(paths, "records")[0][0] == "problem"


def test_store_of_a_newer_agentrun_is_a_problem(paths):
    ingest.ingest(paths)
    with contextlib.closing(sqlite3.connect(paths.store)) as connection:
        connection.execute("PRAGMA user_version = 99")
    ((level, text),) = findings(paths, "records")
    assert level == "problem" and "made by a newer agentrun" in text


def test_json_can_be_read_by_programs(paths, monkeypatch):
    from click.testing import CliRunner

    from agentrun.cli import main as ctl

    monkeypatch.setattr("agentrun.cli.doctor.host_paths", lambda: paths)
    done = CliRunner().invoke(ctl.cli, ["doctor", "--json"])
    assert done.exit_code == 0 and {f["level"] for f in json.loads(done.output)} <= {"ok", "note"}
    assert "agentrund" in CliRunner().invoke(ctl.cli, ["doctor"]).output


@pytest.mark.parametrize(
    ("text", "version"), [("crun version 1.21", (1, 21)), ("runc version 1.1.15+ds1", (1, 1, 15)), ("x", ())]
)
def test_version_is_found(text, version):
    assert host.parse_version(text) == version


def said(**parts: object) -> dict[str, object]:
    """What agentrund says when all is well, but for `parts`."""
    healthy = {
        "keeper": {"pid": 7, "heard_s": 5.0},
        "events": {"is_read": True, "kills": 2, "problem": None},
        "proc_events": {"is_listening": True, "lost": 0},
    }
    return {"pid": 5, "at": 100.0, "up_s": 60.0, **healthy, **parts}


def judged(status: dict[str, object] | None, now_s: float = 103.0) -> dict[str, str]:
    return {f.what: f.level for f in daemon.daemon_findings(status, now_s)}


def test_agentrund_that_is_well_says_so_part_by_part():
    assert judged(said()) == {
        "agentrund": "ok",
        "agentrund: keeper": "ok",
        "agentrund: events": "ok",
        "agentrund: processes": "ok",
    }


@pytest.mark.parametrize(
    ("keeper", "up_s", "level"),
    [
        ({"pid": None, "heard_s": None}, 60.0, "problem"),
        ({"pid": 7, "heard_s": 21.0}, 60.0, "problem"),
        ({"pid": 7, "heard_s": None}, 60.0, "problem"),
        ({"pid": 7, "heard_s": None}, 3.0, "note"),
    ],
    ids=["none", "silent", "never-heard", "just-started"],
)
def test_keeper_that_does_not_answer_is_a_problem(keeper, up_s, level):
    assert judged(said(keeper=keeper, up_s=up_s))["agentrund: keeper"] == level


def test_ejections_of_the_scheduler_are_shown_with_the_next_try():
    scheduler = {"ejections": 2, "last": "scheduler ejected: stall", "next_s": 4.0}
    (found,) = [
        f for f in daemon.daemon_findings(said(scheduler=scheduler), 103.0) if f.what.endswith("scheduler")
    ]
    assert found.level == "note"
    assert found.text.startswith("ejected 2 times") and found.text.endswith("again in 4 s")


def test_processes_that_are_not_told_of_or_were_lost_are_a_note():
    for events in ({"is_listening": False, "lost": 0}, {"is_listening": True, "lost": 3}, {}):
        assert judged(said(proc_events=events))["agentrund: processes"] == "note"


def test_events_that_cannot_be_read_are_a_problem_and_none_are_a_note():
    wrong = {"is_read": False, "kills": 0, "problem": "use pin: not root's alone"}
    assert judged(said(events=wrong))["agentrund: events"] == "problem"
    assert judged(said(events={**wrong, "problem": None}))["agentrund: events"] == "note"


def test_agentrund_whose_loop_does_not_turn_is_a_problem():
    assert judged(said(), now_s=121.0) == {"agentrund": "problem"}
    assert judged(None) == {"agentrund": "note"}


def test_status_is_read_as_it_was_written_and_what_is_damaged_is_none(paths):
    assert daemonstatus.read(paths) is None
    status = daemonstatus.DaemonStatus(Loop(), paths)
    status.sources["keeper"] = lambda: {"pid": 1, "heard_s": None}
    status.write()
    found = daemonstatus.read(paths)
    assert found is not None
    assert (found["pid"], found["keeper"]) == (os.getpid(), {"pid": 1, "heard_s": None})
    for damage in ("", "{", "[1]", '{"at": "now"}'):
        Path(daemonstatus.path_of(paths)).write_text(damage)
        assert daemonstatus.read(paths) is None


def test_status_that_cannot_be_written_is_said_once(paths):
    status = daemonstatus.DaemonStatus(Loop(), paths)
    os.rmdir(paths.run)
    status.write()
    status.write()
    assert Path(paths.log).read_text().count("status not written") == 1


@pytest.mark.parametrize(
    ("dropped", "expected"),
    [
        ({"all": 0, "exec": 0}, ("ok", "none")),
        ({"all": 7, "exec": 3, "exit": 4}, ("ok", "exec 3, exit 4")),
    ],
)
def test_drops_that_limit_a_rate_are_all_right(dropped, expected):
    assert describe_drops(dropped) == expected


def test_dropped_victim_is_worth_a_note():
    level, text = describe_drops({"all": 1, "oom_victim": 1})
    assert level == "note" and text.startswith("oom_victim 1")
