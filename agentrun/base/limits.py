"""Numbers that limits are made of: floors, ceilings, defaults. Pure."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# runc's own init starts inside the call's cgroup (several threads, ~10 MiB), and below these it fails
# with an error that looks like the command's own (runc#4427; pids.max=1: "connection reset by peer").
MEMORY_FLOOR = 32 << 20
PIDS_FLOOR = 16
PIDS_MOST = 1 << 22  # PIDS_MAX - 1 (kernel/cgroup/pids.c): of more the kernel takes nothing
CPU_FLOOR = 0.1
CPU_PERIOD_US = 100_000
LARGEST = 1 << 62  # what AgentCgroup's `high` asks for: as much as is allowed
WEIGHT_MIN, WEIGHT_MAX, WEIGHT_DEFAULT = 1, 10_000, 100  # cpu.weight and io.weight (cgroup-v2.rst)
PRIORITIES = {"low": 50, "normal": 100, "high": 200}  # percent of the class's weights
TIER_PRIORITY = 100
# Added to the container's own oom_score_adj for its calls: half of what ran out, in the kernel's order of
# victims (oom_badness in mm/oom_kill.c), so that an agent is picked only where it is larger by that.
OOM_SCORE_ADJ = 500
# Seconds that a call may wait before it starts. docker gives a healthcheck's exec 30 s to start, and is the
# least patient of the engines (docs/memory.md).
ADMISSION_WAIT = 10.0
ADMISSION_WAIT_MOST = 20.0


class Limits:
    """What surrounds a call (a session, the host): None where there is no limit."""

    __slots__ = ("cpus", "memory", "pids")

    def __init__(self, memory: int | None = None, cpus: float | None = None, pids: int | None = None) -> None:
        self.memory = memory
        self.cpus = cpus
        self.pids = pids


def amount(value: Any, session: float | None, host: float | None, own: float | None = None) -> float | None:
    """An amount of the compiled policy as a number; None where it is a share of something unlimited.

    A share of a session without a limit of its own is that share of the host.
    """
    if not isinstance(value, (list, tuple)):
        return None if value is None else float(value)
    percent, of = value
    whole = {"session": session if session is not None else host, "host": host, "max": own}[of]
    return None if whole is None else whole * percent / 100
