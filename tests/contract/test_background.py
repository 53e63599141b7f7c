"""What a call leaves behind when its first process has ended."""

from __future__ import annotations

import time

import pytest
from node import wait_for

LEAVES = ("sh", "-c", "sleep 4 & exec sleep 0.5")


@pytest.mark.parametrize("action", ["keep", "demote"])
def test_background_processes_are_named_and_live_on(node, action):
    node.start()
    call_id = node.call(*LEAVES, care={"background": action})
    record = node.record(call_id)
    assert record["end"] - record["start"] > 3.5
    assert (record["verdict"], record["exit_code"], record["flags"]) == ("ok", 0, ["background"])
    noted = record["background"]
    assert (noted["action"], [p["name"] for p in noted["processes"]]) == (action, ["sleep"])
    # This host's cgroup2 may have no controllers; what could not be written is said.
    is_missing = not (node.cgroup / "cpu.weight").exists()
    assert noted.get("not_changed") == (
        None if action == "keep" else ["cpu.weight", "io.weight"][: 2 * is_missing]
    )


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


def test_live_call_shows_that_only_its_background_runs(node):
    from agentrun.client import Client

    node.start()
    node.call(*LEAVES, care={"background": "keep"})
    (row,) = wait_for(lambda: [r for r in Client(node.paths).calls() if r.get("background")], "it to show")
    assert row["end"] is None
