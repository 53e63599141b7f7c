"""Whether a call was killed because its container ended: its engine stopped it, or its init ended.

The kernel kills all processes of a PID namespace with its init (zap_pid_ns_processes), which has PF_EXITING
set by then and waits for them; an engine that deletes a container removes the backend's state. A call that
was killed on its own has an init that lives. Without a PID namespace of its own, the init's end kills nobody,
and who kills the rest is the engine.
"""

from __future__ import annotations

import os
from typing import Any

from agentrun import container
from agentrun.processes import stat_of

_PF_EXITING = 0x4  # include/linux/sched.h


def took_along(state: dict[str, Any], cgroup_root: str) -> bool:
    """Whether the container of a call is ending or has ended; False where nothing is known of it."""
    place = container.place_of(state)
    if place is None:
        return False
    root, name, kind = place
    found = container.find(name, root, [kind], cgroup_root)
    if found is None:
        return not os.path.lexists(f"{root}/{name}")
    return is_ending(found.pid, found.start_ticks)


def is_ending(pid: int, ticks: int) -> bool:
    """Whether the process that started at `ticks` with this pid has ended, or is about to."""
    fields = stat_of(pid)
    if fields is None:
        return True
    return fields[0] in "ZX" or int(fields[19]) != ticks or bool(int(fields[6]) & _PF_EXITING)
