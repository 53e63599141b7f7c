"""agentrund on real cgroups and real processes; only the runtime is played by the test."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from livecalls import DAEMON
from node import keeper, wait_for

from agentrun.client import Client
from agentrun.store import database
from agentrun.store.query import Query, select

ENDS = {
    "ok": (["true"], ("ok", 0, None)),
    "failed": (["sh", "-c", "exit 7"], ("failed", 7, None)),
    "exit 137 is not a kill": (["sh", "-c", "exit 137"], ("failed", 137, None)),
    "kill -9 is not an OOM": (["sh", "-c", "kill -9 $$"], ("killed", 137, "SIGKILL")),
    "terminated": (["sh", "-c", "kill $$"], ("killed", 143, "SIGTERM")),
}


@pytest.mark.parametrize("name", ENDS)
def test_end_is_seen_and_judged(node, name):
    command, expected = ENDS[name]
    node.start()
    call_id = node.call("sh", "-c", 'sleep 0.5; exec "$@"', "sh", *command)
    record = node.record(call_id)
    assert (record["verdict"], record["exit_code"], record["signal"]) == expected
    assert record["end_is"] == "seen" and 0.5 < record["end"] - record["start"] < 4
    wait_for(lambda: not list((node.cgroup / "agentrun-calls").glob("call-*")), "the cgroup to be removed")


def test_call_without_a_pid_file_is_judged_too(node):
    node.start()
    record = node.record(node.call("sh", "-c", "sleep 0.3; exit 3", pid_file=False, detached=True))
    assert (record["verdict"], record["exit_code"]) == ("failed", 3)


def test_background_process_keeps_the_call_alive(node):
    node.start()
    call_id = node.call("sh", "-c", "sleep 1 & sleep 0.1; exit 5")
    time.sleep(0.5)
    assert node.records() == []
    record = node.record(call_id)
    assert (record["exit_code"], record["end"] - record["start"] > 0.9) == (5, True)


def test_restarted_daemon_finds_everything_again(node):
    node.start()
    first = node.call("sleep", "6")
    second = node.call("sleep", "0.2")
    assert node.stop(signal.SIGKILL) == -signal.SIGKILL
    time.sleep(0.4)
    third = node.call("sleep", "5")
    node.reap()
    node.start()
    for call_id in (first, second, third):
        assert node.record(call_id)["id"] == call_id
    assert len(node.records()) == 3
    assert node.record(first)["exit_code"] == node.record(third)["exit_code"] == 0


ESCAPES = {
    "plain": "sleep 100",
    "ignores signals": "trap '' TERM INT HUP; while :; do sleep 1; done",
    "session of its own": "setsid sh -c 'sleep 100' & sleep 100",
    "double fork": "(setsid sh -c 'sleep 100 &' &); sleep 100",
    "stopped": "kill -STOP $$",
    "forks all the time": "while :; do sleep 0.01 & done",
}


@pytest.mark.parametrize("name", ESCAPES)
def test_hard_time_limit_kills_the_whole_tree(node, name):
    node.start()
    neighbour = node.call("sleep", "2")
    call_id = node.call("sh", "-c", ESCAPES[name], limits={"time_soft": 0.2, "time_hard": 0.5})
    record = node.record(call_id)
    assert (record["verdict"], record["level"], record["timed_out"]) == ("timed-out", "call", 0.5)
    assert "slow" in record["flags"]
    assert 0.5 <= record["end"] - record["start"] < 2
    assert node.record(neighbour)["verdict"] == "ok"


def test_limit_that_passed_while_no_daemon_ran_is_kept_at_the_restart(node):
    call_id = node.call("sleep", "100", limits={"time_hard": 0.2})
    time.sleep(0.4)
    node.start()
    assert node.record(call_id)["verdict"] == "timed-out"


def test_limit_that_passed_before_the_process_was_placed_is_kept(node):
    node.start()
    call_id = node.call("sleep", "100", place_after_s=0.6, limits={"time_hard": 0.2})
    assert node.record(call_id)["verdict"] == "timed-out"


def test_call_in_time_is_not_killed(node):
    node.start()
    record = node.record(node.call("sleep", "0.3", limits={"time_soft": 5, "time_hard": 10}))
    assert (record["verdict"], record["flags"]) == ("ok", [])


def test_exit_code_is_known_though_it_is_asked_for_late(node):
    """A shim that is short of CPU reaps when it can."""
    node.start()
    call_id = node.call("sh", "-c", "sleep 0.2; exit 7")
    time.sleep(2.5)
    assert node.record(call_id)["exit_code"] == 7


ENDS_WITH_THREADS = """
import os, threading, time
threading.Thread(target=time.sleep, args=(100,), daemon=True).start()
threading.Thread(target=os._exit, args=(7,)).start()
time.sleep(100)
"""
SEEN_TOO_LATE = {
    **{name: ENDS[name] for name in ENDS if name != "terminated"},
    "ended by a thread": ([sys.executable, "-c", ENDS_WITH_THREADS], ("failed", 7, None)),
    "leaves something behind": (["sh", "-c", "sleep 1 & exit 7"], ("failed", 7, None)),
}


@pytest.mark.parametrize("name", SEEN_TOO_LATE)
def test_exit_code_is_known_of_a_process_that_ended_before_it_was_seen(node, name):
    """On hardware a call may live for 5 ms. Here agentrund stands still until it was reaped, too."""
    command, expected = SEEN_TOO_LATE[name]
    node.start()
    with node.standing_still():
        call_id = node.call(*command)
        node.processes[-1].wait(timeout=10)
    record = node.record(call_id)
    assert (record["verdict"], record["exit_code"], record["signal"]) == expected
    assert ("background" in record["flags"]) == (name == "leaves something behind")


BY_HAND = {
    **SEEN_TOO_LATE,
    "ended by the runtime's own failure": (["/no/such/program"], ("failed", 127, None)),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_exit_code_is_known_of_a_call_by_hand_that_ended_before_it_was_seen(node, name):
    """Its runtime waits for it and ends with its exit code, as `runc exec` does without `--detach`."""
    command, expected = BY_HAND[name]
    node.start()
    with node.standing_still():
        call_id, runtime = node.call_of_its_runtime(*command, how="waits", pid_file=None, detached=False)
        assert runtime.wait(timeout=10) == expected[1]
    record = node.record(call_id)
    assert (record["verdict"], record["exit_code"], record["signal"]) == expected


@pytest.mark.parametrize("name", SEEN_TOO_LATE)
def test_exit_code_is_known_of_a_call_whose_pid_file_was_removed_before_it_was_seen(node, name):
    """containerd's shim removes it once the exec has ended, and podman does."""
    command, expected = SEEN_TOO_LATE[name]
    node.start()
    pid_file = f"{node.root}/pids/gone.pid"
    with node.standing_still():
        call_id, runtime = node.call_of_its_runtime(*command, how="leaves", pid_file=pid_file, detached=True)
        runtime.wait(timeout=10)
        time.sleep(0.5)
    record = node.record(call_id)
    assert (record["verdict"], record["exit_code"], record["signal"]) == expected


def test_call_that_its_runtime_could_not_start_has_no_exit_code_of_another_process(node):
    """runc's own first child ends with 0 all the same."""
    node.start()
    script = "read -r _; sh -c 'exit 0'; exit 1"
    runtime = subprocess.Popen(["sh", "-c", script], stdin=subprocess.PIPE)
    call_id = node.begin(runtime, pid_file=f"{node.root}/pids/never.pid", detached=True)
    runtime.communicate(b"\n")
    record = node.record(call_id)
    assert (record["verdict"], record["exit_code"]) == (None, None)


@pytest.mark.parametrize("none_left", ["add_watch", "init1"])
def test_calls_are_found_where_the_host_has_no_watches_left(node, none_left):
    """A container's root, without a user namespace, uses up what root has (see `Inotify`)."""
    refuse = (
        "import ctypes, errno; from agentrun.daemon import daemon; from agentrun.kernel import inotify\n"
        "daemon._SWEEP_S = 0.2\n"
        "def refuse(*_): ctypes.set_errno(errno.EMFILE); return -1\n"
        f"inotify.libc.inotify_{none_left} = refuse"
    )
    python, option, text = DAEMON
    code = f"{text.rpartition(';')[0]}\n{refuse}\nmain()"
    node.daemon = subprocess.Popen([python, option, code], env=node.environment)
    call_id = node.call("sleep", "100", limits={"time_hard": 0.5})
    assert node.record(call_id)["verdict"] == "timed-out"
    (line,) = Path(node.paths.log).read_text().splitlines()
    assert "late" in json.loads(line)["msg"]


CGROUPS = {
    "deep": "for depth in range(1, 1200): os.mkdir(sys.argv[1] + '/n' * depth)",
    "wide": "for number in range(5000): os.mkdir(f'{sys.argv[1]}/{number}')",
}


@pytest.mark.parametrize("name", CGROUPS)
def test_call_that_makes_thousands_of_cgroups_is_recorded_once(node, name):
    node.start()
    call = node.cgroup / "agentrun-calls/call-0"
    call_id = node.call(sys.executable, "-c", f"import os, sys\n{CGROUPS[name]}", str(call))
    assert node.record(call_id)["exit_code"] == 0
    wait_for(lambda: not list(Path(node.paths.run).glob("sessions/*/*/call-0")), "the slot to be free")
    time.sleep(1)
    assert len(node.records()) == 1 and node.daemon.poll() is None
    assert call.exists() == (name == "wide")  # it is left to the engine


def test_what_it_uses_stays_in_memory(node):
    node.start()
    assert node.daemon
    status = Path(f"/proc/{node.daemon.pid}/status").read_text()
    locked = {
        line.split(":")[0]: int(line.split()[1]) for line in status.splitlines() if line.startswith("Vm")
    }
    assert locked["VmLck"] > locked["VmRSS"] > 0
    assert not Path(node.paths.log).exists()


def test_no_huge_page_is_made_of_what_it_uses(node):
    node.start()
    assert node.daemon
    for pid in (node.daemon.pid, keeper(node)):
        assert "THP_enabled:\t0\n" in Path(f"/proc/{pid}/status").read_text()


def test_second_daemon_is_refused(node):
    node.start()
    second = subprocess.run(DAEMON, env=node.environment, capture_output=True, timeout=10, check=False)
    assert second.returncode == 1 and b"agentrund: be the only agentrund" in second.stderr


def test_term_ends_it_at_once(node):
    node.start()
    began = time.monotonic()
    assert node.stop() == 0
    assert time.monotonic() - began < 5  # with the machine to itself 0.1 s; systemd waits for 90


def test_many_calls_leave_nothing_behind(node):
    """Descriptors, watches and memory of the daemon stay what they were."""
    node.start()

    def use() -> tuple[int, int]:
        assert node.daemon
        status = Path(f"/proc/{node.daemon.pid}/status").read_text()
        return len(os.listdir(f"/proc/{node.daemon.pid}/fd")), int(status.split("VmRSS:")[1].split()[0])

    def batch(count: int) -> None:
        ids = {node.call("true", limits={"time_hard": 1000}) for _ in range(count)}
        wait_for(lambda: ids <= {r["id"] for r in node.records()}, "all records", 30)
        node.processes.clear()

    batch(50)
    before = use()
    batch(400)
    after = use()
    assert after[0] <= before[0] + 2
    assert after[1] < before[1] + 2048  # KiB
    assert len({r["id"] for r in node.records()}) == len(node.records()) == 450


def test_idle_daemon_takes_no_cpu(node):
    node.start()
    node.call("sleep", "100")
    assert node.daemon

    def ticks() -> int:
        stat = Path(f"/proc/{node.daemon.pid}/stat").read_text().rpartition(")")[2].split()
        return int(stat[11]) + int(stat[12])

    time.sleep(2.5)  # it looks at the journal a second after its start
    before = ticks()
    time.sleep(2)
    assert ticks() - before <= 2  # of 200


def test_record_reaches_the_store_without_being_asked_for(node):
    node.start()
    call_id = node.call("sh", "-c", "exit 3")

    def stored() -> list[str]:
        with database.reading(node.paths) as connection:
            return (
                [json.loads(text)["id"] for _, _, text in select(connection, Query())] if connection else []
            )

    node.record(call_id)
    wait_for(lambda: stored() == [call_id], "the record in the store")


def test_store_that_cannot_be_made_costs_no_record_and_is_said_once(node):
    os.makedirs(node.paths.store, 0o700)
    os.chmod(node.paths.state, 0o700)
    node.start()
    for _ in range(2):
        node.record(node.call("true"))
        time.sleep(1.2)
    log = Path(node.paths.log).read_text().splitlines()
    assert [json.loads(line)["msg"] for line in log] == ["records wait in the journal"]
    os.rmdir(node.paths.store)
    node.record(node.call("true"))
    wait_for(lambda: Path(node.paths.store).exists(), "the store")
    assert len(Client(node.paths).calls()) == 3
