"""In agentrund: read the events of the BPF programs, and take an OOM kill for what it is.

`memory.events` counts that something was killed in a call; whose limit that was is concluded from the counts
of the limits around it. The kernel's event says it for certain, at once, and which process was killed.
Nothing depends on it: events are there only while the module `events` is loaded, and an event that is lost or
late leaves a record as it would be without. Victims wait on their way out until the text is told (`oomhold`).

Whatever calls do, a wake-up looks at `_BATCH` records at most and leaves the rest for the next turn of the
loop, and the record of a call waits for `_PATIENCE_S` at most for what was not read yet.
"""

from __future__ import annotations

import mmap
import select
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from agentrun.base import log
from agentrun.base.errors import AgentrunError
from agentrun.bpf import oomhold, ringbuf, types
from agentrun.bpf.ringbuf import Event
from agentrun.cgroups import around
from agentrun.daemon.call import Call
from agentrun.daemon.part import Part
from agentrun.daemon.parts.teller import Teller
from agentrun.decision import inforce

if TYPE_CHECKING:
    from agentrun.daemon.daemon import Daemon

_LOOK_S = 1.0  # for a buffer that came or went
_LISTEN_S = 5.0  # nobody is to wait for long for an agentrund that died, or is stopped
_BATCH = 256  # records, about a millisecond
_BUSY_S = 0.005  # until a record that was being written is looked at again
_PATIENCE_S = 1.0
_EARLY = 64  # victims of calls that are not known yet
_KINDS = frozenset({int(types.Kind.OOM_VICTIM), int(types.Kind.PRESSURE)})


def level_of(limit: int, call: Call, cgroup_root: str) -> tuple[str | None, str | None]:
    """Whose limit an OOM kill in a call was for: the level (docs/records.md) and the path of its cgroup.

    `limit` is the cgroup's id. (None, None) where it is not the call's own and not above it.
    """
    if limit == types.LIMIT_HOST:
        return "host", None
    for cgroup, level in around.levels(call.cgroup):
        number = cgroup.kernel_id()
        if number is None:
            return None, None  # it is gone with its container
        if number == limit:
            return level, cgroup.path
        if cgroup.path == cgroup_root:
            break
    return None, None


class KernelEvents(Part):
    """The reader of the ring buffer, for as long as there is one."""

    def __init__(self, daemon: Daemon, teller: Teller) -> None:
        self.daemon = daemon
        self.teller = teller
        self.on_pressure: list[Callable[[], None]] = []
        self.ring: ringbuf.Ring | None = None
        self.hold: oomhold.OomHold | None = None
        self._pin: tuple[int, int] | None = None
        self._calls: dict[int, Call] = {}
        self._ids: dict[str, int] = {}
        self._early: dict[int, Event] = {}
        self._waiting: dict[str, float] = {}
        self._problem: str | None = None
        self._count = 0

    def status(self) -> dict[str, Any]:
        """What doctor shows: whether the buffer `is_read`, how many `kills` were seen, and the `problem`."""
        return {"is_read": self.ring is not None, "kills": self._count, "problem": self._problem}

    def start(self) -> None:
        """Open the buffer when it is there, and look again and again whether it came, went or changed."""
        self._look()
        if self.hold is not None:
            self.hold.listen(inforce.load(self.daemon.paths).oom_hold_ms, _LISTEN_S)
        self.daemon.later(_LOOK_S, self.start)

    def close(self) -> None:
        """Let go of the buffer."""
        if self.ring is not None:
            self.daemon.unwatch(self.ring.fileno())
            self.ring.close()
        if self.hold is not None:
            self.hold.close()
        self.ring = self.hold = None

    def _look(self) -> None:
        """Open what is there by now and may be used; the ring is that of any module, the hold of one."""
        pin = ringbuf.pin_identity()
        if pin is not None and not inforce.load(self.daemon.paths).uses_bpf:
            pin = None
        if pin != self._pin:
            self.close()
            self._pin, self._problem = pin, None
        if pin is None:
            return
        try:
            if self.ring is None:
                self.ring = ringbuf.open_ring()
                self.daemon.watch(self.ring.fileno(), select.EPOLLIN, lambda _: self._read())
            if self.hold is None:
                self.hold = oomhold.open_hold()
            self._problem = None
        except (OSError, AgentrunError) as error:
            self._failed(str(error))

    def _failed(self, problem: str) -> None:
        """Say so, once; it is tried again."""
        if problem == self._problem:
            return
        self._problem = problem
        lost = "events of the kernel cannot be read"
        if self.ring is not None:
            lost = "victims of OOM kills do not wait for feedback"
        log.warn(self.daemon.paths, lost, error=problem)

    def _read(self) -> None:
        """One batch. What is left keeps the descriptor readable, so the loop comes back after all others."""
        ring = self.ring
        if ring is None:
            return
        found = ring.read(_KINDS, _BATCH)
        if any(event.kind == types.Kind.PRESSURE for event in found):
            for action in self.on_pressure:
                action()
        for event in found:
            if event.kind == types.Kind.OOM_VICTIM:
                self._killed(event)
        if ring.is_busy:
            self.daemon.rewatch(ring.fileno(), 0)
            self.daemon.later(_BUSY_S, lambda: self._resume(ring))

    def _resume(self, ring: ringbuf.Ring) -> None:
        if ring is self.ring:
            self.daemon.rewatch(ring.fileno(), select.EPOLLIN)

    def _killed(self, event: Event) -> None:
        self._count += 1
        call = self._calls.get(event.call)
        if call is not None:
            self._note(call, event)
            return
        if len(self._early) >= _EARLY:
            del self._early[next(iter(self._early))]
        self._early[event.call] = event

    def _note(self, call: Call, event: Event) -> None:
        """Take a kill into the call's record: the latest one that was chosen, not who died along with it."""
        is_first = call.state.get("oom") is None
        if not event.value and not is_first:
            self._let_go(event.call)
            return
        level, path = level_of(event.limit, call, self.daemon.paths.cgroup_root)
        found: dict[str, Any] = {
            "process": event.comm,
            "pid": event.pid,
            "memory": event.pages * mmap.PAGESIZE or None,
            "level": level,
            "limit": path,
        }
        call.state = {**call.state, "oom": found}
        # First of all, for it dies meanwhile. A victim that was dying already is told of and not counted.
        if (call.cgroup.pairs("memory.events") or {}).get("oom_kill"):
            self.teller.tell(call, "oom-killed", lambda: self._let_go(event.call))
        else:
            self._let_go(event.call)
        if is_first:
            self.daemon.note(call, oom=found)
        else:  # a file for each of many kills would be theirs to fill our time with
            call.unsaved["oom"] = found

    def _let_go(self, number: int) -> None:
        """Victims of that call need not wait any more."""
        if self.hold is not None:
            self.hold.let_go(number)

    def _claim(self, call: Call) -> None:
        """Know a call by its cgroup's id, which is there before its first process."""
        if call.id in self._ids:
            return
        number = call.cgroup.kernel_id()
        if number is None:
            return
        self._ids[call.id] = number
        self._calls[number] = call
        early = self._early.pop(number, None)
        if early is not None:
            self._note(call, early)

    def populated(self, call: Call) -> None:
        """The cgroup is there."""
        self._claim(call)

    def main_ended(self, call: Call) -> None:
        """Read before others say what happened."""
        self._claim(call)
        self._read()

    def is_done(self, call: Call) -> bool:
        """Whether what happened in a call has been read; soon, however much there is."""
        self._claim(call)
        ring = self.ring
        if ring is None or ring.is_empty():
            return True
        self._read()
        since = self._waiting.setdefault(call.id, time.monotonic())
        return ring.is_empty() or time.monotonic() - since > _PATIENCE_S

    def ended(self, call: Call) -> None:
        """Forget it."""
        self._waiting.pop(call.id, None)
        number = self._ids.pop(call.id, None)
        if number is not None:
            self._calls.pop(number, None)
            if self.hold is not None and call.state.get("oom") is not None:
                self.hold.forget(number)
