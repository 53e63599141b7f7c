"""Whether a call was killed because its container ended: its engine stopped it, or its init ended.

The kernel kills all processes of a PID namespace with its init (zap_pid_ns_processes), which has PF_EXITING
set by then and waits for them; an engine that deletes a container removes the backend's state. A call that
was killed on its own has an init that lives. Without a PID namespace of its own, the init's end kills nobody,
and who kills the rest is the engine.
"""

from __future__ import annotations

import os
from typing import Any

from agentrun.kernel.processes import is_exiting, stat_of
from agentrun.oci import container


def took_along(state: dict[str, Any], cgroup_root: str) -> bool:
    """Whether the container of a call is ending or has ended; False where nothing is known of it."""
    place = container.place_of(state)
    if place is None:
        return False
    root, name, kind = place
    found = container.find(name, root, [kind], cgroup_root)
    if found is None:
        return not os.path.lexists(f"{root}/{name}")
    fields = stat_of(found.pid)
    return fields is None or int(fields[19]) != found.start_ticks or is_exiting(fields)
