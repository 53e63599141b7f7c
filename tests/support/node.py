"""A host for tests of agentrund: real cgroups and processes; only the runtime is played by the test."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from cgroups import cgroup_mount, placed
from livecalls import DAEMON

from agentrun.base import fastjson
from agentrun.base.paths import Paths
from agentrun.base.procfs import start_ticks
from agentrun.calls import slots
from agentrun.calls.session import open_calls
from agentrun.daemon import status

TREE = Path(__file__).parents[2]
_RUNTIME = {
    "waits": 'read -r script; sh "$script"; exit $?',
    "leaves": 'read -r script; sh "$script" & exit 0',
}
RECORD = jsonschema.Draft202012Validator(json.loads((TREE / "configs/record.schema.json").read_text()))


def wait_for(condition: Callable[[], Any], what: str, timeout_s: float = 30) -> Any:
    """Wait until a condition holds; gives what it gave."""
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"timed out: {what}"
        time.sleep(0.005)
    return found


def take_slot(session: slots.Calls, state: dict[str, Any]) -> str:
    """What `Calls.take_slot` does, for a runtime that is not this process."""
    temporary = f".new-{state['id']}"
    session._write(temporary, fastjson.dumps(state).encode("ascii"))
    try:
        return session._link_lowest(temporary)
    finally:
        os.unlink(f"{session.where}/{temporary}")


def end(runtime: subprocess.Popen[bytes]) -> None:
    """The runtime is gone."""
    assert runtime.stdin
    runtime.stdin.close()
    runtime.wait(timeout=10)


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
        self.daemon = subprocess.Popen(DAEMON, env=self.environment)
        pid = self.daemon.pid
        wait_for(lambda: (status.read(self.paths) or {}).get("pid") == pid, "agentrund to say that it runs")

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End agentrund; returns its exit status."""
        assert self.daemon
        self.daemon.send_signal(number)
        return self.daemon.wait(timeout=10)

    @contextlib.contextmanager
    def standing_still(self) -> Iterator[None]:
        """agentrund gets no CPU meanwhile."""
        assert self.daemon
        self.daemon.send_signal(signal.SIGSTOP)
        yield
        self.daemon.send_signal(signal.SIGCONT)

    def runtime(self, stderr: int | None = None) -> subprocess.Popen[bytes]:
        """A process that plays the runtime of a call: it lives until its stdin is closed."""
        return subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=stderr)

    def call(
        self,
        *command: str,
        pid_file: bool = True,
        stderr: int | None = None,
        runtime: subprocess.Popen[bytes] | None = None,
        close_fds: bool = True,
        place_after_s: float = 0,
        **state: Any,
    ) -> str:
        """Start a call as a runtime does (slot, cgroup, process, pid file, gone); returns its id.

        A `runtime` that is given is used and left alive. `place_after_s` is how long it takes between the
        cgroup and the process.
        """
        owner = runtime or self.runtime(stderr)
        call_id = os.urandom(6).hex()
        path = str(self.root / f"pids/{call_id}.pid") if pid_file else None
        cgroup = self._begin(call_id, owner, pid_file=path, **state)
        time.sleep(place_after_s)
        process = subprocess.Popen(
            placed(cgroup, *command), stdin=subprocess.DEVNULL, stderr=stderr, close_fds=close_fds
        )
        self.processes.append(process)
        procs = cgroup / "cgroup.procs"
        wait_for(lambda: procs.read_text() or process.poll() is not None, "the process to be placed")
        if path:
            Path(path + ".tmp").write_text(str(process.pid))
            os.rename(path + ".tmp", path)
        if runtime is None:
            end(owner)
        return call_id

    def _begin(self, call_id: str, owner: subprocess.Popen[bytes], **state: Any) -> Path:
        """Take a slot for a call and make its cgroup."""
        session = open_calls(self.paths, str(self.root / "runc"), "c1")
        assert session
        slot = take_slot(session, {
            "id": call_id,
            "owner": [owner.pid, start_ticks(owner.pid)],
            "container": "c1",
            "calls": str(self.cgroup / "agentrun-calls"),
            "start": time.time(),
            **state,
        })  # fmt: skip
        session.close()
        cgroup = self.cgroup / "agentrun-calls" / slot
        cgroup.mkdir()
        return cgroup

    def begin(self, runtime: subprocess.Popen[bytes], **state: Any) -> str:
        """Begin a call that gets no process; returns its id."""
        call_id = os.urandom(6).hex()
        self._begin(call_id, runtime, **state)
        return call_id

    def call_of_its_runtime(
        self, *command: str, how: str, **state: Any
    ) -> tuple[str, subprocess.Popen[bytes]]:
        """Start a call as a child of its runtime, which `waits` and ends with its exit code, or `leaves`.

        Returns its id and the runtime.
        """
        pipe, null = subprocess.PIPE, subprocess.DEVNULL
        runtime = subprocess.Popen(["sh", "-c", _RUNTIME[how]], stdin=pipe, stderr=null)
        self.processes.append(runtime)
        call_id = os.urandom(6).hex()
        cgroup = self._begin(call_id, runtime, **{"backend": "crun", **state})
        script = self.root / f"pids/{call_id}.sh"
        script.write_text(f"exec {shlex.join(placed(cgroup, *command))}")
        assert runtime.stdin
        runtime.stdin.write(f"{script}\n".encode())
        runtime.stdin.close()
        return call_id, runtime

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
        """The record of a call, once it is there, as the published schema says."""
        found = wait_for(
            lambda: [r for r in self.records() if r["id"] == call_id], f"the record of {call_id}"
        )[0]
        RECORD.validate(found)
        return found


def keeper(node: Node) -> int:
    """The process that holds copies."""
    assert node.daemon
    children = Path(f"/proc/{node.daemon.pid}/task/{node.daemon.pid}/children")
    return int(wait_for(lambda: children.read_text().split(), "the keeper")[0])


def mount_or_skip() -> Path:
    """A cgroup2 mount to test on; without one the test is skipped, and in CI it fails."""
    mount = cgroup_mount()
    if mount is not None:
        return mount
    reason = "needs root and a cgroup2 mount (a hybrid one will do)"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture
def node(tmp_path) -> Iterator[Node]:
    cgroup = mount_or_skip() / f"agentrun-daemon-{os.getpid()}"
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
