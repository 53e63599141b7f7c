"""`agentrunctl trace` with bcc, on real containers: each call is told with what it does, and no other is."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from engine import Engine
from runtimes import require, run, wait_for
from watched import box, policy
from watched import daemon as daemon

from agentrun.base.errors import TraceError
from agentrun.trace import needs

POLICY = Path("/etc/agentrun/policy.d/50-trace.yaml")
CLASSES = """\
version: 1
default-class: plain
classes:
  plain: {}
  hog: {memory: {max: 250M, high: 40M}}
  throttled: {}
  chatty: {}
  quiet: {}
"""
LOADS = {
    "hog": ("", "python3", "-c", "import time\nx = bytearray(150 << 20)\ntime.sleep(1000)"),
    "throttled": (",cpu=0.2", "sh", "-c", "while :; do :; done"),
    "chatty": ("", "dd", "if=/dev/zero", "of=/dev/null", "bs=1"),
    "quiet": ("", "sleep", "1000"),
}

pytestmark = pytest.mark.needs("bcc", "kprobes")


def missing() -> str | None:
    """Why nothing can be traced here."""
    try:
        needs.check(os.geteuid(), os.uname().release, "/sys/fs/cgroup")
        needs.import_bcc()
    except TraceError as error:
        return str(error)
    return None


@pytest.fixture(scope="module", autouse=True)
def classes(daemon) -> Iterator[None]:
    require(missing())
    with policy(POLICY, CLASSES):
        yield


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with box("docker", "runc") as made:
        yield made


def programs() -> set[int]:
    """Ids of all BPF programs in the kernel."""
    return {program["id"] for program in json.loads(run("bpftool", "-j", "prog", "show").stdout)}


class Trace:
    """A trace that runs; `lines` are the objects that it printed so far."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[dict[str, Any]] = []

    def line(self) -> dict[str, Any]:
        """The next object."""
        assert self.process.stdout
        text = self.process.stdout.readline()
        assert text, f"the trace has ended: {self.process.wait(timeout=60)}"
        self.lines.append(json.loads(text))
        return self.lines[-1]

    def end(self, number: int | None = signal.SIGINT) -> dict[str, Any]:
        """End it (None: it ends by itself); the last object."""
        if number is not None:
            self.process.send_signal(number)
        assert self.process.stdout
        self.lines += map(json.loads, self.process.stdout)
        assert self.process.wait(timeout=60) == 0
        return self.lines[-1]


@contextlib.contextmanager
def tracing(container: str, *options: str) -> Iterator[Trace]:
    """A trace whose probes are attached; nothing of it is left in the kernel afterwards."""
    before = programs()
    argv = ["agentrunctl", "trace", container, "--json", *options]
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as process:
        trace = Trace(process)
        try:
            trace.line()
            assert programs() - before, "probes are attached"
            yield trace
        finally:
            process.kill()
    wait_for(lambda: not programs() - before, "the probes to be gone")


@contextlib.contextmanager
def loads(engine: Engine, *names: str) -> Iterator[dict[str, str]]:
    """Calls that go on until the end; their ids by the name of their class."""
    processes = []
    for name in names:
        more, *command = LOADS[name]
        intent = f"AGENTRUN_INTENT=class={name}{more}"
        argv = [engine.name, "exec", "-e", intent, "box", *command]
        processes.append(subprocess.Popen(argv, stdin=subprocess.DEVNULL))
    try:
        yield wait_for(lambda: ids if len(ids := running()) == len(names) else None, "the calls to run")
    finally:
        run("agentrunctl", "kill", "--all-calls", check=False)
        for process in processes:
            process.wait(timeout=60)
        wait_for(lambda: not running(), "the calls to be over")


def running() -> dict[str, str]:
    """Ids of the calls that run, by class."""
    rows = map(json.loads, run("agentrunctl", "calls", "--json").stdout.splitlines())
    return {row["class"]: row["id"] for row in rows if row["end"] is None}


def test_each_call_is_told_with_what_it_does(engine):
    with tracing("box") as trace, loads(engine, *LOADS) as ids:
        for _ in range(8):
            trace.line()
        summary = trace.end()
        print(json.dumps(summary))
        rows = {name: row for row in summary["calls"] for name in LOADS if row["id"] == ids[name]}
    assert rows.keys() == LOADS.keys()
    hog, throttled, chatty, quiet = (rows[name] for name in LOADS)
    assert all(row["state"] == "live" for row in rows.values())
    assert [rows[name]["command"] for name in LOADS] == ["python3", "while", "dd", "sleep"]

    # Who faults, allocates and waits for memory: the one over its memory.high.
    # Its faults may be of huge pages, and starting a call takes hundreds.
    assert hog["faults"] > 500 and hog["allocated"] > 30 << 20
    assert hog["high_waits"] > 0 and hog["high_wait_us"] > 200_000
    assert hog["reclaims"] > 0 and hog["reclaim_us"] > 0
    for row in (throttled, chatty, quiet):
        assert row["faults"] < hog["faults"] / 2 and row["allocated"] < hog["allocated"] / 2
        assert (row["high_waits"], row["reclaims"]) == (0, 0)

    # Who is kept off the CPU.
    assert throttled["throttled_us"] > 1_000_000
    assert throttled["runqueue_wait_us"] > throttled["throttled_us"] / 2
    for row in (hog, quiet):
        assert row["throttled_us"] < throttled["throttled_us"] / 10
    assert quiet["runqueue_wait_us"] < throttled["runqueue_wait_us"]

    # Who calls the kernel, and what.
    assert chatty["cpu_us"] > 0
    assert {call["name"] for call in chatty["top_syscalls"][:2]} == {"read", "write"}
    for row in (hog, throttled, quiet):
        assert row["syscalls"] < chatty["syscalls"] / 5
    agent = next(row for row in summary["calls"] if row["state"] == "agent")
    assert agent["faults"] < 100 and agent["syscalls"] < 100
    assert summary["lost"] == 0


def test_cgroup_inside_a_call_counts_for_the_call(engine):
    with loads(engine, "throttled") as ids, tracing("box", "--what", "cpu", "--interval", "2") as trace:
        slot = next((engine.cgroup("box") / "agentrun-calls").glob("call-*"))
        inner = slot / "inner"
        inner.mkdir()
        for pid in (slot / "cgroup.procs").read_text().split():
            (inner / "cgroup.procs").write_text(pid)
        trace.line()  # a part of it was spent outside
        row = next(row for row in trace.line()["calls"] if row["id"] == ids["throttled"])
        assert row["runqueue_wait_us"] > 200_000 and "faults" not in row
        trace.end()


def test_trace_ends_with_its_container():
    with box("podman", "crun") as engine:
        container = engine("inspect", "-f", "{{.Id}}", "box").stdout.strip()
        with loads(engine, "quiet") as ids, tracing(container[:12], "--what", "memory") as trace:
            engine.rm("box")
            summary = trace.end(None)
            assert summary["type"] == "summary" and summary["container"] == container
            states = {row["id"]: row["state"] for row in summary["calls"]}
            assert states[ids["quiet"]] == "ended"


def test_trace_ends_after_its_seconds(engine):
    with tracing("box", "--seconds", "2", "--what", "syscalls") as trace:
        summary = trace.end(None)
    assert 2 <= summary["seconds"] < 10
    assert [line["type"] for line in trace.lines] == ["interval"] * (len(trace.lines) - 1) + ["summary"]


def test_killed_trace_leaves_no_probe(engine):
    with tracing("box") as trace:
        trace.process.kill()


def test_table_is_for_people(engine):
    with loads(engine, "chatty") as ids:
        done = run("agentrunctl", "trace", "box", "--seconds", "2", "--what", "syscalls")
    heading, *rows = done.stdout.partition("all ")[2].splitlines()[1:]
    assert heading.split() == ["CALL", "COMMAND", "STATE", "SYSCALLS", "MOST"]
    row = next(line for line in rows if line.startswith(ids["chatty"]))
    assert " dd " in row and "read" in row and "\x1b" not in done.stdout


def test_missing_headers_are_named(engine):
    build = Path(f"/lib/modules/{os.uname().release}/build")
    source = build.with_name("source")
    kept = {path: path.readlink() for path in (build, source) if path.is_symlink()}
    for path in kept:
        path.unlink()
    try:
        done = run("agentrunctl", "trace", "box", check=False)
    finally:
        for path, link in kept.items():
            path.symlink_to(link)
    assert done.returncode == 1
    assert f"apt install linux-headers-{os.uname().release}" in done.stderr


def test_no_such_container_is_named(engine):
    done = run("agentrunctl", "trace", "nope", check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "find container 'nope'" in done.stderr
