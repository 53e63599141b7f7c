"""Killing a call and giving its memory back, on real cgroups and processes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from node import Node, wait_for
from node import node as node

from agentrun.base.errors import CgroupError
from agentrun.cgroups.cgroup import Cgroup
from agentrun.kernel import killing as mrelease

SLEEP = """import sys, time
held = bytearray(b"x") * int(sys.argv[2])
open(sys.argv[1] + '/cgroup.procs', 'w').write('0')
time.sleep(1000)"""


def sleeper(node: Node, path: str, held: int = 0) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-c", SLEEP, path, str(held)])
    node.processes.append(process)
    cgroup = Cgroup(path)
    wait_for(lambda: process.pid in cgroup.pids(), "its move")
    return process


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("frozen", [False, True])
def test_all_in_a_cgroup_and_below_die_and_nothing_stays_open(node, frozen):
    call = Cgroup(str(node.cgroup / "agentrun-calls")).child("call-0")
    inner = call.child("a").child("b")
    for cgroup in (call, call.child("a"), inner):
        cgroup.make()
    both = [sleeper(node, call.path), sleeper(node, inner.path)]
    call.write("cgroup.freeze", str(int(frozen)))
    before = descriptors()
    mrelease.kill(call).freed(10)
    assert [process.wait(timeout=10) for process in both] == [-9, -9]
    assert descriptors() == before


def test_nobody_is_woken_before_all_is_freed_and_the_largest_comes_first(node, monkeypatch):
    path = str(node.cgroup / "agentrun-calls")
    small = sleeper(node, path)
    large = sleeper(node, path, held=64 << 20)
    happened: list[object] = []

    def release(pidfd: int) -> bool:
        time.sleep(0.05)  # whoever is woken now is there first
        rows = Path(f"/proc/self/fdinfo/{pidfd}").read_text().splitlines()
        happened.append(next(int(row.split()[1]) for row in rows if row.startswith("Pid:")))
        return True

    monkeypatch.setattr(mrelease, "release", release)
    monkeypatch.setattr(mrelease, "_SENT_S", 10)
    mrelease.kill(Cgroup(path))
    happened.append("told")
    assert happened == [large.pid, small.pid, "told"]


def test_who_kills_goes_on_while_memory_is_freed(node, monkeypatch):
    path = str(node.cgroup / "agentrun-calls")
    sleeper(node, path)
    may_end = threading.Event()
    monkeypatch.setattr(mrelease, "release", lambda _: may_end.wait(10))
    killing = mrelease.kill(Cgroup(path))
    assert killing.is_alive()
    may_end.set()
    killing.freed(10)
    assert not killing.is_alive()


def test_memory_of_a_process_that_lives_is_not_touched(node):
    path = str(node.cgroup / "agentrun-calls")
    process = sleeper(node, path)
    pidfd = os.pidfd_open(process.pid)
    assert not mrelease.release(pidfd)
    assert process.poll() is None
    process.terminate()
    process.wait(timeout=10)
    assert not mrelease.release(pidfd)  # it is gone
    os.close(pidfd)


def test_call_that_is_gone_is_an_error_and_leaves_nothing_open(node):
    before = descriptors()
    with pytest.raises(CgroupError, match="cgroup.kill"):
        mrelease.kill(Cgroup(str(node.cgroup / "agentrun-calls/call-7")))
    assert descriptors() == before


def test_of_thousands_of_nested_cgroups_only_some_are_looked_at(node, monkeypatch):
    looked: list[str] = []
    pids = Cgroup.pids

    def look(cgroup: Cgroup) -> list[int]:
        looked.append(cgroup.path)
        return pids(cgroup)

    monkeypatch.setattr(Cgroup, "pids", look)
    call = Cgroup(str(node.cgroup / "agentrun-calls")).child("call-0")
    for number in range(100):
        call.make()
        call.child(f"c{number}").make()
    mrelease.kill(call).freed(10)
    assert len(looked) == 64


def test_call_dies_also_where_no_thread_is_to_be_had(node, monkeypatch):
    path = str(node.cgroup / "agentrun-calls")
    process = sleeper(node, path)
    before = descriptors()

    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    mrelease.kill(Cgroup(path)).freed(10)
    assert process.wait(timeout=10) == -9 and descriptors() == before


class Box:
    """The files of a container with calls that take a while to die."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, looks: int = 3) -> None:
        self.weight: str | None = "5"
        self.written: list[str] = []
        self.looks = looks
        self.held = 100 << 20
        monkeypatch.setattr(Cgroup, "read", lambda cgroup, name: self.read(cgroup, name))
        monkeypatch.setattr(Cgroup, "write", lambda cgroup, name, value: self.write(cgroup, name, value))
        monkeypatch.setattr(Cgroup, "is_populated", lambda _: self.is_populated())
        monkeypatch.setattr(Cgroup, "number", lambda _, name: {"memory.current": self.held}[name])

    def read(self, cgroup: Cgroup, name: str) -> str | None:
        assert (cgroup.path, name) == ("/box", "cpu.weight")
        return self.weight

    def write(self, cgroup: Cgroup, name: str, value: str) -> None:
        assert (cgroup.path, name) == ("/box", "cpu.weight")
        self.written.append(value)
        self.weight = value

    def is_populated(self) -> bool:
        self.looks -= 1
        return self.looks >= 0


CALL = Cgroup("/box/agentrun-calls/call-0")


def test_container_of_a_dying_call_has_the_cpu_until_that_is_gone(monkeypatch):
    box = Box(monkeypatch)
    mrelease._hasten(CALL)
    assert box.written == ["10000", "5"] and box.looks < 0


def test_container_has_it_only_as_long_as_the_call_holds_much(monkeypatch):
    box = Box(monkeypatch, looks=1_000_000)
    monkeypatch.setattr(time, "sleep", lambda _: setattr(box, "held", 1 << 20))
    mrelease._hasten(CALL)
    assert box.written == ["10000", "5"] and box.looks > 999_000


def test_container_has_it_for_a_second_at_most(monkeypatch):
    monkeypatch.setattr(mrelease, "_HASTEN_S", 0.05)
    box = Box(monkeypatch, looks=1_000_000)
    mrelease._hasten(CALL)
    assert box.written == ["10000", "5"] and box.looks > 900_000


@pytest.mark.parametrize(
    ("weight", "looks", "held"),
    [(None, 3, 100 << 20), ("10000", 3, 100 << 20), ("5", 0, 100 << 20), ("5", 3, 1 << 20)],
)
def test_share_is_left_alone_where_it_would_not_help(monkeypatch, weight, looks, held):
    box = Box(monkeypatch, looks)
    box.weight, box.held = weight, held
    mrelease._hasten(CALL)
    assert box.written == []


def test_share_that_somebody_changed_meanwhile_stays(monkeypatch):
    box = Box(monkeypatch)
    monkeypatch.setattr(time, "sleep", lambda _: setattr(box, "weight", "50"))
    mrelease._hasten(CALL)
    assert box.written == ["10000"] and box.weight == "50"


def test_share_is_given_back_after_the_last_of_calls_that_die_together(monkeypatch):
    box, shares, container = Box(monkeypatch), mrelease._Shares(), Cgroup("/box")
    assert shares.lift(container) and shares.lift(container)
    shares.give_back(container)
    assert box.weight == "10000"
    shares.give_back(container)
    assert box.weight == "5"


@pytest.mark.parametrize("needed", [False, True])
def test_only_memory_that_others_need_is_hastened(node, monkeypatch, needed):
    path = str(node.cgroup / "agentrun-calls")
    sleeper(node, path)
    hastened: list[str] = []
    monkeypatch.setattr(mrelease, "_hasten", lambda cgroup: hastened.append(cgroup.path))
    mrelease.kill(Cgroup(path), needed=needed).freed(10)
    assert hastened == [path] * needed
