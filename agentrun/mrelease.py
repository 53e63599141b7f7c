"""Kill a call, and have its memory given back at once.

What a killed process holds is freed when it next runs, with its own share of the CPU. A call of a low tier
took longer than 160 ms for 80 MB, on a busy, emulated host: the call that was to get them grew on meanwhile,
met the limit, and was killed by the kernel. process_mrelease(2) frees the memory of a dying process in the
caller instead, with the caller's share (Linux 5.15, 884a7e5964e0).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import threading
import time
from collections.abc import Iterator, Sequence

from agentrun.cgroup import Cgroup
from agentrun.errors import CgroupError

_PROCESS_MRELEASE = 448  # the same on all architectures
_MOST = 64  # processes, and cgroups that a call has nested: the rest die as they always did
_TRIES, _AGAIN_S = 20, 0.002

_libc = ctypes.CDLL(None, use_errno=True)


def kill(cgroup: Cgroup) -> threading.Thread:
    """Kill all in a cgroup and below; returns the thread that frees what they hold. Raises CgroupError."""
    dying = list(_pidfds(cgroup))
    try:
        cgroup.write("cgroup.kill", "1")
    except CgroupError:
        _close(dying)
        raise
    # Of some GB it takes a second, in the kernel: agentrund has other things to see to.
    thread = threading.Thread(target=_release_all, args=(dying,), daemon=True)
    thread.start()
    return thread


def release(pidfd: int) -> bool:
    """Free the memory of a process that was killed; False where nothing is to be had.

    That is so of one that is not dying (EINVAL: also when it shares its memory with one that lives), that is
    gone already (ESRCH), and on a kernel without the system call (ENOSYS).
    """
    for _ in range(_TRIES):
        if _libc.syscall(_PROCESS_MRELEASE, pidfd, 0) == 0:
            return True
        if ctypes.get_errno() not in (errno.EAGAIN, errno.EINTR):  # EAGAIN: somebody held its memory map
            return False
        time.sleep(_AGAIN_S)
    return False


def _pidfds(cgroup: Cgroup) -> Iterator[int]:
    """The processes of a cgroup and below. A pid that is another's by now does no harm: it is not dying."""
    for pid in _pids(cgroup):
        with contextlib.suppress(OSError):
            yield os.pidfd_open(pid)


def _pids(cgroup: Cgroup) -> list[int]:
    """So many of them, from so many cgroups: who is killed may have nested thousands."""
    found: list[int] = []
    left = [cgroup]
    for _ in range(_MOST):
        if not left or len(found) >= _MOST:
            break
        here = left.pop()
        found += here.pids()
        left += here.children()
    return found[:_MOST]


def _release_all(dying: Sequence[int]) -> None:
    for pidfd in dying:
        release(pidfd)
    _close(dying)


def _close(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
