"""Slots, harvesting, and what may be planted in the state directory."""

from __future__ import annotations

import json
import os
import subprocess
import time

import pytest

from agentrun.base import agentrund, files
from agentrun.base.errors import StateError
from agentrun.base.paths import Paths
from agentrun.calls import slots
from agentrun.calls.names import escape_root, unescape_root
from agentrun.calls.session import open_all, open_calls


@pytest.fixture
def paths(tmp_path) -> Paths:
    (tmp_path / "var/log").mkdir(parents=True)
    return Paths(str(tmp_path))


@pytest.fixture
def session(paths):
    made = open_calls(paths, "/run/runc", "c1")
    assert made is not None
    yield made
    made.close()


def state(cgroup: str = "/sys/fs/cgroup/not-there") -> dict[str, object]:
    return {"id": os.urandom(4).hex(), "container": "c1", "calls": cgroup, "start": 1.0}


def end_owner(paths: Paths, name: str) -> None:
    """Make a slot's runtime one that has ended."""
    path = next(p for p in walk(paths.run) if p.endswith("/" + name))
    with open(path) as file:
        data = json.load(file)
    with open(path, "w") as file:
        json.dump({**data, "owner": [data["owner"][0], data["owner"][1] + 1]}, file)


def walk(folder: str) -> list[str]:
    return [os.path.join(where, name) for where, _, names in os.walk(folder) for name in names]


def test_lowest_free_slot_is_taken(session):
    names = [session.take_slot(state()) for _ in range(3)]
    session.free_slot("call-1")
    assert [*names, session.take_slot(state())] == ["call-0", "call-1", "call-2", "call-1"]


def test_call_whose_runtime_lives_is_left_alone(session, paths):
    session.take_slot(state())
    assert session.harvest() == 0 and session.slots() == ["call-0"]


def test_ended_call_is_recorded_once_and_its_slot_freed(session, paths):
    session.take_slot(state())
    end_owner(paths, "call-0")
    assert session.harvest() == 1 and session.harvest() == 0 and session.slots() == []
    with open(paths.records) as file:
        records = [json.loads(line) for line in file]
    assert [(r["slot"], r["end_is"], r["verdict"]) for r in records] == [("call-0", "found-removed", None)]


def test_one_harvest_looks_at_no_more_than_its_limit(session, paths):
    for _ in range(10):
        session.take_slot(state())
    for name in session.slots():
        end_owner(paths, name)
    assert [session.harvest(limit=4) for _ in range(3)] == [4, 4, 2]


def test_harvest_under_way_elsewhere_is_not_waited_for(session, paths):
    session.take_slot(state())
    end_owner(paths, "call-0")
    lock = next(p for p in [os.path.join(os.path.dirname(walk(paths.run)[0]), "lock")])
    holder = subprocess.Popen(["flock", lock, "sh", "-c", "echo held; sleep 100"], stdout=subprocess.PIPE)
    assert holder.stdout and holder.stdout.readline() == b"held\n"
    assert session.harvest() == 0
    holder.kill()
    holder.wait()
    holder.stdout.close()


@pytest.mark.parametrize("content", ["", "{", "[]", '"x"'])
def test_damaged_state_is_dropped_with_a_record(session, paths, content):
    session.take_slot(state())
    with open(walk(paths.run)[0], "w") as file:
        file.write(content)
    session.harvest()
    assert session.slots() == []
    with open(paths.log) as file:
        assert "damaged" in file.read()


def test_slot_that_was_freed_and_taken_again_while_harvesting_is_spared(session, monkeypatch):
    """A harvest lists slots, then waits for the lock: by then a name may be free, or a new call's."""
    session.take_slot(state())
    read_regular = files.read_regular

    def taken_again(name, *args, **kwargs):
        session.free_slot(name)
        try:
            return read_regular(name, *args, **kwargs)
        finally:
            session.take_slot(state())

    monkeypatch.setattr(files, "read_regular", taken_again)
    assert session.harvest() == 0
    monkeypatch.undo()
    assert session.slots() == ["call-0"] and session.read("call-0") is not None


def test_many_processes_at_once_get_different_slots(paths):
    children = []
    for _ in range(40):
        child = os.fork()
        if not child:
            made = open_calls(paths, "/run/runc", "c1")
            assert made
            made.take_slot(state())
            os._exit(0)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 40
    found = [p for p in walk(paths.run) if "/call-" in p]
    assert sorted(os.path.basename(p) for p in found) == sorted(f"call-{n}" for n in range(40))


def test_session_without_calls_is_forgotten(session, paths):
    session.take_slot(state())
    session.forget_if_empty()
    assert session.slots() == ["call-0"]
    session.free_slot("call-0")
    session.forget_if_empty()
    assert os.listdir(f"{paths.run}/sessions") == []


def run_is_a_symlink(paths: Paths) -> None:
    os.makedirs(paths.run + "x")
    os.symlink(paths.run + "x", paths.run)


def run_is_writable_by_all(paths: Paths) -> None:
    os.makedirs(paths.run)
    os.chmod(paths.run, 0o777)


def sessions_is_a_symlink(paths: Paths) -> None:
    os.makedirs(paths.run, 0o700)
    os.symlink("/etc", paths.run + "/sessions")


def container_is_a_symlink(paths: Paths) -> None:
    os.makedirs(paths.run + "/sessions/run@runc", 0o700)
    os.symlink("/etc", paths.run + "/sessions/run@runc/c1")


PLANTS = [run_is_a_symlink, run_is_writable_by_all, sessions_is_a_symlink, container_is_a_symlink]


@pytest.mark.parametrize("plant", PLANTS, ids=lambda f: f.__name__)
def test_planted_directory_is_refused(paths, plant):
    os.makedirs(os.path.dirname(paths.run), exist_ok=True)
    plant(paths)
    with pytest.raises(StateError, match="open private directory"):
        open_calls(paths, "/run/runc", "c1")


def test_planted_slot_is_neither_followed_nor_overwritten(session, paths, tmp_path):
    target = tmp_path / "target"
    target.write_text("precious")
    session.take_slot(state())
    folder = os.path.dirname(walk(paths.run)[0])
    os.symlink(target, f"{folder}/call-1")
    assert session.take_slot(state()) == "call-2"
    session.harvest()
    assert target.read_text() == "precious"


@pytest.mark.parametrize(
    ("one", "other"), [("/a/b", "/a@b"), ("/a", "/a%40"), ("/x" * 200, "/x" * 199 + "/y")]
)
def test_two_roots_never_share_a_name(one, other):
    names = escape_root(one), escape_root(other)
    assert names[0] != names[1] and all("/" not in n and len(n) < 255 for n in names)


def test_note_is_in_the_record_whoever_writes_it(session, paths):
    made = state()
    session.take_slot(made)
    assert session.note("call-0", str(made["id"]), exit_code=7, killed_by="operator")
    end_owner(paths, "call-0")
    assert session.harvest() == 1
    with open(paths.records) as file:
        record = json.loads(file.read())
    assert (record["exit_code"], record["verdict"], record["killed_by"]) == (7, "failed", "operator")


def test_note_about_a_call_that_is_over_is_refused(session):
    session.take_slot(state())
    assert not session.note("call-0", "another", exit_code=1)
    assert not session.note("call-7", "x", exit_code=1)
    assert "exit_code" not in (session.read("call-0") or {})


def test_one_slot_is_harvested_alone(session, paths):
    for _ in range(2):
        session.take_slot(state())
    end_owner(paths, "call-0")
    end_owner(paths, "call-1")
    own = str((session.read("call-1") or {}).get("id"))
    assert not session.harvest_slot("call-1", "another")
    assert session.harvest_slot("call-1", own, exit_code=4)
    assert session.slots() == ["call-0"]
    assert not session.harvest_slot("call-1", own)
    with open(paths.records, encoding="utf-8") as file:
        assert json.loads(file.read())["exit_code"] == 4


def test_session_that_was_removed_since_it_was_opened_has_nothing_to_record(session):
    os.rmdir(session.where)
    assert session.harvest_slot("call-0", "x") is False and session.note("call-0", "x") is False
    assert session.harvest() == 0


def test_lock_that_somebody_keeps_is_waited_for_only_so_long(session, paths, monkeypatch):
    monkeypatch.setattr(slots, "_LOCK_WAIT_S", 0.05)
    session.take_slot(state())
    end_owner(paths, "call-0")
    lock = session._lock(wait=False)
    assert lock is not None
    assert session.harvest(wait=True) == 0
    assert not session.note("call-0", "x", slow=1)
    os.close(lock)
    assert session.harvest(wait=True) == 1


def test_daemon_is_alive_as_long_as_it_holds_its_lock(paths, session):
    from agentrun.daemon.main import take_lock

    assert not agentrund.is_daemon_alive(paths)
    lock = take_lock(paths)
    assert agentrund.is_daemon_alive(paths)
    os.close(lock)
    assert not agentrund.is_daemon_alive(paths)


def test_daemon_is_stuck_where_it_has_said_nothing_for_long(paths, session):
    assert agentrund.is_daemon_stuck(paths)
    path = agentrund.status_path(paths)
    with open(path, "w", encoding="ascii"):
        assert not agentrund.is_daemon_stuck(paths)
    os.utime(path, (time.time() - 21,) * 2)
    assert agentrund.is_daemon_stuck(paths)


def test_daemon_is_near_while_it_is_restarted(paths, session):
    from agentrun.daemon.main import take_lock

    assert not agentrund.is_daemon_near(paths)
    lock = take_lock(paths)
    agentrund.note_daemon_is_near(lock, returns=False)
    assert agentrund.is_daemon_near(paths)
    os.close(lock)
    assert not agentrund.is_daemon_near(paths)
    lock = take_lock(paths)
    agentrund.note_daemon_is_near(lock, returns=True)
    os.close(lock)
    assert agentrund.is_daemon_near(paths)
    os.utime(paths.daemon_lock, (time.time() - 11,) * 2)
    assert not agentrund.is_daemon_near(paths)


def test_oom_counts_tell_the_container_from_what_is_above_it(tmp_path):
    from agentrun.cgroups.around import oom_counts
    from agentrun.cgroups.cgroup import Cgroup

    counts = {"pods": 1, "pods/x.scope": 2, "pods/x.scope/container": 4}
    for name, oom in counts.items():
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "memory.events.local").write_text(f"low 0\noom {oom}\n")
    assert oom_counts(Cgroup(str(tmp_path / "pods/x.scope/container"))) == [6, 1]
    assert oom_counts(Cgroup(str(tmp_path / "pods/x.scope"))) == [2, 1]
    assert oom_counts(Cgroup(str(tmp_path / "nowhere"))) == [0, 0]


@pytest.mark.parametrize("root", ["/run/runc", "/var/run/docker/runtime-runc/moby", "/a@b%c/d"])
def test_root_can_be_read_back_from_its_name(root):
    assert unescape_root(escape_root(root)) == root


def test_root_that_was_shortened_is_not_made_up():
    assert unescape_root(escape_root("/x" * 200)) is None


def test_session_is_forgotten_once_its_container_is_gone(paths, tmp_path):
    for container_id in ("there", "gone"):
        made = open_calls(paths, str(tmp_path / "runc"), container_id)
        assert made is not None
        made.close()
    (tmp_path / "runc/there").mkdir(parents=True)
    for found in open_all(paths):
        found.forget_if_gone()
    assert [os.path.basename(found.where) for found in open_all(paths)] == ["there"]


@pytest.mark.parametrize(
    ("deleted", "parents"), [(False, "runc"), (True, "runc"), (True, "r" * 150 + "/s" * 40)]
)
def test_layout_of_a_container_that_is_gone_goes_with_its_last_call(paths, tmp_path, deleted, parents):
    root = tmp_path / parents
    (root / "box").mkdir(parents=True)
    layout = tmp_path / "cgroup/box/agentrun-calls"
    (layout / "call-0").mkdir(parents=True)
    session = open_calls(paths, str(root), "box")
    assert session is not None
    session.take_slot({"id": "x", "calls": str(layout)})
    end_owner(paths, "call-0")
    if deleted:
        (root / "box").rmdir()
    assert session.harvest() == 1
    session.close()
    # A root whose name had to be shortened cannot be read back: nobody is taken for gone.
    is_removed = deleted and parents == "runc"
    assert layout.parent.exists() == layout.exists() == (not is_removed)
