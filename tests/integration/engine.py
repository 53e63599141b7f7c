"""docker and podman, each on runc and crun: bare, and the same backend through agentrun."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from matrix import cells
from runtimes import run, wait_for

IMAGE = "agentrun-test/agentbox"
DAEMON_JSON = Path("/etc/docker/daemon.json")
PODMAN_CONF = Path("/etc/containers/containers.conf.d/agentrun.conf")
RUNTIMES = {
    "docker": {
        "runc": ("runc", "agentrun-runc"),
        "crun": ("bare-crun", "agentrun-crun"),
    },
    "podman": {
        "runc": ("/usr/sbin/runc", "/usr/bin/agentrun-runc"),
        "crun": ("/usr/bin/crun", "/usr/bin/agentrun-crun"),
    },
}
MATRIX = cells(("docker", "podman"), ("runc", "crun"))


class Engine:
    """One engine on one backend."""

    def __init__(self, name: str, backend: str, *options: str) -> None:
        self.name = name
        self.backend = backend
        self.options = options
        self.bare, self.wrapped = RUNTIMES[name][backend]

    def __call__(self, *arguments: str, check: bool = True, **kwargs: Any) -> Any:
        return run(self.name, *self.options, *arguments, check=check, **kwargs)

    def create(self, container: str, runtime: str, *arguments: str) -> str:
        """Start a detached container under a runtime; returns its full id."""
        self("rm", "-f", container, check=False)
        where = ["--runtime", runtime]
        run_options = [*self.options, *where] if self.name == "podman" else list(self.options)
        verb = ["run", "-d", "--name", container, *([] if self.name == "podman" else where)]
        return str(run(self.name, *run_options, *verb, *arguments).stdout.strip())

    def pid(self, container: str) -> int:
        """The container's init on the host."""
        return int(self("inspect", "-f", "{{.State.Pid}}", container).stdout)

    def cgroup(self, container: str) -> Path:
        """The container's own cgroup: what the engine made."""
        own = Path(f"/proc/{self.pid(container)}/cgroup").read_text().strip().partition("::")[2]
        path = Path("/sys/fs/cgroup" + own)
        return path.parent if path.name == "agentrun-agent" else path

    def rm(self, container: str) -> None:
        """Remove a container by force."""
        self("rm", "-f", *(["-t", "0"] if self.name == "podman" else []), container, check=False)


def configure(tree: Path) -> None:
    """Register the runtimes with both engines, as the README says."""
    DAEMON_JSON.parent.mkdir(exist_ok=True)
    DAEMON_JSON.write_text(
        '{"runtimes": {"agentrun-runc": {"path": "/usr/bin/agentrun-runc"},'
        ' "agentrun-crun": {"path": "/usr/bin/agentrun-crun"}, "bare-crun": {"path": "/usr/bin/crun"}}}'
    )
    run("systemctl", "reload-or-restart", "docker")
    wait_for(
        lambda: "bare-crun" in run("docker", "info", "-f", "{{.Runtimes}}", check=False).stdout,
        "docker to know the runtimes",
    )
    PODMAN_CONF.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(tree / "configs/podman-agentrun.conf", PODMAN_CONF)


def normalised(text: str, *names: str) -> str:
    """Output without what differs from one container to the next: ids, names, pids, times, the runtime."""
    for number, name in enumerate(names):
        text = text.replace(name, f"<{number}>")
    text = re.sub(r"\b[0-9a-f]{64}\b|\b[0-9a-f]{12}\b", "<id>", text)
    text = re.sub(r"time=\"[^\"]*\"|\d{4}-\d\d-\d\dT[\d:.]+Z?", "<time>", text)
    return re.sub(r"(?:/usr/s?bin/)?(?:agentrun-|bare-)?(?:runc|crun)\b", "<runtime>", text)


def start_call(engine: Engine, container: str, *command: str, env: str = "") -> subprocess.Popen[str]:
    """Start a call and leave it running."""
    options = ["-e", env] if env else []
    return subprocess.Popen(
        [engine.name, *engine.options, "exec", *options, container, *command],
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
