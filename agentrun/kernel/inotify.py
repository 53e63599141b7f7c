"""inotify(7)."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from dataclasses import dataclass

from agentrun.kernel.libc import check, libc

IN_CLOSE_WRITE = 0x008
IN_MOVED_TO = 0x080
IN_CREATE = 0x100
IN_Q_OVERFLOW = 0x4000
IN_IGNORED = 0x8000
IN_ONLYDIR = 0x0100_0000
IN_DONT_FOLLOW = 0x0200_0000
_EVENT = struct.Struct("iIII")  # wd, mask, cookie, length of the name (inotify.7)


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
            self._fd = check(libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK), "inotify_init1")
            self._made(self._fd)
        flags = mask | IN_ONLYDIR | IN_DONT_FOLLOW
        return check(libc.inotify_add_watch(self._fd, os.fsencode(directory), flags), directory)

    def remove(self, watch: int) -> None:
        """Stop watching; a directory that is gone has taken its watch along."""
        libc.inotify_rm_watch(self._fd, watch)

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
