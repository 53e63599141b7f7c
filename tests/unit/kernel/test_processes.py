"""Which process is which, on real ones."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator

import pytest

from agentrun.kernel import processes


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    """A process of ours that lives until its stdin is closed."""
    process = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.communicate()


def test_process_that_lives_is_not_dying(child):
    assert not processes.is_dying(child.pid)


def test_process_that_is_stopped_is_not_dying(child):
    child.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, child.pid, os.WSTOPPED)
    assert not processes.is_dying(child.pid)


def test_process_that_has_ended_is_dying_though_it_is_not_reaped(child):
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert processes.is_dying(child.pid)


def test_process_that_is_gone_is_dying(child):
    child.kill()
    child.wait()
    assert processes.is_dying(child.pid)


STATUS = "Name:\tpython3\nState:\tD (disk sleep)\nSigPnd:\t{:016x}\nShdPnd:\t{:016x}\nSigBlk:\t{:016x}\n"
SIGKILL, SIGTERM = 1 << 8, 1 << 14


@pytest.mark.parametrize(
    ("own", "shared", "is_killed"),
    [(SIGKILL, 0, True), (SIGTERM, SIGKILL | SIGTERM, True), (SIGTERM, SIGTERM, False), (0, 0, False)],
)
def test_process_that_was_killed_and_has_not_run_since_is_told_by_its_pending_signals(own, shared, is_killed):
    assert processes.has_sigkill_pending(STATUS.format(own, shared, SIGKILL)) == is_killed
