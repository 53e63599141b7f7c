"""Where agentrun keeps things on the host.

`AGENTRUN_ROOT` puts the whole tree below another directory and `AGENTRUN_CGROUP_ROOT` names another
cgroup2 mount (tests, benchmarks). Both come from whoever runs the engine, never from a container:
engines give a runtime their own environment, and the container's travels in the process document.
"""

from __future__ import annotations

import os


class Paths:
    """The host's directories and files, all absolute."""

    __slots__ = (
        "backends",
        "cgroup_root",
        "compiled",
        "config",
        "log",
        "marker",
        "records",
        "run",
        "state",
    )

    def __init__(self, root: str = "", cgroup_root: str = "/sys/fs/cgroup") -> None:
        self.config = root + "/etc/agentrun/config.toml"
        self.run = root + "/run/agentrun"
        self.state = root + "/var/lib/agentrun"
        self.compiled = self.state + "/config.json"
        self.backends = self.state + "/backends"
        self.records = self.state + "/calls.jsonl"
        self.log = root + "/var/log/agentrun.log"
        self.marker = self.run + "/bypassed"
        self.cgroup_root = cgroup_root


def host_paths() -> Paths:
    """The paths of this host, as the environment of this process says."""
    env = os.environ
    return Paths(
        env.get("AGENTRUN_ROOT", "").rstrip("/"),
        env.get("AGENTRUN_CGROUP_ROOT", "/sys/fs/cgroup").rstrip("/"),
    )
