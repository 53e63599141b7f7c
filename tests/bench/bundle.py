"""A container by hand, for measuring runtimes without an engine."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

ROOTFS = "/var/lib/agentrun-vm/rootfs/busybox"


def write_bundle(folder: Path, container_id: str) -> None:
    """A bundle of the runtime's own default configuration, without a terminal."""
    subprocess.run(["runc", "spec", "--bundle", folder], check=True)
    path = folder / "config.json"
    spec = json.loads(path.read_text())
    spec["process"]["terminal"] = False
    spec["process"]["args"] = ["sleep", "1000000"]
    spec["root"] = {"path": ROOTFS, "readonly": True}
    spec["linux"]["cgroupsPath"] = f"/agentrun-bench/{container_id}"
    path.write_text(json.dumps(spec))


def run_quietly(*command: str) -> None:
    """Run a runtime command that gives its stdio to the container."""
    null = subprocess.DEVNULL
    subprocess.run(command, check=True, stdin=null, stdout=null, stderr=null)


@contextlib.contextmanager
def running(runtime: str, container_id: str, folder: Path) -> Iterator[str]:
    """A container that `runtime` created and started; deleted at the end."""
    folder.mkdir()
    write_bundle(folder, container_id)
    run_quietly(runtime, "create", "--bundle", str(folder), container_id)
    try:
        run_quietly(runtime, "start", container_id)
        yield container_id
    finally:
        run_quietly(runtime, "delete", "--force", container_id)
