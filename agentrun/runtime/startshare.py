"""The share of the CPUs that it takes to start the calls of a container: its tier's, not the engine's.

Until the backend has placed a call, the runtime runs where its engine does, with the engine's share. That is
55 to 65 million instructions, most of them to start Python, and on a host whose CPUs are busy they were
taken from HIGH, also for calls of LOW (docs/cpu.md). So a tier with less than the usual
`cpu.weight` has its starts in a cgroup of that weight, beside the slices of the host:

    /sys/fs/cgroup/agentrun-starts-5

It is no part of a container, for then the runtime's memory would be the container's too, and `docker pause`
would stop it half way. Nothing is limited there but the share. The cgroup stays when containers go, for
others have their starts in it as well.

The shell front goes there before Python starts if CPUs are short. It reads `PATH CPUS`, the cgroup and the
number of CPUs, from one of two files:

    sessions/*/ID/start-share     at `exec`; there since the container's `start`
    start-shares/TIER             at the `start` of a container whose annotations say that tier; there since
                                  a container of it was started
"""

from __future__ import annotations

import posix

from agentrun.base import files
from agentrun.base.errors import CgroupError, StateError
from agentrun.base.limits import WEIGHT_DEFAULT
from agentrun.cgroups.cgroup import Cgroup

TYPE_CHECKING = False
if TYPE_CHECKING:
    from agentrun.base.paths import Paths
    from agentrun.calls.slots import Calls

NAME = "agentrun-starts-"
LEAST = 5  # whoever starts holds locks of the kernel now and then, and engines wait for it


def lower(weight: int | None) -> int | None:
    """The weight of a tier's starts; None where they stay with the engine."""
    return None if weight is None or weight >= WEIGHT_DEFAULT else max(weight, LEAST)


def enter(session: Calls, tier: str | None, weight: int) -> None:
    """Have this runtime and starts of the container's calls run with a lower weight.

    So has the front with containers whose annotations say `tier`, from now on; None where they do not.
    Nothing is done where cgroups have no `cpu` controller. Raises CgroupError, StateError, OSError.
    """
    paths = session.paths
    share = Cgroup(f"{paths.cgroup_root}/{NAME}{weight}")
    share.make()
    try:
        share.write("cpu.weight", str(weight))
    except CgroupError:
        share.remove()
        return
    note = f"{share.path} {posix.cpu_count() or 1}\n".encode()  # `read` of the shell wants a whole line
    session.keep_start_share(note)
    if posix.getpid() not in share.pids():  # to move costs as much where the front did it before
        share.write("cgroup.procs", "0")
    if tier is not None:
        posix.close(files.open_private_directory(paths.start_shares, StateError))
        files.write_atomic(f"{paths.start_shares}/{tier}", note)


def forget(paths: Paths, tier: str) -> None:
    """Have a tier whose weight is no lower one start with the engine's share. Raises OSError."""
    try:
        posix.unlink(f"{paths.start_shares}/{tier}")
    except FileNotFoundError:
        return
