"""Which cgroup is which call, on real cgroups (only the counters are the test's), and how a trace ends."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import pytest
from node import Node, wait_for
from node import node as node

from agentrun.calls.session import open_where
from agentrun.cgroups.cgroup import Cgroup
from agentrun.trace import collector, rows, run, source, target
from agentrun.trace.rows import Row
from agentrun.trace.source import Counts, Reading


class Scripted:
    """Counters that the test sets, and what was dropped."""

    def __init__(self) -> None:
        self.reading = Reading()
        self.forgotten: list[int] = []

    def read(self) -> Reading:
        return self.reading

    def forget(self, cgroup_id: int, syscalls: Iterable[int]) -> None:
        self.forgotten.append(cgroup_id)
        self.reading.counts.pop(cgroup_id, None)
        self.reading.syscalls.pop(cgroup_id, None)

    def syscall_name(self, number: int) -> str:
        return {0: "read", 1: "write"}[number]


@pytest.fixture
def traced(node: Node):
    (node.cgroup / "agentrun-agent").mkdir()
    first = node.call("sleep", "100", command={"name": "sleep"})
    found = target.find(node.paths, "c1")
    script = Scripted()
    return SimpleNamespace(
        node=node, first=first, target=found, script=script,
        collector=collector.Collector(node.paths, found, script),
    )  # fmt: skip


def inode(node: Node, slot: str) -> int:
    return (node.cgroup / "agentrun-calls" / slot).stat().st_ino


def by_id(shown: list[Row]) -> dict[str, Row]:
    return {row.id: row for row in shown}


def test_counters_are_those_of_the_call_with_that_cgroup(traced):
    second = traced.node.call("sleep", "100", command={"name": "other"})
    traced.script.reading.counts[inode(traced.node, "call-1")] = Counts(faults=7)
    traced.script.reading.syscalls[inode(traced.node, "call-0")] = {0: (3, 500)}
    shown = by_id(traced.collector.sample())
    assert set(shown) == {"agent", traced.first, second}
    assert (shown[second].command, shown[second].done.counts.faults) == ("other", 7)
    assert shown[traced.first].done.syscalls == {"read": (3, 500)}
    assert shown["agent"].done.counts == Counts() == shown[traced.first].done.counts


def test_slot_that_is_taken_again_is_another_call(traced):
    old = inode(traced.node, "call-0")
    traced.script.reading.counts[old] = Counts(faults=1)
    (traced.node.cgroup / "agentrun-calls/call-0/cgroup.kill").write_text("1")
    wait_for(
        lambda: traced.node.reap() or not Cgroup(f"{traced.target.calls.path}/call-0").is_populated(),
        "its end",
    )
    session = open_where(traced.node.paths, traced.target.where)
    assert session and session.harvest() == 1
    session.close()
    second = traced.node.call("sleep", "100")
    traced.script.reading.counts[inode(traced.node, "call-0")] = Counts(faults=2)
    shown = by_id(traced.collector.sample())
    assert [(shown[i].state, shown[i].done.counts.faults) for i in (traced.first, second)] == [
        (rows.ENDED, 1), (rows.LIVE, 2),
    ]  # fmt: skip
    # What ended makes room in the tables, and stays in the sum.
    shown = by_id(traced.collector.sample())
    assert traced.script.forgotten == [old]
    assert by_id(traced.collector.sample())[traced.first].done.counts.faults == 1


def test_call_that_nobody_saw_alive_is_counted_with_its_like(traced):
    for number in (998, 999):
        traced.script.reading.counts[number] = Counts(faults=number)
        shown = by_id(traced.collector.sample())
    assert shown["short calls"].done.counts.faults == 998 + 999
    assert traced.script.forgotten == [998, 999]


def test_number_of_rows_is_bounded(traced, monkeypatch):
    monkeypatch.setattr(collector, "KEPT_ENDED", 2)
    for number in range(5):
        made = collector.Member(5000 + number, f"old{number}", "x", rows.ENDED, Cgroup("/nowhere"))
        traced.collector._members[made.cgroup_id] = made
        traced.script.reading.counts[made.cgroup_id] = Counts(faults=1)
    shown = by_id(traced.collector.sample())
    assert set(shown) == {"agent", traced.first, "old3", "old4", "short calls"}
    assert shown["short calls"].done.counts.faults == 3


def test_record_completes_what_ended_between_two_looks(traced):
    (traced.node.cgroup / "agentrun-calls/call-0/cgroup.kill").write_text("1")
    traced.node.processes[0].wait(timeout=10)
    traced.collector.sample()
    record = {"cpu_usage_us": 10**9, "cpu_throttled_us": 2 * 10**9, "memory_peak": 5}
    traced.collector.complete({traced.first: record})
    done = by_id(traced.collector.rows())[traced.first]
    assert done.done.cpu_us and done.done.cpu_us > 9 * 10**8 and done.peak == 5


class Kept:
    """An output that keeps what it is told."""

    def __init__(self) -> None:
        self.intervals: list[list[Row]] = []
        self.end: list[Row] | None = None

    def interval(self, shown: list[Row], took_s: float) -> None:
        self.intervals.append(shown)

    def summary(self, shown: list[Row], took_s: float, lost: int) -> None:
        self.end = shown


def follow(traced, **options: Any) -> tuple[Kept, float]:
    kept, began = Kept(), time.monotonic()
    with run._interruptible():
        run._follow(
            traced.node.paths, traced.target, traced.script, run.Options(source.WHAT, **options), kept
        )
    return kept, time.monotonic() - began


def test_trace_ends_after_its_seconds_with_a_summary(traced):
    kept, took_s = follow(traced, seconds=0.5, interval=0.2)
    assert 0.5 <= took_s < 3 and len(kept.intervals) == 3
    assert kept.end is not None and set(by_id(kept.end)) == {"agent", traced.first}


def test_trace_ends_with_its_container(traced):
    kill = threading.Timer(0.3, (traced.node.cgroup / "cgroup.kill").write_text, ["1"])
    kill.start()
    reaper = threading.Timer(0.4, traced.node.reap)
    reaper.start()
    kept, _ = follow(traced, seconds=20, interval=15)
    kill.join()
    assert kept.end is not None and by_id(kept.end)[traced.first].state == rows.ENDED


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_ends_a_trace_with_its_summary(traced, number):
    threading.Timer(0.3, os.kill, [os.getpid(), number]).start()
    kept, took_s = follow(traced, interval=30)
    assert took_s < 10 and kept.end is not None


def test_short_call_is_seen_between_two_looks(traced):
    made: list[str] = []
    threading.Timer(0.2, lambda: made.append(traced.node.call("true", command={"name": "true"}))).start()
    kept, _ = follow(traced, seconds=1, interval=0.9)
    assert kept.end is not None and by_id(kept.end)[made[0]].command == "true"
