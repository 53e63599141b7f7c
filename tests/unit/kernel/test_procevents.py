"""Processes that the kernel tells of, after they are gone."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
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
    """What is told of a process that was forked since then; a moment after its parent can reap it."""
    deadline = time.monotonic() + 5
    while (found := ended(events, pid, since_ns)) is None:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    return found


def ended(events: ProcEvents, pid: int, since_ns: int) -> procevents.Exit | None:
    """The same, if it was told."""
    events.read()
    return events.exit_of(pid, since_ns, time.monotonic_ns())


def started(events: ProcEvents, runtime: int, since_ns: int, kind: str) -> procevents.Exit:
    """What is told of the process that a runtime started, which is over."""
    told(events, runtime, since_ns)
    deadline = time.monotonic() + 5
    while (pid := events.started_by(runtime, since_ns, kind)) is None:  # ours does not wait for its execve
        assert time.monotonic() < deadline
        time.sleep(0.001)
        events.read()
    return told(events, pid, since_ns)


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
    assert ended(events, process.pid, time.monotonic_ns()) is None


# Starts a process and ends. The first child of runc executes runc once more, the second only forks, the third
# becomes the process. The child of crun only forks again.
RUNTIME = """
import os, sys
kind, *command = sys.argv[1:]

def start():
    if os.fork() == 0:
        os.execvp(command[0], command)

if kind == "runc":
    os.waitpid(os.posix_spawn("/bin/true", ["true"], os.environ), 0)
    if (second := os.fork()) == 0:
        os._exit(0)
    os.waitpid(second, 0)
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
    assert started(events, runtime.pid, before, kind).status == 3 << 8
    assert events.started_by(runtime.pid, time.monotonic_ns(), kind) is None


EXIT, EXEC, FORK = procevents._EXIT, procevents._EXEC, procevents._FORK
# runc (1): what it executes first (2), what only forks (3), the process (4), which starts something (5).
RUNC = [
    (FORK, 1, 1, 2, 2), (EXEC, 2, 2, 0, 0), (FORK, 1, 1, 3, 3), (EXIT, 2, 2, 0, 17), (FORK, 1, 1, 4, 4),
    (EXIT, 3, 3, 0, 17), (EXEC, 4, 4, 0, 0), (EXIT, 1, 1, 0, 17), (FORK, 4, 4, 5, 5), (EXEC, 5, 5, 0, 0),
    (EXIT, 4, 4, 3 << 8, 17), (EXIT, 5, 5, 0, 17),
]  # fmt: skip
# crun (1): what only forks (2), the process (3), which starts something (4).
CRUN = [
    (FORK, 1, 1, 2, 2), (FORK, 2, 2, 3, 3), (EXIT, 2, 2, 0, 17), (EXEC, 3, 3, 0, 0), (EXIT, 1, 1, 0, 17),
    (FORK, 3, 3, 4, 4), (EXEC, 4, 4, 0, 0), (EXIT, 3, 3, 3 << 8, 17), (EXIT, 4, 4, 0, 17),
]  # fmt: skip
STARTS = {"runc": (RUNC, 4), "crun": (CRUN, 3)}


def tell(events: ProcEvents, told: Sequence[tuple[int, ...]]) -> ProcEvents:
    """Events, one a microsecond."""
    for at, (what, *words) in enumerate(told, 1):
        events._take(what, 0, at * 1000, *words)
    return events


@pytest.mark.parametrize("kind", STARTS)
def test_event_that_was_lost_makes_no_other_process_of_it(kind: str) -> None:
    told, process = STARTS[kind]
    assert tell(ProcEvents(), told).started_by(1, 1, kind) == process
    for lost in range(len(told)):
        events = tell(ProcEvents(), told[:lost] + told[lost + 1 :])
        found = events.started_by(1, 1, kind)
        assert found in (process, None), told[lost]
        end = None if found is None else events.exit_of(found, 1, 1 << 40)
        assert end is None or end.status == 3 << 8, told[lost]


def test_nothing_is_concluded_from_before_a_gap() -> None:
    events = tell(ProcEvents(), RUNC)
    events._gap_ns = 500
    assert (events.started_by(1, 400, "runc"), events.started_by(1, 600, "runc")) == (None, 4)


def test_thread_that_ends_says_nothing_of_its_process() -> None:
    """runc's init has threads, which end as it executes the command."""
    events = tell(ProcEvents(), [(FORK, 1, 1, 7, 7), (EXIT, 8, 7, 0, 17), (EXEC, 7, 7, 0, 0)])
    assert events.exit_of(7, 1, 9000) is None
    tell(events, [(EXIT, 9, 7, 0, 17)])
    assert events.exit_of(7, 1, 9000) is None
    events._take(EXIT, 0, 9000, 7, 7, 3 << 8, 17)
    assert events.exit_of(7, 1, 9000) == (3 << 8, 9000)


def test_first_thread_that_leaves_leaves_the_status_to_the_last_one() -> None:
    told = [(FORK, 1, 1, 7, 7), (EXIT, 7, 7, 0, 17), (EXIT, 8, 7, 5 << 8, 17)]
    assert tell(ProcEvents(), told).exit_of(7, 1, 9000) == (5 << 8, 3000)


def test_pid_that_is_used_again_is_another_process() -> None:
    told = [(FORK, 1, 1, 7, 7), (EXIT, 7, 7, 3 << 8, 17), (FORK, 2, 2, 7, 7), (EXIT, 7, 7, 0, 17)]
    events = tell(ProcEvents(), told)
    assert events.exit_of(7, 1, 2000) is None and events.exit_since(7, 1, 2000) is None
    assert events.exit_of(7, 2500, 9000) == events.exit_since(7, 1, 3500) == (0, 4000)


def test_process_from_before_anything_was_told_is_known_by_when_it_was_seen() -> None:
    events = tell(ProcEvents(), [(EXIT, 7, 7, 3 << 8, 17)])
    assert events.exit_of(7, 0, 9000) is None
    assert events.exit_since(7, 500, 600) == (3 << 8, 1000)
    assert events.exit_since(7, 1500, 1600) is None


def test_runtime_that_started_nothing_has_no_process(events: ProcEvents) -> None:
    before = time.monotonic_ns()
    runtime = subprocess.Popen(["sh", "-c", "(:) & wait"])
    runtime.wait()
    told(events, runtime.pid, before)
    assert [events.started_by(runtime.pid, before, kind) for kind in ("runc", "crun")] == [None, None]


def test_exits_are_forgotten_in_time(events: ProcEvents, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(procevents, "_KEEP_S", 0.0)
    before = time.monotonic_ns()
    process = subprocess.Popen(["true"])
    process.wait()
    told(events, process.pid, before)
    events.read()
    events.read()
    assert ended(events, process.pid, before) is None


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
    assert started(later, running.pid, before, "crun").status == 3 << 8
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
    assert not events.is_listening and events.exit_of(1, 0, 0) is None


def test_nothing_is_known_where_nobody_listens() -> None:
    closed = ProcEvents()
    closed.close()
    assert closed.exit_of(1, 0, 0) is None and closed.started_by(1, 0, "runc") is None
    assert closed.status() == {"is_listening": False, "lost": 0}
