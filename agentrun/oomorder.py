"""Have the kernel pick calls before agents when a limit that both share is reached.

The kernel kills the largest process of whatever ran out (a container, a slice, the host), and an agent that
idles between two commands is often larger than any of them. So the processes of a call get an oom_score_adj
(proc_pid_oom_score_adj(5)) above that of their container's first process; what they start inherits it. The
backend cannot do that: runc sets the container's own value in every exec (`update_oom_score_adj` in its
nsexec.c), before it writes the pid file; hence this moment.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from agentrun import container
from agentrun.live import Call, Part

if TYPE_CHECKING:
    from agentrun.daemon import Daemon

_MOST = 1000
_PASSES = 5  # over the cgroup's processes: what was forked meanwhile has its parent's old value


def raised(own: int, base: int, plus: int) -> int | None:
    """What a process of a call is to have: `plus` more than its container; None where it has that. Pure."""
    wanted = min(_MOST, base + plus)
    return wanted if own < wanted else None


def read(pid: int) -> int | None:
    """A process's oom_score_adj, None when it is gone."""
    try:
        with open(f"/proc/{pid}/oom_score_adj", encoding="ascii") as file:
            return int(file.read())
    except OSError:
        return None


class OomOrder(Part):
    """Raises what the kernel orders its victims by, for every call whose plan says so."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon

    def main_found(self, call: Call) -> None:
        """The backend has done with the first process; raise it, and what it has started by now."""
        care = call.state.get("care")
        plus = care.get("oom_score_adj") if isinstance(care, dict) else None
        base = self._base(call) if plus else None
        if not plus or base is None:
            return
        for _ in range(_PASSES):
            if sum(raise_process(pid, base, int(plus)) for pid in call.cgroup.pids()) == 0:
                return

    def _base(self, call: Call) -> int | None:
        """The value of the container's first process; None when it is gone."""
        root, name, kind = (str(call.state.get(key) or "") for key in ("root", "container", "backend"))
        found = container.find(name, root, [kind], self.daemon.paths.cgroup_root)
        return None if found is None else read(found.pid)


def raise_process(pid: int, base: int, plus: int) -> bool:
    """Raise one process where it needs it; whether it did."""
    own = read(pid)
    wanted = None if own is None else raised(own, base, plus)
    if wanted is None:
        return False
    try:
        fd = os.open(f"/proc/{pid}/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return False  # it is gone
    try:
        os.write(fd, b"%d" % wanted)
    except OSError:
        return False
    finally:
        os.close(fd)
    return True
