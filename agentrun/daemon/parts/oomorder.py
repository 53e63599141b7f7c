"""Have the kernel pick calls before agents when a limit that both share is reached.

The kernel kills the largest process of whatever ran out (a container, a slice, the host), and an agent that
idles between two commands is often larger than any of them. So the processes of a call get an oom_score_adj
(proc_pid_oom_score_adj(5)) above that of their container's first process; what they start inherits it. The
backend cannot do that: runc sets the container's own value in every exec (`update_oom_score_adj` in its
nsexec.c), before it writes the pid file; hence this moment.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from agentrun.daemon.call import Call
from agentrun.daemon.part import Part
from agentrun.oci import container

if TYPE_CHECKING:
    from agentrun.daemon.daemon import Daemon

_MOST = 1000
_PASSES = 5  # over the cgroup's processes: what was forked meanwhile has its parent's old value


def raised(own: int, base: int, plus: int) -> int | None:
    """What a process of a call is to have: `plus` more than its container; None where it has that. Pure."""
    wanted = min(_MOST, base + plus)
    return wanted if own < wanted else None


def read(process: int) -> int | None:
    """The oom_score_adj of the process whose directory in /proc is open; None when it is gone."""
    text = _read(process, "oom_score_adj")
    return None if text is None else int(text)


def raise_process(pid: int, cgroup: str, base: int, plus: int) -> bool:
    """Raise a process where it needs it and is in a cgroup (as /proc/PID/cgroup says); whether it did."""
    try:
        with directory_of(pid) as process:
            own = read(process)
            wanted = None if own is None else raised(own, base, plus)
            if wanted is None or f"0::{cgroup}" not in (_read(process, "cgroup") or "").splitlines():
                return False
            return _write(process, "oom_score_adj", str(wanted))
    except OSError:
        return False  # it is gone


@contextlib.contextmanager
def directory_of(pid: int) -> Iterator[int]:
    """A process's directory in /proc; once open, it stays that of the same one. Raises OSError."""
    process = os.open(f"/proc/{pid}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield process
    finally:
        os.close(process)


def _read(process: int, name: str) -> str | None:
    try:
        with open(os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=process), errors="replace") as file:
            return file.read()
    except OSError:
        return None


def _write(process: int, name: str, text: str) -> bool:
    try:
        with open(os.open(name, os.O_WRONLY | os.O_CLOEXEC, dir_fd=process), "w", encoding="ascii") as file:
            file.write(text)
    except OSError:
        return False
    return True


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
        own = call.cgroup.path[len(self.daemon.paths.cgroup_root) :]
        for _ in range(_PASSES):
            if sum(raise_process(pid, own, base, int(plus)) for pid in call.cgroup.pids()) == 0:
                return

    def _base(self, call: Call) -> int | None:
        """The value of the container's first process; None when it is gone."""
        place = container.place_of(call.state)
        if place is None:
            return None
        root, name, kind = place
        found = container.find(name, root, [kind], self.daemon.paths.cgroup_root)
        if found is None:
            return None
        try:
            with directory_of(found.pid) as process:
                return read(process) if found.is_running() else None
        except OSError:
            return None
