"""What a host learns from calls that ended, with a real container: retries, and where a call begins."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from engine import IMAGE, Engine, configure
from runtimes import LOG, run, wait_for

TREE = Path(__file__).parents[2]
POLICY = Path("/etc/agentrun/policy.d/10-learned.yaml")
SLOW_S = 60
TEXT = """
version: 1
classes:
  standard: {memory: {default: 64M, max: 512M}}
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
    made.create("learner", made.wrapped, "-m", "600m", "--memory-swap", "600m", IMAGE, "sleep", "1000000")
    yield made
    made.rm("learner")
    run("systemctl", "stop", "agentrund")
    POLICY.unlink()
    assert not LOG.exists(), LOG.read_text()


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
    known: set[str] = set()
    shell = "{}python3 -c 'x = bytearray(120 << 20)'"
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
