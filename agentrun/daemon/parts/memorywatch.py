"""See at once that the kernel killed something of a call for memory.

The kernel tells of a changed memory.events at most every 10 ms (CGROUP_FILE_NOTIFY_MIN_INTV): the
first `max` at once, but the `oom_kill` that follows within a millisecond only then, when conmon may be gone.
So after a `max` the file is read every millisecond or two for as long as `max` grows, in bursts of 100 ms.
"""

from __future__ import annotations

import os
import select
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agentrun.daemon.call import Call
from agentrun.daemon.part import Part
from agentrun.daemon.parts.teller import Teller

if TYPE_CHECKING:
    from agentrun.daemon.daemon import Daemon

_POLL_S = 0.001
_POLLS = 50  # reads without a new `max` or `oom` after which a burst ends


@dataclass(slots=True)
class _Seen:
    """The counters as last seen, through one open descriptor."""

    fd: int
    max: int = 0
    oom: int = 0
    left: int = 0  # reads of the burst that is under way


class MemoryWatch(Part):
    """Watches memory.events of every call that is to be told something."""

    def __init__(self, daemon: Daemon, teller: Teller) -> None:
        self.daemon = daemon
        self.teller = teller
        self._seen: dict[str, _Seen] = {}

    def populated(self, call: Call) -> None:
        """The cgroup is there: begin."""
        if call.id in self._seen or self.teller.is_told(call, "oom-killed"):
            return
        try:
            fd = os.open(f"{call.cgroup.path}/memory.events", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return  # no memory controller here
        seen = self._seen[call.id] = _Seen(fd)
        self.daemon.watch(fd, select.EPOLLPRI | select.EPOLLERR, lambda _: self._changed(call, seen))
        self._changed(call, seen)

    def _changed(self, call: Call, seen: _Seen) -> None:
        if self._look(call, seen) and seen.left == 0:
            seen.left = _POLLS
            self.daemon.later(_POLL_S, lambda: self._poll(call, seen))

    def _poll(self, call: Call, seen: _Seen) -> None:
        if self._seen.get(call.id) is not seen:
            return
        seen.left = _POLLS if self._look(call, seen) else seen.left - 1
        if seen.left > 0:
            self.daemon.later(_POLL_S, lambda: self._poll(call, seen))

    def _look(self, call: Call, seen: _Seen) -> bool:
        """Read the counters, and tell of a kill; whether one may follow."""
        try:
            words = os.pread(seen.fd, 512, 0).split()
        except OSError:  # ENODEV: the cgroup is gone
            self.ended(call)
            return False
        counts = dict(zip(words[::2], map(int, words[1::2]), strict=True))
        if counts.get(b"oom_kill", 0) > 0:
            self.teller.tell(call, "oom-killed")
            self.ended(call)
            return False
        maximum, oom = counts.get(b"max", 0), counts.get(b"oom", 0)
        has_grown = maximum > seen.max or oom > seen.oom
        seen.max, seen.oom = maximum, oom
        return has_grown

    def ended(self, call: Call) -> None:
        """Stop."""
        seen = self._seen.pop(call.id, None)
        if seen is not None:
            self.daemon.drop(seen.fd)
