"""A replay in real containers: through docker on agentrun and bare, and by hand against one shared limit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from engine import IMAGE, configure
from runtimes import CGROUP, ROOTFS, records, run, wait_for

TREE = Path(__file__).parents[2]
TRACES = TREE / "tests/data/traces"
BY_HAND = ("--engine", "hand", "--rootfs", str(ROOTFS / "agentbox"))


def replay(folder: Path, *arguments: str):
    """The report of a replay."""
    out = folder / "out.json"
    run("agentrunctl", "replay", "--out", out, "--html", folder / "page.html", *arguments)
    return json.loads(out.read_text())


@pytest.fixture(scope="module", autouse=True)
def engines(host):
    """Both engines know the runtimes."""
    configure(TREE)


def assert_all_done(found, runtime: str) -> None:
    figures = found["figures"]
    assert figures["done"] == figures["sessions"] == 1, found
    assert (figures["oom_kills"], figures["agents_killed"]) == (0, 0)
    assert figures["calls"]["ok"] == 2
    assert found["settings"]["runtime"] == runtime


@pytest.mark.parametrize("runtime", ["runc", "agentrun-runc"])
def test_docker_replays_a_trace_on_agentrun_and_bare(tmp_path, runtime):
    before = len(records())
    found = replay(
        tmp_path, "--runtime", runtime, "--image", IMAGE, "--memory", "400M", str(TRACES / "tiny-spiky.json")
    )
    assert_all_done(found, runtime)
    (session,) = found["sessions"]
    peak = max(used for _, used in session["curve"])
    assert 50e6 < peak < 200e6  # a trace of 80 MB, and what python3 and the kernel need
    assert max(used for _, used in found["curve"]) > peak * 0.9  # read one after the other
    assert "<polyline" in (tmp_path / "page.html").read_text()
    # Through agentrun each command of the trace is a call of its own.
    assert len(records()) - before == (2 if runtime.startswith("agentrun") else 0)
    assert run("docker", "ps", "-aq", "--filter", "name=replay-").stdout == ""
    wait_for(lambda: not list(CGROUP.glob("replay*")), "systemd to remove the slice")


def test_session_memory_is_the_containers_limit_and_a_killed_call_does_not_end_the_agent(tmp_path):
    found = replay(
        tmp_path, *BY_HAND, "--runtime", "agentrun-crun", "--session-memory", "60M",
        "--tier", f"low={TRACES / 'tiny-spiky.json'}",
    )  # fmt: skip
    (session,) = found["sessions"]
    assert [call["outcome"] for call in session["calls"]] == ["ok", "killed"]
    assert (session["done_s"], session["agent_killed"]) == (None, False)
    assert found["figures"]["oom_kills"] >= 1
    assert list(CGROUP.glob("replay*")) == []


def test_sessions_by_hand_share_the_parents_memory(tmp_path):
    pair = (f"--tier=high={TRACES / 'tiny-flat.json'}", f"--tier=low={TRACES / 'tiny-spiky.json'}")
    found = replay(tmp_path, *BY_HAND, "--runtime", "crun", "--memory", "300M", "--speed", "2", *pair)
    assert found["figures"]["done"] == 2
    assert found["figures"]["peak_bytes"] <= 300 << 20
    assert {s["tier"] for s in found["sessions"]} == {"high", "low"}
    assert all(s["curve"] for s in found["sessions"])
