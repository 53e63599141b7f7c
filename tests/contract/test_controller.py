"""The controller on real cgroups: whatever happens to agentrund, no call stays frozen."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cgroups import placed
from livecalls import DAEMON
from node import mount_or_skip, wait_for

from agentrun.base import agentrund
from agentrun.base.paths import Paths
from agentrun.calls import release
from agentrun.calls.session import open_calls


class Frozen:
    """A host with calls that a controller froze, and an agentrund to start and stop."""

    def __init__(self, root: Path, cgroup: Path) -> None:
        self.parent = cgroup / "agentrun-calls"
        self.parent.mkdir(parents=True)
        for folder in ("var/log", "var/lib", "runc/c1"):
            (root / folder).mkdir(parents=True)
        self.paths = Paths(str(root), str(cgroup.parent))
        self.processes: list[subprocess.Popen[bytes]] = []
        self.environment = {
            **os.environ,
            "AGENTRUN_ROOT": str(root),
            "AGENTRUN_CGROUP_ROOT": str(cgroup.parent),
        }

    def call(self, **state: Any) -> Path:
        """A call that sleeps, and is frozen by someone who then died; returns its cgroup."""
        session = open_calls(self.paths, f"{self.paths.root}/runc", "c1")
        assert session
        whole = {"id": f"id-{state}", "container": "c1", "calls": str(self.parent), "start": time.time()}
        with contextlib.closing(session):
            slot = session.take_slot({**whole, **state})
        cgroup = self.parent / slot
        cgroup.mkdir()
        self.processes.append(subprocess.Popen(placed(cgroup, "sleep", "1000")))
        wait_for(lambda: "populated 1" in (cgroup / "cgroup.events").read_text(), "the call to begin")
        self.freeze(cgroup)
        return cgroup

    def freeze(self, cgroup: Path) -> None:
        """Freeze a call as a controller does."""

        def frozen() -> bool:
            # agentrund lets go once more of a call that is new to it: freeze it again.
            (cgroup / "cgroup.freeze").write_text("1")
            return "frozen 1" in (cgroup / "cgroup.events").read_text()

        wait_for(frozen, "the call to freeze")
        release.mark(self.paths)

    def start(self) -> subprocess.Popen[bytes]:
        """agentrund, once it watches."""
        daemon = subprocess.Popen(DAEMON, env=self.environment)
        self.processes.append(daemon)
        wait_for(lambda: agentrund.is_daemon_alive(self.paths), "agentrund to hold its lock")
        return daemon


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Frozen]:
    """An empty scene; whatever it holds at the end is killed."""
    cgroup = mount_or_skip() / f"agentrun-controller-{os.getpid()}"
    made = Frozen(tmp_path, cgroup)
    yield made
    for process in made.processes:
        process.kill()
        process.wait(timeout=10)
    for folder, _, _ in os.walk(cgroup, topdown=False):
        os.rmdir(folder)


def is_frozen(cgroup: Path) -> bool:
    return (cgroup / "cgroup.freeze").read_text() == "1\n"


def test_frozen_call_is_released_when_agentrund_starts(scene):
    cgroup, stranger = scene.call(rank=[100, 100]), scene.call()
    scene.start()
    wait_for(lambda: not is_frozen(cgroup), "the call to go on")
    wait_for(lambda: not release.is_marked(scene.paths), "agentrund to be done")
    assert is_frozen(stranger)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_frozen_call_is_released_when_agentrund_stops(scene, number):
    cgroup = scene.call(rank=[100, 100])
    daemon = scene.start()
    wait_for(lambda: not is_frozen(cgroup), "the call to go on")
    scene.freeze(cgroup)
    daemon.send_signal(number)
    assert daemon.wait(timeout=10) == 0
    assert not is_frozen(cgroup) and not release.is_marked(scene.paths)


def test_crash_is_cleaned_up_by_thaw(scene):
    cgroup, stranger = scene.call(id="ours", rank=[100, 100]), scene.call()
    assert release.release_all(scene.paths) == ["ours"]
    assert not is_frozen(cgroup) and is_frozen(stranger)
    assert release.release_all(scene.paths) == []


def test_frozen_call_can_be_killed_at_its_time_limit(scene):
    daemon = scene.start()
    cgroup = scene.call(rank=[100, 100], limits={"time_hard": 4})
    time.sleep(
        1.5
    )  # agentrund releases what it finds new, before or after it was frozen: nothing to wait for
    scene.freeze(cgroup)
    wait_for(lambda: "populated 0" in (cgroup / "cgroup.events").read_text(), "the call to die")
    assert daemon.poll() is None


def test_exec_that_finds_agentrund_dead_lets_calls_go_on(box):
    root = ["--root", str(box.state)]
    box.run(*root, "exec", "box", "sleep")
    folder = next(box.root.glob("run/agentrun/sessions/*/box"))
    assert json.loads((folder / "call-0").read_text())["rank"] == [100, 100]
    holder = subprocess.Popen(["sleep", "100"])
    try:
        (box.cgroup / "agentrun-calls/call-0/cgroup.procs").write_text(str(holder.pid))
        (box.cgroup / "agentrun-calls/call-0/cgroup.freeze").write_text("1")
        box.run(*root, "exec", "box", "true")
        assert frozen(box) == "1\n"  # nothing says that it was agentrund
        (folder.parents[2] / "holding").touch()
        box.run(*root, "exec", "box", "true")
        assert frozen(box) == "0\n" and not (folder.parents[2] / "holding").exists()
    finally:
        holder.kill()
        holder.wait()


def frozen(box: Any) -> str:
    return str((box.cgroup / "agentrun-calls/call-0/cgroup.freeze").read_text())
