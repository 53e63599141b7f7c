"""What a call leaves behind when its first process has ended."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cgroups import placed
from node import Node, wait_for

from agentrun.client import Client


@pytest.fixture
def waits(tmp_path: Path) -> Path:
    """What a process waits for when it reads it: see `let_end`."""
    os.mkfifo(tmp_path / "waits")
    return tmp_path / "waits"


def let_end(waits: Path) -> None:
    """Have what waits end."""
    os.close(os.open(waits, os.O_WRONLY | os.O_NONBLOCK))


def leaving(*command: str) -> tuple[str, ...]:
    """A command that leaves another behind."""
    return ("sh", "-c", f"{shlex.join(command)} & exec sleep 0.5")


def live(node: Node, condition: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    """The live call, once a condition holds of it; whoever asks reaps what ended, as a shim does."""

    def look() -> list[dict[str, Any]]:
        node.reap()
        return [row for row in Client(node.paths).calls() if condition(row)]

    (row,) = wait_for(look, "it to show")
    return row


@pytest.mark.parametrize("action", ["keep", "demote"])
def test_background_processes_are_named_and_live_on(node, waits, action):
    node.start()
    call_id = node.call(*leaving("cat", str(waits)), care={"background": action})
    assert live(node, lambda row: row.get("background"))["end"] is None
    let_end(waits)
    record = node.record(call_id)
    assert record["end"] > record["background"]["at"] > record["start"] + 0.7
    assert (record["verdict"], record["exit_code"], record["flags"]) == ("ok", 0, ["background"])
    noted = record["background"]
    assert (noted["action"], [p["name"] for p in noted["processes"]]) == (action, ["cat"])
    # This host's cgroup2 may have no controllers; what could not be written is said.
    is_missing = not (node.cgroup / "cpu.weight").exists()
    assert noted.get("not_changed") == (
        None if action == "keep" else ["cpu.weight", "io.weight"][: 2 * is_missing]
    )


def test_background_process_in_a_cgroup_of_its_own_is_named(node, waits):
    node.start()
    nested = node.cgroup / "agentrun-calls/call-0/nested"
    command = leaving("sh", "-c", f"mkdir {nested}; exec {shlex.join(placed(nested, 'cat', str(waits)))}")
    call_id = node.call(*command, care={"background": "keep"})
    live(node, lambda row: row.get("background"))
    assert (nested / "cgroup.procs").read_text()
    let_end(waits)
    assert [p["name"] for p in node.record(call_id)["background"]["processes"]] == ["cat"]


def test_background_processes_are_killed_where_the_policy_says_so(node):
    node.start()
    call_id = node.call("sh", "-c", "setsid sleep 100 & exec sleep 0.5", care={"background": "kill"})
    record = node.record(call_id)
    assert record["end"] - record["start"] < 5
    assert (record["verdict"], record["background"]["action"]) == ("ok", "kill")


def test_call_whose_children_end_with_it_has_none(node):
    node.start()
    record = node.record(node.call("sh", "-c", "sleep 0.3 & sleep 0.3; wait", care={"background": "kill"}))
    assert (record["background"], record["flags"]) == (None, [])


def test_background_of_a_call_whose_end_nobody_saw_is_found_at_the_restart(node):
    call_id = node.call("sh", "-c", "sleep 6 & exec sleep 0.2", care={"background": "kill"})
    time.sleep(0.5)
    node.reap()
    node.start()
    record = node.record(call_id)
    assert record["background"]["action"] == "kill" and record["end"] - record["start"] < 6


def cpu_s(pid: int) -> float:
    """The CPU time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


LINGERING = {
    "a child": "sleep 1000 & exit 3",
    "a session of its own": "setsid sleep 1000 & exit 3",
    "stopped": "sh -c 'kill -STOP $$' & sleep 0.1; exit 3",
    "many": "for i in 1 2 3 4 5 6 7 8; do sleep 1000 & done; exit 3",
}


@pytest.mark.parametrize("name", LINGERING)
def test_what_lingers_costs_agentrund_no_cpu(node, name):
    """The first process is reaped: its pidfd reports EPOLLHUP for as long as it is watched."""
    node.start()
    assert node.daemon
    node.call("sh", "-c", LINGERING[name])
    node.processes[-1].wait(timeout=10)
    live(node, lambda row: row.get("background"))
    before = cpu_s(node.daemon.pid)
    time.sleep(3)
    assert cpu_s(node.daemon.pid) - before < 0.3
