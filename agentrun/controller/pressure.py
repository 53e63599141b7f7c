"""Have the kernel wake the controller: the BPF module `mempressure` watches the limits that it looks at.

Optional. Without the module, or where it cannot be used, the controller is woken as before: by guards
(`memory.events`), by stalls and by its own clock. With `parking` in config.toml and our scheduler in force,
calls are parked as soon as they are marked, and the controller's rules come second: should the kernel throw
the scheduler out, marks mean nothing and calls are frozen as ever.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from agentrun import config, log, scx
from agentrun.bpf import modules
from agentrun.bpf.mempressure import MODULE, How, Limit, Member, MemPressure
from agentrun.controller import rules
from agentrun.controller.model import HOST, Domain, Snapshot
from agentrun.errors import BpfError
from agentrun.paths import Paths


def limits_of(snapshot: Snapshot, ids: dict[str, int], how: How) -> dict[int, Limit]:
    """What is to be watched, by the id of the cgroup. `ids` are those of cgroups by path. Pure.

    Not the host: it has no limit that anything is charged to.
    """
    found = {}
    for domain in snapshot.domains:
        members = tuple(
            Member(ids[call.key], call.rank)
            for call in snapshot.calls
            if domain.key in call.domains and call.key in ids
        )
        if domain.key != HOST and domain.key in ids and len(members) > 1:
            found[ids[domain.key]] = _limit(domain, members, how)
    return found


def _limit(domain: Domain, members: tuple[Member, ...], how: How) -> Limit:
    reserve = min(int(domain.limit * rules.RESERVE), rules.RESERVE_MOST)
    return Limit(domain.limit, reserve, int(reserve * rules.THAW), members, how)


class Pressure:
    """Keeps what the module watches in step with what the controller looks at."""

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self._maps: MemPressure | None = None
        self._version: str | None = None
        self._ids: dict[str, int] = {}
        self._how = How.TELL

    def look(self) -> None:
        """Take the module as it is now: call this when calls came or went."""
        version = modules.loaded_version(MODULE)
        if version != self._version:
            self.close()
            self._version = version
            if version is not None:
                self._guarded(self._open)
        self._ids = {}
        if self._maps is not None:
            parks = config.load(self._paths).parking and scx.state().ours
            self._how = How.TELL | How.MARK if parks else How.TELL

    def _open(self) -> None:
        self._maps = MemPressure()

    def follow(self, snapshot: Snapshot) -> None:
        """Watch what is in a snapshot."""
        maps = self._maps
        if maps is None:
            return
        for key in (*(c.key for c in snapshot.calls), *(d.key for d in snapshot.domains)):
            if key not in self._ids and key != HOST:
                try:
                    self._ids[key] = os.stat(key).st_ino
                except OSError:
                    continue  # it is gone
        self._guarded(lambda: maps.publish(limits_of(snapshot, self._ids, self._how)))

    def _guarded(self, action: Callable[[], None]) -> None:
        try:
            action()
        except BpfError as error:
            log.warn(self._paths, "memory pressure is not watched in the kernel", error=str(error))
            self._maps = None

    def close(self) -> None:
        """Nothing is watched any more."""
        maps, self._maps = self._maps, None
        if maps is not None:
            self._guarded(maps.close)
