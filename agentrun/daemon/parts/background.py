"""Processes that a call leaves behind when its first process has ended: `nohup server &` and forgotten jobs.

They stay in the call's cgroup and within its limits, and the call stays live until they end. The policy says
whether they keep their share (`keep`), get the least share of CPU and disk (`demote`), or die (`kill`).
"""

from __future__ import annotations

import functools
import os
import time
from typing import TYPE_CHECKING, Any

from agentrun.base.errors import CgroupError
from agentrun.calls import slots
from agentrun.cgroups.cgroup import Cgroup
from agentrun.daemon.call import Call
from agentrun.daemon.part import Part
from agentrun.daemon.parts import deadlines
from agentrun.kernel import processes

if TYPE_CHECKING:
    from agentrun.daemon.daemon import Daemon

_GRACE_S = 0.2  # children that die with their parent take a moment
_LATE_S = 1.0
_DYING_S = 0.5
_NAMED = 16  # processes that the record names, and cgroups they may have nested
_WEIGHT = "1"  # of cpu.weight and io.weight, where a call has 100


class Background(Part):
    """Sees to what calls leave behind."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon

    def began(self, call: Call) -> None:
        """After a restart: the first process may have ended while nobody looked."""
        if not isinstance(call.state.get("background"), dict):
            call.timers.append(self.daemon.later(_LATE_S, functools.partial(self._look_late, call)))

    def main_ended(self, call: Call) -> None:
        """See what is left after a moment."""
        if not isinstance(call.state.get("background"), dict):
            call.timers.append(self.daemon.later(_GRACE_S, functools.partial(self._look, call)))

    def _look_late(self, call: Call) -> None:
        is_known = processes.read_pid(call.state.get("pid_file")) is not None
        if is_known and call.main_pidfd is None and not slots.is_starting(call.state):
            self._look(call)

    def _look(self, call: Call) -> None:
        if call.over:
            return
        left = describe(call.cgroup)
        if not call.cgroup.is_populated():  # asked last: what ended meanwhile is not left behind
            return
        if not left:  # all that is there was killed, and is not gone yet
            call.timers.append(self.daemon.later(_DYING_S, functools.partial(self._look, call)))
            return
        care = call.state.get("care")
        action = str(care.get("background", "keep")) if isinstance(care, dict) else "keep"
        noted: dict[str, Any] = {"action": action, "at": time.time(), "processes": left}
        if action == "demote":
            noted["not_changed"] = demote(call.cgroup)
        self.daemon.note(call, background=noted)
        if action == "kill":
            deadlines.kill(self.daemon, call)


def describe(cgroup: Cgroup) -> list[dict[str, Any]]:
    """Pid and name of the processes in a cgroup and below, some of many; not of those that are dying.

    A name is what the process says.
    """
    found = []
    for pid in cgroup.pids_below(_NAMED):
        if processes.is_dying(pid):
            continue
        try:
            fd = os.open(f"/proc/{pid}/comm", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue  # gone
        try:
            name = os.read(fd, 64).decode("utf-8", "replace").rstrip("\n")
        except OSError:
            continue
        finally:
            os.close(fd)
        found.append({"pid": pid, "name": name})
    return found


def demote(cgroup: Cgroup) -> list[str]:
    """Give a cgroup the least share; returns the files that this host does not have or did not take."""
    failed = []
    for file in ("cpu.weight", "io.weight"):
        try:
            cgroup.write(file, _WEIGHT)
        except CgroupError:
            failed.append(file)
    return failed
