"""Processes that the kernel tells of, after they are gone."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from agentrun.kernel import procevents
from agentrun.kernel.procevents import ProcEvents


@pytest.fixture
def events() -> Iterator[ProcEvents]:
    made = ProcEvents()
    try:
        made.start()
    except OSError as error:
        reason = f"the kernel does not tell us of processes: {error}"
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    yield made
    made.close()


def told(events: ProcEvents, pid: int, since_ns: int) -> procevents.Exit:
    """What is told of a process; that comes a moment after its parent can reap it."""
    deadline = time.monotonic() + 5
    while (found := events.exit_of(pid, since_ns)) is None:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    return found


def started(events: ProcEvents, runtime: int, since_ns: int) -> procevents.Exit:
    """What is told of the process that a runtime started."""
    deadline = time.monotonic() + 5
    while (found := events.exit_of_started(runtime, since_ns)) is None:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    return found


@pytest.mark.parametrize(
    ("script", "status"),
    [("true", 0), ("exit 7", 7 << 8), ("exit 137", 137 << 8), ("kill -9 $$", 9), ("kill $$", 15)],
)
def test_status_of_a_process_that_is_gone_is_known(events: ProcEvents, script: str, status: int) -> None:
    before = time.monotonic_ns()
    process = subprocess.Popen(["sh", "-c", script])
    process.wait()
    found = told(events, process.pid, before)
    assert found.status == status
    assert before < found.at_ns < time.monotonic_ns()


def test_process_that_a_thread_ends_has_the_status_of_all(events: ProcEvents) -> None:
    script = "import os, threading, time\nthreading.Thread(target=os._exit, args=(7,)).start()\ntime.sleep(9)"
    before = time.monotonic_ns()
    process = subprocess.Popen([sys.executable, "-c", script])
    process.wait()
    assert told(events, process.pid, before).status == 7 << 8


def test_exit_of_an_earlier_process_with_that_pid_is_another(events: ProcEvents) -> None:
    before = time.monotonic_ns()
    process = subprocess.Popen(["true"])
    process.wait()
    told(events, process.pid, before)
    assert events.exit_of(process.pid, time.monotonic_ns()) is None


# Starts a process and ends. The first child of runc executes runc once more; that of crun only forks again.
RUNTIME = """
import os, sys
kind, *command = sys.argv[1:]

def start():
    if os.fork() == 0:
        os.execvp(command[0], command)

if kind == "runc":
    os.waitpid(os.posix_spawn("/bin/true", ["true"], os.environ), 0)
    start()
elif (helper := os.fork()) == 0:
    start()
    os._exit(0)
else:
    os.waitpid(helper, 0)
"""


@pytest.mark.parametrize("kind", ["runc", "crun"])
@pytest.mark.parametrize(
    "script", ["exit 3", "(sleep 0.1; exit 4) & exit 3", "sh -c 'exit 4'; exit 3", "sleep 0.1; exit 3"]
)
def test_process_that_a_runtime_started_is_found_by_its_descent(
    events: ProcEvents, kind: str, script: str
) -> None:
    before = time.monotonic_ns()
    runtime = subprocess.Popen([sys.executable, "-c", RUNTIME, kind, "sh", "-c", script])
    runtime.wait()
    told(events, runtime.pid, before)
    assert started(events, runtime.pid, before).status == 3 << 8
    assert events.exit_of_started(runtime.pid, time.monotonic_ns()) is None


def test_runtime_that_started_nothing_has_no_process(events: ProcEvents) -> None:
    before = time.monotonic_ns()
    runtime = subprocess.Popen(["sh", "-c", "(:) & wait"])
    runtime.wait()
    told(events, runtime.pid, before)
    assert events.exit_of_started(runtime.pid, before) is None


def test_exits_are_forgotten_in_time(events: ProcEvents, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(procevents, "_KEEP_S", 0.0)
    before = time.monotonic_ns()
    process = subprocess.Popen(["true"])
    process.wait()
    told(events, process.pid, before)
    events.read()
    events.read()
    assert events.exit_of(process.pid, before) is None


def test_queue_that_was_too_short_is_counted_and_read_on(events: ProcEvents) -> None:
    connector: Any = events._socket
    connector.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)  # some 40 messages
    for _ in range(60):
        subprocess.run(["true"], check=True)
    events.read()
    assert events.status() == {"is_listening": True, "lost": 1}
    before = time.monotonic_ns()
    process = subprocess.Popen(["sh", "-c", "exit 9"])
    process.wait()
    assert told(events, process.pid, before).status == 9 << 8


def test_socket_of_an_earlier_process_has_what_ended_meanwhile(events: ProcEvents) -> None:
    before = time.monotonic_ns()
    held = os.dup(events.fileno())
    command = [sys.executable, "-c", RUNTIME, "crun", "sh", "-c", "read -r _; exit 3"]
    running = subprocess.Popen(command, stdin=subprocess.PIPE)
    running.wait()  # its process waits on its stdin
    first = subprocess.Popen(["sh", "-c", "exit 5"])
    first.wait()
    told(events, first.pid, before)
    time.sleep(0.1)
    events.read()
    known = json.loads(json.dumps(events.known()))
    events.leave()
    assert not events.is_listening
    process = subprocess.Popen(["sh", "-c", "exit 6"])
    process.wait()
    running.communicate(b"\n")
    later = ProcEvents()
    assert later.adopt(held, known)
    assert told(later, process.pid, before).status == 6 << 8
    assert told(later, first.pid, before).status == 5 << 8
    assert started(later, running.pid, before).status == 3 << 8
    later.close()


def test_descriptor_that_is_another_is_closed() -> None:
    events = ProcEvents()
    other = socket.socket(socket.AF_UNIX).detach()
    assert not events.adopt(other, {}) and not events.is_listening
    with pytest.raises(OSError):
        os.fstat(other)


def test_socket_that_is_broken_is_closed_and_ends_nothing(events: ProcEvents, monkeypatch) -> None:
    class Broken:
        def recv_into(self, _: object) -> int:
            raise OSError(errno.EIO, "broken")

        def close(self) -> None:
            """It is closed."""

    monkeypatch.setattr(events, "_socket", Broken())
    events.read()
    assert not events.is_listening and events.exit_of(1, 0) is None


def test_nothing_is_known_where_nobody_listens() -> None:
    closed = ProcEvents()
    closed.close()
    assert closed.exit_of(1, 0) is None and closed.exit_of_started(1, 0) is None
    assert closed.status() == {"is_listening": False, "lost": 0}
