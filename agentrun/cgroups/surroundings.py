"""What surrounds a call at this moment: the limits of its session, and the host."""

from __future__ import annotations

import posix

from agentrun.base.limits import Limits
from agentrun.cgroups.cgroup import Cgroup


def parse_cpu_max(cpu_max: str | None) -> float | None:
    """CPUs allowed by the content of `cpu.max` (`QUOTA PERIOD` in microseconds, or `max PERIOD`)."""
    fields = (cpu_max or "").split()
    return int(fields[0]) / int(fields[1]) if len(fields) == 2 and fields[0].isdigit() else None


def count_cpus(cpuset: str | None) -> int | None:
    """How many CPUs a `cpuset.cpus.effective` such as `0-3,8` names; None where there is none."""
    count = 0
    for part in (cpuset or "").split(","):
        low, dash, high = part.partition("-")
        if not low.isdigit() or (dash and not high.isdigit()):
            return None
        count += int(high) - int(low) + 1 if dash else 1
    return count


def session_limits(container: Cgroup, cgroup_root: str) -> Limits:
    """The narrowest limits from the container's cgroup upwards: a pod or a slice may be narrower than it."""
    memory: list[int] = []
    cpus: list[float] = []
    pids: list[int] = []
    at = container
    while at.path.startswith(cgroup_root + "/"):
        if (bytes_ := at.number("memory.max")) is not None:
            memory.append(bytes_)
        if (quota := parse_cpu_max(at.read("cpu.max"))) is not None:
            cpus.append(quota)
        if (processes := at.number("pids.max")) is not None:
            pids.append(processes)
        at = Cgroup(at.path.rpartition("/")[0])
    if (available := count_cpus(container.read("cpuset.cpus.effective"))) is not None:
        cpus.append(float(available))
    return Limits(min(memory, default=None), min(cpus, default=None), min(pids, default=None))


def host_limits() -> Limits:
    """The host: its memory and its CPUs."""
    memory = posix.sysconf("SC_PHYS_PAGES") * posix.sysconf("SC_PAGE_SIZE")
    return Limits(memory, float(posix.cpu_count() or 1))
