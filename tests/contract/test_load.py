"""Many calls: none is lost, and agentrund and its keeper stay as small as they were."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from node import TREE, Node, keeper, wait_for

from agentrun.client import Client

BULK = TREE / "tests/support/bulk.py"
LIVE = 1000
LIVE_KIB = 40 << 10
MANY = 10_000
SECONDS = 40  # a machine that is busy otherwise gets through fewer
GROWTH_KIB = 3 << 10
RATE = 100
KILLED_AMONG = 500
AT_ONCE = 40
UNPACED = 1e6


def bulk(node: Node, count: int, rate: float, at_once: int, *command: str) -> subprocess.Popen[str]:
    """Start many calls, `rate` a second, of which `at_once` may live; fewer, if that takes too long."""
    where = (BULK, TREE, node.root, node.cgroup)
    argv = [sys.executable, "-I", "-S", *where, count, SECONDS, rate, at_once, *command]
    pipe = subprocess.PIPE
    return subprocess.Popen(list(map(str, argv)), env=node.environment, stdout=pipe, stderr=pipe, text=True)


def use(pid: int) -> tuple[int, int]:
    """Descriptors and KiB of memory of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    return len(list(Path(f"/proc/{pid}/fd").iterdir())), int(status.split("VmRSS:")[1].split()[0])


def threads(pid: int) -> int:
    """Threads of a process."""
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


def watches(pid: int) -> int:
    """inotify watches of a process. Other descriptors come and go while one looks."""
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            if os.readlink(fd) == "anon_inode:inotify":
                return Path(f"/proc/{pid}/fdinfo/{fd.name}").read_text().count("inotify wd:")
    raise AssertionError("no inotify")


def recorded(node: Node) -> list[str]:
    """Ids of the finished calls, from the store: the journal is renamed when it has grown."""
    return [record["id"] for record in Client(node.paths).calls() if record["end"]]


def run(node: Node, count: int, rate: float, *command: str) -> set[str]:
    """Start many calls and wait for all; returns their ids."""
    process = bulk(node, count, rate, AT_ONCE, *command)
    try:
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert (process.returncode, err) == (0, "")
    return set(out.split())


def test_calls_by_the_thousand_leave_nothing_behind(node):
    node.start()
    assert node.daemon
    daemon, held = node.daemon.pid, keeper(node)
    began = time.monotonic()
    ids = run(node, MANY // 10, UNPACED, "/bin/true")
    wait_for(lambda: len(recorded(node)) >= len(ids), "all records", 30)
    before = use(daemon), use(held), watches(daemon)
    before_threads = threads(daemon), threads(held)
    ids |= run(node, MANY - len(ids), UNPACED, "/bin/true")
    wait_for(lambda: len(recorded(node)) >= len(ids), "all records", 30)
    found = recorded(node)
    assert len(found) == len(ids) > MANY // 10 and set(found) == ids
    wait_for(lambda: not list((node.cgroup / "agentrun-calls").glob("call-*")), "the cgroups to be removed")
    wait_for(lambda: use(daemon)[0] <= before[0][0], "descriptors to be closed", 5)
    for pid, (descriptors, memory) in ((daemon, before[0]), (held, before[1])):
        now = use(pid)
        assert now[0] <= descriptors + 1 and now[1] <= memory + GROWTH_KIB, (now, descriptors, memory)
    assert (threads(daemon), threads(held)) == before_threads
    assert watches(daemon) <= before[2]
    print(f"{len(ids)} calls in {time.monotonic() - began:.0f} s; {before} -> {use(daemon)}, {use(held)}")


def test_a_hundred_calls_a_second_are_all_seen_to_their_end(node):
    node.start()
    ids = run(node, 10 * RATE, RATE, "/bin/sh", "-c", "sleep 0.1; exit 3")
    wait_for(lambda: len(recorded(node)) >= len(ids), "all records", 20)
    records = node.records()
    assert len(records) == len(ids) == 10 * RATE
    assert {record["id"] for record in records} == ids
    assert {record["end_is"] for record in records} == {"seen"}
    assert {record["exit_code"] for record in records} == {3}


def test_daemon_killed_at_any_moment_of_500_calls_costs_no_record(node):
    """A crash between two steps may write a line of the journal twice; whoever reads sees each call once."""
    dice = random.Random(1)
    node.start()
    process = bulk(node, KILLED_AMONG, RATE // 2, AT_ONCE, "/bin/sh", "-c", "sleep 0.2; exit 3")
    kills = 0
    while process.poll() is None:
        time.sleep(dice.uniform(0.1, 0.9))
        node.stop(signal.SIGKILL)
        node.start()
        kills += 1
    out, err = process.communicate()
    assert (process.returncode, err) == (0, "") and kills >= 3
    ids = out.split()
    client = Client(node.paths)
    wait_for(lambda: all(r["end"] for r in client.calls()), "the end of all", 30)
    assert sorted(record["id"] for record in client.calls()) == sorted(ids) and len(ids) == KILLED_AMONG
    assert not list((node.cgroup / "agentrun-calls").glob("call-*"))


def test_a_thousand_live_calls_take_little_memory(node):
    node.start()
    assert node.daemon
    process = bulk(node, LIVE, UNPACED, LIVE * 2, "/bin/sleep", "1000")
    calls_cgroup = node.cgroup / "agentrun-calls"
    wait_for(lambda: len(list(calls_cgroup.glob("call-*"))) == LIVE, "all calls", 60)
    held = keeper(node)
    wait_for(lambda: use(held)[0] >= LIVE, "all to be held", 30)
    used = use(node.daemon.pid), use(held)
    print(f"{LIVE} live calls: agentrund {used[0]}, keeper {used[1]} (descriptors, KiB)")
    assert used[0][1] < LIVE_KIB and used[1][1] < LIVE_KIB
    (node.cgroup / "cgroup.kill").write_text("1")
    out, _ = process.communicate(timeout=60)
    wait_for(lambda: len(recorded(node)) == LIVE, "all records", 60)
    assert {record["id"] for record in node.records()} == set(out.split())
