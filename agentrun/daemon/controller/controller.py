"""The controller in agentrund: asleep while nothing contends, awake at 10 to 100 Hz while something does.

It is woken by calls that come (with their first process, not before) and go, by a call that passes its guard
(memory.high; `memory.events` becomes readable), by a domain that hits its limit (its `memory.events`), by
stalls (PSI triggers), and where the BPF module `mempressure` is loaded by the kernel as soon as a domain gets
short. Where calls compete, a peek every quarter of a second catches what none of these tells: growth of the
first call.
"""

from __future__ import annotations

import errno
import os
import select
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from agentrun.base import log
from agentrun.base.errors import CgroupError
from agentrun.base.paths import Paths
from agentrun.calls import release
from agentrun.calls.verdict import CONTROLLER
from agentrun.cgroups.cgroup import Cgroup
from agentrun.daemon.controller import apply
from agentrun.daemon.controller.atonce import AtOnce
from agentrun.daemon.controller.booster import Booster
from agentrun.daemon.controller.decisions import CALM_S, WATCH, decide
from agentrun.daemon.controller.gatefile import GateFile, admits
from agentrun.daemon.controller.ids import Ids
from agentrun.daemon.controller.model import HOST, Action, Decision, Memory, Snapshot
from agentrun.daemon.controller.pressure import Pressure
from agentrun.daemon.controller.snapshot import Reader
from agentrun.service.policywatch import InForce

SPACING_S = 0.004  # between two looks, whatever wakes us
_MOVED = 0.05  # of a limit: a change of its use that deserves a look
# 10 ms of stall in half a second. Windows other than multiples of 2 s need CAP_SYS_RESOURCE
# (kernel/sched/psi.c, psi_trigger_create).
_TRIGGER = b"some 10000 500000"


class LiveCall(Protocol):
    """A call as agentrund knows it."""

    where: str
    slot: str
    state: dict[str, Any]
    cgroup: Cgroup


class Loop(Protocol):
    """What the controller needs of agentrund."""

    @property
    def live(self) -> Mapping[tuple[str, str], LiveCall]: ...

    def later(self, seconds: float, action: Callable[[], None]) -> object: ...

    def watch(self, fd: int, events: int, handler: Callable[[int], None]) -> None: ...

    def unwatch(self, fd: int) -> None: ...


class Controller:
    """Call `changed` when a call came or went, and `close` at the end."""

    def __init__(self, loop: Loop, paths: Paths, clock: Callable[[], float] = time.monotonic) -> None:
        self.paths = paths
        self.memory = Memory()
        self._loop = loop
        self._clock = clock
        self._ids = Ids()
        self._at_once = AtOnce(paths, self._ids, clock)
        self._reader = Reader(paths.cgroup_root, at_once=self._at_once)
        self._journal = apply.Journal(paths)
        self._gate_file = GateFile(paths)
        self._policy_admits = InForce(paths, admits, False)
        self._booster = Booster(self._reader)
        self._pressure = Pressure(paths, self._ids, clock)
        self._populated: tuple[str, ...] = ()
        self._boost_planned = False
        self._admits = False
        self._live: dict[str, LiveCall] = {}
        self._shared: dict[str, tuple[int, int]] = {}  # domains: their limit, their use at the last look
        self._watched: dict[str, int] = {}
        self._turn = 0
        self._due = float("inf")
        self._looked_at = float("-inf")
        self._stale = True
        self._is_asked = False  # something happened since the last look: a peek will not do
        self._closed = False
        if release.is_marked(paths):
            release.release_all(paths)
        self.changed()

    # When to look.

    def changed(self) -> None:
        """A call came to life or went."""
        self._stale = True
        self._soon()

    def pressed(self) -> None:
        """The kernel says that a limit gets short (the BPF module `mempressure`)."""
        self._soon()

    def _soon(self) -> None:
        if self._closed:
            return
        self._is_asked = True
        self._schedule(max(0.0, self._looked_at + SPACING_S - self._clock()))

    def _schedule(self, seconds: float) -> None:
        """Look after so long, unless an earlier look is planned."""
        due = self._clock() + seconds
        if due >= self._due:
            return
        self._due = due
        self._turn += 1
        turn = self._turn
        self._loop.later(seconds, lambda: self._run(turn))

    def _run(self, turn: int) -> None:
        if turn != self._turn:
            return  # an earlier look was planned since
        self._due = float("inf")
        self._guarded(self.step)

    def _guarded(self, look: Callable[[], object]) -> None:
        """Whatever goes wrong here, calls run as planned and agentrund goes on with its main job."""
        try:
            look()
        except Exception as error:  # noqa: BLE001
            log.warn(self.paths, "adaptation ended", error=f"{type(error).__name__}: {error}")
            self.close()

    def _peek(self) -> None:
        """The cheap look while all is calm; a real one where something moved.

        Or was told when this peek was due already: no earlier look was planned then.
        """
        if self._is_asked:
            self.step()
            return
        for domain, (limit, usage) in self._shared.items():
            now = self._reader.peek(domain)
            if now > limit * WATCH or abs(now - usage) > limit * _MOVED:
                self.step()
                return
        self._plan_peek()

    def _plan_peek(self) -> None:
        self._due = self._clock() + CALM_S
        self._turn += 1
        turn = self._turn

        def peek() -> None:
            if turn == self._turn:
                self._due = float("inf")
                self._guarded(self._peek)

        self._loop.later(CALM_S, peek)

    # Looking.

    def step(self) -> Decision:
        """Look at everything, decide, act, and plan the next look."""
        self._is_asked = False
        if self._stale:
            self._take_members()
        self._looked_at = self._clock()
        snapshot = self._reader.read(self._looked_at, admits=self._admits)
        decision = decide(snapshot, self.memory)
        self.memory = decision.memory
        self._act(decision.actions)
        self._populated = tuple(call.key for call in snapshot.calls)
        self._boost()
        self._gate_file.publish(self.memory.gates, self._looked_at)
        self._follow(snapshot)
        self._plan_look(decision.look_again_s, missing=len(snapshot.calls) < len(self._reader.members))
        return decision

    def _plan_look(self, seconds: float | None, *, missing: bool) -> None:
        """The next look; not too late, should nobody tell that a call without a process has one."""
        if missing:
            seconds = CALM_S if seconds is None else min(seconds, CALM_S)
        if seconds is not None and (seconds < CALM_S or missing):
            self._schedule(seconds)
        elif seconds is not None:
            self._plan_peek()

    def _boost(self) -> None:
        """Begin and end boosts; look again by itself only while there is one, or could be."""
        judgement = self._booster.look(self._populated, self._clock())
        self._act(judgement.actions)
        if judgement.look_again_s is None or self._boost_planned:
            return
        self._boost_planned = True

        def again() -> None:
            self._boost_planned = False
            if not self._closed:
                self._guarded(self._boost)

        self._loop.later(judgement.look_again_s, again)

    def _take_members(self) -> None:
        self._stale = False
        self._admits = self._policy_admits.says()
        self._live = {call.cgroup.path: call for call in self._loop.live.values()}
        new, gone = self._reader.update({key: call.state for key, call in self._live.items()})
        for member in gone:
            self._unwatch(member.files.path)
            self._journal.forget(member.id)
            member.files.close()
            self._ids.forget(member.files.path)
            # The next call in this slot has the same path.
            self.memory.held.pop(member.files.path, None)
            self.memory.growth.pop(member.files.path, None)
            self._booster.forget(member.files.path)
        for path, files in self._reader.unused.items():
            self._unwatch(f"events {path}")
            self._unwatch(f"stall {path}")
            self._ids.forget(path)
            files.close()
        for member in new:
            key = member.files.path
            try:
                release.release(Cgroup(key), self._live[key].state)
            except CgroupError as error:
                log.warn(self.paths, "call not released", cgroup=key, error=str(error))

    def _act(self, actions: tuple[Action, ...]) -> None:
        if not actions:
            return
        if not release.is_marked(self.paths):
            try:
                release.mark(self.paths)
            except OSError as error:
                # Without it nobody would release the calls should we die: rather do nothing.
                log.warn(self.paths, "calls not adapted", path=self.paths.holding, error=str(error))
                return
        for action in actions:
            if action.what == "bound" and action.value is not None:
                self._note_bound(action.key)
        dying = self._note_killed(actions)
        for action in apply.apply_all(self.paths, actions):
            if action.what == "kill":
                dying.pop(action.key, None)
            call = self._live.get(action.key)
            if call is not None:
                before = call.state.get("adapted")
                self._journal.add(str(call.state.get("id")), call.where, call.slot, before, action)
        for key, state in dying.items():
            self._live[key].state = state  # it was not killed after all

    def _note_bound(self, parent: str) -> None:
        """Keep with the container that its calls are bounded: they may all be over when we are."""
        for key, call in self._live.items():
            if key.rpartition("/")[0] == parent:
                self._journal.keep_bound(call.where, parent)
                return

    def _note_killed(self, actions: tuple[Action, ...]) -> dict[str, dict[str, Any]]:
        """Say in the states of calls that we kill them, before they die; returns what those were.

        The end of the first process is often seen before the journal's file is, and what the call is told
        then is what its state says.
        """
        before = {
            action.key: self._live[action.key].state
            for action in actions
            if action.what == "kill" and action.key in self._live
        }
        for key, state in before.items():
            self._live[key].state = {**state, "killed_by": CONTROLLER}
        return before

    # What wakes us.

    def _follow(self, snapshot: Snapshot) -> None:
        self._shared = {
            domain.key: (domain.limit, self._reader.used[domain.key]) for domain in snapshot.domains
        }
        for key, held in self.memory.held.items():
            member = self._reader.members.get(key)
            if member is not None and (held.guard is not None or held.soft is not None):
                self._watch(key, member.files.fd("memory.events"))
        for domain in snapshot.domains:
            self._watch_domain(domain.key)
        self._pressure.follow(snapshot)

    def _watch(self, key: str, fd: int | None) -> None:
        """Look when a cgroup file changes. It stays ready until it is read."""
        if key in self._watched or fd is None:
            return

        def changed(_: int) -> None:
            if not _drain(fd):
                self._unwatch(key)  # the cgroup is gone
            self._soon()

        self._watched[key] = fd
        self._loop.watch(fd, select.EPOLLPRI | select.EPOLLERR, changed)

    def _watch_domain(self, key: str) -> None:
        if f"stall {key}" in self._watched:
            return
        files = self._reader.above(key)
        if files is not None:
            self._watch(f"events {key}", files.fd("memory.events"))
        trigger = _stall_trigger("/proc/pressure/memory" if key == HOST else f"{key}/memory.pressure")
        if trigger is not None:
            self._watch(f"stall {key}", trigger)

    def _unwatch(self, name: str) -> None:
        fd = self._watched.pop(name, None)
        if fd is None:
            return
        self._loop.unwatch(fd)
        if name.startswith("stall "):
            os.close(fd)

    # The end.

    def close(self) -> None:
        """Let everything run as planned, and let go of it."""
        for name in list(self._watched):
            self._unwatch(name)
        self._reader.close()
        self._pressure.close()
        self._at_once.close()
        self._gate_file.remove()
        self._turn += 1
        self._closed = True
        release.release_all(self.paths)


def _drain(fd: int) -> bool:
    """Read a file that changed; False where it is gone."""
    try:
        os.pread(fd, 4096, 0)
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise
        return False
    return True


def _stall_trigger(path: str) -> int | None:
    """A descriptor that becomes ready when tasks stall for memory; None where the kernel has none to give."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        os.write(fd, _TRIGGER)
    except OSError:
        os.close(fd)
        return None
    return fd
