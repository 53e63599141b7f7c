"""Guarantees that are not used: what the kernel lends by itself, and why the agent's reserve is not lent.

Plain cgroups, no engine: these are facts about the kernel that docs/memory.md relies on.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cgroups import placed
from cpuload import usage_s, used_s
from runtimes import CGROUP, wait_for

MIB = 1 << 20
LIMIT = 300 * MIB
RESERVE = 64 * MIB
SLOW_S = 150
TAKE = "import sys, time\nx = bytearray(int(sys.argv[1]) << 20)\nprint('taken', flush=True)\ntime.sleep(1000)"
BURN = ("sh", "-c", "while :; do :; done")


class Tree:
    """A cgroup of 300 MB without swap, with two below it."""

    def __init__(self, path: Path, names: tuple[str, str]) -> None:
        self.path = path
        self.processes: list[subprocess.Popen[str]] = []
        (CGROUP / "cgroup.subtree_control").write_text("+memory +cpu")
        path.mkdir()
        self.write("memory.max", LIMIT)
        self.write("memory.swap.max", 0)
        self.write("cgroup.subtree_control", "+memory +cpu")
        self.children = [path / name for name in names]
        for child in self.children:
            child.mkdir()

    def write(self, name: str, value: object) -> None:
        (self.path / name).write_text(str(value))

    def start(self, child: Path, *command: str) -> subprocess.Popen[str]:
        """Run a command in one of them."""
        process = subprocess.Popen(placed(child, *command), stdout=subprocess.PIPE, text=True)
        self.processes.append(process)
        return process

    def take(self, child: Path, megabytes: int) -> bool:
        """Have a process take memory and hold it; whether it lived to say so."""
        process = self.start(child, "python3", "-c", TAKE, str(megabytes))
        assert process.stdout
        return process.stdout.readline() == "taken\n"

    def remove(self) -> None:
        self.write("cgroup.kill", 1)
        for process in self.processes:
            process.communicate(timeout=SLOW_S)
        wait_for(lambda: "populated 0" in (self.path / "cgroup.events").read_text(), "all to end")
        for folder in (*self.children, self.path):
            os.rmdir(folder)


@pytest.fixture
def tree(host, request) -> Iterator[Tree]:
    made = Tree(CGROUP / f"agentrun-lending-{os.getpid()}", getattr(request, "param", ("high", "low")))
    yield made
    made.remove()


def number(path: Path, name: str) -> int:
    return int((path / name).read_text())


@pytest.fixture
def file() -> Iterator[Path]:
    """A file on a disk; /tmp is memory."""
    path = Path(f"/var/tmp/agentrun-lending-{os.getpid()}")
    yield path
    path.unlink(missing_ok=True)


def test_memory_low_that_is_not_used_costs_nobody_and_is_back_at_once(tree, file):
    high, low = tree.children
    (high / "memory.low").write_text(str(200 * MIB))
    done = tree.start(low, "dd", "if=/dev/zero", f"of={file}", "bs=1M", "count=250", "conv=fsync")
    assert done.wait(SLOW_S) == 0
    lent = number(low, "memory.current")
    assert lent > 220 * MIB  # of 300 in all, 200 of them promised to high
    assert tree.take(high, 200)
    assert number(low, "memory.current") < lent - 100 * MIB
    assert "oom_kill 0" in (tree.path / "memory.events").read_text()


def test_share_of_cpu_that_is_not_used_costs_nobody_and_is_back_at_once(tree):
    high, low = tree.children
    for child, weight in ((high, 400), (low, 25)):
        (child / "cpu.weight").write_text(str(weight))
    cpus = str(min(os.sched_getaffinity(0)))
    tree.start(low, "taskset", "-c", cpus, *BURN)
    alone = used_s([low], 2)[0] / 2
    tree.start(high, "taskset", "-c", cpus, *BURN)
    wait_for(lambda: usage_s(high) > 0.05, "high to run")
    of_high, of_low = used_s([high, low], 2)
    print("CPUs of low alone", alone, "high and low together", of_high / 2, of_low / 2)
    assert of_high > 4 * of_low  # 16 by weight
    assert alone > 5 * of_low / 2


@pytest.mark.parametrize("tree", [("agentrun-agent", "agentrun-calls")], indirect=True)
@pytest.mark.parametrize("is_lent", [False, True], ids=["kept", "lent"])
def test_reserve_of_the_agent_would_not_come_back(tree, is_lent):
    """A call fills memory that has no process (tmpfs), and ends: what it took of the reserve is gone."""
    agent, calls = tree.children
    (agent / "memory.min").write_text(str(RESERVE))
    (agent / "memory.low").write_text(str(RESERVE))
    (calls / "memory.max").write_text("max" if is_lent else str(LIMIT - RESERVE))
    file = Path("/dev/shm") / tree.path.name
    try:
        call = tree.start(calls, "dd", "if=/dev/zero", f"of={file}", "bs=1M", "count=290")
        call.wait(SLOW_S)
        (calls / "memory.max").write_text(str(LIMIT - RESERVE))  # it is wanted back
        left = number(calls, "memory.current") >> 20
        lives = tree.take(agent, 50)
        print("call's status", call.returncode, "MiB left of it", left, "agent lives", lives)
        assert lives is not is_lent
    finally:
        with contextlib.suppress(FileNotFoundError):
            file.unlink()
