"""A call of the high tier squeezes a pod; calls of lower tiers wait before they start, or are refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from engine import IMAGE, Engine, configure, start_call
from runtimes import LOG, RECORDS, run, wait_for

TREE = Path(__file__).parents[2]
POLICY = Path("/etc/agentrun/policy.d/10-admission.yaml")
SLICE = Path("/run/systemd/system/agentruntest.slice")
GATE = Path("/run/agentrun/gate")
SLOW_S = 150  # of an emulated machine that is busy
WAIT_S = 18
TEXT = f"""
version: 1
tiers:
  high: {{priority: 300, cpu: {{weight: 400}}}}
  low: {{priority: 100, admission: {{wait: {WAIT_S}s}}}}
  strict: {{priority: 100, admission: {{wait: 2s, then: refuse}}}}
classes:
  light: {{may-wait: false}}
"""
TIERS = ("high", "low", "strict")
# Takes MEGABYTES, then takes and gives back a little until it is told to stop: what is left is too little for
# others, and may be needed.
HOG = """
import os, sys, time
taken = []
for _ in range(int(sys.argv[1]) // 10):
    taken.append(bytearray(10 << 20))
    time.sleep(0.05)
while not os.path.exists("/tmp/stop"):
    more = bytearray(8 << 20)
    time.sleep(0.2)
    del more
    time.sleep(0.2)
"""


@pytest.fixture(scope="module", autouse=True)
def prepared(host) -> Iterator[None]:
    """The policy, agentrund, and a slice of 600 MB as a pod has one."""
    configure(TREE)
    POLICY.parent.mkdir(parents=True, exist_ok=True)
    POLICY.write_text(TEXT)
    SLICE.write_text("[Slice]\nMemoryMax=600M\nMemorySwapMax=0\n")
    run("systemctl", "daemon-reload")
    run("systemctl", "start", "agentrund")
    yield
    POLICY.unlink()
    run("systemctl", "stop", "agentrund", "agentruntest.slice", check=False)
    SLICE.unlink()
    run("systemctl", "daemon-reload")
    assert not LOG.exists(), LOG.read_text()


@pytest.fixture(scope="module", params=[("docker", "crun"), ("podman", "crun")], ids="-".join)
def engine(request, prepared) -> Iterator[Engine]:
    """An engine with a container of each tier in the slice."""
    made = Engine(*request.param)
    for tier in TIERS:
        options = ("--annotation", f"agentrun.dev/tier={tier}", "--cgroup-parent", SLICE.name)
        made.create(tier, made.wrapped, *options, IMAGE, "sleep", "1000000")
    yield made
    for tier in TIERS:
        made.rm(tier)


@pytest.fixture
def squeeze(engine) -> Iterator[subprocess.Popen[str]]:
    """A call of the high tier that squeezes the pod until `relax`."""
    process = start_call(engine, "high", "python3", "-c", HOG, "430")
    wait_for(GATE.exists, "the gate to close", SLOW_S)
    yield process
    relax(engine, process)
    engine("exec", "high", "rm", "-f", "/tmp/stop")
    wait_for(lambda: not GATE.exists(), "the gate to open", SLOW_S)


def relax(engine: Engine, process: subprocess.Popen[str]) -> None:
    """End the squeeze."""
    if process.poll() is None:
        engine("exec", "high", "touch", "/tmp/stop")
        assert process.wait(timeout=SLOW_S) == 0


def waiting() -> list[dict[str, Any]]:
    """Calls that `agentrunctl calls` shows as waiting."""
    rows = map(json.loads, run("agentrunctl", "calls", "--json").stdout.splitlines())
    return [row for row in rows if row.get("waiting")]


def record_after(began: float, tier: str) -> dict[str, Any]:
    """The record of the latest call of a tier that started after `began`."""

    def found() -> dict[str, Any] | None:
        lines = RECORDS.read_text().splitlines() if RECORDS.exists() else []
        rows = [record for record in map(json.loads, lines) if record["tier"] == tier]
        return next((record for record in rows if record["end"] > began), None)

    record: dict[str, Any] = wait_for(found, "the record", SLOW_S)
    return record


def left_behind() -> list[Path]:
    return list(Path("/run/agentrun/sessions").glob("*/*/*wait-*"))


def test_call_of_the_low_tier_waits_until_there_is_room_and_says_so(engine, squeeze):
    began = time.time()
    low = start_call(engine, "low", "sh", "-c", "echo ran; sleep 1; echo done >&2")
    row = wait_for(waiting, "the call to wait", SLOW_S)[0]
    assert (row["tier"], row["command"]["name"]) == ("low", "echo")
    assert "left" in row["waiting"]["why"] and low.poll() is None
    assert "waiting to start" in run("agentrunctl", "calls").stdout
    relax(engine, squeeze)  # and with that, others of the host run while it waits
    out, error = low.communicate(timeout=SLOW_S)
    record = record_after(began, "low")
    assert (low.returncode, out) == (0, "ran\n") and error.endswith("done\n")
    assert (record["id"], record["verdict"], record["flags"]) == (row["id"], "ok", ["waited"])
    assert record["waited"]["outcome"] == "room" and record["waited"]["level"] == "above"
    assert 1 < record["waited"]["seconds"] < WAIT_S and record["start"] > row["start"] + 1
    assert "[agentrun] This call waited" in error and "others came first" in error, error
    assert [note["event"] for note in record["feedback"]] == ["waited"]
    assert left_behind() == []


def test_call_of_a_strict_tier_is_refused(engine, squeeze):
    began = time.time()
    done = engine("exec", "strict", "touch", "/tmp/ran", check=False)
    print(f"{engine.name}: exit {done.returncode}, {done.stderr!r}")
    assert done.returncode in (126, 128, 255) and done.stdout == ""
    assert "agentrun: This call was refused and did not run" in done.stderr
    record = record_after(began, "strict")
    assert (record["verdict"], record["level"], record["waited"]["outcome"]) == (
        "refused",
        "above",
        "refused",
    )
    assert left_behind() == []
    relax(engine, squeeze)
    wait_for(lambda: not GATE.exists(), "the gate to open", SLOW_S)
    assert engine("exec", "strict", "ls", "/tmp", check=False).stdout == ""


def test_call_that_need_not_wait_starts_beside_one_that_waits(engine, squeeze):
    low = start_call(engine, "low", "true")
    wait_for(waiting, "the call to wait", SLOW_S)
    began = time.monotonic()
    engine("exec", "-e", "AGENTRUN_INTENT=class=light", "low", "echo", "hi")
    took, is_waiting = time.monotonic() - began, bool(waiting())
    print(f"{engine.name}: beside one that waits an exec took {took:.1f} s; it still waits: {is_waiting}")
    if engine.name == "docker":  # podman holds the container's lock while an exec starts
        assert is_waiting
    relax(engine, squeeze)
    assert low.wait(timeout=SLOW_S) == 0


def test_killed_runtime_and_removed_container_leave_nothing(engine, squeeze):
    low = start_call(engine, "low", "true")
    row = wait_for(waiting, "the call to wait", SLOW_S)[0]
    os.kill(row["owner"][0], signal.SIGKILL)
    assert low.wait(timeout=SLOW_S) != 0
    assert waiting() == [] and left_behind() == []
    low = start_call(engine, "low", "true")
    wait_for(waiting, "the call to wait", SLOW_S)
    began = time.monotonic()
    engine.rm("low")
    print(f"{engine.name}: rm -f of a container with a waiting call took {time.monotonic() - began:.1f} s")
    low.wait(timeout=SLOW_S)
    assert waiting() == [] and left_behind() == []
    assert not engine("ps", "-aq", "--filter", "name=^low$").stdout
