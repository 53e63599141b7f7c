"""Exits that the kernel tells of, on real processes; and of which kind of call they are the end."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from agentrun import exits as module
from agentrun.exits import Exits


@pytest.fixture
def exits() -> Iterator[Exits]:
    made = Exits()
    try:
        made.start()
    except OSError as error:
        reason = f"the kernel does not tell us of exits: {error}"
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    yield made
    made.close()


def told(exits: Exits, pid: int, since_ns: int) -> module.Exit:
    """What is told of a process; that comes a moment after its parent can reap it."""
    deadline = time.monotonic() + 5
    while (found := exits.of(pid, since_ns)) is None:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    return found


@pytest.mark.parametrize(
    ("script", "status"),
    [("true", 0), ("exit 7", 7 << 8), ("exit 137", 137 << 8), ("kill -9 $$", 9), ("kill $$", 15)],
)
def test_status_of_a_process_that_is_gone_is_known(exits: Exits, script: str, status: int) -> None:
    before = time.monotonic_ns()
    process = subprocess.Popen(["sh", "-c", script])
    process.wait()
    found = told(exits, process.pid, before)
    assert (found.status, found.parent) == (status, os.getpid())
    assert before < found.at_ns < time.monotonic_ns()


def test_process_that_a_thread_ends_has_the_status_of_all(exits: Exits) -> None:
    script = "import os, threading, time\nthreading.Thread(target=os._exit, args=(7,)).start()\ntime.sleep(9)"
    before = time.monotonic_ns()
    process = subprocess.Popen([sys.executable, "-c", script])
    process.wait()
    assert told(exits, process.pid, before).status == 7 << 8


def test_exit_of_an_earlier_process_with_that_pid_is_another(exits: Exits) -> None:
    before = time.monotonic_ns()
    process = subprocess.Popen(["true"])
    process.wait()
    told(exits, process.pid, before)
    assert exits.of(process.pid, time.monotonic_ns()) is None


def test_latest_child_of_a_process_is_found_by_its_parent(exits: Exits) -> None:
    before = time.monotonic_ns()
    for code in (3, 4):
        process = subprocess.Popen(["sh", "-c", f"exit {code}"])
        process.wait()
        told(exits, process.pid, before)
    found = exits.of_last_child(os.getpid(), before)
    assert found is not None and found.status == 4 << 8
    assert exits.of_last_child(os.getpid(), time.monotonic_ns()) is None


def test_exits_are_forgotten_in_time(exits: Exits, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_KEEP_S", 0.0)
    before = time.monotonic_ns()
    process = subprocess.Popen(["true"])
    process.wait()
    told(exits, process.pid, before)
    exits.read()
    exits.read()
    assert exits.of(process.pid, before) is None


def test_queue_that_was_too_short_is_counted_and_read_on(exits: Exits) -> None:
    connector: Any = exits._socket
    connector.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)  # the least that there is
    for _ in range(30):
        subprocess.run(["true"], check=True)
    exits.read()
    assert exits.status() == {"is_listening": True, "lost": 1}
    before = time.monotonic_ns()
    process = subprocess.Popen(["sh", "-c", "exit 9"])
    process.wait()
    assert told(exits, process.pid, before).status == 9 << 8


def test_nothing_is_known_where_nobody_listens() -> None:
    closed = Exits()
    closed.close()
    assert closed.of(1, 0) is None and closed.of_last_child(1, 0) is None
    assert closed.status() == {"is_listening": False, "lost": 0}
