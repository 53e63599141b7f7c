"""A call of the high tier squeezes a pod; calls of lower tiers wait before they start, or are refused."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from engine import IMAGE, Engine, start_call
from podslice import SLICE, pod_slice
from runtimes import RECORDS, run, wait_for

from agentrun.client import Client

POLICY = Path("/etc/agentrun/policy.d/10-admission.yaml")
GATE = Path("/run/agentrun/gate")
SLOW_S = 150  # of an emulated machine that is busy
WAIT_S = 20
TRIES = 3
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
    with pod_slice(POLICY, TEXT):
        run("systemctl", "start", "agentrund")
        yield


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


def end(process: subprocess.Popen[str]) -> int:
    """Wait for a call; returns its exit status."""
    if process.returncode is None:
        process.communicate(timeout=SLOW_S)
    return process.returncode


class Squeeze:
    """A call that squeezes the pod."""

    def __init__(self, process: subprocess.Popen[str], stop: Path) -> None:
        self.process = process
        self.stop = stop

    def relax(self) -> None:
        """End it."""
        self.stop.touch()
        assert end(self.process) == 0


@pytest.fixture
def squeeze(engine) -> Iterator[Squeeze]:
    """A call of the high tier that squeezes the pod until `relax`."""
    # A threshold that is given stays: malloc gives back at once what was large.
    process = start_call(engine, "high", "python3", "-c", HOG, "430", env="MALLOC_MMAP_THRESHOLD_=65536")
    try:
        wait_for(lambda: GATE.exists() or process.poll() is not None, "the gate to close", SLOW_S)
    except AssertionError as error:
        process.kill()
        used = (Path("/sys/fs/cgroup") / SLICE.name / "memory.current").read_text()
        raise AssertionError(f"{error}; used: {used}; calls: {Client().calls()}") from error
    assert process.poll() is None, process.communicate()
    stop = Path(f"/proc/{engine.pid('high')}/root/tmp/stop")  # an exec takes seconds here
    made = Squeeze(process, stop)
    yield made
    made.relax()
    stop.unlink()
    wait_for(lambda: not GATE.exists(), "the gate to open", SLOW_S)


def waiting() -> list[dict[str, Any]]:
    """Calls that are shown as waiting. As `agentrunctl calls`, which takes seconds to begin here."""
    return [row for row in Client().calls() if row.get("waiting")]


def is_over_or_waits(process: subprocess.Popen[str]) -> bool:
    return process.poll() is not None or bool(left_behind())


def start_waiting(engine: Engine, *command: str) -> subprocess.Popen[str]:
    """Start a call of the low tier, and wait until it waits.

    A gate is open for one second in thirty: who comes then is through at once.
    """
    for _ in range(TRIES):
        process = start_call(engine, "low", *command)
        wait_for(functools.partial(is_over_or_waits, process), "the call to wait", SLOW_S)
        if process.poll() is None:
            return process
        assert end(process) == 0
    raise AssertionError("no call waited")


def record_that(is_it: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The first record of which something holds, once it is there."""

    def found() -> dict[str, Any] | None:
        lines = RECORDS.read_text().splitlines() if RECORDS.exists() else []
        return next(filter(is_it, map(json.loads, lines)), None)

    record: dict[str, Any] = wait_for(found, "the record", SLOW_S)
    return record


def left_behind() -> list[Path]:
    """Files of calls that wait, or of some that were killed while they did."""
    return list(Path("/run/agentrun/sessions").glob("*/*/*wait-*"))


def test_call_of_the_low_tier_waits_until_there_is_room_and_says_so(engine, squeeze):
    low = start_waiting(engine, "sh", "-c", "echo ran; sleep 1; echo done >&2")
    row = waiting()[0]
    assert (row["tier"], row["command"]["name"]) == ("low", "echo")
    assert "left" in row["waiting"]["why"] and low.poll() is None
    squeeze.relax()
    out, error = low.communicate(timeout=SLOW_S)
    record = record_that(lambda record: record["id"] == row["id"])
    assert (low.returncode, out) == (0, "ran\n") and error.endswith("done\n")
    assert (record["id"], record["verdict"], record["flags"]) == (row["id"], "ok", ["waited"])
    assert record["waited"]["outcome"] == "room" and record["waited"]["level"] == "above"
    assert 0.05 < record["waited"]["seconds"] < WAIT_S and record["start"] > row["start"]
    assert "[agentrun] This call waited" in error and "others came first" in error, error
    assert [note["event"] for note in record["feedback"]] == ["waited"]
    assert left_behind() == []


def test_call_of_a_strict_tier_is_refused(engine, squeeze):
    began = time.time()
    for number in range(TRIES):  # see `start_waiting`
        done = engine("exec", "strict", "touch", f"/tmp/ran-{number}", check=False)
        if done.returncode:
            break
    print(f"{engine.name}: exit {done.returncode}, {done.stdout!r}, {done.stderr!r}")
    assert done.returncode in (126, 128, 255)  # docker tells of a failed exec on stdout
    assert "agentrun: This call was refused and did not run" in done.stdout + done.stderr
    record = record_that(lambda record: record["verdict"] == "refused" and record["end"] > began)
    assert (record["verdict"], record["level"], record["waited"]["outcome"]) == (
        "refused",
        "above",
        "refused",
    )
    assert left_behind() == []
    squeeze.relax()
    wait_for(lambda: not GATE.exists(), "the gate to open", SLOW_S)
    assert f"ran-{number}" not in engine("exec", "strict", "ls", "/tmp").stdout


def test_call_that_need_not_wait_starts_beside_one_that_waits(engine, squeeze):
    low = start_waiting(engine, "true")
    began = time.monotonic()
    engine("exec", "-e", "AGENTRUN_INTENT=class=light", "low", "echo", "hi")
    took, is_waiting = time.monotonic() - began, bool(left_behind())
    print(f"{engine.name}: beside one that waits an exec took {took:.1f} s; it still waits: {is_waiting}")
    if engine.name == "docker":  # podman holds the container's lock while an exec starts
        assert is_waiting
    squeeze.relax()
    assert end(low) == 0


def test_killed_runtime_and_removed_container_leave_nothing(engine, squeeze):
    low = start_waiting(engine, "true")
    os.kill(json.loads(left_behind()[0].read_text())["owner"][0], signal.SIGKILL)
    assert end(low) != 0
    assert waiting() == [] and left_behind() == []
    low = start_waiting(engine, "true")
    began = time.monotonic()
    engine.rm("low")
    print(f"{engine.name}: rm -f of a container with a waiting call took {time.monotonic() - began:.1f} s")
    end(low)
    assert waiting() == [] and left_behind() == []
    assert not engine("ps", "-aq", "--filter", "name=^low$").stdout
