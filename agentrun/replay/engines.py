"""Where sessions run: docker, podman, a runtime called by hand, or plain processes without any container.

An engine makes a container whose first process is the agent, starts it, and says how to run a command in it.
It never waits for anything else; run.py does.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from agentrun.base.errors import AgentrunError
from agentrun.replay.protocol import ENVIRONMENT, LINE_LIMIT

CGROUPS = Path("/sys/fs/cgroup")
_PATH = "PATH=/usr/local/bin:/usr/bin:/bin"
_CREATE_TIMEOUT_S = 180
_NAMESPACES = ("pid", "ipc", "uts", "mount", "network", "cgroup")


class ReplayError(AgentrunError):
    """A replay cannot go on; the text says what, where and why."""


@dataclass(frozen=True, slots=True)
class Container:
    """What to make: `memory` is its own limit in bytes, `files` are cgroup files to write when it runs."""

    name: str
    annotations: Mapping[str, str] = field(default_factory=dict)
    memory: int | None = None
    files: Mapping[str, str] = field(default_factory=dict)


class Engine(Protocol):
    """What run.py needs of a place to run sessions."""

    def create(self, container: Container, command: Sequence[str], parent: str | None) -> None:
        """Make a container below the cgroup `parent`; nothing of it runs yet. Raises ReplayError."""

    async def start(self, name: str) -> Process:
        """Start it; the process's stdout is the agent's."""

    def exec_command(self, name: str, command: Sequence[str]) -> list[str]:
        """The command that runs `command` in it as a tool call."""

    def cgroup(self, name: str) -> Path | None:
        """The container's own cgroup while it runs."""

    def remove(self, name: str) -> None:
        """Kill and remove it with all that it runs; harmless when it is gone."""


def run_tool(command: Sequence[str], check: bool = True) -> str:
    """Run an engine's or runtime's command to its end; returns stdout. Raises ReplayError."""
    try:
        done = subprocess.run(
            list(command),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_CREATE_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ReplayError(f"run {command[0]!r}: {error}") from error
    if check and done.returncode:
        text = done.stderr.strip()[-500:]
        raise ReplayError(f"run {' '.join(command[:3])!r}: status {done.returncode}: {text}")
    return done.stdout.strip()


async def spawn(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Process:
    """Start a command whose stdout is read; its stderr is ours. Raises ReplayError."""
    try:
        return await asyncio.create_subprocess_exec(
            *command,
            stdin=DEVNULL,
            stdout=PIPE,
            limit=LINE_LIMIT,
            start_new_session=True,
            env={**os.environ, **environment} if environment else None,
        )
    except OSError as error:
        raise ReplayError(f"run {command[0]!r}: {error}") from error


def container_cgroup(pid: int) -> Path | None:
    """The container's cgroup by its first process: agentrun keeps that in a leaf below it."""
    try:
        own = Path(f"/proc/{pid}/cgroup").read_text(encoding="ascii").strip().rpartition("::")[2]
    except OSError:
        return None
    path = CGROUPS / own.lstrip("/")
    return path.parent if path.name == "agentrun-agent" else path


class EngineCli:
    """docker or podman."""

    def __init__(self, name: str, runtime: str | None, image: str) -> None:
        self.name = name
        self.runtime = ["--runtime", runtime] if runtime else []
        self.image = image

    def create(self, container: Container, command: Sequence[str], parent: str | None) -> None:
        """`docker create`."""
        options = [option for key, value in ENVIRONMENT.items() for option in ("-e", f"{key}={value}")]
        for key, value in container.annotations.items():
            options += ["--annotation", f"{key}={value}"]
        if container.memory is not None:
            options += ["--memory", str(container.memory)]
        if parent is not None:
            options += ["--cgroup-parent", parent]
        verb = ["create", "--name", container.name, "--network", "none"]
        # podman takes its runtime before the verb, docker after it.
        head = (
            [self.name, *self.runtime, *verb] if self.name == "podman" else [self.name, *verb, *self.runtime]
        )
        run_tool([*head, *options, self.image, *command])

    async def start(self, name: str) -> Process:
        """`docker start --attach`."""
        return await spawn([self.name, "start", "--attach", name])

    def exec_command(self, name: str, command: Sequence[str]) -> list[str]:
        """`docker exec`."""
        options = [option for key, value in ENVIRONMENT.items() for option in ("-e", f"{key}={value}")]
        return [self.name, "exec", *options, name, *command]

    def cgroup(self, name: str) -> Path | None:
        """By the pid that the engine knows."""
        text = run_tool([self.name, "inspect", "-f", "{{.State.Pid}}", name], check=False)
        return container_cgroup(int(text)) if text.isdecimal() and text != "0" else None

    def remove(self, name: str) -> None:
        """`docker rm --force`."""
        patience = ["--time", "0"] if self.name == "podman" else []
        run_tool([self.name, "rm", "--force", *patience, name], check=False)


class ByHand:
    """A runtime (runc, crun, agentrun-crun, ...) without an engine, on a root file system with python3."""

    def __init__(self, runtime: str, rootfs: Path) -> None:
        self.runtime = runtime
        self.rootfs = rootfs
        self.bundles: dict[str, Path] = {}
        self.parents: dict[str, str] = {}

    def create(self, container: Container, command: Sequence[str], parent: str | None) -> None:
        """Write the bundle; the runtime makes the container at start, so that its stdout is ours."""
        bundle = self.bundles[container.name] = Path(tempfile.mkdtemp(prefix="replay-"))
        (bundle / "config.json").write_text(json.dumps(self._spec(container, command, parent)))
        self.parents[container.name] = f"{parent or ''}/{container.name}"

    def _spec(self, container: Container, command: Sequence[str], parent: str | None) -> dict[str, Any]:
        memory = {} if container.memory is None else {"memory": {"limit": container.memory}}
        return {
            "ociVersion": "1.0.2",
            "process": {
                "terminal": False,
                "user": {"uid": 0, "gid": 0},
                "args": list(command),
                "env": [_PATH, *(f"{key}={value}" for key, value in ENVIRONMENT.items())],
                "cwd": "/",
                "noNewPrivileges": True,
            },
            "root": {"path": str(self.rootfs), "readonly": True},
            "hostname": "replay",
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {
                    "destination": "/dev",
                    "type": "tmpfs",
                    "source": "tmpfs",
                    "options": ["nosuid", "mode=755"],
                },
            ],
            "annotations": dict(container.annotations),
            "linux": {
                "cgroupsPath": f"/{parent or ''}/{container.name}".replace("//", "/"),
                "namespaces": [{"type": kind} for kind in _NAMESPACES],
                "resources": memory,
            },
        }

    async def start(self, name: str) -> Process:
        """`create` and `start`; the container's first process inherits the pipe and holds it open."""
        script = '"$0" create --bundle "$1" "$2" </dev/null && exec "$0" start "$2" >&2'
        return await spawn(["/bin/sh", "-c", script, self.runtime, str(self.bundles[name]), name])

    def exec_command(self, name: str, command: Sequence[str]) -> list[str]:
        """`crun exec`; crun forgets the container's own PATH where a variable is given."""
        values = (_PATH, *(f"{key}={value}" for key, value in ENVIRONMENT.items()))
        options = [option for value in values for option in ("--env", value)]
        return [self.runtime, "exec", *options, name, *command]

    def cgroup(self, name: str) -> Path | None:
        """Where its bundle says."""
        path = CGROUPS / self.parents[name].lstrip("/")
        return path if path.is_dir() else None

    def remove(self, name: str) -> None:
        """`delete --force`."""
        bundle = self.bundles.pop(name, None)
        if bundle is not None:
            run_tool([self.runtime, "delete", "--force", name], check=False)
            shutil.rmtree(bundle, ignore_errors=True)


class Processes:
    """No containers: agents and calls are processes of this host. For trying a trace out, and tests."""

    def __init__(self) -> None:
        self.commands: dict[str, list[str]] = {}
        self.agents: dict[str, Process] = {}

    def create(self, container: Container, command: Sequence[str], parent: str | None) -> None:
        """Remember the command."""
        if parent is not None or container.memory is not None:
            raise ReplayError("limit memory: plain processes have none; choose an engine")
        self.commands[container.name] = list(command)

    async def start(self, name: str) -> Process:
        """Start the agent."""
        self.agents[name] = await spawn(self.commands[name], ENVIRONMENT)
        return self.agents[name]

    def exec_command(self, name: str, command: Sequence[str]) -> list[str]:
        """The command itself."""
        return ["env", *(f"{key}={value}" for key, value in ENVIRONMENT.items()), *command]

    def cgroup(self, name: str) -> Path | None:
        """None of its own."""
        return None

    def remove(self, name: str) -> None:
        """Kill the agent; run.py has ended the calls."""
        agent = self.agents.pop(name, None)
        if agent is not None and agent.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(agent.pid, signal.SIGKILL)
