"""What a host learns from calls that ended, with a real container: retries, and where a call begins."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from engine import IMAGE, Engine, configure, start_call
from runtimes import LOG, RECORDS, run, wait_for

TREE = Path(__file__).parents[2]
POLICY = Path("/etc/agentrun/policy.d/10-learned.yaml")
SLOW_S = 150  # of an emulated machine that is busy
TEXT = """
version: 1
classes:
  standard: {memory: {default: 64M, max: 512M}}
  learning: {memory: {max: 512M, learned: true}}
rules:
  - {match: {command: hungry}, class: learning}
"""
# Takes MEGABYTES in steps of 2 with a pause.
HOG = """
import sys, time
taken = []
for _ in range(int(sys.argv[1]) // 2):
    taken.append(bytearray(2 << 20))
    time.sleep(0.02)
"""


@pytest.fixture(scope="module")
def engine(host) -> Iterator[Engine]:
    """docker on crun with a container of 600 MB, a policy and agentrund."""
    configure(TREE)
    POLICY.parent.mkdir(parents=True, exist_ok=True)
    POLICY.write_text(TEXT)
    run("systemctl", "daemon-reload")
    run("systemctl", "start", "agentrund")
    made = Engine("docker", "crun")
    container = made.create(
        "learner", made.wrapped, "-m", "600m", "--memory-swap", "600m", IMAGE, "sleep", "1000000"
    )
    # Programs that are kinds of their own, whatever other tests have run.
    shell = 'for name in hog hungry; do ln -s "$(command -v python3)" /usr/local/bin/$name; done'
    made("exec", "learner", "sh", "-c", shell)
    record_of(container, set())
    yield made
    made.rm("learner")
    run("systemctl", "stop", "agentrund")
    POLICY.unlink()
    assert not LOG.exists(), LOG.read_text()


def finished() -> set[str]:
    """Ids of all calls that have a record."""
    lines = run("agentrunctl", "calls", "--json").stdout.splitlines()
    return {row["id"] for line in lines if (row := json.loads(line))["end"] is not None}


def record_of(container: str, known: set[str]) -> dict[str, Any]:
    """The record of the one call of a container that was not known, once it has ended."""

    def found() -> list[dict[str, Any]]:
        lines = run("agentrunctl", "calls", "--json", "--container", container).stdout.splitlines()
        rows = [row for line in lines if (row := json.loads(line))["end"] is not None]
        return [row for row in rows if row["id"] not in known]

    row: dict[str, Any] = wait_for(found, "the record", SLOW_S)[0]
    known.add(row["id"])
    return row


def test_killed_call_that_asks_for_more_gets_it_and_the_records_name_each_other(engine):
    container = engine("inspect", "-f", "{{.Id}}", "learner").stdout.strip()
    known = finished()
    shell = "{}hog -c 'x = bytearray(120 << 20)'"
    done = engine("exec", "learner", "sh", "-c", shell.format(""), check=False)
    killed = record_of(container, known)
    assert done.returncode == 137 and 'AGENTRUN_INTENT="memory=128M"' in done.stderr
    assert (killed["verdict"], killed["level"], killed["limits"]["memory"]) == (
        "oom-killed",
        "call",
        64 << 20,
    )
    asking = shell.format("AGENTRUN_INTENT=memory=256m ")
    assert engine("exec", "learner", "sh", "-c", asking, check=False).returncode == 0
    granted = record_of(container, known)
    assert (granted["verdict"], granted["limits"]["memory"]) == ("ok", 256 << 20)
    assert (killed["retry_of"], granted["retry_of"]) == (None, killed["id"])
    shown = json.loads(run("agentrunctl", "inspect", killed["id"]).stdout)
    assert shown["retried_by"] == [granted["id"]]
    engine("exec", "learner", "sh", "-c", asking)
    assert record_of(container, known)["retry_of"] is None  # the one before it ended well


def call(engine: Engine, known: set[str], *command: str, intent: str = "") -> dict[str, Any]:
    """Run a call, which ends well; returns its record."""
    container = engine("inspect", "-f", "{{.Id}}", "learner").stdout.strip()
    options = ("-e", f"AGENTRUN_INTENT={intent}") if intent else ()
    engine("exec", *options, "learner", *command)
    return record_of(container, known)


def hog(megabytes: int) -> tuple[str, ...]:
    return "hungry", "-c", HOG, str(megabytes)


def repeat(record: dict[str, Any], times: int) -> None:
    """As if such a call had been made so often: what it measured is real."""
    copies = [{**record, "id": f"{record['id'][:11]}{number:08x}"} for number in range(times)]
    with RECORDS.open("a") as file:
        file.writelines(json.dumps(copy) + "\n" for copy in copies)


def begins(record: dict[str, Any]) -> list[dict[str, Any]]:
    return [entry for entry in record["adapted"] or [] if entry["what"] == "limit"]


def test_call_begins_at_what_calls_like_it_used_and_grows(engine):
    known = finished()
    first = call(engine, known, *hog(60))
    assert (first["image"], first["command"]["family"], first["learned"]) == (IMAGE, "hungry", None)
    repeat(first, 30)
    suggested = run("agentrunctl", "policy", "suggest").stdout
    assert f"# hungry in {IMAGE}" in suggested and "learned-hungry:" in suggested
    run("systemctl", "restart", "agentrund")  # it reads the store again
    small = ("hungry", "-c", "pass")
    known |= finished()
    wait_for(lambda: call(engine, known, *small)["learned"], "agentrund to know", SLOW_S)
    large = call(engine, known, *hog(200))
    high = large["learned"]["memory_high"]
    assert first["memory_peak"] < high < 2 * first["memory_peak"] and large["learned"]["calls"] >= 30
    limits = [entry["bytes"] for entry in begins(large)]
    assert limits[0] == high and limits == sorted(limits) and limits[-1] >= 190 << 20, large["adapted"]
    assert "begins at" in begins(large)[0]["why"] and "memory_high" not in large["limits"]
    assert (large["verdict"], large["limits"]["memory"]) == ("ok", 512 << 20)
    asked = call(engine, known, *hog(20), intent="memory=300m")
    assert asked["learned"] is None and begins(asked) == []


def test_learned_start_goes_with_agentrund(engine):
    slow = start_call(engine, "learner", "hungry", "-c", "import time; time.sleep(1000)")
    slots = engine.cgroup("learner") / "agentrun-calls"
    try:
        high = wait_for(
            lambda: [f for f in slots.glob("call-*/memory.high") if f.read_text() != "max\n"],
            "a learned memory.high",
            SLOW_S,
        )[0]
        run("systemctl", "kill", "-s", "KILL", "agentrund")
        run("systemctl", "stop", "agentrund")
        assert high.read_text() == "max\n"
    finally:
        (slots / "cgroup.kill").write_text("1")
        slow.communicate(timeout=SLOW_S)
        run("systemctl", "reset-failed", "agentrund", check=False)
        run("systemctl", "start", "agentrund")
