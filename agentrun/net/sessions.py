"""The running containers that agentrun takes part in, with what their tiers say of the network.

They are known by their directories below `/run/agentrun/sessions`: the `start` of a container whose tier has
a rate makes one, its first call makes one in any case.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

from agentrun.base import files, procfs
from agentrun.base.paths import Paths
from agentrun.calls import session
from agentrun.calls.names import unescape_root
from agentrun.decision.config import Config
from agentrun.decision.match import select_session
from agentrun.net.rate import NONE, Rates, of_tier
from agentrun.oci import container, engine

_DEV_LIMIT = 1 << 16  # bytes of /proc/PID/net/dev: some 500 interfaces
_NAMES_LIMIT = 32


@dataclass(frozen=True, slots=True)
class Session:
    """A running container. `where` is its directory of ours; `rates` are what its tier wants, NONE where
    nothing is enforced in it."""

    where: str
    container_id: str
    pid: int
    start_ticks: int
    name: str | None = None
    tier: str | None = None
    rates: Rates = NONE

    def open_netns(self) -> int | None:
        """Its network namespace as a descriptor to close; None where it is gone."""
        try:
            fd = os.open(f"/proc/{self.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        if procfs.start_ticks(self.pid) != self.start_ticks:  # the pid may have been another's before
            os.close(fd)
            return None
        return fd

    def interfaces(self) -> list[str]:
        """Names of the interfaces in its network namespace, without loopback; at most 32."""
        try:
            fd = os.open(f"/proc/{self.pid}/net/dev", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return []
        try:
            text = files.read_fd(fd, _DEV_LIMIT)
        except OSError:
            return []
        finally:
            os.close(fd)
        return parse_dev(text)


def parse_dev(text: bytes) -> list[str]:
    """The names in /proc/net/dev, without loopback. The container may have chosen them: any bytes but `/`."""
    names = [line.rpartition(b":")[0].strip() for line in text.splitlines()[2:]]
    return [os.fsdecode(name) for name in names if name and name != b"lo"][:_NAMES_LIMIT]


def own_netns() -> tuple[int, int]:
    """What identifies our own network namespace."""
    return netns_key(None)


def netns_key(fd: int | None) -> tuple[int, int]:
    """What identifies the network namespace of a descriptor, or our own (device and inode)."""
    info = os.stat("/proc/self/ns/net") if fd is None else os.fstat(fd)
    return info.st_dev, info.st_ino


def read(paths: Paths, configuration: Config, *, names: bool = False) -> Iterator[Session]:
    """All that run now; with their `names`, which cost a look into each engine's files.

    Raises StateError where our own directories cannot be trusted.
    """
    for opened in session.open_all(paths):
        head, _, container_id = opened.where.rpartition("/")
        root = unescape_root(head.rpartition("/")[2])
        if not container.is_valid_id(container_id):
            continue
        found = container.find(container_id, root, container.KINDS, paths.cgroup_root)
        if found is None or not found.is_running():
            continue
        facts = engine.facts_of(found, paths.cgroup_root, paths.root)
        choice = select_session(configuration.policy, configuration.mode, facts)
        rates = of_tier(configuration.policy, choice.tier) if choice.mode == "enforce" else NONE
        name = facts.name if names else None
        yield Session(opened.where, container_id, found.pid, found.start_ticks, name, choice.tier, rates)
