"""The BPF module `mempressure`, and calls that our scheduler parks: real charges, real cgroups, by hand.

Who is marked is read from the map; what follows from it is in test_controller.py (frozen) and here (parked).
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import cpuload
import pytest
from runtimes import require, wait_for
from test_scx import eevdf as eevdf
from test_scx import scheduler

from agentrun.base.errors import BpfError
from agentrun.base.paths import Paths
from agentrun.bpf import mempressure, modules, pins, ringbuf, syscall, types
from agentrun.bpf.mempressure import How, Limit, Member, MemPressure
from agentrun.bpf.syscall import id_key

PATHS = Paths()
MIB = 1 << 20
LIMIT = 200 * MIB
HIGH, LOW = (300, 100), (100, 100)
# Takes megabytes one by one, then stays.
GROW = """
import sys, time
held = []
for _ in range(int(sys.argv[1])):
    held.append(bytearray(b"x") * (1 << 20))
    time.sleep(float(sys.argv[2]))
print("done", flush=True)
time.sleep(1000)
"""
BUDGET = json.loads((Path(__file__).parents[2] / "bpf/budget.json").read_text())

pytestmark = pytest.mark.needs("bpf", "scx")


class Scene:
    """A cgroup of 200 MB with two calls, HIGH and LOW, and what is watched of it."""

    def __init__(self, top: Path, maps: MemPressure) -> None:
        self.top, self.maps = top, maps
        self.calls = {name: top / name / "agentrun-calls/call-0" for name in ("high", "low")}
        self.processes: list[subprocess.Popen[str]] = []

    def grow(self, name: str, mib: int, pause_s: float = 0.0) -> subprocess.Popen[str]:
        """A call that takes so much, with a pause after each megabyte, and keeps it."""
        process = cpuload.start(self.calls[name], GROW, mib, pause_s)
        self.processes.append(process)
        return process

    def hold(self, name: str, mib: int) -> None:
        """Wait until it has all."""
        stdout = self.grow(name, mib).stdout
        assert stdout is not None and stdout.readline() == "done\n"

    def end(self) -> None:
        """Nothing is left in it."""
        (self.top / "cgroup.kill").write_text("1")
        for process in self.processes:
            process.communicate()

    def watch(self, how: How, *, soft: int = 0, tight: int = LIMIT // 3) -> None:
        members = tuple(
            Member(path.stat().st_ino, HIGH if name == "high" else LOW, soft)
            for name, path in self.calls.items()
        )
        self.maps.publish({self.id: Limit(LIMIT, tight, tight + 10 * MIB, members, how)})

    @property
    def id(self) -> int:
        return self.top.stat().st_ino

    def seen(self) -> types.Pressure:
        found = self.maps.read(self.id)
        assert found is not None
        return found

    def mark_of(self, name: str) -> int:
        """Until when (CLOCK_MONOTONIC, ns) a call is marked; 0 for not."""
        with marks() as table:
            return int.from_bytes(table.lookup(id_key(self.calls[name].stat().st_ino)) or b"", sys.byteorder)

    def is_marked(self, name: str) -> bool:
        return self.mark_of(name) > time.monotonic_ns()


@contextlib.contextmanager
def marks() -> Iterator[syscall.Map]:
    table = pins.open_map(f"{pins.SHARED}/ar_marks", "ar_marks")
    try:
        yield table
    finally:
        table.close()


@pytest.fixture
def scene(eevdf) -> Iterator[Scene]:
    require(None if modules.object_path("mempressure") else "bpf/build/mempressure.bpf.o is not built")
    modules.load(PATHS, mempressure.MODULE)
    maps = MemPressure()
    try:
        with cpuload.tree("mempressure", {"high": 400, "low": 100}) as groups:
            top = groups["high"].parent
            for path in (top, *groups.values()):
                (path / "cgroup.subtree_control").write_text("+cpu +memory")
            (top / "memory.max").write_text(str(LIMIT))
            made = Scene(top, maps)
            for path in made.calls.values():
                path.mkdir(parents=True)
                (path.parent / "cgroup.subtree_control").write_text("+cpu +memory")
            yield made
            made.end()
            for folder, _, _ in os.walk(top, topdown=False):
                if Path(folder) not in (top, *groups.values()):
                    cpuload.remove(Path(folder))
    finally:
        maps.close()
        modules.unload(PATHS, mempressure.MODULE)


def told() -> list[ringbuf.Event]:
    with contextlib.closing(ringbuf.open_ring()) as ring:
        return ring.read({int(types.Kind.PRESSURE)})


def test_lower_call_is_marked_and_somebody_told_while_a_higher_one_grows_and_little_is_left(scene):
    scene.watch(How.TELL | How.MARK)
    scene.hold("low", 60)
    assert scene.seen().looks > 0 and not scene.seen().marks, "nobody above it grew, and enough was left"
    told()
    scene.grow("high", 110, 0.05)
    wait_for(lambda: scene.is_marked("low"), "the mark", 60)
    assert not scene.is_marked("high")
    first = wait_for(told, "the event")[0]
    assert first.call == scene.id and 20 < first.value <= LIMIT // 3 // MIB
    (scene.top / "high/cgroup.kill").write_text("1")
    wait_for(lambda: not scene.is_marked("low"), "the mark to end", 10)


QUIET = {
    "enough is left": ("high", 60, {}),
    "the lower one grows itself": ("low", 150, {}),
    "the lower one holds no more than its soft limit": ("high", 110, {"soft": 100 * MIB}),
}


@pytest.mark.parametrize("name", QUIET)
def test_nobody_is_marked_or_told_where(scene, name):
    who, mib, more = QUIET[name]
    scene.watch(How.TELL | How.MARK, **more)
    if who == "high":
        scene.hold("low", 60)
    told()
    scene.hold(who, mib)
    assert scene.seen().looks > 0
    assert (scene.seen().marks, told()) == (0, [])


def test_timer_looks_though_nobody_is_charged_and_ends_with_what_it_looks_at(scene):
    scene.watch(How.MARK | How.TIMER)
    scene.hold("high", 5)
    before = scene.seen().looks
    wait_for(lambda: scene.seen().looks > before + 20, "the timer to look")
    scene.maps.publish({})
    assert scene.maps.read(scene.id) is None
    scene.watch(How.MARK)
    before = scene.seen().looks
    time.sleep(1)
    assert scene.seen().looks == before


def test_nobody_waits_for_ever(scene):
    """Marked for ten seconds, a call has half a second to itself, whatever the others need."""
    scene.watch(How.MARK | How.TIMER)
    scene.hold("low", 60)
    scene.grow("high", 130, 0.2)
    wait_for(lambda: scene.is_marked("low"), "the mark", 60)
    began = time.monotonic()
    low = next(m for m in scene.seen().members if m.id == scene.calls["low"].stat().st_ino)
    wait_for(lambda: next(m for m in scene.seen().members if m.id == low.id).rest_ns, "its rest", 30)
    assert 9 < time.monotonic() - began < 20
    assert not scene.is_marked("low")


def test_program_costs_the_verifier_what_the_budget_says(scene):
    (program,) = modules.status(mempressure.MODULE).programs
    assert program.info.verified_insns <= BUDGET["mempressure"][program.name], program.info.verified_insns


def test_call_below_two_limits_is_watched_for_both(scene):
    inner = scene.top / "high"
    (inner / "memory.max").write_text(str(LIMIT // 2))
    low = Member(scene.calls["low"].stat().st_ino, LOW)
    high = Member(scene.calls["high"].stat().st_ino, HIGH)
    limits = {
        scene.id: Limit(LIMIT, LIMIT // 3, LIMIT // 2, (high, low), How.MARK),
        inner.stat().st_ino: Limit(LIMIT // 2, LIMIT // 6, LIMIT // 4, (high, low), How.MARK),
    }
    scene.maps.publish(limits)
    scene.hold("high", 10)
    assert all(seen and seen.looks for seen in map(scene.maps.read, limits))
    scene.maps.publish({scene.id: limits[scene.id]})
    before = scene.seen().looks
    scene.hold("high", 10)
    assert scene.seen().looks > before


def test_who_opens_the_maps_anew_finds_nothing_of_an_earlier_one(scene):
    scene.watch(How.MARK)
    mark(scene.calls["low"], 60)
    assert scene.is_marked("low")
    with contextlib.closing(MemPressure()) as later:
        assert later.read(scene.id) is None
        assert not scene.is_marked("low")


def test_limits_that_find_no_room_are_named_and_the_others_are_watched(scene):
    member = (Member(scene.calls["low"].stat().st_ino, LOW),)
    many = {number: Limit(LIMIT, 1, 2, member) for number in range(1, 80)}
    with pytest.raises(BpfError, match="limits are not watched"):
        scene.maps.publish(many)
    assert sum(scene.maps.read(number) is not None for number in many) == 64
    scene.maps.publish({1: many[1]})
    assert [number for number in many if scene.maps.read(number)] == [1]


# Parking.


def mark(cgroup: Path, seconds: float) -> None:
    until = time.monotonic_ns() + int(seconds * 1e9)
    with marks() as table:
        table.update(id_key(cgroup.stat().st_ino), until.to_bytes(8, sys.byteorder))


def ran_s(pid: int) -> float:
    """CPU time of a process."""
    return float(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def used_s(cgroup: Path, seconds: float) -> float:
    return cpuload.used_s([cgroup], seconds)[0]


def test_marked_call_gets_no_cpu_and_goes_on_when_its_mark_ends(eevdf):
    with (
        cpuload.tree("park", {"a": 100, "b": 100}) as groups,
        scheduler(parking=1),
        cpuload.burners([(groups["a"], 3), (groups["b"], 1)]),
    ):
        assert used_s(groups["a"], 2) > 0.5
        mark(groups["a"], 60)
        time.sleep(0.5)
        assert used_s(groups["a"], 3) < 0.05
        assert used_s(groups["b"], 2) > 1
        mark(groups["a"], 0)
        assert used_s(groups["a"], 2) > 0.5


BURSTS = """
import time
while True:
    end = time.monotonic() + 0.003
    while time.monotonic() < end:
        pass
    time.sleep(0.003)
"""


def test_marked_call_that_only_runs_for_moments_is_stopped_as_well(eevdf):
    with cpuload.tree("park", {"a": 100}) as groups, scheduler(parking=1):
        process = cpuload.start(groups["a"], BURSTS)
        time.sleep(2)
        assert used_s(groups["a"], 2) > 0.5
        mark(groups["a"], 60)
        time.sleep(1)
        assert used_s(groups["a"], 3) < 0.1
        process.kill()
        process.communicate()


def test_without_parking_marks_mean_nothing(eevdf):
    with (
        cpuload.tree("park", {"a": 100}) as groups,
        scheduler(),
        cpuload.burners([(groups["a"], 2)]),
    ):
        mark(groups["a"], 60)
        time.sleep(0.5)
        assert used_s(groups["a"], 2) > 1


def test_parked_process_dies_when_it_is_killed(eevdf):
    with (
        cpuload.tree("park", {"a": 100}) as groups,
        scheduler(parking=1),
    ):
        process = cpuload.spawn(groups["a"], cpuload.BURN)
        time.sleep(1)
        mark(groups["a"], 60)
        time.sleep(0.5)
        assert used_s(groups["a"], 1) < 0.05
        began = time.monotonic()
        process.kill()
        process.communicate(timeout=30)
        assert time.monotonic() - began < 3


def test_parked_task_whose_cpus_are_changed_is_neither_lost_nor_let_go(eevdf):
    """It leaves its queue and comes back, while others are marked and unmarked."""
    with (
        cpuload.tree("park", {"a": 100, "b": 100}) as groups,
        scheduler(parking=1),
        cpuload.burners([(groups["a"], 4)]) as pids,
    ):
        for turn in range(40):
            mark(groups["a"], 0.2 if turn % 2 else 0)
            for pid in pids:
                os.sched_setaffinity(pid, [turn % 2] if turn % 3 else [0, 1])
                os.setpriority(os.PRIO_PROCESS, pid, turn % 3)
            os.sched_setscheduler(pids[0], turn % 2 * os.SCHED_BATCH, os.sched_param(0))
            (groups[("a", "b")[turn % 2]] / "cgroup.procs").write_text(str(pids[1]))
            time.sleep(0.05)
        for pid in pids:
            os.sched_setaffinity(pid, [0, 1])
        (groups["a"] / "cgroup.procs").write_text(str(pids[1]))
        mark(groups["a"], 60)
        time.sleep(1)
        assert used_s(groups["a"], 2) < 0.1
        mark(groups["a"], 0)
        time.sleep(0.5)
        before = {pid: ran_s(pid) for pid in pids}
        time.sleep(4)
        assert all(ran_s(pid) > before[pid] for pid in pids)


def test_parked_call_can_be_frozen(eevdf):
    with (
        cpuload.tree("park", {"a": 100}) as groups,
        scheduler(parking=1),
        cpuload.burners([(groups["a"], 2)]),
    ):
        mark(groups["a"], 60)
        time.sleep(0.5)
        began = time.monotonic()
        (groups["a"] / "cgroup.freeze").write_text("1")
        events = groups["a"] / "cgroup.events"
        wait_for(lambda: "frozen 1" in events.read_text(), "the freezer", 20)
        assert time.monotonic() - began < 3
        (groups["a"] / "cgroup.freeze").write_text("0")


def test_parked_tasks_go_on_when_the_scheduler_is_gone(eevdf):
    with cpuload.tree("park", {"a": 100}) as groups, cpuload.burners([(groups["a"], 2)]):
        with scheduler(parking=1):
            mark(groups["a"], 600)
            time.sleep(0.5)
            assert used_s(groups["a"], 1) < 0.05
        assert used_s(groups["a"], 2) > 1


def test_call_that_is_marked_for_long_runs_now_and_then_and_the_scheduler_stays(eevdf):
    with (
        cpuload.tree("park", {"a": 100, "b": 100}) as groups,
        scheduler(parking=1, patience_ns=1_000_000_000),
        cpuload.burners([(groups["a"], 2), (groups["b"], 1)]),
    ):
        mark(groups["a"], 600)
        time.sleep(1)
        assert 0 < used_s(groups["a"], 10) < 1
