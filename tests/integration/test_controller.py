"""Memory gets short: agentrund makes calls of lower tiers and priorities wait, and all of them finish.

The same without agentrund is the control: there the kernel kills.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from engine import IMAGE, Engine, start_call
from podslice import LIMIT, SLICE, pod_slice
from runtimes import CGROUP, RECORDS, run, wait_for

POLICY = Path("/etc/agentrun/policy.d/10-controller.yaml")
SLOW_S = 150  # of an emulated machine that is busy
# Takes MEGABYTES in steps of 2 with a pause, and holds them a while.
HOG = """
import sys, time
taken = []
for _ in range(int(sys.argv[1]) // 2):
    taken.append(bytearray(2 << 20))
    time.sleep(float(sys.argv[2]))
time.sleep(1)
"""
TEXT = """
version: 1
tiers:
  high: {priority: 300, cpu: {weight: 400}}
  low: {priority: 100, cpu: {weight: 25}}
agent:
  memory: {min: 32M}
"""


@pytest.fixture(scope="module", autouse=True)
def prepared(host) -> Iterator[None]:
    """The policy, and a slice of 600 MB as a pod has one."""
    with pod_slice(POLICY, TEXT):
        yield


@pytest.fixture
def agentrund() -> Iterator[None]:
    run("systemctl", "start", "agentrund")
    yield
    run("systemctl", "stop", "agentrund")


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine("docker", "crun")


@pytest.fixture(scope="module")
def pod(prepared, engine) -> Iterator[dict[str, str]]:
    """Three containers in the slice: one of the high tier, two of the low."""
    names = {"high": "high", "low1": "low", "low2": "low"}
    made = {}
    for name, tier in names.items():
        options = ("--annotation", f"agentrun.dev/tier={tier}", "--cgroup-parent", SLICE.name)
        made[name] = engine.create(name, engine.wrapped, *options, IMAGE, "sleep", "1000000")
    yield made
    for name in names:
        engine.rm(name)


def hog(megabytes: int, pause: float = 0.03) -> tuple[str, ...]:
    return "python3", "-c", HOG, str(megabytes), str(pause)


def run_together(engine: Engine, wanted: dict[str, tuple[str, str, int]]) -> dict[str, int]:
    """Start calls at once: name -> (container, intent, megabytes); returns their exit codes."""
    started: dict[str, subprocess.Popen[str]] = {}
    for name, (container, intent, megabytes) in wanted.items():
        env = f"AGENTRUN_INTENT={intent}" if intent else ""
        started[name] = start_call(engine, container, *hog(megabytes), env=env)
    codes = {}
    for name, process in started.items():
        process.communicate(timeout=2 * SLOW_S)
        codes[name] = process.returncode
    return codes


def end(process: subprocess.Popen[str]) -> int:
    """Wait for a call; returns its exit code."""
    process.communicate(timeout=SLOW_S)
    return process.returncode


PODS = {"low1": ("low1", "", 255), "low2": ("low2", "", 255), "high": ("high", "", 270)}


def oom_kills(folder: Path) -> int:
    return int(dict(line.split() for line in (folder / "memory.events").read_text().splitlines())["oom_kill"])


def records_of(container: str, began: float, count: int = 1) -> list[dict[str, Any]]:
    """Records of calls that started after `began`, once there are so many."""

    def found() -> list[dict[str, Any]]:
        lines = RECORDS.read_text().splitlines() if RECORDS.exists() else []
        rows = [record for line in lines if (record := json.loads(line))["container"] == container]
        rows = [record for record in rows if record["start"] > began]
        return rows if len(rows) >= count else []

    return wait_for(found, "the records", SLOW_S)


def done_to(record: dict[str, Any]) -> list[str]:
    """What was done for want of memory."""
    whats = [entry["what"] for entry in record.get("adapted") or []]
    return [what for what in whats if what not in ("boost", "unboost")]


def test_without_agentrund_the_kernel_kills(engine, pod):
    agents = [engine.pid(name) for name in pod]
    codes = run_together(engine, PODS)
    assert 137 in codes.values() and oom_kills(CGROUP / SLICE.name) > 0
    assert [engine.pid(name) for name in pod] == agents  # it killed calls


def test_calls_of_the_low_tier_wait_and_all_finish(engine, pod, agentrund):
    before, began = oom_kills(CGROUP / SLICE.name), time.time()
    codes = run_together(engine, PODS)
    assert codes == {"high": 0, "low1": 0, "low2": 0}
    assert oom_kills(CGROUP / SLICE.name) == before
    assert done_to(records_of(pod["high"], began)[0]) == []
    waited = [records_of(pod[name], began)[0] for name in ("low1", "low2")]
    assert all(record["verdict"] == "ok" and record["rank"] == [100, 100] for record in waited)
    assert any(done_to(record)[:2] == ["freeze", "thaw"] for record in waited), waited
    shown = json.loads(run("agentrunctl", "inspect", waited[0]["id"]).stdout)
    assert shown["adapted"] == waited[0]["adapted"]


def test_calls_of_low_priority_wait_for_others_of_their_container(engine, agentrund):
    container = engine.create(
        "box", engine.wrapped, "-m", LIMIT, "--memory-swap", LIMIT, IMAGE, "sleep", "1000000"
    )
    try:
        low = ("box", "priority=low", 240)
        codes = run_together(engine, {"low1": low, "low2": low, "high": ("box", "", 265)})
        assert codes == {"high": 0, "low1": 0, "low2": 0}
        found = records_of(container, 0, 3)
        assert {tuple(r["rank"]) for r in found} == {(100, 50), (100, 100)}
        assert all(done_to(record) == [] for record in found if record["rank"] == [100, 100])
        assert any("freeze" in done_to(record) for record in found if record["rank"] == [100, 50])
        bound = (engine.cgroup("box") / "agentrun-calls/memory.max").read_text().strip()
        assert int(bound) == (600 - 32) << 20  # the agent keeps its 32 MB
        assert engine("exec", "box", "echo", "alive").stdout == "alive\n"
    finally:
        engine.rm("box")


def test_where_low_holds_too_much_already_the_lowest_call_dies(engine, pod, agentrund):
    began = time.time()
    holder = start_call(
        engine, "low1", "python3", "-c", "x = bytearray(450 << 20)\nimport time; time.sleep(1000)"
    )
    wait_for(lambda: usage() > 440 << 20, "low to hold it", SLOW_S)
    codes = run_together(engine, {"high": ("high", "", 250)})
    assert codes == {"high": 0}
    assert end(holder) == 137
    record = records_of(pod["low1"], began)[0]
    assert (record["verdict"], record["level"], done_to(record)[-1]) == ("killed", "controller", "kill"), (
        record
    )


def usage() -> int:
    return int((CGROUP / SLICE.name / "memory.current").read_text())


def test_killed_agentrund_leaves_nobody_frozen(engine, pod):
    run("systemctl", "start", "agentrund")
    try:
        low = start_call(engine, "low1", *hog(250))
        high = start_call(engine, "high", *hog(280))
        freeze = wait_for(frozen_calls, "a call to freeze", SLOW_S)[0]
        run("systemctl", "kill", "-s", "KILL", "agentrund")
        run("systemctl", "stop", "agentrund")
        assert freeze.read_text() == "0\n"
        (engine.cgroup("high") / "agentrun-calls/cgroup.kill").write_text("1")
        assert end(high) in (137, 0)  # it may have been through already
        assert end(low) == 0
    finally:
        run("systemctl", "stop", "agentrund")


def frozen_calls() -> list[Path]:
    calls = (CGROUP / SLICE.name).glob("*/**/agentrun-calls/call-*/cgroup.freeze")
    return [path for path in calls if path.read_text() == "1\n"]


def test_frozen_container_can_be_killed_and_removed(engine, pod, agentrund):
    low, high = start_call(engine, "low1", *hog(250)), start_call(engine, "high", *hog(280))
    wait_for(frozen_calls, "a call to freeze", SLOW_S)
    engine.rm("low1")
    assert (end(low), end(high)) == (137, 0)
    assert not list(CGROUP.glob(f"{SLICE.name}/docker-{pod['low1']}*"))
