"""How soon the memory of a killed call that has hardly any CPU is there for others, on a real kernel."""

from __future__ import annotations

import functools
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from inside import TAKE, begin, remove
from runtimes import CGROUP, wait_for

from agentrun.cgroups.cgroup import Cgroup
from agentrun.kernel import killing as mrelease

MIB = 1 << 20
HELD = 200
LONG_S = 20  # with a ten thousandth of a CPU it has not ended after two minutes
TOP = CGROUP / "agentrun-mrelease"
BURN = 'print("there", flush=True)\nwhile True: pass\n'

# On the one CPU of the fast guest a call often ends in the slice that it gets when it wakes.
pytestmark = pytest.mark.needs("cpus:2")


@pytest.fixture
def busy(host) -> Iterator[Path]:
    """A cgroup of the least weight beside one that wants every CPU four times over."""
    made: list[subprocess.Popen[str]] = []
    burners, victim = TOP / "burners", TOP / "victim"
    TOP.mkdir()
    (TOP / "cgroup.subtree_control").write_text("+memory +cpu")
    burners.mkdir()
    victim.mkdir()
    (burners / "cpu.weight").write_text("10000")
    try:
        made += [begin(BURN, burners) for _ in range(4 * (os.cpu_count() or 1))]
        yield victim
    finally:
        remove(TOP, made)


def seconds_until_given_back(
    victim: Path, kill: Callable[[Cgroup], object], call: Path | None = None
) -> float:
    """A frozen call of 200 MB is killed: until nine tenths of it are there again, or LONG_S.

    `victim` has the share, `call` (itself, or a cgroup below) the process.
    """
    call = call or victim
    (victim / "cpu.weight").write_text("10000")
    process = begin(TAKE, call, str(HELD))
    (victim / "cpu.weight").write_text("1")
    (call / "cgroup.freeze").write_text("1")
    wait_for(lambda: "frozen 1" in (call / "cgroup.events").read_text(), "it to be frozen")
    used = victim / "memory.current"
    assert int(used.read_text()) > HELD * MIB
    began = time.monotonic()
    killing = kill(Cgroup(str(call)))
    while int(used.read_text()) > HELD * MIB / 10 and time.monotonic() - began < LONG_S:
        time.sleep(0.001)
    took = time.monotonic() - began
    if isinstance(killing, threading.Thread):
        killing.join(LONG_S)
    if call != victim:
        assert (victim / "cpu.weight").read_text() == "1\n"
    (call / "cgroup.freeze").write_text("0")
    (victim / "cpu.weight").write_text("10000")
    process.wait(timeout=120)
    return took


def test_memory_of_a_killed_call_is_there_long_before_it_has_run_again(busy):
    def as_before(cgroup: Cgroup) -> None:
        cgroup.write("cgroup.kill", "1")

    own, freed = [], []
    for _ in range(2):
        own.append(seconds_until_given_back(busy, as_before))
        freed.append(seconds_until_given_back(busy, mrelease.kill))
    print(f"\nown exit {own}, process_mrelease {freed} s")
    assert max(freed) < min(own) / 2


def test_call_that_was_faster_than_we_are_has_the_cpu_to_free_its_memory(busy, monkeypatch):
    monkeypatch.setattr(mrelease, "release", lambda _: False)
    # To free 200 MB takes an emulated CPU, of which it has half, up to two seconds.
    monkeypatch.setattr(mrelease, "_HASTEN_S", 10 * mrelease._HASTEN_S)
    call = busy / "agentrun-calls/call-0"
    call.mkdir(parents=True)
    for path in (busy, call.parent):
        (path / "cgroup.subtree_control").write_text("+memory +cpu")
    own = seconds_until_given_back(busy, mrelease.kill, call)
    hastened = seconds_until_given_back(busy, functools.partial(mrelease.kill, needed=True), call)
    print(f"\nwith its own share {own} s, hastened {hastened} s")
    assert hastened < own / 2
