"""The controller on real cgroups: whatever happens to agentrund, no call stays frozen."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from test_daemon import Node, node, wait_for

from agentrun import release

__all__ = ["node"]


def freeze(node: Node, slot: str = "call-0") -> Path:
    """Freeze a call as a controller would that then died."""
    cgroup = node.cgroup / "agentrun-calls" / slot
    (cgroup / "cgroup.freeze").write_text("1")
    wait_for(lambda: "frozen 1" in (cgroup / "cgroup.events").read_text(), "the call to freeze")
    release.mark(node.paths)
    return cgroup


def test_frozen_call_is_released_when_agentrund_starts(node):
    call_id = node.call("sleep", "0.3", rank=[100, 100])
    freeze(node)
    node.start()
    assert node.record(call_id)["verdict"] == "ok"
    assert not release.is_marked(node.paths)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_frozen_call_is_released_when_agentrund_stops(node, number):
    node.start()
    node.call("sleep", "100", rank=[100, 100])
    cgroup = freeze(node)
    assert node.stop(number) == 0
    assert (cgroup / "cgroup.freeze").read_text() == "0\n" and not release.is_marked(node.paths)


def test_crash_is_cleaned_up_by_thaw(node):
    node.start()
    call_id = node.call("sleep", "100", rank=[100, 100])
    stranger = node.call("sleep", "100")
    cgroup, other = freeze(node), freeze(node, "call-1")
    node.stop(signal.SIGKILL)
    assert release.release_all(node.paths) == [call_id]
    assert (cgroup / "cgroup.freeze").read_text() == "0\n"
    assert (other / "cgroup.freeze").read_text() == "1\n", f"{stranger} is not the controller's to thaw"


def test_frozen_call_can_be_killed_at_its_time_limit(node):
    node.start()
    call_id = node.call("sleep", "100", rank=[100, 100], limits={"time_hard": 1})
    freeze(node)
    assert node.record(call_id)["verdict"] == "timed-out"


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
