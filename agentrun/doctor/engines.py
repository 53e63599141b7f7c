"""Whether engines know agentrun."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from agentrun.base.paths import Paths
from agentrun.doctor.finding import Finding

_DOCKER = Path("/etc/docker/daemon.json")
_PODMAN = (Path("/etc/containers/containers.conf"), Path("/etc/containers/containers.conf.d"))


def engines(_: Paths) -> Iterator[Finding]:
    """Whether docker and podman know agentrun."""
    if _DOCKER.exists():
        text = _DOCKER.read_text()
        try:
            runtimes = json.loads(text).get("runtimes", {})
        except (ValueError, AttributeError):
            yield Finding("problem", "docker", f"{_DOCKER} is not valid JSON")
            return
        ours = [name for name, entry in runtimes.items() if "agentrun" in str(entry.get("path"))]
        yield Finding(
            "ok" if ours else "note",
            "docker",
            f"runtimes: {', '.join(ours)}" if ours else "agentrun is not registered",
        )
    files = [
        file
        for path in _PODMAN
        for file in (path.glob("*.conf") if path.is_dir() else [path])
        if file.exists()
    ]
    if any("agentrun" in file.read_text() for file in files):
        yield Finding("ok", "podman", "agentrun is registered")
