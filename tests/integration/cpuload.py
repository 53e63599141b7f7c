"""CPU load in cgroups of its own, and what each cgroup got of it. Emulated times mean ratios only."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
SETTLE_S = 1.0

BURN = ("sh", "-c", "while :; do :; done")
# Prints how late each of the wake-ups was, in microseconds.
SLEEPER = """
import sys, time
count, pause = int(sys.argv[1]), float(sys.argv[2])
late = []
for _ in range(count):
    before = time.monotonic()
    time.sleep(pause)
    late.append(int((time.monotonic() - before - pause) * 1e6))
print(*late)
"""
SPAWN = """
import os, sys, time
before = time.monotonic()
for _ in range(int(sys.argv[1])):
    os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)
print(time.monotonic() - before)
"""
COUNT = """
import sys, time
before = time.monotonic()
total = 0
for i in range(int(sys.argv[1])):
    total += i
print(time.monotonic() - before)
"""


@contextlib.contextmanager
def tree(name: str, weights: dict[str, int]) -> Iterator[dict[str, Path]]:
    """A cgroup with children of the given cpu.weight; at the end all in it is killed and it is removed."""
    (CGROUP / "cgroup.subtree_control").write_text("+cpu +memory +pids")
    parent = CGROUP / f"{name}-{os.getpid()}"
    parent.mkdir()
    try:
        (parent / "cgroup.subtree_control").write_text("+cpu")
        children = {}
        for child, weight in weights.items():
            children[child] = parent / child
            children[child].mkdir()
            (children[child] / "cpu.weight").write_text(str(weight))
        yield children
    finally:
        (parent / "cgroup.kill").write_text("1")
        for directory in [*parent.iterdir(), parent]:
            if directory.is_dir():
                remove(directory)


def remove(directory: Path) -> None:
    """Remove a cgroup as soon as its last process is gone."""
    deadline = time.monotonic() + 30
    while True:
        try:
            return directory.rmdir()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def start(cgroup: Path, code: str, *args: object) -> subprocess.Popen[str]:
    """Run Python code in a cgroup."""
    return spawn(cgroup, [sys.executable, "-I", "-S", "-c", code, *map(str, args)])


def spawn(cgroup: Path, command: Sequence[str], cpus: Sequence[int] = ()) -> subprocess.Popen[str]:
    """Run a command in a cgroup, from its first instruction on, pinned where `cpus` says so."""

    def enter() -> None:
        (cgroup / "cgroup.procs").write_text("0")
        if cpus:
            os.sched_setaffinity(0, cpus)

    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=enter)


def output(process: subprocess.Popen[str], timeout_s: float = 300) -> str:
    """What it prints until it ends."""
    text, _ = process.communicate(timeout=timeout_s)
    assert process.returncode == 0, f"status {process.returncode}"
    return text


@contextlib.contextmanager
def burners(loads: Sequence[tuple[Path, int]], cpus: Sequence[int] = ()) -> Iterator[list[int]]:
    """So many processes per cgroup that only burn CPU, all of them running; their pids."""
    processes = [spawn(cgroup, BURN, cpus) for cgroup, number in loads for _ in range(number)]
    try:
        time.sleep(SETTLE_S)
        yield [process.pid for process in processes]
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGKILL)
            process.communicate()


def usage_s(cgroup: Path) -> float:
    """CPU seconds that a cgroup used so far."""
    for line in (cgroup / "cpu.stat").read_text().splitlines():
        if line.startswith("usage_usec "):
            return int(line.split()[1]) / 1e6
    raise AssertionError(f"no usage_usec in {cgroup}")


def used_s(cgroups: Sequence[Path], window_s: float) -> list[float]:
    """CPU seconds that each of the cgroups uses within a window."""
    before = [usage_s(cgroup) for cgroup in cgroups]
    time.sleep(window_s)
    return [usage_s(cgroup) - start_s for cgroup, start_s in zip(cgroups, before, strict=True)]


def share(a: Path, b: Path, numbers: tuple[int, int], window_s: float, cpus: Sequence[int] = ()) -> float:
    """By how much more CPU `a` gets than `b`, with so many burners in each."""
    with burners([(a, numbers[0]), (b, numbers[1])], cpus):
        used = used_s([a, b], window_s)
    return used[0] / used[1]


def percentile(values: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile."""
    return sorted(values)[min(len(values) - 1, int(len(values) * percent / 100))]
