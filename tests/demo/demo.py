"""The main job, shown: three tool calls at once in one container, one of them greedy.

Runs where docker has the runtime `agentrun` (`make demo` brings up the test VM for that, or uses this host
with DEMO=host). Exits with 1 when anything of what it promises to show did not happen.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

from agentrun.base.digest import digest
from agentrun.terminal import format_size

NAME = "agentrun-demo"
IMAGE = os.environ.get("IMAGE", "agentrun-test/agentbox")
CONTAINER_MEMORY = "700m"

# The agent: its heart beats once a second, whatever its calls do.
AGENT = "n=0; while :; do n=$((n+1)); echo beat $n; sleep 1; done"

LIGHT = "cut -d: -f3 /proc/self/cgroup; ls /usr/bin /etc >/dev/null"

TESTS = """
import os, time
print(open('/proc/self/cgroup').read().split(':')[2].strip(), flush=True)
def suite(end):
    cases = [b'x' * (20 << 20)]
    while time.monotonic() < end:
        sum(i * i for i in range(10000))
    os._exit(0)
workers = []
for _ in range(2):
    workers.append(os.fork() or suite(time.monotonic() + 4))
for worker in workers:
    os.waitpid(worker, 0)
"""

GREEDY = """
print(open('/proc/self/cgroup').read().split(':')[2].strip(), flush=True)
hoard = []
while True:
    hoard.append(bytearray(8 << 20))
"""


@dataclass
class Call:
    """One tool call: what it is, what it asks for, and how it came out."""

    title: str
    argv: list[str]
    intent: str = ""
    expected_exit: int = 0
    exit_code: int | None = None
    cgroup: str = ""
    seconds: float = 0.0
    record: dict[str, Any] = field(default_factory=dict)


CALLS = [
    Call("light: look around", ["sh", "-c", LIGHT]),
    Call("tests: 2 workers", ["python3", "-c", TESTS], "cpu=2,memory=256m,pids=64"),
    Call("greedy: eats memory", ["python3", "-c", GREEDY], "memory=96m", expected_exit=137),
]


def docker(*arguments: str, check: bool = True) -> str:
    """Run docker; returns its stdout."""
    done = subprocess.run(["docker", *arguments], text=True, capture_output=True, check=False)
    if check and done.returncode:
        sys.exit(f"demo: docker {' '.join(arguments)[:80]}: {done.stderr.strip()}")
    return done.stdout.strip()


def check_host() -> None:
    """Say what is missing before anything is started."""
    if os.geteuid() != 0:
        sys.exit("demo: needs root (run `make demo` without DEMO=host to use the test VM)")
    if not os.path.exists("/sys/fs/cgroup/cgroup.controllers"):
        sys.exit("demo: this host has no cgroup v2 (run `make demo` without DEMO=host to use the test VM)")
    if not shutil.which("docker"):
        sys.exit("demo: docker is not installed (run `make demo` without DEMO=host to use the test VM)")
    if "agentrun" not in json.loads(docker("info", "-f", "{{json .Runtimes}}")):
        sys.exit("demo: docker has no runtime `agentrun`; see README.md, Two-minute start")
    if not docker("image", "ls", "-q", IMAGE):
        sys.exit(f"demo: docker has no image {IMAGE!r}; set IMAGE to one with sh and python3")


def start(call: Call) -> subprocess.Popen[str]:
    """Start a call as an agent harness would: with `docker exec`."""
    intent = ["-e", f"AGENTRUN_INTENT={call.intent}"] if call.intent else []
    command = ["docker", "exec", *intent, NAME, *call.argv]
    return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


def run_calls(console: Console) -> None:
    """Run all calls at once and wait for them."""
    began = time.monotonic()
    running = [(call, start(call)) for call in CALLS]
    while running:
        for call, process in list(running):
            if process.poll() is None:
                continue
            call.seconds = time.monotonic() - began
            call.exit_code = process.returncode
            call.cgroup = (process.stdout.read() if process.stdout else "").split("\n")[0]
            console.print(f"  {call.seconds:5.1f} s  {call.title}: exit code {call.exit_code}")
            running.remove((call, process))
        time.sleep(0.05)


def read_records(container: str) -> None:
    """Find each call's record by the hash of its command."""
    lines = subprocess.run(
        ["agentrunctl", "calls", "--json", "--container", container],
        text=True,
        capture_output=True,
        check=True,
    ).stdout.splitlines()
    by_command = {record["command"]["sha256"]: record for record in map(json.loads, lines)}
    for call in CALLS:
        call.record = by_command.get(digest("\0".join(call.argv)), {})


def describe_limits(record: dict[str, Any]) -> str:
    """The limits that were written for a call."""
    limits = record.get("limits") or {}
    parts = [
        f"memory {format_size(limits.get('memory'))}" if limits.get("memory") else "",
        f"cpu {limits['cpu']:g}" if limits.get("cpu") else "",
        f"pids {limits.get('pids')}",
    ]
    return ", ".join(part for part in parts if part)


def show(console: Console) -> None:
    """Print the table."""
    table = Table(title="What each tool call got and used")
    for column in (
        "tool call",
        "ran in",
        "asked for",
        "limits",
        "memory peak",
        "CPU",
        "exit",
        "how it ended",
    ):
        table.add_column(column, overflow="fold")
    for call in CALLS:
        record = call.record
        table.add_row(
            call.title,
            call.cgroup.strip("/"),
            call.intent or "-",
            describe_limits(record),
            format_size(record.get("memory_peak")),
            f"{(record.get('cpu_usage_us') or 0) / 1e6:.1f} s",
            str(call.exit_code),
            f"{record['verdict']}, own limit" if record.get("verdict") else "by itself",
        )
    console.print(table)


def failures(beats_before: int, beats_after: int, pid: str) -> list[str]:
    """What did not come out as promised."""
    wrong = [
        f"{call.title}: exit code {call.exit_code}, expected {call.expected_exit}"
        for call in CALLS
        if call.exit_code != call.expected_exit
    ]
    wrong += [f"{call.title}: ran in {call.cgroup}" for call in CALLS if "/call-" not in call.cgroup]
    wrong += [f"{call.title}: no record" for call in CALLS if not call.record]
    if len({call.cgroup for call in CALLS}) != len(CALLS):
        wrong.append("two calls shared a cgroup")
    if CALLS[-1].record.get("verdict") != "oom-killed" or CALLS[-1].record.get("level") != "call":
        wrong.append("the greedy call was not killed at its own limit")
    if beats_after <= beats_before or docker("inspect", "-f", "{{.State.Pid}}", NAME) != pid:
        wrong.append("the agent did not live on")
    return wrong


def beats() -> int:
    """How often the agent's heart has beaten."""
    return docker("logs", NAME).count("beat")


def main() -> int:
    """Show the main job; returns the exit status."""
    console = Console(width=None if sys.stdout.isatty() else 180)
    check_host()
    docker("rm", "-f", NAME, check=False)
    console.print(
        f"starting an agent's container: docker run --runtime=agentrun -m {CONTAINER_MEMORY} {IMAGE}"
    )
    run = ["run", "-d", "--name", NAME, "--runtime=agentrun", "-m", CONTAINER_MEMORY]
    container = docker(*run, IMAGE, "sh", "-c", AGENT)
    try:
        pid, before = docker("inspect", "-f", "{{.State.Pid}}", NAME), beats()
        console.print(f"three tool calls at once, by docker exec (the agent is pid {pid}):")
        run_calls(console)
        read_records(container)
        show(console)
        wrong = failures(before, beats(), pid)
        with open(f"/proc/{pid}/cgroup", encoding="ascii") as file:
            console.print(
                f"agent: alive as pid {pid} in {file.read().split(':')[2].strip()}, {beats()} beats"
            )
    finally:
        docker("rm", "-f", NAME, check=False)
    for line in wrong:
        console.print(f"demo FAILED: {line}", style="bold red")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
