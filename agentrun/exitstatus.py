"""How the first process of a call ended, for agentrund, which is not its parent: two sources, the best first.

1. A pidfd that was opened before the process was reaped: certain, from Linux 6.15 on.
2. The proc connector (`exits`): also of a process that ended before it was known, and on older kernels. By
   the pid that the engine's pid file names; without a pid file, by the runtime that started the call and
   ended with its exit code.
"""

from __future__ import annotations

import os
import time
from typing import Any

from agentrun import inotify, processes, verdict
from agentrun.exits import Exits
from agentrun.live import Call

# An exit status is there once the parent (shim, conmon) has reaped the process: nearly always at once. Else
# we look ever less often, up to ten times less, for a second.
RETRY_S = 0.002
_TRIES = 73  # a second
_REAP_TRIES = 500  # ten seconds: so long a shim that is short of CPU may take to reap
_EVENT_TRIES = 30  # 0.2 s: before Linux 6.19 a cgroup is empty a moment before the exit is told
_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")


def retry_s(tries: int) -> float:
    """Seconds until the status is looked for again."""
    return RETRY_S * min(10, 1 + tries // 5)


def find(call: Call, exits: Exits) -> int | None:
    """The wait status of the call's first process; None where it is not known, or not yet."""
    if call.main_pidfd is not None:
        status = inotify.exit_status(call.main_pidfd)
        if status is not None:
            return status
    return _told(call, exits)


def may_come(call: Call, exits: Exits) -> bool:
    """Whether to wait on for the status of a call whose cgroup is empty."""
    if call.main_pidfd is None:
        return exits.is_listening and _is_traceable(call) and call.tries < _EVENT_TRIES
    return call.tries < _TRIES or (not processes.is_reaped(call.main_pidfd) and call.tries < _REAP_TRIES)


def ends_with_its_runtime(call: Call) -> bool:
    """Whether it is an exec by hand in the foreground: its runtime waits, and ends with its exit code."""
    return call.state.get("pid_file") is None and call.state.get("detached") is False


def _is_traceable(call: Call) -> bool:
    return call.main_pid is not None or ends_with_its_runtime(call)


def _told(call: Call, exits: Exits) -> int | None:
    owner = call.state.get("owner")
    if not exits.is_listening or not isinstance(owner, list) or len(owner) != 2 or not owner[1]:
        return None
    pid, since_ns = owner[0], _monotonic_ns(owner[1])
    if call.main_pid is not None:
        found = exits.of(call.main_pid, since_ns)
        return None if found is None else found.status
    if not ends_with_its_runtime(call):
        return None
    runtime, child = exits.of(pid, since_ns), exits.of_last_child(pid, since_ns)
    if runtime is None:
        return None
    # The child's status tells a signal from an exit code above 128; the runtime's is what is reported.
    is_same = child is not None and _code(child.status) == _code(runtime.status)
    return child.status if is_same and child is not None else runtime.status


def _code(status: int) -> Any:
    return verdict.describe_status(status)["exit_code"]


def _monotonic_ns(ticks: int) -> int:
    """What CLOCK_MONOTONIC was when a process started `ticks` after boot (proc_pid_stat.5), or less."""
    asleep_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - time.monotonic_ns()
    return ticks * _TICK_NS - asleep_ns
