"""Feedback on real pipes: it arrives, and nothing that happens to us makes a reader wait."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from node import Node, keeper, wait_for

from agentrun.daemon import status as daemonstatus

ON = {"feedback": "on"}
SOON_S = 2.5  # the alarm is due after a second; the rest is for a busy machine


class Stderr:
    """A pipe as an engine makes one: the reader waits until every copy of its writing end is closed."""

    def __init__(self) -> None:
        self.reading, self.writing = os.pipe()
        self.text = b""

    def started(self) -> None:
        """The call has its copies now."""
        os.close(self.writing)

    def ends_within(self, seconds: float) -> bool:
        """Read to the end; whether that came in time."""
        deadline = time.monotonic() + seconds
        while select.select([self.reading], [], [], max(0, deadline - time.monotonic()))[0]:
            data = os.read(self.reading, 4096)
            if not data:
                return True
            self.text += data
        return False


@pytest.fixture
def stderr() -> Iterator[Stderr]:
    made = Stderr()
    yield made
    os.close(made.reading)


def speaking(node: Node, stderr: Stderr, *command: str, **state: Any) -> str:
    """Start a call that is to be told what happens to it."""
    call_id = node.call(*command, stderr=stderr.writing, **{"care": ON, **state})
    stderr.started()
    return call_id


def holds_pipe(pid: int) -> bool:
    """Whether a process holds the writing end of a pipe (the keeper's own stderr may be one)."""
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            if fd.name != "2" and os.readlink(fd).startswith("pipe:"):
                return True
    return False


def has_ended(pid: int) -> bool:
    """Whether a process is gone, reaped or not: either way its descriptors are closed."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def wait_until_held(node: Node) -> int:
    """The keeper, once it holds the one call's stderr."""
    pid = keeper(node)
    wait_for(lambda: holds_pipe(pid), "stderr to be held")
    return pid


def test_text_is_there_before_the_reader_sees_the_end(node, stderr):
    node.start()
    call_id = speaking(node, stderr, "sleep", "100", limits={"time_hard": 0.4}, ceilings={"time": 60})
    assert stderr.ends_within(5)
    lines = stderr.text.decode().splitlines()
    assert (
        lines[0] == "[agentrun] This call was killed, with all its processes: its time limit of 0.40s passed."
    )
    assert all(line.startswith("[agentrun] ") for line in lines)
    record = node.record(call_id)
    told = record["feedback"][0]
    assert (told["event"], told["text"], told["delivered"]) == ("timed-out", stderr.text.decode(), True)
    assert record["verdict"] == "timed-out"


WAITED = {"seconds": 4.0, "outcome": "room", "level": "host", "why": "9M of 9G left (host)"}


@pytest.mark.parametrize("command", [("sleep", "5"), ("true",)], ids=["long", "short"])
def test_call_that_waited_is_told_once_that_it_did(node, stderr, command):
    node.start()
    # A runtime takes a while; a call that is over before the keeper has its stderr is told nothing.
    call_id = speaking(node, stderr, *command, waited=WAITED, place_after_s=1)
    assert stderr.ends_within(10)
    assert stderr.text.startswith(b"[agentrun] This call waited 4s") and stderr.text.count(b"waited") == 1
    record = node.record(call_id)
    assert [note["event"] for note in record["feedback"]] == ["waited"]
    assert (record["waited"], record["flags"]) == (WAITED, ["waited"])
    if command[0] == "sleep":  # while it ran, not at its end
        assert record["feedback"][0]["at"] < record["end"] - 1


def test_waiting_is_nothing_for_quiet(node, stderr):
    node.start()
    call_id = speaking(node, stderr, "true", waited=WAITED, care={"feedback": "quiet"})
    assert stderr.ends_within(5) and stderr.text == b""
    assert node.record(call_id)["feedback"] is None


@pytest.mark.parametrize("state", [{"care": {"feedback": "off"}}, {"tty": True}, {"care": None}])
def test_nothing_is_said_where_it_is_not_wanted(node, stderr, state):
    node.start()
    call_id = speaking(node, stderr, "sleep", "100", limits={"time_hard": 0.4}, **state)
    assert stderr.ends_within(5) and stderr.text == b""
    assert node.record(call_id)["feedback"] is None


def test_call_that_went_well_ends_without_delay_or_text(node, stderr):
    node.start()
    call_id = speaking(node, stderr, "sh", "-c", "sleep 0.5; echo done >&2", limits={"time_hard": 60})
    wait_until_held(node)
    assert stderr.ends_within(5) and stderr.text == b"done\n"
    ended = time.time()
    assert ended - node.record(call_id)["end"] < 0.5


def test_full_pipe_is_not_waited_for(node, stderr):
    node.start()
    script = "head -c 1000000 /dev/zero >&2 & sleep 100"
    call_id = speaking(node, stderr, "sh", "-c", script, limits={"time_hard": 0.6})
    record = node.record(call_id)
    assert (record["verdict"], record["feedback"][0]["delivered"]) == ("timed-out", False)
    assert record["end"] - record["start"] < 2
    assert stderr.ends_within(5) and b"agentrun" not in stderr.text


def test_background_process_keeps_stderr_open_and_we_do_not(node, stderr):
    node.start()
    script = "sleep 8 2>/dev/null & sleep 1"
    speaking(node, stderr, "sh", "-c", script)
    pid = wait_until_held(node)
    assert stderr.ends_within(4)
    assert not holds_pipe(pid)


def test_stopped_daemon_keeps_nobody_waiting(node, stderr):
    node.start()
    speaking(node, stderr, "sleep", "2")
    wait_until_held(node)
    assert node.daemon
    node.daemon.send_signal(signal.SIGSTOP)
    try:
        began = time.monotonic()
        assert stderr.ends_within(10)
        assert time.monotonic() - began < 2 + SOON_S
    finally:
        node.daemon.send_signal(signal.SIGCONT)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_ended_daemon_lets_go_at_once(node, stderr, number):
    node.start()
    node.call("sleep", "100", stderr=stderr.writing, care=ON)
    stderr.started()
    pid = wait_until_held(node)
    node.stop(number)
    wait_for(lambda: has_ended(pid), "the keeper to end", 1)
    assert node.processes[0].poll() is None


@pytest.mark.parametrize("stop_daemon", [False, True], ids=["keeper", "both"])
def test_stopped_keeper_is_killed_by_its_alarm(node, stderr, stop_daemon):
    node.start()
    speaking(node, stderr, "sleep", "6")
    pid = wait_until_held(node)
    assert node.daemon
    if stop_daemon:
        node.daemon.send_signal(signal.SIGSTOP)
    os.kill(pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        assert stderr.ends_within(14)
        assert time.monotonic() - began < 6 + SOON_S
    finally:
        node.daemon.send_signal(signal.SIGCONT)


def test_killed_keeper_is_replaced_and_holds_again(node, stderr):
    node.start()
    call_id = speaking(node, stderr, "sleep", "100", limits={"time_hard": 1.5})
    pid = wait_until_held(node)
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: keeper(node) != pid and holds_pipe(keeper(node)), "another keeper that holds it")
    assert stderr.ends_within(5) and b"time limit of 1.50s" in stderr.text
    assert node.record(call_id)["feedback"][0]["delivered"] is True


def test_restarted_daemon_holds_again_and_repeats_nothing(node, stderr):
    node.start()
    limits = {"time_soft": 0.2, "time_hard": 2.5}
    call_id = speaking(node, stderr, "sleep", "100", limits=limits)
    assert not stderr.ends_within(0.7) and b"running for 0.20s" in stderr.text
    node.stop(signal.SIGKILL)
    node.start()
    assert stderr.ends_within(5)
    assert stderr.text.count(b"running for") == 1 and stderr.text.count(b"was killed") == 1
    events = [told["event"] for told in node.record(call_id)["feedback"]]
    assert events == ["slow", "timed-out"]


def test_text_never_goes_where_stdout_goes(node):
    """After a restart only the command's own descriptors are left, and they may be one and the same."""
    reading, writing = os.pipe()
    limits = {"time_hard": 1.0}
    script = f"exec >/proc/self/fd/{writing} 2>&1; exec sleep 100"
    os.set_inheritable(writing, True)
    call_id = node.call("sh", "-c", script, care=ON, limits=limits, close_fds=False)
    os.close(writing)
    node.start()
    record = node.record(call_id)
    assert record["feedback"][0]["delivered"] is False
    assert os.read(reading, 100) == b""
    os.close(reading)


def test_keeper_that_hangs_while_it_holds_nothing_is_found_and_replaced(node):
    node.start()
    pid = keeper(node)

    def said() -> dict[str, Any]:
        return (daemonstatus.read(node.paths) or {}).get("keeper") or {}

    wait_for(lambda: said().get("heard_s") is not None, "the keeper's first answer")
    assert said()["pid"] == pid
    os.kill(pid, signal.SIGSTOP)
    wait_for(lambda: said().get("pid") not in (pid, None), "another keeper", timeout_s=60)
    assert has_ended(pid)
    log = Path(node.paths.log).read_text()
    assert log.count("keeper did not answer") == 1
