"""Intent and policy on real engines: the plan that is recorded is the plan that the kernel has."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from engine import IMAGE, MATRIX, Engine, configure
from runtimes import CGROUP, LOG, SESSIONS, leftovers, records, run, wait_for

POLICY_FILE = Path("/etc/agentrun/policy.d/10-test.yaml")
POLICY = """
version: 1
classes:
  standard: {memory: {max: 60%}, pids: {max: 500}}
  one:
    memory: {default: 80M, max: 120M, high: 90% of max, low: 16M}
    cpu: {max: 1, weight: 77}
    pids: {default: 90, max: 100}
  later: {priority: low, cpu: {cpus: "0"}}
  elsewhere: {cpu: {cpus: "4000"}}
tiers:
  low: {memory: {max: 100M}, cpu: {weight: 33}}
sessions:
  - {name: tiered, match: {annotation: {agentrun.dev/tier: "*"}}}
  - {name: by name, match: {name: "ours*", image: "*agentbox*"}}
rules:
  - {name: skipped, match: {command: id}, skip: true}
  - {name: watched, match: {command: uname}, mode: observe}
  - {name: counting, match: {command: nproc}, class: one}
"""


@pytest.fixture(scope="module", autouse=True)
def policy(host) -> Iterator[None]:
    """Our policy, for the length of this module."""
    configure(Path(__file__).parents[2])
    POLICY_FILE.parent.mkdir(parents=True, exist_ok=True)
    POLICY_FILE.write_text(POLICY)
    assert "in force" in run("agentrunctl", "policy", "compile").stdout
    yield
    POLICY_FILE.unlink()


@pytest.fixture(scope="module", params=MATRIX, ids="-".join)
def engine(request) -> Iterator[Engine]:
    """An engine with a container of 300 MB that counted its CPUs before it went to sleep."""
    made = Engine(*request.param)
    options = ("-m", "300m", "--annotation", "agentrun.dev/intent=pids=300")
    made.create("ours", made.wrapped, *options, IMAGE, "sh", "-c", "nproc >/tmp/nproc; exec sleep 1000000")
    yield made
    made.rm("ours")


def cpu_s(cgroup: Path) -> float:
    """The CPU time used in a cgroup."""
    return int((cgroup / "cpu.stat").read_text().split()[1]) / 1e6


def call(engine: Engine, *command: str, options: tuple[str, ...] = ()) -> dict[str, Any]:
    """Run a call in the container; returns its record."""
    engine("exec", *options, "ours", *command)
    return records(engine("inspect", "-f", "{{.Id}}", "ours").stdout.strip())[-1]


def test_class_by_rule(engine):
    record = call(engine, "nproc")
    assert (record["class"], record["rule"], record["session"]) == ("one", "counting", "by name")
    assert record["limits"]["pids"] == 100  # 300 by the annotation, cut by the class


CHANNELS = {
    "environment": (("-e", "AGENTRUN_INTENT=class=one"), ("true",)),
    "json": (("-e", 'AGENTRUN_INTENT={"class": "one"}'), ("true",)),
    "env command": ((), ("env", "AGENTRUN_INTENT=class=one", "true")),
    "command string": ((), ("bash", "-lc", "cd / && AGENTRUN_INTENT=class=one true")),
    "wrapped": ((), ("timeout", "-k", "5s", "30s", "bash", "-c", "export AGENTRUN_INTENT=class=one; true")),
}


@pytest.mark.parametrize("channel", CHANNELS)
def test_class_by_intent(engine, channel):
    options, command = CHANNELS[channel]
    record = call(engine, *command, options=options)
    assert (record["class"], record["intent"]["accepted"]["class"]) == ("one", "one")


def test_annotation_asks_for_every_call_and_the_nearer_wins(engine):
    assert call(engine, "true")["limits"]["pids"] == 300
    assert call(engine, "env", "AGENTRUN_INTENT=pids=200", "true")["limits"]["pids"] == 200


def test_kernel_has_what_the_plan_says(engine):
    intent = "AGENTRUN_INTENT=class=one,memory=100m,cpu=0.5,pids=64"
    engine("exec", "-d", "-e", intent, "ours", "sleep", "4321")
    calls = engine.cgroup("ours") / "agentrun-calls"
    found = wait_for(
        lambda: [p for p in calls.glob("call-*") if "populated 1" in (p / "cgroup.events").read_text()], "it"
    )
    container = engine("inspect", "-f", "{{.Id}}", "ours").stdout.strip()
    command = ("env", intent, "sleep", "4321")
    explain = run(
        "agentrunctl", "policy", "explain", "--json", "--container", container, *root(engine), *command
    )
    planned = json.loads(explain.stdout)["files"]
    kernel = {name: (found[0] / name).read_text().strip() for name in planned}
    assert kernel == planned
    assert planned["memory.max"] == str(100 << 20) and planned["cpu.max"] == "50000 100000"
    assert (calls / "memory.low").read_text().strip() == planned["memory.low"]
    (calls / "cgroup.kill").write_text("1")


def root(engine: Engine) -> tuple[str, ...]:
    return () if engine.name == "podman" else ("--root", "/var/run/docker/runtime-runc/moby")


@pytest.mark.needs("cpus:2")
def test_call_with_one_cpu_counts_one_and_the_agent_all(engine):
    assert engine("exec", "ours", "nproc").stdout == "1\n"
    assert engine("exec", "ours", "cat", "/tmp/nproc").stdout == "2\n"
    assert engine("exec", "ours", "sh", "-c", "echo $GOMAXPROCS").stdout == "\n"
    assert engine("exec", "-e", "OMP_NUM_THREADS=7", "ours", "nproc").stdout == "7\n"


@pytest.mark.needs("cpuset")
def test_call_that_can_wait_is_pinned_and_nice(engine):
    script = "grep Cpus_allowed_list /proc/self/status; cut -d' ' -f19,41 /proc/self/stat"
    out = engine("exec", "-e", "AGENTRUN_INTENT=class=later", "ours", "sh", "-c", script).stdout.split()
    assert out[1] == "0"
    assert out[2:] == ["10", "3"]  # SCHED_BATCH


@pytest.mark.needs("cpuset")
def test_limit_that_the_kernel_does_not_take_is_named(engine):
    record = call(engine, "true", options=("-e", "AGENTRUN_INTENT=class=elsewhere"))
    assert record["not_enforced"] == ["cpuset.cpus"]
    assert record["limits"]["pids"] == 300


def test_observed_call_is_recorded_without_limits(engine):
    record = call(engine, "uname")
    assert (record["mode"], record["limits"], record["rule"]) == ("observe", None, "watched")
    assert record["memory_peak"] > 0


def test_skipped_call_is_not_ours(engine):
    before = len(records())
    engine("exec", "ours", "id")
    assert len(records()) == before


def test_tier_cuts_calls_and_shares_the_cpu(engine):
    options = ("--annotation", "agentrun.dev/tier=low", "-m", "300m")
    container = engine.create("tiered", engine.wrapped, *options, IMAGE, "sleep", "1000000")
    try:
        assert (engine.cgroup("tiered") / "cpu.weight").read_text() == "33\n"
        (noted,) = SESSIONS.glob(f"*/{container}/start-share")
        starts = Path(noted.read_text().split()[0])
        noted.write_text(f"{starts} 0\n")  # CPUs are short
        assert (starts / "cpu.weight").read_text() == "33\n"
        before = cpu_s(starts)
        engine("exec", "tiered", "true")
        assert cpu_s(starts) > before + 0.01 and (starts / "cgroup.procs").read_text() == ""
        record = records(container)[-1]
        assert (record["tier"], record["session"], record["limits"]["memory"]) == ("low", "tiered", 100 << 20)
    finally:
        engine.rm("tiered")


@pytest.mark.parametrize(
    "options", [(), ("--annotation", "agentrun.dev/tier=low", "--annotation", "agentrun.dev/mode=off")]
)
def test_container_that_is_off_or_not_chosen_has_no_trace_of_us(engine, options):
    container = engine.create("other", engine.wrapped, *options, IMAGE, "sleep", "1000000")
    try:
        assert engine("exec", "other", "cat", "/proc/self/cgroup").stdout == "0::/\n"
        assert not list(engine.cgroup("other").glob("agentrun-*"))
        assert not list(SESSIONS.glob(f"*/{container}"))
    finally:
        engine.rm("other")
    assert records(container) == []
    assert not LOG.exists(), LOG.read_text()


def test_default_runtime_leaves_others_alone():
    """docker with `default-runtime`: `docker run` of anything is as before."""
    daemon = Path("/etc/docker/daemon.json")
    before = daemon.read_text()
    daemon.write_text(json.dumps({**json.loads(before), "default-runtime": "agentrun-runc"}))
    run("systemctl", "restart", "docker")
    try:
        done = run("docker", "run", "--rm", "--name", "anything", IMAGE, "cat", "/proc/self/cgroup")
        assert done.stdout == "0::/\n"
        run("docker", "run", "-d", "--name", "ours-too", IMAGE, "sleep", "1000000")
        assert run("docker", "exec", "ours-too", "cat", "/proc/self/cgroup").stdout.startswith(
            "0::/agentrun-calls/"
        )
    finally:
        run("docker", "rm", "-f", "ours-too", check=False)
        daemon.write_text(before)
        run("systemctl", "restart", "docker")
    assert [path for path in leftovers() if "call-" in path] == []


@pytest.mark.parametrize("name", ["default", "evaluation", "multi-tenant"])
def test_ready_policy_works_as_it_is(name):
    text = (Path(__file__).parents[2] / f"configs/policy/{name}.yaml").read_text()
    kept = POLICY_FILE.read_text()
    POLICY_FILE.write_text(text)
    engine = Engine("docker", "crun")
    try:
        assert "in force" in run("agentrunctl", "policy", "compile").stdout
        annotation = ("--annotation", "agentrun.dev/tier=normal")
        container = engine.create(
            "ready", engine.wrapped, "-m", "500m", *annotation, IMAGE, "sleep", "1000000"
        )
        engine("exec", "ready", "bash", "-c", "ls / >/dev/null")
        record = records(container)[-1]
        assert record["limits"]["memory"] and record["not_enforced"] == []
        assert (engine.cgroup("ready") / "agentrun-agent/cpu.weight").read_text() == "200\n"
    finally:
        engine.rm("ready")
        POLICY_FILE.write_text(kept)
    assert CGROUP.exists() and not LOG.exists(), LOG.read_text()


def test_policy_commands_say_what_is_wrong(tmp_path):
    broken = tmp_path / "broken.yaml"
    broken.write_text("version: 1\nclasses: {a: {memory: {max: 512}}}\n")
    done = subprocess.run(
        ["agentrunctl", "policy", "check", broken], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert f"{broken}:2:29: classes.a.memory.max: '512'" in done.stderr
