"""How the first process of a call ended, for agentrund, which is not its parent: two sources, the best first.

1. A pidfd that was opened before the process was reaped: certain, from Linux 6.15 on.
2. The proc connector (`procevents`): also of a process that ended before it was known, and on older kernels.
   By the pid that the engine's pid file names; where that is gone, or there is none, as what the runtime of
   the call started. A pid alone is not enough, for pids are reused: the process was seen alive in the call's
   cgroup, or the kernel told that it was forked while the runtime lived.
"""

from __future__ import annotations

import os
import time
from typing import Any

from agentrun.calls import verdict
from agentrun.calls.slots import is_starting
from agentrun.daemon.call import Call
from agentrun.kernel import processes
from agentrun.kernel.processes import exit_status
from agentrun.kernel.procevents import Exit, ProcEvents

# An exit status is there once the parent (shim, conmon) has reaped the process: nearly always at once. Else
# we look ever less often, up to ten times less, for a second.
RETRY_S = 0.002
_TRIES = 73  # a second
_REAP_TRIES = 500  # ten seconds: so long a shim that is short of CPU may take to reap
# Before Linux 6.19 a cgroup is empty a moment before the exit is told; a quarter of a second in all. Few, for
# where agentrund is late the history is gone, and to look in vain makes it later.
EVENT_TRIES = 7
_LATE_S = 2.0
_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")


def retry_s(tries: int) -> float:
    """Seconds until the status is looked for again."""
    return RETRY_S * min(10, 1 + tries // 5)


def event_retry_s(tries: int) -> float:
    """Seconds until what the kernel told is looked at again."""
    return float(RETRY_S * 2**tries)


def wait_s(call: Call) -> float:
    """Seconds until the status of a call whose cgroup is empty is looked for again."""
    return event_retry_s(call.tries - 1) if call.main_pidfd is None else retry_s(call.tries)


def find(call: Call, events: ProcEvents) -> int | None:
    """The wait status of the call's first process; None where it is not known, or not yet."""
    if call.main_pidfd is not None:
        if not processes.has_ended(call.main_pidfd):
            return None
        status = exit_status(call.main_pidfd)
        if status is not None:
            return status
    return _told(call, events)


def may_come(call: Call, events: ProcEvents) -> bool:
    """Whether to wait on for the status of a call whose cgroup is empty."""
    if call.main_pidfd is None:
        return call.tries < EVENT_TRIES and may_be_told(call, events)
    return call.tries < _TRIES or (not processes.is_reaped(call.main_pidfd) and call.tries < _REAP_TRIES)


def may_be_told(call: Call, events: ProcEvents) -> bool:
    """Whether the kernel is still to tell how a process ended that was gone when we looked.

    Not where we are late: the end of the runtime is forgotten already, or was never told.
    """
    runtime = _runtime(call)
    if runtime is None or not events.is_listening:
        return False
    return call.ran() < _LATE_S or _end_of(runtime, events) is not None


def ends_with_its_runtime(call: Call) -> bool:
    """Whether it is an exec by hand in the foreground: its runtime waits, and ends with its exit code."""
    return call.state.get("pid_file") is None and call.state.get("detached") is False


def started(call: Call, events: ProcEvents) -> int | None:
    """The pid of the call's first process, by what the kernel told of its runtime, which is over."""
    runtime = _runtime(call)
    if runtime is None or not _is_over(call) or not events.is_listening:
        return None
    events.read()
    return events.started_by(*runtime, str(call.state.get("backend")))


def _runtime(call: Call) -> tuple[int, int] | None:
    """Pid of the runtime that started the call, and a time (CLOCK_MONOTONIC, ns) a moment before it began."""
    owner = call.state.get("owner")
    if not isinstance(owner, list) or len(owner) != 2 or not owner[1]:
        return None
    return int(owner[0]), _monotonic_ns(owner[1])


def _end_of(runtime: tuple[int, int], events: ProcEvents) -> Exit | None:
    """How a runtime ended; it was forked up to two ticks after what its start is rounded to."""
    pid, began_ns = runtime
    return events.exit_since(pid, began_ns, began_ns + 2 * _TICK_NS)


def _is_over(call: Call) -> bool:
    return call.owner_pidfd is None and not is_starting(call.state)


def _told(call: Call, events: ProcEvents) -> int | None:
    runtime = _runtime(call)
    if runtime is None or not events.is_listening:
        return None
    events.read()
    began_ns = runtime[1]
    if call.main_pid is not None and call.main_seen_ns is not None:
        return _status(events.exit_since(call.main_pid, began_ns, call.main_seen_ns))
    ended = _end_of(runtime, events)
    until_ns = time.monotonic_ns() if ended is None else ended.at_ns
    if call.main_pid is not None:
        return _status(events.exit_of(call.main_pid, began_ns, until_ns))
    if ended is None or not _is_over(call):
        return None
    main = events.started_by(*runtime, str(call.state.get("backend")))
    own = None if main is None else _status(events.exit_of(main, began_ns, until_ns))
    if not ends_with_its_runtime(call):
        return own if ended.status == 0 else None
    if own is None and os.WIFSIGNALED(ended.status):
        return None  # the runtime was killed, and what it waited for lives on
    # The process's own status tells a signal from an exit code above 128; the runtime's is what is reported.
    return own if own is not None and _code(own) == _code(ended.status) else ended.status


def _status(found: Exit | None) -> int | None:
    return None if found is None else found.status


def _code(status: int) -> Any:
    return verdict.describe_status(status)["exit_code"]


def _monotonic_ns(ticks: int) -> int:
    """What CLOCK_MONOTONIC was when a process started `ticks` after boot (proc_pid_stat.5), or less."""
    asleep_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - time.monotonic_ns()
    return ticks * _TICK_NS - asleep_ns
