"""Kill a call, and have its memory given back at once.

What a killed process holds is freed when it next runs, with its own share of the CPU. With a ten thousandth,
200 MB were not there again after two minutes (tests/integration/test_mrelease.py); a call of a low tier took
longer than 160 ms for 80 MB: the call that was to get them grew on, met the limit, and the kernel killed it.
So the dying get what CPU their container has, and process_mrelease(2) frees what they have not begun to free
themselves, in the caller and with the caller's share (Linux 5.15, 884a7e5964e0).

It is a race: one that has run to exit_mm() frees the rest by itself, and nobody can help it any more. On one
CPU a waiter that was woken between the kill and the release let the victim run first, in one of twenty runs;
its 93 MB took 0.7 s, and the kernel killed HIGH's call. So nobody is woken in between, and the largest
process comes first; where the victim was faster all the same, its container has the CPU for a moment, a
second at most.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import threading
import time
from collections.abc import Iterator

from agentrun.base.errors import CgroupError
from agentrun.cgroups import layout
from agentrun.cgroups.cgroup import Cgroup
from agentrun.kernel.libc import libc

_PROCESS_MRELEASE = 448  # the same on all architectures
_MOST = 64  # processes, and cgroups that a call has nested: the rest die as they always did
_WEIGHT_MOST = "10000"
_LOOK_S, _HASTEN_S = 0.002, 1.0
_LITTLE = 8 << 20  # nobody waits for that: page tables, and what a new process holds
_SENT_S = 0.01  # what a caller sleeps at a time until the kill was sent
_TRIES, _AGAIN_S = 20, 0.002


class _Killing(threading.Thread):
    """Kills, and frees at once what the killed hold.

    A thread, for of some GB it takes a second, in the kernel, and agentrund has other things to see to.
    """

    def __init__(self, cgroup: Cgroup, *, needed: bool) -> None:
        super().__init__(daemon=not needed)  # agentrund does not end before a share is given back
        self._cgroup = cgroup
        self._needed = needed
        self.is_sent = False
        self._over = threading.Event()
        self.error: CgroupError | None = None

    def freed(self, timeout_s: float) -> None:
        """Wait until all is freed, for so long at most."""
        if self.ident is not None:
            self.join(timeout_s)

    def wait_sent(self) -> None:
        """Wait until the kill was sent, or failed. Whoever waits sleeps: to wake him lets the victim run."""
        while not self._over.wait(_SENT_S) and not self.is_sent:  # also who runs after the kill sleeps first
            pass

    def run(self) -> None:
        """Kill and free."""
        dying: list[int] = []
        try:
            dying += _pidfds(self._cgroup)
            self._cgroup.write("cgroup.kill", "1")
            self.is_sent = True
            for pidfd in dying:
                release(pidfd)
            if self._needed:
                _hasten(self._cgroup)
        except CgroupError as error:
            self.error = error
        finally:
            self._over.set()
            for pidfd in dying:
                os.close(pidfd)


def kill(cgroup: Cgroup, *, needed: bool = False) -> _Killing:
    """Kill all in a cgroup and below; returns the thread that frees what they hold. Raises CgroupError.

    `needed` says that others wait for that memory.
    """
    for name, value in (("cpu.weight", _WEIGHT_MOST), ("cpu.max", "max")):
        with contextlib.suppress(CgroupError):  # no cpu controller there
            cgroup.write(name, value)
    killing = _Killing(cgroup, needed=needed)
    try:
        killing.start()
    except RuntimeError:  # no more threads to be had: it must die all the same
        killing.run()
    killing.wait_sent()
    if killing.error is not None:
        raise killing.error
    return killing


def _hasten(cgroup: Cgroup) -> None:
    """Give the container of a dying call the CPU as long as that holds much: they free it themselves.

    It takes 10 ms of CPU for 100 MB. A share that changed meanwhile stays.
    """
    container = Cgroup(cgroup.path.rpartition(f"/{layout.CALLS}/")[0])
    until = time.monotonic() + _HASTEN_S
    with contextlib.suppress(CgroupError):  # the container is gone, and so are they
        if not _holds_much(cgroup) or not _shares.lift(container):
            return
        try:
            while _holds_much(cgroup) and time.monotonic() < until:
                time.sleep(_LOOK_S)
        finally:
            _shares.give_back(container)


def _holds_much(cgroup: Cgroup) -> bool:
    """Whether somebody is still there to free it: file cache stays when all are gone."""
    return cgroup.is_populated() and (cgroup.number("memory.current") or 0) > _LITTLE


class _Shares:
    """The shares of containers that have the CPU for a moment: some of their calls die at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lifted: dict[str, tuple[str, int]] = {}  # container: its own share, for how many calls

    def lift(self, container: Cgroup) -> bool:
        """Give it the most there is; False where that changes nothing. Raises CgroupError."""
        with self._lock:
            share, calls = self._lifted.get(container.path) or (container.read("cpu.weight"), 0)
            if share is None or share == _WEIGHT_MOST:
                return False
            container.write("cpu.weight", _WEIGHT_MOST)
            self._lifted[container.path] = (share, calls + 1)
            return True

    def give_back(self, container: Cgroup) -> None:
        """One of its calls is over; after the last it has its own share again. Raises CgroupError."""
        with self._lock:
            share, calls = self._lifted.pop(container.path)
            if calls > 1:
                self._lifted[container.path] = (share, calls - 1)
            elif container.read("cpu.weight") in (_WEIGHT_MOST, None):  # None: not to be read just now
                container.write("cpu.weight", share)


_shares = _Shares()


def release(pidfd: int) -> bool:
    """Free the memory of a process that was killed; False where nothing is to be had.

    That is so of one that is not dying (EINVAL: also when it shares its memory with one that lives), that is
    gone already (ESRCH), and on a kernel without the system call (ENOSYS).
    """
    for _ in range(_TRIES):
        if libc.syscall(_PROCESS_MRELEASE, pidfd, 0) == 0:
            return True
        if ctypes.get_errno() not in (errno.EAGAIN, errno.EINTR):  # EAGAIN: somebody held its memory map
            return False
        time.sleep(_AGAIN_S)
    return False


def _pidfds(cgroup: Cgroup) -> Iterator[int]:
    """The processes of a cgroup and below, the largest first.

    A pid that is another's by now does no harm: it is not dying.
    """
    for pid in sorted(cgroup.pids_below(_MOST), key=_pages, reverse=True):
        with contextlib.suppress(OSError):
            yield os.pidfd_open(pid)


def _pages(pid: int) -> int:
    """How much memory a process holds; 0 where it is gone."""
    try:
        with open(f"/proc/{pid}/statm", encoding="ascii") as file:
            return int(file.read().split()[1])
    except (OSError, IndexError, ValueError):
        return 0
