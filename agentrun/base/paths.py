"""Where agentrun keeps things on the host.

`AGENTRUN_ROOT` puts the whole tree below another directory and `AGENTRUN_CGROUP_ROOT` names another
cgroup2 mount (tests, benchmarks). Both come from whoever runs the engine, never from a container:
engines give a runtime their own environment, and the container's travels in the process document.

This and the other modules of the hot path call `posix`, the C module beneath `os`: importing `os` builds 25
abstract classes that nobody here needs, a fifth of all that the interpreter does before our first line.
"""

from __future__ import annotations

import posix


class Paths:
    """The host's directories and files, all absolute."""

    __slots__ = (
        "backends",
        "cgroup_root",
        "compiled",
        "config",
        "daemon_lock",
        "gate",
        "holding",
        "log",
        "marker",
        "policy",
        "records",
        "root",
        "run",
        "scheduler_off",
        "spill",
        "start_shares",
        "state",
        "store",
    )

    def __init__(self, root: str = "", cgroup_root: str = "/sys/fs/cgroup") -> None:
        self.root = root
        self.config = root + "/etc/agentrun/config.toml"
        self.policy = root + "/etc/agentrun/policy.d"
        self.run = root + "/run/agentrun"
        self.state = root + "/var/lib/agentrun"
        self.compiled = self.state + "/config.json"
        self.backends = self.state + "/backends"
        self.records = self.state + "/calls.jsonl"
        self.spill = self.run + "/calls.jsonl"
        self.store = self.state + "/calls.db"
        self.log = root + "/var/log/agentrun.log"
        self.marker = self.run + "/bypassed"
        self.daemon_lock = self.run + "/agentrund.lock"  # held for as long as agentrund lives
        self.holding = self.run + "/holding"  # there while agentrund's controller may hold calls back
        self.gate = self.run + "/gate"  # there while agentrund lets some calls wait before they start
        self.scheduler_off = self.run + "/scheduler-off"  # there since the CPU scheduler was unloaded by hand
        self.start_shares = self.run + "/start-shares"  # what tiers of a low weight are started with
        self.cgroup_root = cgroup_root


def host_paths() -> Paths:
    """The paths of this host, as the environment of this process says."""
    return Paths(
        getenv("AGENTRUN_ROOT").rstrip("/"),
        getenv("AGENTRUN_CGROUP_ROOT").rstrip("/") or "/sys/fs/cgroup",
    )


def getenv(name: str) -> str:
    """A variable of our own environment, empty when it is not set."""
    value: bytes = posix.environ.get(name.encode(), b"")
    return value.decode("utf-8", "surrogateescape")
