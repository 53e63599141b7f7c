"""Short calls first: a new call beside long ones gets more CPU, for a second of it, and that is recorded."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cpuload import usage_s
from engine import IMAGE, Engine, configure, start_call
from runtimes import RECORDS, run, wait_for

POLICY = Path("/etc/agentrun/policy.d/10-boost.yaml")
SLOW_S = 150  # of an emulated machine that is busy
TEXT = """
version: 1
classes:
  plain: {cpu: {boost: false}}
"""
BURN = ("sh", "-c", "(while :; do :; done) & while :; do :; done")
WORK = "s=$(date +%s%N); i=0; while [ $i -lt {} ]; do i=$((i+1)); done; echo $(($(date +%s%N)-s))"
ENOUGH_S = 0.6  # of CPU time, within the budget
PAIRS = 5


@pytest.fixture(scope="module")
def engine(host) -> Iterator[Engine]:
    configure(Path(__file__).parents[2])
    POLICY.parent.mkdir(parents=True, exist_ok=True)
    POLICY.write_text(TEXT)
    run("systemctl", "start", "agentrund")
    yield Engine("docker", "crun")
    run("systemctl", "stop", "agentrund")
    POLICY.unlink()


@pytest.fixture(scope="module")
def box(engine) -> Iterator[str]:
    yield engine.create("box", engine.wrapped, IMAGE, "sleep", "1000000")
    engine.rm("box")


def timed(engine: Engine, loops: int, env: str = "") -> float:
    """Seconds that a short call takes from its first instruction on."""
    process = start_call(engine, "box", "sh", "-c", WORK.format(loops), env=env)
    out, err = process.communicate(timeout=SLOW_S)
    assert process.returncode == 0, err
    return int(out) / 1e9


@pytest.fixture(scope="module")
def loops(engine, box) -> int:
    """How many loops are ENOUGH_S of work, before anything else runs."""
    tried = 20_000
    return int(tried * ENOUGH_S / min(timed(engine, tried) for _ in range(3)))


@pytest.fixture
def build(engine, loops) -> Iterator[list[Path]]:
    """Three calls of two processes each, that have run for longer; their cgroups."""
    processes = [start_call(engine, "box", *BURN, env="AGENTRUN_INTENT=class=plain") for _ in range(3)]
    parent = engine.cgroup("box") / "agentrun-calls"

    def are_spent() -> list[Path]:
        calls = [path for path in parent.glob("call-*") if usage_s(path) > 1]
        return calls if len(calls) == len(processes) else []

    yield wait_for(are_spent, "the build to run", SLOW_S)
    for call in parent.glob("call-*"):
        (call / "cgroup.kill").write_text("1")
    for process in processes:
        process.communicate(timeout=SLOW_S)


def weight_of(cgroup: Path) -> str:
    return (cgroup / "cpu.weight").read_text().strip()


def latest(container: str, began: float) -> dict[str, Any]:
    """The record of the call that began after `began`."""

    def found() -> list[dict[str, Any]]:
        lines = RECORDS.read_text().splitlines() if RECORDS.exists() else []
        rows = [json.loads(line) for line in lines]
        return [row for row in rows if row["container"] == container and row["start"] > began]

    return wait_for(found, "the record", SLOW_S)[-1]


def test_short_call_beside_a_build_is_boosted_and_done_sooner(engine, box, loops, build):
    short: dict[str, list[float]] = {"boosted": [], "plain": []}
    done: dict[str, list[list[str]]] = {"boosted": [], "plain": []}
    for number in range(PAIRS):
        for name in ("boosted", "plain") if number % 2 else ("plain", "boosted"):
            began = time.time()
            short[name].append(timed(engine, loops, "AGENTRUN_INTENT=class=plain" if name == "plain" else ""))
            done[name].append([entry["what"] for entry in latest(box, began)["adapted"] or []])
    print("seconds", {name: [round(s, 2) for s in took] for name, took in short.items()}, done)
    # On a machine that is slow enough, one may be over before agentrund has looked.
    assert sum(what[:1] == ["boost"] for what in done["boosted"]) > PAIRS / 2
    assert done["plain"] == [[]] * PAIRS
    assert statistics.median(short["boosted"]) < statistics.median(short["plain"])
    assert [weight_of(call) for call in build] == ["100"] * 3


def test_boost_ends_after_a_second_of_cpu_time(engine, box, build):
    began = time.time()
    process = start_call(engine, "box", *BURN)
    parent = engine.cgroup("box") / "agentrun-calls"
    call = wait_for(lambda: set(parent.glob("call-*")) - set(build), "the call", SLOW_S).pop()
    wait_for(lambda: usage_s(call) > 4, "the call to run for longer", SLOW_S)
    assert weight_of(call) == "100"
    (call / "cgroup.kill").write_text("1")
    process.communicate(timeout=SLOW_S)
    record = latest(box, began)
    assert [(e["what"], e["weight"]) for e in record["adapted"]] == [("boost", 400), ("unboost", 100)], record
    print(record["adapted"])
    assert "are over" in record["adapted"][1]["why"]


def test_killed_agentrund_leaves_nobody_boosted(engine, box, build):
    # It burns nothing: on a slow machine, what burns has its budget behind it before anybody has looked.
    process = start_call(engine, "box", "sleep", "1000")
    parent = engine.cgroup("box") / "agentrun-calls"
    call = wait_for(lambda: set(parent.glob("call-*")) - set(build), "the call", SLOW_S).pop()
    wait_for(lambda: weight_of(call) == "400", "the boost", SLOW_S)
    run("systemctl", "kill", "-s", "KILL", "agentrund")
    run("systemctl", "stop", "agentrund")
    assert weight_of(call) == "100"
    run("systemctl", "start", "agentrund")
    (call / "cgroup.kill").write_text("1")
    process.communicate(timeout=SLOW_S)
