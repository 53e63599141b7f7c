"""The cgroup2 mount of this machine, and how to run something in a cgroup of it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

MOUNTS = (Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup"))  # a hybrid one will do


def cgroup_mount() -> Path | None:
    """A cgroup2 mount where this process may make cgroups."""
    for mount in MOUNTS:
        if (mount / "cgroup.procs").exists() and os.access(mount, os.W_OK):
            return mount
    return None


def mount_or_exit() -> Path:
    """A cgroup2 mount for a benchmark, which ends without one."""
    mount = cgroup_mount()
    if mount is None:
        sys.exit("bench: needs root and a cgroup2 mount")
    return mount


def placed(cgroup: Path, *command: str) -> list[str]:
    """A command that goes into a cgroup before it becomes what it is."""
    return ["sh", "-c", f'echo $$ >{cgroup}/cgroup.procs; exec "$@"', "sh", *command]
