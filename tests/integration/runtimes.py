"""Containers for the integration tests: by hand with runc and crun, and through docker, podman and ctr."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOTFS = Path("/var/lib/agentrun-vm/rootfs")
RECORDS = Path("/var/lib/agentrun/calls.jsonl")
SESSIONS = Path("/run/agentrun/sessions")
LOG = Path("/var/log/agentrun.log")
CGROUP = Path("/sys/fs/cgroup")
PATH = "/usr/local/bin:/usr/bin:/bin"


def missing() -> str | None:
    """Why these tests cannot run here; None when they can."""
    if os.geteuid() != 0:
        return "needs root"
    if not (CGROUP / "cgroup.controllers").exists():
        return "needs cgroup v2 at /sys/fs/cgroup"
    absent = [name for name in ("agentrun", "runc", "crun") if not shutil.which(name)]
    if absent:
        return f"not installed: {', '.join(absent)}"
    return None if ROOTFS.is_dir() else "needs the test VM's root file systems"


def require(reason: str | None) -> None:
    """Skip with the reason; where CI=true a missing feature is a failure."""
    if reason is None:
        return
    if os.environ.get("CI") == "true" or os.environ.get("AGENTRUN_TEST_STRICT") == "1":
        pytest.fail(f"cannot run here: {reason}")
    pytest.skip(reason)


def run(*command: str | Path, check: bool = True, stdin: str = "", **kwargs: Any) -> Any:
    """Run a command to its end with its output captured as text."""
    done = subprocess.run(
        [str(part) for part in command],
        input=stdin,
        text=True,
        capture_output=True,
        check=False,
        timeout=300,
        **kwargs,
    )
    if check and done.returncode:
        raise AssertionError(f"{command}: status {done.returncode}: {done.stdout}{done.stderr}")
    return done


def wait_for(condition: Callable[[], Any], what: str, timeout_s: float = 60) -> Any:
    """Wait until `condition` gives something true, and give that."""
    deadline = time.monotonic() + timeout_s
    while not (result := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"timed out: {what}")
        time.sleep(0.05)
    return result


def records(container_id: str = "") -> list[dict[str, Any]]:
    """Records of finished calls, after a harvest."""
    lines = run("agentrunctl", "calls", "--json").stdout.splitlines()
    found = [json.loads(line) for line in lines]
    return [r for r in found if r["container"].startswith(container_id) and r["end"] is not None]


def leftovers() -> list[str]:
    """Cgroups and state that a deleted container must not leave behind; shares of starts are the host's."""
    made = (path for path in CGROUP.rglob("agentrun-*") if path.is_dir())
    cgroups = [str(path) for path in made if not path.name.startswith("agentrun-starts-")]
    states = [str(path) for path in SESSIONS.rglob("*") if path.is_file()]
    return cgroups + states


class Bundle:
    """A container by hand: a bundle, a runtime command line, an id."""

    def __init__(self, folder: Path, runtime: str, container_id: str, *options: str) -> None:
        self.folder = folder
        self.runtime = [runtime, *options]
        self.id = container_id

    def write(self, args: list[str], change: Callable[[dict[str, Any]], None] | None = None) -> None:
        """Write config.json: the runtime's default, no terminal, the busybox root file system."""
        self.folder.mkdir(parents=True, exist_ok=True)
        run("runc", "spec", "--bundle", self.folder)
        path = self.folder / "config.json"
        spec = json.loads(path.read_text())
        spec["process"].update(terminal=False, args=args)
        spec["root"] = {"path": str(ROOTFS / "busybox"), "readonly": True}
        spec["linux"]["cgroupsPath"] = self.cgroups_path()
        spec["linux"]["resources"]["memory"] = {"limit": 256 << 20}
        if change:
            change(spec)
        path.write_text(json.dumps(spec))

    def cgroups_path(self) -> str:
        """What the driver wants: slice:prefix:name for systemd, a path for cgroupfs."""
        if "--systemd-cgroup" in self.runtime:
            return f"system.slice:agentrun-test:{self.id}"
        return f"/by-hand/{self.id}"

    def __call__(self, *arguments: str | Path, check: bool = True, **kwargs: Any) -> Any:
        return run(*self.runtime, *arguments, check=check, **kwargs)

    def detached(self, *arguments: str | Path) -> None:
        """Run a verb that hands its stdio to the container."""
        null = subprocess.DEVNULL
        command = [str(part) for part in (*self.runtime, *arguments)]
        subprocess.run(command, check=True, stdin=null, stdout=null, stderr=null, timeout=120)

    def start(self) -> None:
        """Create and start, as an engine does."""
        self.detached("create", "--bundle", self.folder, self.id)
        self("start", self.id)

    def exec(self, *command: str, options: tuple[str, ...] = (), check: bool = True) -> Any:
        """Run a call to its end. crun forgets the container's own PATH where a variable is given."""
        path = ("-e", f"PATH={PATH}") if "-e" in options else ()
        return self("exec", *options, *path, self.id, *command, check=check)

    def cgroup(self) -> Path:
        """The container's cgroup on the host: the parent of the agent's leaf."""
        pid = json.loads(self("state", self.id).stdout)["pid"]
        own = Path(f"/proc/{pid}/cgroup").read_text().strip().partition("::/")[2]
        path = CGROUP / own
        return path.parent if path.name == "agentrun-agent" else path


@contextlib.contextmanager
def started(bundle: Bundle, args: list[str] | None = None) -> Iterator[Bundle]:
    """A started container, deleted at the end whatever happens."""
    bundle.write(args or ["sleep", "1000000"])
    try:
        bundle.start()
        yield bundle
    finally:
        bundle("delete", "--force", bundle.id, check=False)
