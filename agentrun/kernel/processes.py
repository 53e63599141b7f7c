"""Which process is which. Pids are reused: what ends in a pidfd was checked after that was opened."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import struct

from agentrun.base import files
from agentrun.base.procfs import start_ticks
from agentrun.cgroups.cgroup import Cgroup

_PF_EXITING = 0x4  # include/linux/sched.h


def pidfd_of(pid: int, ticks: int | None) -> int | None:
    """A pidfd of the very process that had this pid when it started at `ticks`."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return None
    if start_ticks(pid) != ticks:
        os.close(pidfd)
        return None
    return pidfd


def pidfd_in(pid: int, cgroup: Cgroup, cgroup_root: str) -> int | None:
    """A pidfd of a process if it is in a cgroup, or was when it ended: pids are reused, pid files stay."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return None
    try:
        with open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="surrogateescape") as file:
            own = [line[3:].rstrip("\n") for line in file if line.startswith("0::")]
        signal.pidfd_send_signal(pidfd, 0)  # still that process, so what was read is about it
    except OSError:
        own = []
    if own != [cgroup.path[len(cgroup_root) :]]:
        os.close(pidfd)
        return None
    return pidfd


def has_ended(pidfd: int) -> bool:
    """Whether a process has ended, with all its threads, reaped or not: its pidfd is readable then."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def is_reaped(pidfd: int) -> bool:
    """Whether a process is gone, or somebody has asked for its exit status (proc_pid_fdinfo.5, `Pid`)."""
    with open(f"/proc/self/fdinfo/{pidfd}", encoding="ascii") as file:
        return any(line.split() == ["Pid:", "-1"] for line in file)


def read_pid(path: object) -> int | None:
    if not isinstance(path, str):
        return None
    try:
        text = files.read_regular(path, 64)
    except OSError:
        return None
    return int(text) if text and text.strip().isdigit() else None


def stat_of(pid: int) -> list[str] | None:
    """What /proc/PID/stat says after the name: field N of proc(5) is at N - 3. None when it is gone."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()
    except OSError:
        return None


def is_exiting(fields: list[str]) -> bool:
    """Whether a process with these fields of `stat_of` has ended, or is on its way out."""
    return fields[0] in "ZX" or bool(int(fields[6]) & _PF_EXITING)


def is_dying(pid: int) -> bool:
    """Whether a process is gone, on its way out, or killed and not on its way yet.

    A victim of an OOM kill, or of cgroup.kill, may need seconds until it runs again and frees its memory.
    """
    fields = stat_of(pid)
    if fields is None or is_exiting(fields):
        return True
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
            return has_sigkill_pending(file.read())
    except OSError:
        return True


def has_sigkill_pending(status: str) -> bool:
    """Whether a process with this text of /proc/PID/status was killed and has not run since. Pure."""
    lines = (line.split() for line in status.splitlines())
    pending = [int(words[1], 16) for words in lines if words[:1] in (["SigPnd:"], ["ShdPnd:"])]
    return any(mask >> (signal.SIGKILL - 1) & 1 for mask in pending)


def parent_of(pid: int) -> int | None:
    """A process's parent; None when it is gone."""
    fields = stat_of(pid)
    return None if fields is None else int(fields[1])


def is_runtime(pid: int) -> bool:
    """Whether a process still is the runtime's own init, before it became the command.

    Its name is `runc:[2:INIT]`, `crun`, or the number of the descriptor it was executed from.
    """
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            comm = file.read().strip()
    except OSError:
        return True
    return comm.startswith(("runc", "crun", "libcrun")) or comm.isdigit() or comm == "exe"


_PIDFD_INFO = struct.Struct("QQIIIIIIIIIIIi")  # struct pidfd_info, first version (include/uapi/linux/pidfd.h)
_PIDFD_INFO_EXIT = 1 << 3
_PIDFD_GET_INFO = 3 << 30 | _PIDFD_INFO.size << 16 | 0xFF << 8 | 11


def exit_status(pidfd: int) -> int | None:
    """The wait status of a process that somebody else reaped; None where the kernel does not tell.

    PIDFD_INFO_EXIT came with Linux 6.15 (7477d7dce48a).
    """
    buffer = bytearray(_PIDFD_INFO.pack(_PIDFD_INFO_EXIT, *[0] * 13))
    try:
        fcntl.ioctl(pidfd, _PIDFD_GET_INFO, buffer)
    except OSError:
        return None
    fields = _PIDFD_INFO.unpack(buffer)
    return int(fields[-1]) if fields[0] & _PIDFD_INFO_EXIT else None
