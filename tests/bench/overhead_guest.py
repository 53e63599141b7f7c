"""What agentrund burns while calls live, and what a load inside a call loses; runs as root, also in the VM.

    python3 tests/bench/overhead_guest.py idle SECONDS [REPEATS]
    python3 tests/bench/overhead_guest.py load PAIRS       # needs agentrun, crun, the VM's root file systems

One JSON object a measurement on stdout. See docs/benchmarks.md.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

import livecalls
from cgroups import mount_or_exit

from agentrun.base.agentrund import is_daemon_alive
from agentrun.base.paths import Paths
from agentrun.decision import inforce

BOXES, CALLS = 10, 10  # containers, and calls of each
SETTLE_S = 20.0  # what is done for calls that are new is over
IDLE = ("sleep", "1000000")
BURN = ("sh", "-c", "while :; do :; done")
LIMITS = {"memory": 1 << 30, "memory_high": 900 << 20, "cpu": 2.0, "pids": 512}
FILES = {"memory.max": "1G", "memory.high": "900M", "cpu.max": "200000 100000", "pids.max": "512"}


class Scene:
    """Containers with live calls, as the exec path leaves them, and an agentrund that watches."""

    def __init__(self, mount: Path) -> None:
        self.mount = mount
        self.parent = mount / f"agentrun-overhead-{os.getpid()}"
        self.folder = Path(tempfile.mkdtemp(prefix="agentrun-overhead-"))
        self.paths = Paths(str(self.folder), str(mount))
        for name in ("var/log", "var/lib", "runc", "etc/agentrun"):
            (self.folder / name).mkdir(parents=True)
        inforce.load(self.paths)
        self.processes: list[subprocess.Popen[bytes]] = []

    def make(self, burning: int) -> None:
        """All the calls; the first one of so many containers burns CPU."""
        controllers = (self.mount / "cgroup.controllers").read_text().split()
        enabled = [f"+{name}" for name in ("memory", "cpu", "pids") if name in controllers]
        for path in (self.mount, self.parent):
            path.mkdir(exist_ok=True)
            (path / "cgroup.subtree_control").write_text(" ".join(enabled))
        for number in range(BOXES):
            box = self.parent / f"box{number}"
            for path in (box, box / "agentrun-calls"):
                path.mkdir()
                (path / "cgroup.subtree_control").write_text(" ".join(enabled))
            write(box, {"memory.max": "2G"})
            (self.folder / "runc" / box.name).mkdir()
            for index in range(CALLS):
                self.call(box, *(BURN if number < burning and index == 0 else IDLE))

    def call(self, box: Path, *command: str) -> None:
        """One call, as the exec path starts it."""
        state = {
            "id": os.urandom(9).hex(),
            "container": box.name,
            "calls": str(box / "agentrun-calls"),
            "rank": [100, 100],
            "limits": LIMITS,
            "care": {"feedback": "on", "background": "demote", "stall": None},
        }
        null = subprocess.DEVNULL
        self.processes.append(
            livecalls.start(
                self.paths, state, command, lambda cgroup: write(cgroup, FILES), stdin=null, stderr=null
            )
        )

    def remove(self) -> None:
        """Take everything away."""
        if self.parent.exists():
            (self.parent / "cgroup.kill").write_text("1")
        for process in self.processes:
            process.wait(timeout=60)
        for folder, _, _ in os.walk(self.parent, topdown=False):
            os.rmdir(folder)
        shutil.rmtree(self.folder)


def write(cgroup: Path, content: dict[str, str]) -> None:
    """Write what this mount has files for."""
    for name, value in content.items():
        if (cgroup / name).exists():
            (cgroup / name).write_text(value)


def cpu_of(pid: int) -> float:
    """CPU seconds of a process, to the nanosecond (schedstat); threads that ended are not counted."""
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


def children(pid: int) -> list[int]:
    """Its processes: agentrund has one, the keeper."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@contextlib.contextmanager
def agentrund(scene: Scene) -> Iterator[int]:
    """agentrund, from when it watches; its pid."""
    environment = {
        **os.environ,
        "AGENTRUN_ROOT": str(scene.folder),
        "AGENTRUN_CGROUP_ROOT": str(scene.mount),
    }
    process = subprocess.Popen(livecalls.DAEMON, env=environment)
    deadline = time.monotonic() + 60
    while not is_daemon_alive(scene.paths):
        assert time.monotonic() < deadline and process.poll() is None, "agentrund does not start"
        time.sleep(0.01)
    try:
        yield process.pid
    finally:
        process.terminate()
        process.wait(timeout=60)


def idle(mount: Path, burning: int, seconds: float) -> dict[str, Any]:
    """What agentrund burned in so many seconds, with a hundred calls of which some burn CPU."""
    scene = Scene(mount)
    try:
        with agentrund(scene) as pid:
            scene.make(burning)
            time.sleep(SETTLE_S)
            pids, began = [pid, *children(pid)], time.monotonic()
            before = [cpu_of(each) for each in pids]
            time.sleep(seconds)
            used = [cpu_of(each) - was for each, was in zip(pids, before, strict=True)]
            wall_s = time.monotonic() - began
        log = Path(scene.paths.log)
        assert not log.exists(), log.read_text()
    finally:
        scene.remove()
    return {
        "part": "idle",
        "where": "memory, cpu" if mount == Path("/sys/fs/cgroup") else "no controllers",
        "calls": BOXES * CALLS,
        "burning": burning,
        "wall_s": round(wall_s, 2),
        "cpu_s": round(sum(used), 4),
        "percent": round(sum(used) / wall_s * 100, 3),
        "keeper_s": round(sum(used[1:]), 4),
    }


# What a load inside a call loses.


POLICY = Path("/etc/agentrun/policy.d/10-overhead.yaml")
TEXT = """
version: 1
classes:
  standard:
    memory: {max: 1GiB, high: 900M, adaptive: true}
    cpu: {max: 2, weight: 100}
    pids: {max: 1024}
    time: {soft: 1h, hard: 2h}
    stall: {share: 80%, time: 30s}
    network: guarded
networks:
  guarded: {default: allow, deny: [169.254.0.0/16]}
agent:
  memory: {low: 64M}
"""
ROOTFS = "/var/lib/agentrun-vm/rootfs/agentbox"
PARENT = Path("/sys/fs/cgroup/agentrun-overhead")
# What is run, after the size to begin with. Of processes: the smallest that there is, and such as tools are.
LOADS = {
    "CPU-bound": (
        300_000,
        """
import sys, time
before, total = time.perf_counter(), 0
for i in range(int(sys.argv[1])):
    total += i
print(time.perf_counter() - before)
""",
    ),
    "page-fault-bound": (
        2,
        """
import sys, time
size = 40 << 20  # more than malloc(3) keeps
before = time.perf_counter()
for _ in range(int(sys.argv[1])):
    b"x" * size
print(time.perf_counter() - before)
""",
    ),
    "fork/exec-bound (/bin/true)": (
        100,
        """
import os, sys, time
before = time.perf_counter()
for _ in range(int(sys.argv[1])):
    os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)
print(time.perf_counter() - before)
""",
    ),
    "fork/exec-bound (Python programs)": (
        2,
        """
import os, sys, time
command = ["python3", "-c", "import argparse, json, logging, re, subprocess"]
before = time.perf_counter()
for _ in range(int(sys.argv[1])):
    os.waitpid(os.posix_spawn(sys.executable, command, os.environ), 0)
print(time.perf_counter() - before)
""",
    ),
}
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
LOAD_S = 1.0  # of each load, alone
SWITCH_S = 5.0  # agentrund has started: that is once a boot, and half a second of a CPU


def quiet(*command: str) -> None:
    """Run a command that gives its stdio away, or says what nobody needs to read."""
    null = subprocess.DEVNULL
    subprocess.run(command, check=True, stdin=null, stdout=null, stderr=null)


@contextlib.contextmanager
def box(runtime: str, name: str, folder: Path) -> Iterator[list[str]]:
    """A container with the limits of the policy's class, by hand; how to exec into it."""
    folder.mkdir()
    quiet("runc", "spec", "--bundle", str(folder))
    path = folder / "config.json"
    spec = json.loads(path.read_text())
    spec["process"] |= {"terminal": False, "args": ["sleep", "1000000"]}
    spec["root"] = {"path": ROOTFS, "readonly": True}
    spec["linux"]["cgroupsPath"] = f"/{PARENT.name}/{name}"
    spec["linux"]["resources"] |= {
        "memory": {"limit": 1 << 30},
        "cpu": {"quota": 200_000, "period": 100_000},
        "pids": {"limit": 1024},
    }
    path.write_text(json.dumps(spec))
    quiet(runtime, "create", "--bundle", str(folder), name)
    try:
        quiet(runtime, "start", name)
        # Where objects lie in dicts is worth 1 % of a Python program's time.
        yield [runtime, "exec", name, "env", "PYTHONHASHSEED=0"]
    finally:
        quiet(runtime, "delete", "--force", name)


def switch(*, on: bool) -> None:
    """All of agentrun that is there without a call: agentrund, and the BPF programs."""
    quiet("systemctl", "start" if on else "stop", "agentrund")
    quiet("agentrunctl", "bpf", "load" if on else "unload")
    time.sleep(SWITCH_S)


def run_load(execute: list[str], script: str, size: int) -> float:
    """Seconds that a load took, by its own clock: what it costs to start it is docs/benchmarks.md."""
    done = subprocess.run(
        [*execute, "python3", "-c", script, str(size)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return float(done.stdout)


def load(pairs: int) -> Iterator[dict[str, Any]]:
    """Pairs of each load, bare and with all of agentrun, one after the other, who is first changing."""
    POLICY.parent.mkdir(parents=True, exist_ok=True)
    POLICY.write_text(TEXT)
    quiet("agentrunctl", "policy", "compile")
    with contextlib.ExitStack() as stack:
        stack.callback(switch, on=False)
        stack.callback(POLICY.unlink)
        stack.callback(PARENT.rmdir)
        stack.callback(HUGE_PAGES.write_text, HUGE_PAGES.read_text().partition("[")[2].partition("]")[0])
        HUGE_PAGES.write_text("never")  # a fault for each page; and where huge ones fit is chance
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        arms = {
            "bare": stack.enter_context(box("crun", "overhead-bare", folder / "bare")),
            "agentrun": stack.enter_context(box("agentrun-crun", "overhead-agentrun", folder / "agentrun")),
        }
        sizes = {
            name: max(1, int(start * LOAD_S / run_load(arms["bare"], script, start)))
            for name, (start, script) in LOADS.items()
        }
        for number in range(pairs):
            took: dict[str, dict[str, float]] = {name: {} for name in LOADS}
            for arm in ("bare", "agentrun") if number % 2 else ("agentrun", "bare"):
                switch(on=arm == "agentrun")
                for name, (_, script) in LOADS.items():
                    took[name][arm] = run_load(arms[arm], script, sizes[name])
            for name, seconds in took.items():
                yield {"part": "load", "load": name, "size": sizes[name], "pair": number, **seconds}


def main() -> None:
    """Measure, and print each result as it comes."""
    part, number, *rest = sys.argv[1:]
    if part == "idle":
        mount = mount_or_exit()
        for _ in range(int(rest[0]) if rest else 1):
            for burning in (0, 2):
                print(json.dumps(idle(mount, burning, float(number))), flush=True)
    else:
        for result in load(int(number)):
            print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
