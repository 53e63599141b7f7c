"""What backends record about a container, and which ids are safe."""

from __future__ import annotations

import json
import os

import pytest

from agentrun.base import procfs
from agentrun.oci import container

GOOD_IDS = ["c1", "a_b.c-d+e", "exec", "0" * 64, "memory.max"]
BAD_IDS = ["", ".", "..", "a/b", "../x", "x" * 256, "a b", "a\nb", "ä", "a\0b", "$(id)"]


@pytest.mark.parametrize("name", GOOD_IDS)
def test_usual_id_is_valid(name):
    assert container.is_valid_id(name)


@pytest.mark.parametrize("name", BAD_IDS, ids=range(len(BAD_IDS)))
def test_hostile_id_is_not_valid(name):
    assert not container.is_valid_id(name)


def write(folder, name: str, data: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(data if isinstance(data, str) else json.dumps(data))


RUNC = {"cgroup_paths": {"": "/sys/fs/cgroup/x"}, "init_process_pid": 5, "init_process_start": 9}
CRUN = {"pid": 5, "process-start-time": 9, "cgroup-path": "/a.slice/b.scope/container", "bundle": "/b"}


def test_runc_state_is_read(tmp_path):
    write(tmp_path / "c", "state.json", RUNC)
    found = container.find("c", str(tmp_path), ("runc", "crun"), "/sys/fs/cgroup")
    assert found is not None
    assert (found.kind, found.cgroup, found.pid, found.start_ticks) == ("runc", "/sys/fs/cgroup/x", 5, 9)


def test_crun_status_is_read(tmp_path):
    write(tmp_path / "c", "status", CRUN)
    found = container.find("c", str(tmp_path) + "/", ("runc", "crun"), "/sys/fs/cgroup")
    assert found is not None
    assert (found.kind, found.root) == ("crun", str(tmp_path))
    assert found.cgroup == "/sys/fs/cgroup/a.slice/b.scope/container"


def test_pinned_kind_is_the_only_one_looked_for(tmp_path):
    write(tmp_path / "c", "state.json", RUNC)
    assert container.find("c", str(tmp_path), ("crun",), "/sys/fs/cgroup") is None


DAMAGED = ["", "{", "[]", "5", '{"cgroup_paths": []}', '{"cgroup_paths": {}, "init_process_pid": "x"}']


@pytest.mark.parametrize("text", DAMAGED)
def test_damaged_state_is_no_container(tmp_path, text):
    write(tmp_path / "c", "state.json", text)
    assert container.find("c", str(tmp_path), ("runc",), "/sys/fs/cgroup") is None


def test_state_that_is_a_symlink_is_not_followed(tmp_path):
    write(tmp_path / "real", "state.json", RUNC)
    (tmp_path / "c").mkdir()
    (tmp_path / "c/state.json").symlink_to(tmp_path / "real/state.json")
    assert container.find("c", str(tmp_path), ("runc",), "/sys/fs/cgroup") is None


def test_own_process_runs_and_another_with_its_pid_does_not():
    ticks = procfs.start_ticks(os.getpid())
    assert ticks is not None
    assert container.Container("runc", "/", "c", "", os.getpid(), ticks).is_running()
    assert not container.Container("runc", "/", "c", "", os.getpid(), ticks + 1).is_running()


def test_zombie_has_ended():
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    assert procfs.start_ticks(child) is None
    os.waitpid(child, 0)


@pytest.mark.parametrize("cgroup", ["", "/", "/elsewhere/x", "/sys/fs/cgroup/../x"])
def test_path_outside_the_mount_is_no_cgroup(cgroup):
    assert not container.is_cgroup_v2(cgroup, "/sys/fs/cgroup")
