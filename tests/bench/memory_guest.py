"""Calls that together need more memory than there is, each arm in turn; runs in the test VM, as root.

    python3 tests/bench/memory_guest.py HOG RUNS PACE ARM...

A cgroup of 600 MB holds three containers of one call each: HIGH takes 280 MB, two LOW 265 MB each (the burst:
half of all that). Nobody is told what they need. One JSON object a run on stdout. See
docs/data/memory-arms.md. With RECORD=FILE the controller's snapshots of the last run are kept there; COST=1
counts how often the kernel ran our program at a charge, and for how long (which takes time itself).
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

import livecalls

from agentrun.base import agentrund
from agentrun.base.paths import Paths
from agentrun.bpf import mempressure, modules, scheduler
from agentrun.daemon.controller import pressure

CGROUP = Path("/sys/fs/cgroup")
BPF_STATS = Path("/proc/sys/kernel/bpf_stats_enabled")
COST = os.environ.get("COST", "0")
PARENT = CGROUP / "agentrun-bench"
HOLD_MS = 500
SETTLE_S = 1.5  # from the start of the calls until they begin to take memory
LATE_HOLD_MS = 15_000
RANKS = {"high": [300, 100], "low1": [100, 100], "low2": [100, 100]}
WEIGHTS = {"high": "400", "low1": "25", "low2": "25"}  # of the containers


@dataclass(frozen=True)
class Pace:
    """How a call takes memory: KB a chunk, microseconds between two, huge pages and as much page cache.

    `sizes` in MB: the limit, HIGH, each LOW, and the static memory.high. After `timeout_s` a call counts as
    one that never finished: some four times what other arms need.
    """

    chunk_kb: int
    think_us: int
    timeout_s: int
    with_file: bool = False
    sizes: tuple[int, int, int, int] = (600, 280, 265, 150)


PACES = {
    "paced": Pace(1024, 3000, 20),
    "unpaced": Pace(1024, 0, 15),
    # An emulated disk is slow.
    "burst": Pace(4096, 0, 30, with_file=True, sizes=(300, 140, 132, 75)),
}
LATE_TIMEOUT_S = 60


@dataclass
class Arm:
    """What stands between the calls and the kernel's OOM killer."""

    name: str
    low: bool = True
    static_high: bool = False
    helper: str = ""  # polling, controller, park-timer, park-hook
    told: bool = False  # the kernel wakes the controller (the BPF module mempressure)
    marked: bool = False  # and our scheduler parks whom that module marks
    weights: bool = False
    late: bool = False  # HIGH comes when LOW has taken all it wants

    @property
    def parks(self) -> bool:
        """Whether it needs our scheduler."""
        return self.marked or self.helper in ("park-timer", "park-hook", "scheduler")


ARMS = {
    arm.name: arm
    for arm in (
        Arm("alone", low=False),
        Arm("max-only"),
        Arm("static-high", static_high=True),
        Arm("polling", helper="polling"),
        Arm("polling-weights", helper="polling", weights=True),
        Arm("weights-only", weights=True),
        Arm("controller", helper="controller", weights=True),
        Arm("controller-bpf", helper="controller", weights=True, told=True),
        Arm("controller-park", helper="controller", weights=True, told=True, marked=True),
        Arm("park-timer", helper="park-timer", weights=True),
        Arm("park-hook", helper="park-hook", weights=True),
        Arm("scheduler-only", helper="scheduler", weights=True),
        Arm("controller-no-weights", helper="controller"),
        Arm("late-max-only", weights=True, late=True),
        Arm("late-controller", helper="controller", weights=True, late=True),
    )
}


def polling_freezer() -> None:
    """The control to beat: every 5 ms, two watermarks, nothing told."""
    lows = [PARENT / f"{name}/agentrun-calls/call-0/cgroup.freeze" for name in ("low1", "low2")]
    high = PARENT / "high/agentrun-calls/call-0/cgroup.events"
    limit = int((PARENT / "memory.max").read_text())
    frozen = False
    while PARENT.exists():
        try:
            lives = "populated 1" in high.read_text()
            used = int((PARENT / "memory.current").read_text()) / limit
        except OSError:
            time.sleep(0.005)
            continue
        wanted = lives and (used > 0.75 or (frozen and used > 0.6))
        if wanted != frozen:
            for low in lows:
                with contextlib.suppress(OSError):
                    low.write_text(str(int(wanted)))
            frozen = wanted
        time.sleep(0.005)


class Parking:
    """Calls that our scheduler parks while one above them is short of memory; no process takes part."""

    def __init__(self, paths: Paths, how: str) -> None:
        self.paths = paths
        self.how = mempressure.How.MARK | (mempressure.How.TIMER if how == "park-timer" else 0)
        self.members: list[mempressure.Member] = []
        self.maps: mempressure.MemPressure | None = None
        scheduler.load(paths, {"parking": 1})  # some ten seconds, so it stays for the next arm that wants it
        if how != "scheduler":
            modules.load(paths, mempressure.MODULE)
            self.maps = mempressure.MemPressure()

    def add(self, cgroup: Path, rank: list[int]) -> None:
        """Watch one more call."""
        if self.maps is None:
            return
        self.members.append(mempressure.Member(cgroup.stat().st_ino, (rank[0], rank[1])))
        limit = int((PARENT / "memory.max").read_text())
        watched = pressure.limit_of(limit, tuple(self.members), self.how)
        self.maps.publish({PARENT.stat().st_ino: watched})

    def close(self) -> dict[str, Any]:
        """Take it out again; what it did. The scheduler has to be in force still."""
        found: dict[str, Any] = {"scheduler": scheduler.state().name}
        if self.maps is not None:
            seen = self.maps.read(PARENT.stat().st_ino)
            found |= {"looks": seen.looks, "marks": seen.marks} if seen else {}
            self.maps.close()
            modules.unload(self.paths, mempressure.MODULE)
        return found


class Scene:
    """The cgroups and the calls of one run."""

    def __init__(self, hog: str, pace: str, arm: Arm) -> None:
        self.hog, self.pace, self.arm = hog, PACES[pace], arm
        self.timeout_s = LATE_TIMEOUT_S if arm.late else self.pace.timeout_s
        self.limit_mb, self.high_mb, self.low_mb, self.static_high_mb = self.pace.sizes
        # Not /tmp: where that is a tmpfs, what is written there is no page cache that could be given back.
        self.folder = Path(tempfile.mkdtemp(prefix="agentrun-bench-", dir="/var/tmp"))
        self.paths = Paths(str(self.folder))
        for name in ("var/log", "var/lib"):
            (self.folder / name).mkdir(parents=True)
        self.processes: dict[str, subprocess.Popen[str]] = {}
        self.began: dict[str, float] = {}
        self.parking: Parking | None = None
        self.held_back, self.go = os.pipe()

    def make_cgroups(self) -> None:
        """The parent, and in it a container for each call."""
        (CGROUP / "cgroup.subtree_control").write_text("+memory +cpu +pids")
        PARENT.mkdir()
        for path in (PARENT, *(PARENT / name for name in RANKS)):
            path.mkdir(exist_ok=True)
            (path / "cgroup.subtree_control").write_text("+memory +cpu +pids")
        (PARENT / "memory.max").write_text(f"{self.limit_mb}M")
        (PARENT / "memory.swap.max").write_text("0")
        for name in RANKS:
            if self.arm.weights:
                (PARENT / name / "cpu.weight").write_text(WEIGHTS[name])
            parent = PARENT / name / "agentrun-calls"
            parent.mkdir()
            (parent / "cgroup.subtree_control").write_text("+memory +cpu +pids")

    def begin(self, names: list[str]) -> None:
        """Start calls, and let all of them begin at once when what their start takes is over."""
        for name in names:
            self.start(name, self.high_mb if name == "high" else self.low_mb)
        time.sleep(SETTLE_S)
        os.close(self.go)
        os.close(self.held_back)
        self.held_back, self.go = os.pipe()
        self.began |= dict.fromkeys(names, time.monotonic())

    def wait_for_use(self, megabytes: float) -> None:
        """Wait until all together use so much, for half a minute at most."""
        used, deadline = 0, time.monotonic() + 30
        while used < megabytes and time.monotonic() < deadline:
            used = int((PARENT / "memory.current").read_text()) >> 20
            time.sleep(0.02)

    def start(self, name: str, megabytes: int) -> None:
        """Start one call."""
        hold_ms = LATE_HOLD_MS if self.arm.late and name != "high" else HOLD_MS
        numbers = [str(number) for number in (megabytes, self.pace.chunk_kb, self.pace.think_us, hold_ms)]
        command = [self.hog, *numbers, *([str(self.folder / name)] if self.pace.with_file else [])]
        state = {
            "id": name,
            "container": name,
            "calls": str(PARENT / name / "agentrun-calls"),
            "rank": RANKS[name],
        }
        (self.folder / "runc" / name).mkdir(parents=True)
        self.processes[name] = livecalls.start(
            self.paths,
            state,
            command,
            lambda cgroup: self.prepare(name, cgroup),
            stdin=self.held_back,
            stdout=subprocess.PIPE,
            text=True,
        )

    def prepare(self, name: str, cgroup: Path) -> None:
        """What the arm does to a call before it begins."""
        (cgroup / "memory.oom.group").write_text("1")
        if self.parking is not None:
            self.parking.add(cgroup, RANKS[name])
        if self.arm.static_high and name != "high":
            (cgroup / "memory.high").write_text(f"{self.static_high_mb}M")

    def run(self) -> dict[str, Any]:
        """Start them, wait for them, and tell how each fared."""
        lows = [name for name in RANKS if name != "high"] if self.arm.low else []
        first, second = (lows, ["high"]) if self.arm.late else (["high", *lows], [])
        self.begin(first)
        if second:
            self.wait_for_use(self.low_mb * 2 * 0.98)
            self.begin(second)
        done = {name: self.finish(name) for name in self.processes}
        events = {
            name: dict(line.split() for line in (PARENT / name / "memory.events").read_text().splitlines())
            for name in self.processes
        }
        return {
            "arm": self.arm.name,
            "high": done["high"],
            "low": [done[name] for name in lows],
            "oom_kills": sum(int(e["oom_kill"]) for e in events.values()),
            "high_oom_kills": int(events["high"]["oom_kill"]),
            "low_throttled": sum(int(events[name]["high"]) for name in lows),
        }

    def finish(self, name: str) -> dict[str, Any]:
        """Wait for one call."""
        process, left = self.processes[name], self.began["high"] + self.timeout_s - time.monotonic()
        try:
            out, _ = process.communicate(timeout=max(0.1, left))
        except subprocess.TimeoutExpired:
            (PARENT / name / "cgroup.kill").write_text("1")
            process.communicate()
            return {"status": "never"}
        took = round(time.monotonic() - self.began[name], 3)
        if process.returncode:
            return {"status": process.returncode, "done_s": took}
        return {"status": 0, "done_s": took, **json.loads(out)}

    def remove(self) -> None:
        """Take everything away."""
        (PARENT / "cgroup.kill").write_text("1")
        deadline = time.monotonic() + 20
        while "populated 1" in (PARENT / "cgroup.events").read_text() and time.monotonic() < deadline:
            time.sleep(0.01)
        for folder, _, _ in os.walk(PARENT, topdown=False):
            with contextlib.suppress(FileNotFoundError):
                os.rmdir(folder)
        shutil.rmtree(self.folder)
        os.close(self.go)
        os.close(self.held_back)


@contextlib.contextmanager
def helper(scene: Scene) -> Iterator[dict[str, Any]]:
    """The arm's process beside the calls, and what CPU it used (seconds), start-up left out."""
    used: dict[str, Any] = {}
    if scene.arm.helper == "polling":
        command = [sys.executable, __file__, "--poll"]
    elif scene.arm.helper == "controller" and "RECORD" in os.environ:
        command = [
            sys.executable,
            str(livecalls.TREE / "tests/bench/recording_daemon.py"),
            os.environ["RECORD"],
        ]
    elif scene.arm.helper == "controller":
        command = list(livecalls.DAEMON)
    elif scene.arm.parks:
        scene.parking = Parking(scene.paths, scene.arm.helper)
        try:
            yield used
        finally:
            used |= cost_of_charges() if scene.parking.maps else {}
            used["parking"] = scene.parking.close()
        return
    else:
        yield used
        return
    if scene.arm.marked:
        Path(scene.paths.config).parent.mkdir(parents=True)
        Path(scene.paths.config).write_text("version = 1\nparking = true\n")
        scheduler.load(scene.paths, {"parking": 1})
    if scene.arm.told:
        modules.load(scene.paths, mempressure.MODULE)
    process = subprocess.Popen(command, env={**os.environ, "AGENTRUN_ROOT": str(scene.folder)})
    deadline = time.monotonic() + 20
    while scene.arm.helper == "controller" and not agentrund.is_daemon_alive(scene.paths):
        assert time.monotonic() < deadline and process.poll() is None, "agentrund does not start"
        time.sleep(0.01)
    time.sleep(1)
    before, began = cpu_of(process.pid), time.monotonic()
    try:
        yield used
    finally:
        used["helper_cpu_s"] = cpu_of(process.pid) - before
        used["helper_wall_s"] = round(time.monotonic() - began, 3)
        process.terminate()
        process.wait(timeout=30)
        if scene.arm.marked:
            used["scheduler"] = scheduler.state().name
        if scene.arm.told:
            used |= cost_of_charges()
            modules.unload(scene.paths, mempressure.MODULE)


def cost_of_charges() -> dict[str, float]:
    """How often our program at a charge ran since it was loaded, and its nanoseconds each; needs COST=1."""
    if COST != "1":
        return {}
    command = ["bpftool", "-j", "prog", "show", "name", "on_charge"]
    shown = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    (program,) = shown if isinstance(shown, list) else [shown]
    return {"charges": program["run_cnt"], "charge_ns": program["run_time_ns"] / program["run_cnt"]}


def cpu_of(pid: int) -> float:
    """User and system time of a process, seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def one_run(hog: str, pace: str, arm: Arm) -> dict[str, Any]:
    """One run of one arm."""
    if not arm.parks:
        scheduler.unload(Paths())
    scene = Scene(hog, pace, arm)
    scene.make_cgroups()
    try:
        with helper(scene) as used:
            result = scene.run()
        log = Path(scene.paths.log)
        result["log"] = log.read_text()[-500:] if log.exists() else ""
        result["adapted"] = [
            entry["what"]
            for line in (
                Path(scene.paths.records).read_text().splitlines()
                if Path(scene.paths.records).exists()
                else []
            )
            for entry in json.loads(line).get("adapted") or []
        ]
        return {"pace": pace, **result, **used}
    finally:
        scene.remove()


def main() -> None:
    """All arms, interleaved, RUNS times."""
    if sys.argv[1:] == ["--poll"]:
        polling_freezer()
        return
    hog, runs, pace, *names = sys.argv[1:]
    until = time.monotonic() + float(os.environ.get("MINUTES", "inf")) * 60
    BPF_STATS.write_text(COST)  # also off again: an instance is used for many measurements
    for number in range(int(runs)):
        if time.monotonic() > until:
            break
        order = names if number % 2 == 0 else names[::-1]
        for name in order:
            print(json.dumps({"run": number, **one_run(hog, pace, ARMS[name])}), flush=True)
    scheduler.unload(Paths())


if __name__ == "__main__":
    main()
