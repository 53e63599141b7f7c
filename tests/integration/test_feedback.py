"""What an agent is told arrives in what `docker exec` and `podman exec` print, and changes nothing else."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from engine import IMAGE, Engine
from runtimes import run, wait_for
from watched import box, call, hog, names_in_calls, policy, raw_records, start
from watched import daemon as daemon
from watched import engine as engine

POLICY = Path("/etc/agentrun/policy.d/50-feedback.yaml")
OVER = hog(200)
SLOW_DEATH = ("sh", "-c", 'echo out; echo err >&2; sleep 1; exec "$@"', "sh")


def told(record: dict[str, Any]) -> str:
    """All text that a call was told, as the record has it."""
    return "".join(note["text"] for note in record["feedback"] or [] if note["delivered"])


def lines_of(text: str) -> list[str]:
    """Our lines of an output."""
    return [line for line in text.splitlines() if line.startswith("[agentrun] ")]


def test_time_limit_is_told_before_the_kill(engine):
    done, record = call(engine, *SLOW_DEATH, "sleep", "100", intent="time=8s")
    assert (done.returncode, done.stdout) == (137, "out\n")
    assert done.stderr.startswith("err\n[agentrun] This call was killed")
    assert "its time limit of 8s passed" in done.stderr and told(record) in done.stderr
    assert record["feedback"][0]["event"] == record["verdict"] == "timed-out"


def test_own_memory_limit_is_told(engine):
    done, record = call(engine, *SLOW_DEATH, *OVER, intent="memory=64m")
    assert (done.returncode, done.stdout) == (137, "out\n")
    (note,) = record["feedback"]
    assert (note["event"], record["level"]) == ("oom-killed", "call")
    assert "its own memory limit of 64M" in note["text"]
    if engine.name == "docker":  # the shim reads to the end; conmon's race is measured below
        assert note["why"] is None
        assert told(record) in done.stderr and len(lines_of(done.stderr)) <= 6


def test_container_limit_is_told_as_the_containers(engine):
    done, record = call(engine, *hog(400))
    (note,) = record["feedback"]
    assert record["level"] == "session" and "the container reached its memory limit" in note["text"]
    assert "AGENTRUN_INTENT" not in note["text"]  # asking for more would not help
    if engine.name == "docker":
        assert note["delivered"] and told(record) in done.stderr


NEIGHBOURS = {
    "ended well": (("sh", "-c", "sleep 0.5; echo err >&2"), "memory=64m"),
    "killed itself": (("sh", "-c", "echo err >&2; sleep 0.5; kill -9 $$"), "memory=64m"),
    "exit code 137": (("sh", "-c", "echo err >&2; sleep 0.5; exit 137"), "memory=64m,time=60s"),
}


@pytest.mark.parametrize("name", NEIGHBOURS)
def test_nothing_is_told_where_nothing_happened(engine, name):
    command, intent = NEIGHBOURS[name]
    done, record = call(engine, *command, intent=intent)
    assert done.stderr == "err\n" and record["feedback"] is None


def test_terminal_stays_as_it_is(engine):
    options = ("-t", "-e", "AGENTRUN_INTENT=time=8s")
    done = engine("exec", *options, "box", "sh", "-c", "echo on; sleep 100", check=False)
    assert done.returncode == 137 and "agentrun" not in done.stdout + done.stderr


def test_soft_limit_and_templates_and_switches_of_a_policy():
    text = (
        "version: 1\ndefault-class: talk\nclasses:\n"
        "  talk: {time: {soft: 1s, hard: 1m}}\n"
        "  still: {time: {soft: 1s, hard: 8s}, feedback: quiet}\n"
        "  mute: {time: {soft: 1s, hard: 8s}, feedback: off}\n"
        "feedback: {timed-out: 'Over at {seconds} seconds: {advice}'}\n"
    )
    with policy(POLICY, text), box("docker", "crun") as engine:
        done, record = call(engine, "sleep", "4")
        assert "has been running for 1s" in done.stderr and done.returncode == 0
        assert (record["slow"], [n["event"] for n in record["feedback"]]) == (1, ["slow"])
        done, record = call(engine, "sleep", "60", intent="class=still")
        assert lines_of(done.stderr)[0].startswith("[agentrun] Over at 8")
        assert [n["event"] for n in record["feedback"]] == ["timed-out"]
        done, record = call(engine, "sleep", "60", intent="class=mute")
        assert (done.stderr, record["verdict"], record["feedback"]) == ("", "timed-out", None)


THRASH = ("python3", "-c", "x = bytearray(150 << 20); print(len(x))")


def test_call_that_only_waits_for_memory_is_told_or_killed_as_the_policy_says():
    """Far above memory.high and without swap, the kernel makes every allocation wait."""
    text = (
        "version: 1\ndefault-class: told\nclasses:\n"
        "  told: {memory: {max: 250M, high: 40M}}\n"
        "  killed: {memory: {max: 250M, high: 40M}, stall: {share: 50%, time: 4s, action: kill}}\n"
    )
    with policy(POLICY, text), box("docker", "crun") as engine:
        done, record = call(engine, *THRASH, intent="class=killed,time=2m")
        assert (done.returncode, record["verdict"], record["level"]) == (137, "stalled", "call")
        assert "All processes of this call waited for memory" in done.stderr
        done, record = call(engine, *THRASH, intent="class=told,time=20s")
        assert record["verdict"] in ("ok", "timed-out") and "memory-throttled" in record["flags"]
        assert record["pressure"]["memory"]["full"] > 1_000_000
        assert "throttled" in [note["event"] for note in record["feedback"]]
        assert "slowed down by its memory limit at 40M" in done.stderr


def keeper() -> int:
    """The keeper's process."""
    pid = run("systemctl", "show", "-P", "MainPID", "agentrund").stdout.strip()
    return int(wait_for(lambda: Path(f"/proc/{pid}/task/{pid}/children").read_text().split(), "keeper")[0])


STOPS = {"agentrund": (True, False), "keeper": (False, True), "both": (True, True)}


@pytest.mark.parametrize("name", STOPS)
def test_exec_ends_whatever_of_ours_is_stopped(engine, name):
    daemon_too, keeper_too = STOPS[name]
    daemon_pid = int(run("systemctl", "show", "-P", "MainPID", "agentrund").stdout)
    keeper_pid = keeper()
    plain = start(engine, "sleep", "8")
    wait_for(lambda: "sleep" in names_in_calls(engine), "the call to begin")
    time.sleep(1)  # until its stderr is held: a keeper that holds nothing may stay stopped for 20 s
    began = time.monotonic()
    if daemon_too:
        os.kill(daemon_pid, 19)
    if keeper_too:
        os.kill(keeper_pid, 19)
    try:
        assert plain.wait(timeout=60) == 0
        assert time.monotonic() - began < 30
    finally:
        os.kill(daemon_pid, 18)
    wait_for(lambda: not any(r["end"] is None for r in raw_records()), "all to end")


@pytest.mark.parametrize("who", ["agentrund", "keeper"])
def test_exec_ends_when_one_of_ours_is_killed(engine, who):
    pid = keeper() if who == "keeper" else int(run("systemctl", "show", "-P", "MainPID", "agentrund").stdout)
    running = start(engine, "sleep", "8")
    wait_for(lambda: "sleep" in names_in_calls(engine), "the call to begin")
    os.kill(pid, 9)
    assert running.wait(timeout=60) == 0
    wait_for(lambda: run("systemctl", "is-active", "agentrund", check=False).returncode == 0, "restart")


def test_share_of_oom_kills_that_podman_delivers():
    """conmon ends when the first process does, so this is a race; how it goes is printed."""
    engine = Engine("podman", "crun")
    engine.create("box", engine.wrapped, "-m", "300m", IMAGE, "sleep", "1000000")
    count = int(os.environ.get("AGENTRUN_OOMS", "5"))
    try:
        arrived = 0
        for _ in range(count):
            done, record = call(engine, *OVER, intent="memory=64m")
            assert record["verdict"] == "oom-killed" and len(record["feedback"]) == 1
            arrived += told(record) != "" and told(record) in done.stderr
        print(f"podman: {arrived} of {count} texts arrived")
        assert arrived > 0
    finally:
        engine.rm("box")


def test_what_is_left_behind_is_demoted_and_shown():
    engine = Engine("docker", "crun")
    engine.create("box", engine.wrapped, IMAGE, "sleep", "1000000")
    try:
        container = engine("inspect", "-f", "{{.Id}}", "box").stdout.strip()
        done = subprocess.run(
            ["docker", "exec", "box", "sh", "-c", "sleep 15 >/dev/null 2>&1 & exec sleep 1"],
            capture_output=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0

        def left() -> list[Path]:
            found = engine.cgroup("box").glob("agentrun-calls/call-*/cpu.weight")
            return [path for path in found if path.read_text() == "1\n"]

        wait_for(left, "what is left to be demoted", 10)
        wait_for(lambda: [r for r in raw_records() if r["container"] == container], "the record")
        (record,) = [r for r in raw_records() if r["container"] == container]
        assert record["background"]["action"] == "demote"
        assert [p["name"] for p in record["background"]["processes"]] == ["sleep"]
        assert (record["verdict"], record["flags"]) == ("ok", ["background"])
    finally:
        engine.rm("box")
