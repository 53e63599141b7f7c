"""How calls end, for real, on both engines and backends: each verdict, and what must not be taken for it.

More of them: stopped and forking trees in test_daemon.py, the network in test_network.py, what is told in
test_feedback.py.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from engine import IMAGE, Engine
from runtimes import run, wait_for
from watched import box, call, hog, names_in_calls, policy, raw_records
from watched import daemon as daemon

BOTH = [("docker", "crun"), ("podman", "runc")]
POLICY = Path("/etc/agentrun/policy.d/50-verdicts.yaml")
# Without swap, what is above memory.high has nowhere to go: every allocation waits.
CLASSES = """\
version: 1
default-class: plain
classes:
  plain: {}
  attended: {on-disconnect: kill}
  timed: {time: {soft: 8s, hard: 2m}}
  squeezed: {memory: {max: 250M, high: 40M}, time: {hard: 15s}}
  watched: {memory: {max: 250M, high: 40M}, time: {hard: 3m}, stall: {share: 50%, time: 4s, action: kill}}
"""


@pytest.fixture(scope="module", autouse=True)
def classes(daemon) -> Iterator[None]:
    """Classes for what an intent cannot ask for."""
    with policy(POLICY, CLASSES):
        yield


@pytest.fixture(scope="module", params=BOTH, ids="-".join)
def engine(request) -> Iterator[Engine]:
    """Both engines, both backends."""
    with box(*request.param) as made:
        yield made


@dataclass(frozen=True)
class Case:
    """What is called with which intent, and the end that its record must name."""

    command: tuple[str, ...]
    verdict: str
    code: int = 0
    level: str | None = None
    flags: frozenset[str] = field(default_factory=frozenset)
    intent: str = ""


def sh(script: str, *end: Any, **more: Any) -> Case:
    return Case(("sh", "-c", script), *end, **more)


def takes(mib: int, *end: Any, **more: Any) -> Case:
    return Case(hog(mib), *end, **more)


def has(*flags: str) -> frozenset[str]:
    return frozenset(flags)


BUSY = "import time\nwhile time.process_time() < {}: pass"
CASES_OF = {
    "ok": Case(("true",), "ok"),
    "failed": sh("exit 7", "failed", 7),
    "killed: itself by SIGKILL": sh("kill -9 $$", "killed", 137),
    "not killed: exit code 137": sh("exit 137", "failed", 137),
    "killed: by SIGTERM": sh("kill $$", "killed", 143),
    "not killed: exit code 143": sh("exit 143", "failed", 143),
    "not killed: its child was, by SIGKILL": sh("sh -c 'kill -9 $$'; exit 0", "ok"),
    "crashed": sh("kill -SEGV $$", "killed", 139),
    "OOM at its own limit": takes(200, "oom-killed", 137, "call", intent="memory=64m"),
    "no OOM: just inside its limit": takes(20, "ok", intent="memory=64m"),
    "no OOM: failed allocation": Case(
        ("python3", "-c", "import resource as r; r.setrlimit(r.RLIMIT_AS, (1 << 28,) * 2); bytearray(1<<29)"),
        "failed", 1, intent="memory=64m",
    ),
    "OOM at the container's limit": takes(400, "oom-killed", 137, "session"),
    "OOM of a child, and the shell goes on": sh(
        'python3 -c "x = bytearray(400 << 20)"; exit 0', "oom-killed", 137, "session"
    ),
    "no OOM: just inside the container's limit": takes(150, "ok"),
    "timed out": Case(("sleep", "100"), "timed-out", 137, "call", intent="time=8s"),
    "not timed out: in time": Case(("sleep", "0.1"), "ok", intent="time=60s"),
    "not timed out: its own timeout": Case(
        ("timeout", "-s", "KILL", "1", "sleep", "9"), "killed", 137, intent="time=60s"
    ),
    "slow": Case(("sleep", "9"), "ok", flags=has("slow"), intent="class=timed"),
    "not slow": Case(("sleep", "0.1"), "ok", intent="class=timed"),
    "slowed by memory.high": takes(
        150, "timed-out", 137, "call", has("memory-throttled"), intent="class=squeezed"
    ),
    "not slowed: below memory.high": takes(5, "ok", intent="class=squeezed"),
    "stalled": takes(150, "stalled", 137, "call", has("memory-throttled", "stalled"), intent="class=watched"),
    "not stalled: idle": Case(("sleep", "6"), "ok", intent="class=watched"),
    "slowed by its CPU limit": Case(
        ("python3", "-c", BUSY.format(1)), "ok", flags=has("cpu-throttled"), intent="cpu=0.25"
    ),
    # Two CPUs: runc starts in it too, and on all of them.
    "not slowed: idle under a CPU limit": Case(("sleep", "1"), "ok", intent="cpu=2"),
    "out of processes": sh(
        "for i in $(seq 40); do sleep 1 & done", "failed", 2, flags=has("background"), intent="pids=20"
    ),
    "leaves something behind": sh("sleep 3 >/dev/null 2>&1 & exit 0", "ok", flags=has("background")),
    "leaves nothing behind": sh("sleep 0.3 & wait", "ok"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES_OF)
def test_end_is_judged_truthfully(engine, name):
    case = CASES_OF[name]
    pid = engine.pid("box")
    done, record = call(engine, *case.command, intent=case.intent)
    assert done.returncode == case.code, done.stderr
    assert (record["verdict"], record["level"], record["exit_code"]) == (case.verdict, case.level, case.code)
    assert set(record["flags"]) == case.flags, record
    assert record["end_is"] == "seen"
    assert engine.pid("box") == pid


CLIENTS = {
    "killed, and the policy says so": ("attended", True, ("killed", "client", 137)),
    "killed, and the policy keeps it": ("plain", True, ("ok", None, 0)),
    "alive": ("attended", False, ("ok", None, 0)),
}


@pytest.mark.parametrize("name", CLIENTS)
def test_call_whose_client_is(engine, name):
    class_name, is_killed, end = CLIENTS[name]
    pid, known = engine.pid("box"), {r["id"] for r in raw_records()}
    intent = f"AGENTRUN_INTENT=class={class_name},client=$$"
    script = f'exec {engine.name} exec -e "{intent}" box sh -c "setsid sleep 15 & sleep 15; wait"'
    with subprocess.Popen(["sh", "-c", script], stdin=subprocess.DEVNULL) as client:
        wait_for(lambda: "sleep" in names_in_calls(engine), "the command to run")
        if is_killed:
            client.kill()
    record = wait_for(lambda: [r for r in raw_records() if r["id"] not in known], "the record", 60)[0]
    assert (record["verdict"], record["level"], record["exit_code"]) == end
    assert record["intent"]["accepted"] == {"class": class_name, "client": client.pid}
    assert not names_in_calls(engine)
    assert engine.pid("box") == pid


def test_client_that_nobody_knows_is_refused(engine):
    done, record = call(engine, "true", intent="class=attended,client=4194304")
    assert (done.returncode, record["verdict"]) == (0, "ok")
    assert record["intent"]["refused"] == [["client=4194304", "no such process on the host"]]


def records_of(container: str, count: int) -> list[dict[str, Any]]:
    """The records of all calls of a container, in the order of their starts."""

    def found() -> list[dict[str, Any]]:
        mine = sorted((r for r in raw_records() if r["container"] == container), key=lambda r: str(r["id"]))
        return mine if len(mine) >= count else []

    records: list[dict[str, Any]] = wait_for(found, f"{count} records", 60)
    assert len(records) == count
    return records


def sleep_in(made: Engine, container: str) -> subprocess.Popen[bytes]:
    """A call that lasts, once it runs."""
    null = subprocess.DEVNULL
    running = subprocess.Popen([made.name, "exec", "one", "sleep", "8"], stdin=null, stdout=null, stderr=null)
    wait_for(lambda: "sleep" in run("agentrunctl", "calls", "--container", container).stdout, "sleep to run")
    return running


@contextlib.contextmanager
def container(made: Engine, *options: str) -> Iterator[str]:
    """A container of one test, with its id."""
    yield made.create("one", made.wrapped, *options, IMAGE, "sleep", "1000000")
    made.rm("one")


@pytest.fixture(params=BOTH, ids="-".join)
def either(request) -> Engine:
    """An engine, without a container."""
    return Engine(*request.param)


def test_call_beside_one_that_is_oom_killed_is_not(either):
    with container(either, "-m", "200m") as made:
        beside = sleep_in(either, made)
        either("exec", "one", *hog(400), check=False)
        assert beside.wait(timeout=60) == 0
        kept, killed = records_of(made, 2)
        assert (killed["verdict"], killed["level"]) == ("oom-killed", "session")
        assert (kept["verdict"], kept["level"], kept["feedback"]) == ("ok", None, None)


HOW_IT_ENDS = {
    "stop": ("stop", "-t", "0", "one"),
    "kill": ("kill", "one"),
    "restart": ("restart", "-t", "0", "one"),
}


@pytest.mark.parametrize("how", HOW_IT_ENDS)
def test_call_is_killed_with_its_container(either, how):
    """By its engine, which is no OOM and nobody's kill of that call; one that ended before is as it was."""
    with container(either) as made:
        either("exec", "one", "sh", "-c", "kill -9 $$", check=False)
        running = sleep_in(either, made)
        either(*HOW_IT_ENDS[how])
        assert running.wait(timeout=60) != 0
        before, with_it = records_of(made, 2)
        assert (with_it["verdict"], with_it["level"]) == ("killed", "engine"), with_it
        assert (before["verdict"], before["level"]) == ("killed", None)


SLICE = "verdicts.slice"


def test_oom_at_a_limit_above_the_container(either):
    """And in the same container a call that meets its own limit first."""
    with container(either, "--cgroup-parent", SLICE) as made:
        run("systemctl", "set-property", "--runtime", SLICE, "MemoryMax=200M")
        either("exec", "one", *hog(400), check=False)
        script = "exec python3 -c 'x = bytearray(150 << 20)'"
        either("exec", "-e", "AGENTRUN_INTENT=memory=64m", "one", "sh", "-c", script, check=False)
        above, own = records_of(made, 2)
        assert (above["verdict"], above["level"], above["exit_code"]) == ("oom-killed", "above", 137)
        assert (own["verdict"], own["level"]) == ("oom-killed", "call")


@contextlib.contextmanager
def full_machine(spare_mib: int) -> Iterator[None]:
    """All memory of the machine but some is set aside as huge pages, which nobody asks for."""
    pool = Path("/proc/sys/vm/nr_hugepages")
    lines = Path("/proc/meminfo").read_text().splitlines()
    available = next(int(line.split()[1]) >> 10 for line in lines if line.startswith("MemAvailable"))
    pool.write_text(str((available - spare_mib) // 2))
    try:
        yield
    finally:
        pool.write_text("0")


@pytest.mark.needs("hugepages")
@pytest.mark.parametrize("either", BOTH[:1], indirect=True, ids="-".join)  # it takes minutes
def test_oom_of_the_whole_machine(either):
    """The kernel's own choice among all processes, made easy; what dies by itself meanwhile is no OOM."""
    with container(either) as made:
        script = "echo 1000 >/proc/self/oom_score_adj; exec python3 -c 'x = bytearray(2000 << 20)'"
        with full_machine(spare_mib=800):
            either("exec", "one", "sh", "-c", script, check=False)
            either("exec", "one", "bash", "-c", "kill -9 $$", check=False)
        assert either("exec", "one", "echo", "alive").stdout == "alive\n"
        machine, itself = records_of(made, 3)[:2]
        assert (machine["verdict"], machine["level"]) == ("oom-killed", "host"), machine
        assert (itself["verdict"], itself["level"]) == ("killed", None)
