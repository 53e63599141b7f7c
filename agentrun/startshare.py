"""The share of the CPUs that it takes to start the calls of a container: its tier's, not the engine's.

Until the backend has placed a call, the runtime runs where its engine does, with the engine's share. That is
55 to 65 million instructions, most of them to start Python, and on a host whose CPUs are busy they were
taken from HIGH, also for calls of LOW (docs/enforcement-cpu.md). So a tier with less than the usual
`cpu.weight` has its starts in a cgroup of that weight, beside the slices of the host:

    /sys/fs/cgroup/agentrun-starts-5

It is no part of a container, for then the runtime's memory would be the container's too, and `docker pause`
would stop it half way. Nothing is limited there but the share. The file `start-share` in the session's
directory names it and the number of CPUs; the shell front reads it, and goes there before Python starts if
CPUs are short. The cgroup stays when containers go, for others have their starts in it as well.
"""

from __future__ import annotations

import posix

from agentrun.cgroup import Cgroup
from agentrun.errors import CgroupError
from agentrun.plan import WEIGHT_DEFAULT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from agentrun.calls import Calls

NAME = "agentrun-starts-"
LEAST = 5  # whoever starts holds locks of the kernel now and then, and engines wait for it


def lower(weight: int | None) -> int | None:
    """The weight of a tier's starts; None where they stay with the engine."""
    return None if weight is None or weight >= WEIGHT_DEFAULT else max(weight, LEAST)


def enter(session: Calls, weight: int, cgroup_root: str) -> None:
    """Have this runtime and the starts of the container's calls run with a lower weight.

    Nothing is done where cgroups have no `cpu` controller. Raises CgroupError, OSError.
    """
    share = Cgroup(f"{cgroup_root}/{NAME}{weight}")
    share.make()
    try:
        share.write("cpu.weight", str(weight))
    except CgroupError:
        share.remove()
        return
    session.keep_start_share(share.path, posix.cpu_count() or 1)
    share.write("cgroup.procs", "0")
