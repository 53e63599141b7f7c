"""A container that ends takes its calls along; one that lives does not."""

from __future__ import annotations

import json
import os
from pathlib import Path

from agentrun.base import procfs
from agentrun.daemon import containerend

CGROUPS = "/sys/fs/cgroup"


def state(root: Path, pid: int, ticks: int) -> dict[str, str]:
    """A call of a container whose init is that process, as runc recorded it."""
    (root / "c1").mkdir()
    recorded = {"cgroup_paths": {"": "/x"}, "init_process_pid": pid, "init_process_start": ticks}
    (root / "c1/state.json").write_text(json.dumps(recorded))
    return {"root": str(root), "container": "c1", "backend": "runc"}


def ticks_of(pid: int) -> int:
    found = procfs.start_ticks(pid)
    assert found is not None
    return found


def test_container_lives(tmp_path):
    own = os.getpid()
    assert not containerend.took_along(state(tmp_path, own, ticks_of(own)), CGROUPS)


def test_its_init_has_ended_and_the_pid_belongs_to_another(tmp_path):
    own = os.getpid()
    assert containerend.took_along(state(tmp_path, own, ticks_of(own) + 1), CGROUPS)


def test_its_init_has_ended_and_is_not_reaped_yet(tmp_path):
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.close(write)
        os.read(read, 1)
        os._exit(0)
    call = state(tmp_path, child, ticks_of(child))
    assert not containerend.took_along(call, CGROUPS)
    os.close(write)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    assert containerend.took_along(call, CGROUPS)
    os.waitpid(child, 0)
    assert containerend.took_along(call, CGROUPS)


def test_its_backend_has_removed_it(tmp_path):
    own = os.getpid()
    call = state(tmp_path, own, ticks_of(own))
    (tmp_path / "c1/state.json").unlink()
    assert not containerend.took_along(call, CGROUPS)  # only its state is damaged: nothing is known
    (tmp_path / "c1").rmdir()
    assert containerend.took_along(call, CGROUPS)


def test_state_that_says_nothing_says_nothing(tmp_path):
    for broken in ({}, {"root": str(tmp_path), "container": "../x", "backend": "runc"}, {"root": "/"}):
        assert not containerend.took_along(broken, CGROUPS)
