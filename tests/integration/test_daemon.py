"""agentrund under systemd, with real engines: it kills what must die, and survives what is done to it."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from engine import IMAGE, Engine
from runtimes import LOG, RECORDS, run, wait_for
from watched import call, policy, raw_records, start
from watched import daemon as daemon
from watched import engine as engine


def test_operator_kills_one_call_and_the_agent_lives(engine):
    other = start(engine, "sleep", "1000")  # no shorter: the second exec may take its time to begin
    victim = start(engine, "python3", "-c", "import os, time; os.fork() or os.setsid(); time.sleep(1000)")
    container = engine("inspect", "-f", "{{.Id}}", "box").stdout.strip()

    def running() -> list[dict[str, Any]]:
        rows = [json.loads(line) for line in run("agentrunctl", "calls", "--json").stdout.splitlines()]
        return [r for r in rows if r["container"] == container and r["end"] is None]

    wait_for(lambda: len(running()) == 2, "both calls")
    call_id = next(r["id"] for r in running() if r["command"]["name"] == "python3")
    assert run("agentrunctl", "kill", call_id).stdout.strip() == call_id
    assert victim.wait(timeout=60) == 137
    record = json.loads(run("agentrunctl", "wait", call_id).stdout)
    assert (record["verdict"], record["level"], record["exit_code"]) == ("killed", "operator", 137)
    assert json.loads(run("agentrunctl", "inspect", call_id).stdout)["id"] == call_id
    (survivor,) = running()
    assert other.poll() is None
    assert run("agentrunctl", "kill", survivor["id"]).stdout.strip() == survivor["id"]
    assert other.wait(timeout=60) == 137


LARGE_AGENT = ("python3", "-c", "x = bytearray(180 << 20); import time; time.sleep(1000000)")
GREEDY = ("python3", "-c", "import time; time.sleep(2)\nx = bytearray(150 << 20)")


def over_the_top(name: str, backend: str) -> tuple[int, bool, dict[str, Any]]:
    """A container of 300 MB whose agent is larger than the call that goes over that: exit code, whether the
    agent lives, and the record."""
    engine = Engine(name, backend)
    limit = ("-m", "300m", "--memory-swap", "300m")
    engine.create("box", engine.wrapped, *limit, IMAGE, *LARGE_AGENT)
    try:
        done, record = call(engine, *GREEDY)
        alive = engine("inspect", "-f", "{{.State.Running}}", "box").stdout.strip() == "true"
        return done.returncode, alive, record
    finally:
        engine.rm("box")


@pytest.mark.parametrize("case", [("docker", "runc"), ("podman", "crun")], ids="-".join)
def test_kernel_picks_a_call_before_an_agent_that_is_larger(case):
    code, alive, record = over_the_top(*case)
    assert (code, alive, record["verdict"], record["level"]) == (137, True, "oom-killed", "session"), record


def test_kernels_own_order_where_the_policy_says_so():
    """The control: with 0 it is the agent that dies."""
    text = (
        "version: 1\ntiers: {plain: {oom-score-adj: 0}}\n"
        "sessions: [{name: all, match: {engine: docker}, tier: plain}]\n"
    )
    with policy(Path("/etc/agentrun/policy.d/50-test.yaml"), text):
        _, alive, _ = over_the_top("docker", "runc")
    assert not alive


TREES = {
    "ignores signals": "trap '' TERM INT HUP; while :; do sleep 1; done",
    "double fork": "(setsid sh -c 'sleep 1000 &' &); sleep 1000",
    "stopped": "kill -STOP $$",
    "fork bomb": "b() { b | b & }; b; sleep 1000",
}


@pytest.mark.parametrize("name", TREES)
def test_hard_limit_ends_every_kind_of_tree(name):
    engine = Engine("docker", "crun")
    engine.create("box", engine.wrapped, "-m", "300m", IMAGE, "sleep", "1000000")
    try:
        done, record = call(engine, "sh", "-c", TREES[name], intent="time=8s,pids=60")
        assert (done.returncode, record["verdict"]) == (137, "timed-out")
        assert engine("exec", "box", "echo", "alive").stdout == "alive\n"
    finally:
        engine.rm("box")


def test_daemon_killed_again_and_again_costs_no_record():
    engine = Engine("docker", "crun")
    container = engine.create("box", engine.wrapped, IMAGE, "sleep", "1000000")
    try:

        def one(number: int) -> int:
            return int(engine("exec", "box", "sh", "-c", f"exit {number % 3}", check=False).returncode)

        with ThreadPoolExecutor(4) as pool:
            codes = pool.map(one, range(40))
            for _ in range(5):
                time.sleep(3)
                run("systemctl", "kill", "-s", "KILL", "agentrund", check=False)
            assert list(codes) == [n % 3 for n in range(40)]
        wait_for(
            lambda: run("systemctl", "is-active", "agentrund", check=False).returncode == 0, "the restart"
        )

        def found() -> list[str]:
            return [r["id"] for r in raw_records() if r["container"] == container]

        wait_for(lambda: len(found()) >= 40, "all records")
        assert len(found()) == len(set(found())) == 40
    finally:
        engine.rm("box")


def test_stopped_daemon_delays_nothing():
    engine = Engine("docker", "crun")
    engine.create("box", engine.wrapped, IMAGE, "sleep", "1000000")
    try:
        run("systemctl", "kill", "-s", "STOP", "agentrund")
        for _ in range(3):
            assert engine("exec", "box", "echo", "on").stdout == "on\n"
    finally:
        engine.rm("box")
        run("systemctl", "kill", "-s", "CONT", "agentrund")


def test_engines_id_of_an_exec_finds_its_call():
    """podman prints the id of a detached exec; docker's is in its API."""
    engine = Engine("podman", "crun")
    engine.create("box", engine.wrapped, IMAGE, "sleep", "1000000")
    try:
        exec_id = engine("exec", "-d", "box", "sh", "-c", "sleep 1; exit 4").stdout.strip()
        wait_for(lambda: [r for r in raw_records() if r["exec_id"] == exec_id], "its record")
        script = f"from agentrun.client import Client; print(Client().wait(exec_id={exec_id!r})['exit_code'])"
        done = run("python3", "-c", f"import sys; sys.path.insert(0, '/usr/libexec/agentrun'); {script}")
        assert done.stdout == "4\n"
    finally:
        engine.rm("box")


def test_daemon_is_small():
    pid = run("systemctl", "show", "-P", "MainPID", "agentrund").stdout.strip()
    status = Path(f"/proc/{pid}/status").read_text()
    assert int(status.split("VmRSS:")[1].split()[0]) < 40 << 10


def test_doctor_finds_a_healthy_host_and_a_store_that_is_read_only():
    def doctor() -> tuple[int, dict[str, str]]:
        done = run("agentrunctl", "doctor", "--json", check=False)
        return done.returncode, {f["what"]: f["level"] for f in json.loads(done.stdout)}

    code, found = doctor()
    assert (code, found["agentrund"], found["kernel: exit status by pidfd"]) == (0, "ok", "ok"), found
    run("mount", "-t", "tmpfs", "-o", "ro,mode=700", "tmpfs", RECORDS.parent)
    try:
        code, found = doctor()
        assert (code, found[f"directory {RECORDS.parent}"]) == (1, "problem")
    finally:
        run("umount", RECORDS.parent)
        LOG.unlink(missing_ok=True)  # says that the compiled configuration could not be stored
