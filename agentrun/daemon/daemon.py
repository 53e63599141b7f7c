"""agentrund: see the end of every call at once, keep its record, and end calls that ran out of time.

Nothing depends on it. A call's state file under `/run/agentrun/sessions` is there before its cgroup;
inotify tells of it, so an exec never waits for the daemon and never talks to it. What the daemon learns
it notes in that file, and whoever records the call finds it there. After a crash or a restart all is found
again from those files and the cgroup tree; what ends meanwhile is recorded by the next exec, by `delete`
or at the restart.

One thread, one epoll: inotify (new calls, pid files), `cgroup.events` of each call (POLLPRI when it empties),
pidfds (the runtime that starts a call; the call's first process, for its exit status), and timers.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import time
from collections.abc import Callable
from typing import Any

from agentrun.base import log
from agentrun.base.errors import AgentrunError, StateError
from agentrun.base.paths import Paths
from agentrun.bpf.netcounts import NetCounts
from agentrun.calls import slots, verdict
from agentrun.calls.names import SESSIONS, is_slot
from agentrun.calls.session import open_all, open_where
from agentrun.cgroups.cgroup import Cgroup
from agentrun.daemon import containerend, exitstatus
from agentrun.daemon.call import Call
from agentrun.daemon.ingester import Ingester
from agentrun.daemon.part import Part
from agentrun.daemon.procwatch import ProcWatch
from agentrun.kernel import inotify, processes
from agentrun.service import systemd
from agentrun.service.loop import Loop

_CGROUP_RETRY_S = 0.002  # a slot is there a moment before its cgroup
_LOOK_AGAIN_S = 0.01  # for a call by hand, whose runtime takes a while to become the command
_LOOKS = 20
_SWEEP_S = 10.0  # what an event should have told and did not
_DIRECTORY_EVENTS = inotify.IN_CREATE | inotify.IN_MOVED_TO
_PID_FILE_EVENTS = inotify.IN_CLOSE_WRITE | inotify.IN_MOVED_TO


class Daemon(Loop):
    """The state of agentrund: what it watches. `run` works until `stop` is called.

    `parts` are told what happens to each call; `on_change` is called when a call came to life or went.
    """

    def __init__(self, paths: Paths) -> None:
        super().__init__()
        self.paths = paths
        self.parts: list[Part] = []
        self.on_change: list[Callable[[], None]] = []
        self.sessions = f"{paths.run}/{SESSIONS}"
        self.live: dict[tuple[str, str], Call] = {}
        self._inotify = inotify.Inotify(lambda fd: self.watch(fd, select.EPOLLIN, self._read_inotify))
        self._is_blind = False
        self._unrecorded: set[str] = set()
        self._directories: dict[int, str] = {}
        self._pid_files: dict[str, Call] = {}
        self.ingester = Ingester(paths)
        self.proc_watch = ProcWatch(self, paths)
        self._net_counts = NetCounts()

    def run(self) -> None:
        """Work until told to stop."""
        self._watch_directory(self.sessions)
        self.later(_SWEEP_S, self._sweep)
        self.ingester.start()
        systemd.notify("READY=1")
        while self.turn():
            pass
        systemd.notify("STOPPING=1")
        self.ingester.stop()
        self.proc_watch.close()
        if self.proc_watch.returns:
            self._leave_pids()

    def _leave_pids(self) -> None:
        """Note what the next start may not find: an engine removes the pid file of a call that has ended."""
        for call in self.live.values():
            if call.main_pid is not None and call.main_seen_ns is not None:
                self.note(call, main=[call.main_pid, call.main_seen_ns])

    # Finding calls.

    def _watch_directory(self, path: str) -> None:
        """Watch a directory of sessions, and take what is in it already."""
        self._follow_directory(path, _DIRECTORY_EVENTS)
        try:
            names = os.listdir(path)
        except OSError:
            return  # gone again
        for name in names:
            self._found(path, name)

    def _follow_directory(self, path: str, events: int) -> None:
        """Be told of what appears there; without, it is found when we look at everything (`_sweep`)."""
        try:
            self._directories[self._inotify.add(path, events)] = path
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR) or self._is_blind:
                return
            self._is_blind = True
            log.warn(self.paths, f"calls are seen up to {_SWEEP_S:.0f} s late", path=path, error=str(error))

    def _found(self, directory: str, name: str) -> None:
        depth = directory[len(self.sessions) :].count("/")
        if depth < 2:
            self._watch_directory(f"{directory}/{name}")
        elif is_slot(name):
            self._take(directory, name)

    def _read_inotify(self, _: int) -> None:
        for event in self._inotify.read():
            if event.mask & inotify.IN_Q_OVERFLOW:
                self._watch_directory(self.sessions)
                continue
            directory = self._directories.get(event.watch)
            if event.mask & inotify.IN_IGNORED:
                self._directories.pop(event.watch, None)
            elif directory is None:
                continue
            elif directory.startswith(self.sessions):
                self._found(directory, event.name)
            elif (call := self._pid_files.get(f"{directory}/{event.name}")) is not None:
                self._find_main_process(call)

    def _take(self, where: str, slot: str) -> None:
        """Begin to watch a call, unless it is watched already."""
        known, stamp = self.live.get((where, slot)), _stamp(f"{where}/{slot}")
        if known is not None and stamp is not None and known.stamp == stamp:
            return  # most of what a sweep finds
        session = self.open(where)
        if session is None:
            return
        with contextlib.closing(session):
            state = session.read(slot)
        if state is None:
            return
        if known is not None and known.id == state.get("id"):
            known.state, known.stamp = state, stamp  # somebody noted something
            self._check_end(known)
            return
        if known is not None:
            self._forget(known)
        call = Call(where, slot, state, Cgroup(str(state.get("calls"))).child(slot), stamp=stamp)
        main = state.get("main")
        if isinstance(main, list) and len(main) == 2:  # of an agentrund that was stopped (`_leave_pids`)
            call.main_pid, call.main_seen_ns = main
        self.live[call.key] = call
        self._watch_owner(call)
        for part in self.parts:
            part.began(call)
        self._watch_pid_file(call)
        self._watch_cgroup(call)

    def _tell_change(self) -> None:
        for action in self.on_change:
            action()

    def open(self, where: str) -> slots.Calls | None:
        try:
            return open_where(self.paths, where)
        except StateError as error:
            log.warn(self.paths, "calls of a container cannot be read", path=where, error=str(error))
            return None

    # Watching one call.

    def _watch_cgroup(self, call: Call) -> None:
        if call.over:
            return
        try:
            fd = os.open(f"{call.cgroup.path}/cgroup.events", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            if slots.is_starting(call.state):
                self.later(_CGROUP_RETRY_S, lambda: self._watch_cgroup(call))
            else:
                self._check_end(call)
            return

        def changed(_: int) -> None:
            # The file stays ready until it is read through this descriptor (kernfs_generic_poll).
            with contextlib.suppress(OSError):  # ENODEV: the cgroup is gone
                os.pread(fd, 256, 0)
            self._check_end(call)

        call.descriptors.append(fd)
        self.watch(fd, select.EPOLLPRI | select.EPOLLERR, changed)
        changed(0)

    def _watch_owner(self, call: Call) -> None:
        """The runtime that starts the call: as long as it lives, an empty cgroup is not the end."""
        owner = call.state.get("owner")
        pidfd = (
            processes.pidfd_of(owner[0], owner[1]) if isinstance(owner, list) and len(owner) == 2 else None
        )
        if pidfd is None:
            return

        def gone(_: int) -> None:
            call.owner_pidfd = None
            call.descriptors.remove(pidfd)
            self.drop(pidfd)
            self._seek_main_process(call)
            self._check_end(call)

        call.owner_pidfd = pidfd
        call.descriptors.append(pidfd)
        self.watch(pidfd, select.EPOLLIN, gone)

    def _watch_pid_file(self, call: Call) -> None:
        """Learn the call's first process from the file that the engine told the runtime to write."""
        path = call.state.get("pid_file")
        if not isinstance(path, str):
            return
        directory = path.rpartition("/")[0]
        self._pid_files[path] = call
        self._follow_directory(directory, _PID_FILE_EVENTS)
        self._find_main_process(call)

    def _seek_main_process(self, call: Call, tries: int = 0) -> None:
        """Find it, or how it ended; the kernel tells of that up to a moment after it wakes us."""
        self._find_main_process(call)
        if call.over or call.main_pidfd is not None or call.has_status or tries >= exitstatus.EVENT_TRIES:
            return
        # Of an empty cgroup `_check_end` sees to it.
        if exitstatus.may_be_told(call, self.proc_watch.events) and call.cgroup.is_populated():
            self.later(exitstatus.event_retry_s(tries), lambda: self._seek_main_process(call, tries + 1))

    def _find_main_process(self, call: Call) -> None:
        if call.main_pidfd is not None or call.has_status or call.over:
            return
        call.main_pid = processes.read_pid(call.state.get("pid_file")) or call.main_pid
        pid = call.main_pid or exitstatus.started(call, self.proc_watch.events) or self._only_process(call)
        pidfd = None if pid is None else processes.pidfd_in(pid, call.cgroup, self.paths.cgroup_root)
        if pidfd is None:
            if self._read_status(call):
                self._tell_main_ended(call)  # before it was known; others of the call may live
            return
        call.main_pid, call.main_pidfd, call.main_seen_ns = pid, pidfd, time.monotonic_ns()
        call.descriptors.append(pidfd)
        self.watch(pidfd, select.EPOLLIN, lambda _: self._main_ended(call, pidfd))
        for part in self.parts:
            part.main_found(call)

    def _only_process(self, call: Call) -> int | None:
        """The process of a call by hand, which has no pid file: the one that is no runtime any more."""
        if isinstance(call.state.get("pid_file"), str):
            return None
        if exitstatus.ends_with_its_runtime(call) and not slots.is_starting(call.state):
            return None  # it has ended; what is there was left behind
        pids = call.cgroup.pids()
        # A child's parent is in the call as well; the first process came from outside.
        first = [
            pid for pid in pids if not processes.is_runtime(pid) and processes.parent_of(pid) not in pids
        ]
        if len(first) != 1 and call.looks < _LOOKS:
            call.looks += 1
            self.later(_LOOK_AGAIN_S * call.looks, lambda: self._find_main_process(call))
        return first[0] if len(first) == 1 else None

    def _main_ended(self, call: Call, pidfd: int) -> None:
        """The first process has ended; its exit status is there once its parent has reaped it."""
        self.unwatch(pidfd)  # once it is reaped it reports EPOLLHUP, which no mask stops
        self._tell_main_ended(call)
        self._await_status(call)
        self._check_end(call)

    def _await_status(self, call: Call, tries: int = 0) -> None:
        """Read it while others of the call live, too: the kernel does not keep it for long."""
        if call.over or self._read_status(call) or tries >= exitstatus.EVENT_TRIES:
            return
        self.later(exitstatus.event_retry_s(tries), lambda: self._await_status(call, tries + 1))

    def _tell_main_ended(self, call: Call) -> None:
        for part in self.parts:
            part.main_ended(call)

    def _read_status(self, call: Call) -> bool:
        """Whether the exit status is known."""
        if call.has_status:
            return True
        call.status = exitstatus.find(call, self.proc_watch.events)
        if call.status is None:
            return False
        call.unsaved |= verdict.describe_status(call.status)
        if self._ended_with_container(call, call.status):
            call.unsaved["killed_by"] = verdict.ENGINE
        return True

    def _ended_with_container(self, call: Call, status: int) -> bool:
        was_killed = os.WTERMSIG(status) == signal.SIGKILL and not call.state.get("killed_by")
        return was_killed and containerend.took_along(call.state, self.paths.cgroup_root)

    def _check_end(self, call: Call) -> None:
        """Record the call if its cgroup is empty and nobody is about to place a process there."""
        if call.over:
            return
        if call.cgroup.is_populated():
            if not call.lives:
                call.lives = True
                self._tell_change()
            self._find_main_process(call)
            if call.unsaved:
                self.note(call)
            for part in self.parts:
                part.populated(call)
            return
        if slots.is_starting(call.state):
            return
        call.ended_at = call.ended_at or time.time()
        if not self._read_status(call) and exitstatus.may_come(call, self.proc_watch.events):
            call.tries += 1
            self.later(exitstatus.wait_s(call), lambda: self._check_end(call))
            return
        if not all(part.is_done(call) for part in self.parts):
            self.later(exitstatus.RETRY_S, lambda: self._check_end(call))
            return
        network = self.network_of(call)
        self._forget(call)
        session = self.open(call.where)
        if session is not None:
            with contextlib.closing(session):
                self._harvest(session, call, **call.unsaved, **network, end=call.ended_at)
            self.ingester.soon()

    def _harvest(self, session: slots.Calls, call: Call, **notes: object) -> None:
        """Record a call that is over; where that fails it is found, and tried, again (`_sweep`)."""
        try:
            session.harvest_slot(call.slot, call.id, **notes)
        except (OSError, AgentrunError) as error:
            if call.id not in self._unrecorded:
                log.warn(self.paths, "end of a call not recorded yet", call=call.id, error=str(error))
            self._unrecorded.add(call.id)
        else:
            self._unrecorded.discard(call.id)

    def network_of(self, call: Call) -> dict[str, Any]:
        """What the record of a call will say of its network so far: `network`, or nothing."""
        return self._net_counts.note(call.cgroup.path, call.state.get("limits"))

    def _forget(self, call: Call) -> None:
        call.over = True
        self._pid_files.pop(str(call.state.get("pid_file")), None)
        for fd in call.descriptors:
            self.drop(fd)
        call.descriptors.clear()
        for timer in call.timers:
            self.cancel(timer)
        call.timers.clear()
        for part in self.parts:
            part.ended(call)
        if self.live.get(call.key) is call:
            del self.live[call.key]
            if call.lives:
                self._tell_change()

    def note(self, call: Call, **notes: object) -> None:
        """Add to a call's state, and so to its record, what was learned or done."""
        notes = {**call.unsaved, **notes}
        call.unsaved = {}
        call.state = {**call.state, **notes}
        session = self.open(call.where)
        if session is None:
            return
        try:
            with contextlib.closing(session):
                session.note(call.slot, call.id, **notes)
        except (OSError, AgentrunError) as error:
            log.warn(self.paths, "state of a call not noted", call=call.id, error=str(error))

    # What should not be needed.

    def _sweep(self) -> None:
        """Look at everything once in a while: an event that was lost must not cost a record."""
        for call in list(self.live.values()):
            self._check_end(call)
        self._watch_directory(self.sessions)
        for session in open_all(self.paths):
            session.waiting()  # forgets those whose runtime was killed
            session.forget_if_gone()
        self.later(_SWEEP_S, self._sweep)


def _stamp(path: str) -> tuple[int, int] | None:
    """What changes when a state file is written anew; None where it is gone."""
    try:
        info = os.stat(path, follow_symlinks=False)
    except OSError:
        return None
    return info.st_ino, info.st_mtime_ns
