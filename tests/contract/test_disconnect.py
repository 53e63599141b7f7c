"""Calls whose client is gone: the process on the host that their intent names."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator

import pytest
from node import wait_for

from agentrun.base.procfs import start_ticks

KILL = {"on_disconnect": "kill"}


@pytest.fixture
def client() -> Iterator[subprocess.Popen[bytes]]:
    """A process that stands for `docker exec`."""
    process = subprocess.Popen(["sleep", "1000"])
    yield process
    process.kill()
    process.wait()


def named(process: subprocess.Popen[bytes]) -> list[int | None]:
    return [process.pid, start_ticks(process.pid)]


def test_whole_tree_dies_with_its_client_and_a_neighbour_lives(node, client):
    node.start()
    neighbour = node.call("sleep", "2", care=KILL)
    call_id = node.call("sh", "-c", "setsid sleep 60 & exec sleep 60", client=named(client), care=KILL)
    client.kill()
    client.wait()
    record = node.record(call_id)
    assert (record["verdict"], record["level"], record["exit_code"]) == ("killed", "client", 137)
    assert record["end"] - record["start"] < 10
    assert node.record(neighbour)["verdict"] == "ok"


def test_client_that_is_not_reaped_yet_is_gone(node, client):
    node.start()
    call_id = node.call("sleep", "60", client=named(client), care=KILL)
    client.send_signal(signal.SIGKILL)
    assert node.record(call_id)["level"] == "client"


def test_client_that_goes_while_no_agentrund_runs_is_missed_at_its_start(node, client):
    call_id = node.call("sleep", "60", client=named(client), care=KILL)
    client.kill()
    client.wait()
    node.start()
    record = node.record(call_id)
    assert (record["level"], record["exit_code"]) == ("client", 137)


def test_pid_that_is_another_process_by_now_is_no_client(node, client):
    pid, ticks = named(client)
    assert ticks
    call_id = node.call("sleep", "60", client=[pid, ticks - 1], care=KILL)
    node.start()
    assert node.record(call_id)["level"] == "client"


@pytest.mark.parametrize("care", [{"on_disconnect": "keep"}, {}])
def test_call_outlives_its_client_unless_the_policy_says_so(node, client, care):
    node.start()
    call_id = node.call("sleep", "1.5", client=named(client), care=care)
    client.kill()
    client.wait()
    assert node.record(call_id)["verdict"] == "ok"


def test_client_that_goes_before_the_process_is_placed_is_not_forgotten(node, client):
    node.start()
    client.kill()
    call_id = node.call("sleep", "60", client=named(client), care=KILL, place_after_s=0.5)
    client.wait()
    assert node.record(call_id)["level"] == "client"


def test_what_a_call_leaves_behind_is_not_the_clients(node, client):
    """`docker exec` goes because its command has ended: `nohup server &` lives on, as `background` says."""
    node.start()
    care = {**KILL, "background": "keep"}
    call_id = node.call("sh", "-c", "sleep 4 & exec sleep 0.5", client=named(client), care=care)
    time.sleep(1)
    node.reap()
    client.kill()
    client.wait()
    record = node.record(call_id)
    assert (record["verdict"], record["exit_code"], record["level"]) == ("ok", 0, None)
    assert record["end"] - record["start"] > 3


def test_call_that_ends_before_its_client_is_not_said_to_be_killed(node, client):
    node.start()
    record = node.record(node.call("sleep", "0.5", client=named(client), care=KILL))
    assert (record["verdict"], record["level"]) == ("ok", None)
    client.kill()
    client.wait()
    follower = node.call("sleep", "1", care=KILL)  # in the same slot
    assert node.record(follower)["verdict"] == "ok"
    wait_for(lambda: len(node.records()) == 2, "one record each")
