"""Have the kernel wake the controller: the BPF module `mempressure` watches the limits that it looks at.

Optional. Without the module, or where it cannot be used, the controller is woken as before: by guards
(`memory.events`), by stalls and by its own clock. With `parking` in config.toml and our scheduler in force,
calls are parked as soon as they are marked, and the controller's rules come second: should the kernel throw
the scheduler out, marks mean nothing and calls are frozen as ever.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from agentrun.base.paths import Paths
from agentrun.bpf import scheduler
from agentrun.bpf.following import Following
from agentrun.bpf.mempressure import MODULE, How, Limit, Member, MemPressure
from agentrun.daemon.controller import rules
from agentrun.daemon.controller.ids import Ids
from agentrun.daemon.controller.model import HOST, Snapshot

_LOOK_S = 1.0
_LOSS = "memory pressure is not watched in the kernel"


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
            found[ids[domain.key]] = limit_of(domain.limit, members, how)
    return found


def limit_of(limit: int, members: tuple[Member, ...], how: How) -> Limit:
    """A limit in bytes, short where the controller's own rules call it so. Pure."""
    reserve = rules.reserve_of(limit)
    return Limit(limit, int(reserve), int(reserve * rules.THAW), members, how)


class Pressure:
    """Keeps what the module watches in step with what the controller looks at."""

    def __init__(self, paths: Paths, ids: Ids, clock: Callable[[], float] = time.monotonic) -> None:
        self._ids = ids
        self._module = Following(MODULE, MemPressure, paths, clock, _LOOK_S, _LOSS)
        self._how = How.TELL

    def follow(self, snapshot: Snapshot) -> None:
        """Watch what is in a snapshot."""
        configuration = self._module.look()
        maps = self._module.opened
        if maps is None:
            return
        if configuration is not None:
            parks = configuration.parking and scheduler.state().ours
            self._how = How.TELL | How.MARK if parks else How.TELL
        paths = {*(c.key for c in snapshot.calls), *(d.key for d in snapshot.domains)} - {HOST}
        ids = self._ids.of(paths)
        self._module.guarded(lambda: maps.publish(limits_of(snapshot, ids, self._how)))

    def close(self) -> None:
        """Nothing is watched any more."""
        self._module.close()
