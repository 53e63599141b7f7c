"""agentrund on real cgroups and real processes; only the runtime is played by the test."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agentrun import calls, fastjson
from agentrun.paths import Paths

TREE = Path(__file__).parents[2]
MOUNTS = (Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup"))
RUN = f"import sys; sys.path.insert(0, {str(TREE)!r}); from agentrun.daemon import main; main()"


def wait_for(condition: Callable[[], Any], what: str, timeout_s: float = 10) -> Any:
    """Wait until a condition holds; gives what it gave."""
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"timed out: {what}"
        time.sleep(0.005)
    return found


def cgroup_mount() -> Path | None:
    """A cgroup2 mount where this process may make cgroups."""
    for mount in MOUNTS:
        if (mount / "cgroup.procs").exists() and os.access(mount, os.W_OK):
            return mount
    return None


class Node:
    """A host with one container, whose calls the test starts and agentrund watches."""

    def __init__(self, root: Path, cgroup: Path) -> None:
        self.root = root
        self.cgroup = cgroup
        mount = str(cgroup_mount())
        self.paths = Paths(str(root), mount)
        self.environment = {**os.environ, "AGENTRUN_ROOT": str(root), "AGENTRUN_CGROUP_ROOT": mount}
        self.daemon: subprocess.Popen[bytes] | None = None
        self.processes: list[subprocess.Popen[bytes]] = []
        (cgroup / "agentrun-calls").mkdir()
        for folder in ("var/log", "var/lib", "pids", "runc/c1"):
            (root / folder).mkdir(parents=True)

    def start(self) -> None:
        """Start agentrund and wait until it watches."""
        self.daemon = subprocess.Popen([sys.executable, "-c", RUN], env=self.environment)
        wait_for(lambda: calls.is_daemon_alive(self.paths), "agentrund to hold its lock")

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End agentrund; returns its exit status."""
        assert self.daemon
        self.daemon.send_signal(number)
        return self.daemon.wait(timeout=10)

    def call(self, *command: str, pid_file: bool = True, **state: Any) -> str:
        """Start a call as a runtime does (slot, cgroup, process, pid file, gone); returns its id."""
        session = calls.open_calls(self.paths, str(self.root / "runc"), "c1")
        assert session
        call_id = os.urandom(6).hex()
        path = str(self.root / f"pids/{call_id}.pid") if pid_file else None
        slot = session.take_slot({
            "id": call_id,
            "container": "c1",
            "calls": str(self.cgroup / "agentrun-calls"),
            "start": time.time(),
            "pid_file": path,
            **state,
        })  # fmt: skip
        cgroup = self.cgroup / "agentrun-calls" / slot
        cgroup.mkdir()
        script = f'echo $$ >{cgroup}/cgroup.procs; exec "$@"'
        process = subprocess.Popen(["sh", "-c", script, "sh", *command], stdin=subprocess.DEVNULL)
        self.processes.append(process)
        procs = cgroup / "cgroup.procs"
        wait_for(lambda: procs.read_text() or process.poll() is not None, "the process to be placed")
        if path:
            Path(path + ".tmp").write_text(str(process.pid))
            os.rename(path + ".tmp", path)
        self.end_owner(slot)
        session.close()
        return call_id

    def end_owner(self, slot: str) -> None:
        """The runtime is gone: the owner in the slot is a process that ended."""
        ended = subprocess.Popen(["true"])
        ended.wait()
        path = next(self.root.glob(f"run/agentrun/sessions/*/c1/{slot}"))
        state = fastjson.loads(path.read_bytes())
        replacement = path.parent / ".test"
        replacement.write_text(fastjson.dumps({**state, "owner": [ended.pid, 1]}))
        with contextlib.suppress(FileNotFoundError):
            os.rename(replacement, path)

    def reap(self) -> None:
        """Reap what ended, as a shim does."""
        for process in self.processes:
            process.poll()

    def records(self) -> list[dict[str, Any]]:
        """All records."""
        self.reap()
        path = Path(self.paths.records)
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def record(self, call_id: str) -> dict[str, Any]:
        """The record of a call, once it is there."""
        return wait_for(
            lambda: [r for r in self.records() if r["id"] == call_id], f"the record of {call_id}"
        )[0]


@pytest.fixture
def node(tmp_path) -> Iterator[Node]:
    mount = cgroup_mount()
    if mount is None:
        reason = "needs root and a cgroup2 mount (a hybrid one will do)"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    cgroup = mount / f"agentrun-daemon-{os.getpid()}"
    cgroup.mkdir()
    made = Node(tmp_path, cgroup)
    try:
        yield made
    finally:
        (cgroup / "cgroup.kill").write_text("1")
        if made.daemon and made.daemon.poll() is None:
            made.daemon.kill()
            made.daemon.wait()
        for process in made.processes:
            process.wait(timeout=10)
        wait_for(lambda: "populated 0" in (cgroup / "cgroup.events").read_text(), "the cgroup to empty")
        for folder, _, _ in os.walk(cgroup, topdown=False):
            os.rmdir(folder)
        shutil.rmtree(tmp_path)


ENDS = {
    "ok": (["true"], ("ok", 0, None)),
    "failed": (["sh", "-c", "exit 7"], ("failed", 7, None)),
    "exit 137 is not a kill": (["sh", "-c", "exit 137"], ("failed", 137, None)),
    "kill -9 is not an OOM": (["sh", "-c", "kill -9 $$"], ("killed", 137, "SIGKILL")),
    "terminated": (["sh", "-c", "kill $$"], ("killed", 143, "SIGTERM")),
}


@pytest.mark.parametrize("name", ENDS)
def test_end_is_seen_and_judged(node, name):
    command, expected = ENDS[name]
    node.start()
    call_id = node.call("sh", "-c", 'sleep 0.1; exec "$@"', "sh", *command)
    record = node.record(call_id)
    assert (record["verdict"], record["exit_code"], record["signal"]) == expected
    assert record["end_is"] == "seen" and 0.1 < record["end"] - record["start"] < 2
    assert not list((node.cgroup / "agentrun-calls").glob("call-*"))


def test_call_without_a_pid_file_is_judged_too(node):
    node.start()
    record = node.record(node.call("sh", "-c", "sleep 0.3; exit 3", pid_file=False))
    assert (record["verdict"], record["exit_code"]) == ("failed", 3)


def test_background_process_keeps_the_call_alive(node):
    node.start()
    call_id = node.call("sh", "-c", "sleep 1 & sleep 0.1; exit 5")
    time.sleep(0.5)
    assert node.records() == []
    record = node.record(call_id)
    assert (record["exit_code"], record["end"] - record["start"] > 0.9) == (5, True)


def test_restarted_daemon_finds_everything_again(node):
    node.start()
    first = node.call("sleep", "0.8")
    second = node.call("sleep", "0.2")
    assert node.stop(signal.SIGKILL) == -signal.SIGKILL
    time.sleep(0.4)
    third = node.call("sleep", "0.5")
    node.reap()
    node.start()
    for call_id in (first, second, third):
        assert node.record(call_id)["id"] == call_id
    assert len(node.records()) == 3
    assert node.record(first)["exit_code"] == node.record(third)["exit_code"] == 0


ESCAPES = {
    "plain": "sleep 100",
    "ignores signals": "trap '' TERM INT HUP; while :; do sleep 1; done",
    "session of its own": "setsid sh -c 'sleep 100' & sleep 100",
    "double fork": "(setsid sh -c 'sleep 100 &' &); sleep 100",
    "stopped": "kill -STOP $$",
    "forks all the time": "while :; do sleep 0.01 & done",
}


@pytest.mark.parametrize("name", ESCAPES)
def test_hard_time_limit_kills_the_whole_tree(node, name):
    node.start()
    neighbour = node.call("sleep", "2")
    call_id = node.call("sh", "-c", ESCAPES[name], limits={"time_soft": 0.2, "time_hard": 0.5})
    record = node.record(call_id)
    assert (record["verdict"], record["level"], record["timed_out"]) == ("timed-out", "call", 0.5)
    assert "slow" in record["flags"]
    assert 0.5 <= record["end"] - record["start"] < 2
    assert node.record(neighbour)["verdict"] == "ok"


def test_limit_that_passed_while_no_daemon_ran_is_kept_at_the_restart(node):
    call_id = node.call("sleep", "100", limits={"time_hard": 0.2})
    time.sleep(0.4)
    node.start()
    assert node.record(call_id)["verdict"] == "timed-out"


def test_call_in_time_is_not_killed(node):
    node.start()
    record = node.record(node.call("sleep", "0.3", limits={"time_soft": 5, "time_hard": 10}))
    assert (record["verdict"], record["flags"]) == ("ok", [])


def test_second_daemon_is_refused(node):
    node.start()
    second = subprocess.run(
        [sys.executable, "-c", RUN], env=node.environment, capture_output=True, timeout=10, check=False
    )
    assert second.returncode == 1 and b"agentrund: be the only agentrund" in second.stderr


def test_term_ends_it_at_once(node):
    node.start()
    began = time.monotonic()
    assert node.stop() == 0
    assert time.monotonic() - began < 1


def test_many_calls_leave_nothing_behind(node):
    """Descriptors, watches and memory of the daemon stay what they were."""
    node.start()

    def use() -> tuple[int, int]:
        assert node.daemon
        status = Path(f"/proc/{node.daemon.pid}/status").read_text()
        return len(os.listdir(f"/proc/{node.daemon.pid}/fd")), int(status.split("VmRSS:")[1].split()[0])

    def batch(count: int) -> None:
        ids = {node.call("true", limits={"time_hard": 1000}) for _ in range(count)}
        wait_for(lambda: ids <= {r["id"] for r in node.records()}, "all records", 30)
        node.processes.clear()

    batch(50)
    before = use()
    batch(400)
    after = use()
    assert after[0] <= before[0] + 2
    assert after[1] < before[1] + 2048  # KiB
    assert len({r["id"] for r in node.records()}) == len(node.records()) == 450


def test_idle_daemon_takes_no_cpu(node):
    node.start()
    node.call("sleep", "100")
    assert node.daemon

    def ticks() -> int:
        stat = Path(f"/proc/{node.daemon.pid}/stat").read_text().rpartition(")")[2].split()
        return int(stat[11]) + int(stat[12])

    time.sleep(0.5)
    before = ticks()
    time.sleep(2)
    assert ticks() - before <= 2  # of 200
