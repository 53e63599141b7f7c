"""inotify(7) and what else of the kernel the daemon needs and the standard library lacks, by ctypes."""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass

IN_CLOSE_WRITE = 0x008
IN_MOVED_TO = 0x080
IN_CREATE = 0x100
IN_Q_OVERFLOW = 0x4000
IN_IGNORED = 0x8000
IN_ONLYDIR = 0x0100_0000
IN_DONT_FOLLOW = 0x0200_0000
_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4  # asm-generic/mman.h
_PR_SET_THP_DISABLE = 41  # linux/prctl.h
_EVENT = struct.Struct("iIII")  # wd, mask, cookie, length of the name (inotify.7)

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
    return result


@dataclass(frozen=True, slots=True)
class Event:
    """Something happened to `name` in the directory of watch `watch`."""

    watch: int
    mask: int
    name: str


class Inotify:
    """One inotify instance, made with its first watch; `made` is then told its descriptor, for epoll.

    Instances and watches are counted for each user of the host (`fs.inotify.max_user_instances`, 128, and
    `fs.inotify.max_user_watches`), and root in a container without user namespaces is the same: it can use
    up all of them. So whoever watches goes on without, and tries again.
    """

    def __init__(self, made: Callable[[int], object] = lambda fd: None) -> None:
        self._made = made
        self._fd = -1

    def fileno(self) -> int:
        """The descriptor; -1 while there is none."""
        return self._fd

    def add(self, directory: str, mask: int) -> int:
        """Watch a directory; returns the number of the watch. Raises OSError."""
        if self._fd < 0:
            self._fd = _check(_libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK), "inotify_init1")
            self._made(self._fd)
        flags = mask | IN_ONLYDIR | IN_DONT_FOLLOW
        return _check(_libc.inotify_add_watch(self._fd, os.fsencode(directory), flags), directory)

    def remove(self, watch: int) -> None:
        """Stop watching; a directory that is gone has taken its watch along."""
        _libc.inotify_rm_watch(self._fd, watch)

    def read(self) -> list[Event]:
        """Everything that happened since the last time."""
        try:
            data = os.read(self._fd, 1 << 16)
        except BlockingIOError:
            return []
        events, at = [], 0
        while at < len(data):
            watch, mask, _, length = _EVENT.unpack_from(data, at)
            at += _EVENT.size
            name = data[at : at + length].rstrip(b"\0")
            events.append(Event(watch, mask, os.fsdecode(name)))
            at += length
        return events

    def close(self) -> None:
        """Forget all watches."""
        if self._fd >= 0:
            os.close(self._fd)


_PIDFD_INFO = struct.Struct("QQIIIIIIIIIIIi")  # struct pidfd_info, first version (include/uapi/linux/pidfd.h)
_PIDFD_INFO_EXIT = 1 << 3
_PIDFD_GET_INFO = 3 << 30 | _PIDFD_INFO.size << 16 | 0xFF << 8 | 11


def lock_memory() -> None:
    """Keep what this process has touched in memory: whoever reports that a host ran out must not wait for it.

    Without it, a host that runs out evicts our code as well, and each step waits for a disk. Raises OSError
    (no CAP_IPC_LOCK and a low RLIMIT_MEMLOCK).
    """
    _check(_libc.mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT), "mlockall")


def refuse_huge_pages() -> None:
    """Have the kernel make no huge pages of this process's memory; what it starts does as it does.

    khugepaged runs at nice 19 and holds a process's mmap_lock while it gathers a huge page. On a CPU that
    HIGH kept busy, agentrund's next page fault waited 0.2 s for it, and LOW was killed that much too late.
    Raises OSError (Linux before 3.15).
    """
    _check(_libc.prctl(_PR_SET_THP_DISABLE, 1, 0, 0, 0), "prctl(PR_SET_THP_DISABLE)")


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
