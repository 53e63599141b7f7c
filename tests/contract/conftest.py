"""An installed agentrun whose backend is a recorder, and a container that is ours, without any engine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from installing import TREE, make_command
from node import mount_or_skip
from node import node as node

HERE = Path(__file__).parent
RECORD = jsonschema.Draft202012Validator(json.loads((TREE / "configs/record.schema.json").read_text()))


def require(condition: object, reason: str) -> None:
    """Skip with the reason; where CI=true a missing feature is a failure."""
    if condition:
        return
    if os.environ.get("CI") == "true":
        pytest.fail(f"cannot run here: {reason}")
    pytest.skip(reason)


class Recording:
    """What the recorder was given."""

    def __init__(self, path: Path) -> None:
        self.rows = [line.partition("=")[::2] for line in path.read_text().splitlines()]

    def all(self, name: str) -> list[str]:
        """All values of one kind, in order."""
        return [value for key, value in self.rows if key == name]

    def env(self) -> dict[str, str]:
        """The environment, without what makes the recorder record."""
        pairs = (value.partition("=")[::2] for value in self.all("env"))
        return {k: v for k, v in pairs if not k.startswith(("RECORDER_", "AGENTRUN_"))}

    def signal_set(self, name: str) -> int:
        """One of SigBlk, SigIgn, SigCgt as a bit mask."""
        return next(int(v.split("\\x09")[-1], 16) for v in self.all("signals") if v.startswith(name))


class Host:
    """One installation below a directory, with its configuration and a state root of containers."""

    def __init__(self, folder: Path, cgroup: Path | None) -> None:
        self.folder = folder
        self.root = folder / "root"
        self.state = folder / "state"
        self.output = folder / "recording"
        self.backend = folder / "bin/runc"
        self.cgroup = cgroup
        self.program = folder / "usr/bin/agentrun"
        self.environment = {
            "AGENTRUN_ROOT": str(self.root),
            "AGENTRUN_CGROUP_ROOT": str(cgroup.parent if cgroup else "/sys/fs/cgroup"),
            "RECORDER_OUTPUT": str(self.output),
            "PATH": "/usr/bin:/bin",
        }

    def configure(self, text: str = "") -> None:
        """Write config.toml with the recorder as the backend and whatever else is given."""
        path = self.root / "etc/agentrun/config.toml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'version = 1\nbackends = ["{self.backend}"]\n{text}')

    def run(self, *argv: Any, env: dict[str, str] | None = None, **kwargs: Any) -> Any:
        """Run agentrun to its end; output is captured as bytes."""
        self.output.unlink(missing_ok=True)
        kwargs.setdefault("stdin", subprocess.DEVNULL)
        return subprocess.run(
            [self.program, *argv],
            env={**self.environment, **(env or {})},
            capture_output=True,
            timeout=60,
            check=False,
            **kwargs,
        )

    def recording(self) -> Recording:
        """What the backend got at the last run."""
        return Recording(self.output)

    def log(self) -> list[dict[str, Any]]:
        """Records of our own log."""
        path = self.root / "var/log/agentrun.log"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def records(self) -> list[dict[str, Any]]:
        """Records of finished calls, each as the published schema says."""
        path = self.root / "var/lib/agentrun/calls.jsonl"
        found = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        for record in found[:100]:
            RECORD.validate(record)
        return found

    def reset(self) -> None:
        """Forget what earlier tests left, and go back to the plain configuration."""
        for path in (self.root / "run", self.root / "var/log", self.root / "var/lib"):
            shutil.rmtree(path, ignore_errors=True)
        (self.root / "var/log").mkdir(parents=True)
        self.configure()
        self.run("--version")


@pytest.fixture(scope="session")
def installed(tmp_path_factory) -> Path:
    """`make install` into a directory of its own, with the recorder as runc."""
    require(shutil.which("cc") or shutil.which("gcc"), "needs a C compiler")
    folder = tmp_path_factory.mktemp("host")
    (folder / "bin").mkdir()
    compiler = shutil.which("cc") or "gcc"
    subprocess.run(
        [compiler, "-O1", "-Wall", "-Werror", "-o", folder / "bin/runc", HERE / "recorder.c"], check=True
    )
    (folder / "root/var/log").mkdir(parents=True)
    subprocess.run(
        make_command("install", folder),
        env={**os.environ, "AGENTRUN_ROOT": str(folder / "root")},
        check=True,
    )
    return folder


@pytest.fixture
def host(installed: Path) -> Host:
    """The installation, as new."""
    made = Host(installed, None)
    made.reset()
    return made


@pytest.fixture(scope="session")
def cgroup_dir() -> Iterator[Path]:
    """A real cgroup2 directory with a process in it, playing a container's init."""
    path = mount_or_skip() / f"agentrun-contract-{os.getpid()}"
    path.mkdir()
    yield path
    for folder, _, _ in os.walk(path, topdown=False):
        os.rmdir(folder)


@pytest.fixture
def box(installed: Path, cgroup_dir: Path) -> Iterator[Host]:
    """The installation with a running container of ours called `box`, known by runc's state file."""
    made = Host(installed, cgroup_dir)
    made.reset()
    init = subprocess.Popen(["sleep", "1000"])
    (cgroup_dir / "cgroup.procs").write_text(str(init.pid)) if not (
        cgroup_dir / "agentrun-agent"
    ).exists() else (cgroup_dir / "agentrun-agent/cgroup.procs").write_text(str(init.pid))
    ticks = int(Path(f"/proc/{init.pid}/stat").read_text().rpartition(")")[2].split()[19])
    state = {
        "cgroup_paths": {"": str(cgroup_dir)},
        "init_process_pid": init.pid,
        "init_process_start": ticks,
        "config": {"labels": ["bundle=/nowhere"]},
    }
    folder = made.state / "box"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "state.json").write_text(json.dumps(state))
    yield made
    init.kill()
    init.wait()
    for call in (cgroup_dir / "agentrun-calls").glob("call-*"):
        call.rmdir()
