"""The keeper of rates: what `agentrun-net.service` runs, so that agentrund needs no network at all.

It looks when a session comes (inotify), when an interface comes or goes (rtnetlink tells), when a policy was
compiled, and every ten seconds; never more than once a second, nor for a tenth of the time. It keeps
nothing: what is in force is read from the kernel each time, so a restart changes nothing, and without it what
it did stays.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time

from agentrun.base import files, log
from agentrun.base.errors import AgentrunError, NetError, NetLibraryError, StateError
from agentrun.base.paths import Paths
from agentrun.calls import names
from agentrun.decision import inforce
from agentrun.kernel import inotify
from agentrun.net import plan, rate, status
from agentrun.net.look import look
from agentrun.net.netlink import link_notices, opened
from agentrun.service import systemd
from agentrun.service.loop import Loop

_SPACING_S = 1.0
_SHARE = 10  # at most one in so many seconds of a CPU, however often interfaces come and go
_EVENTS = inotify.IN_CREATE | inotify.IN_MOVED_TO
_READ = 1 << 16


def take_lock(paths: Paths) -> int:
    """Be the only one that changes rates; the descriptor holds it. Raises NetError where another does.

    Raises StateError where our own directory cannot be trusted.
    """
    os.close(files.open_private_directory(paths.run, StateError))
    path = f"{paths.run}/net.lock"
    try:
        return files.open_locked(path)
    except BlockingIOError as error:
        raise NetError(f"{path} is locked: agentrun-net runs, and sets rates itself") from error
    except OSError as error:
        raise StateError("open", path, error) from error


class Keeper:
    """One look after the other. `step` does one; what it could not do it says once in the log."""

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self._said: dict[str, str] = {}
        self._is_clean = False  # nothing of ours is there, and nothing is wanted
        self._had_any = False

    def step(self) -> None:
        """Bring about what the policy in force says. Never raises."""
        problem = ""
        sessions: dict[str, object] = {}
        configuration = inforce.load(self._paths)
        is_wanted = configuration.mode == "enforce" and rate.are_wanted(configuration.policy)
        if is_wanted or not self._is_clean:
            try:
                with opened() as netlink:
                    host, networks = look(self._paths, configuration, netlink, change=True)
                sessions = status.describe(networks)
                has_any = plan.has_ours(host)
                self._had_any = self._had_any or has_any
                self._is_clean = not is_wanted and not has_any
            except NetLibraryError as error:
                problem = str(error)
                # A host without pyroute2 cannot have anything of ours, unless it was there once.
                self._is_clean = not is_wanted and not self._had_any
            except AgentrunError as error:
                problem = str(error)  # what we cannot see may be there
            except Exception as error:  # noqa: BLE001
                # A library of many versions, and names that containers chose: the next look may do better.
                problem = f"{type(error).__name__}: {error}"
        if is_wanted or not self._is_clean:
            self._tell(problem, sessions)
        try:
            status.write(self._paths, sessions, problem)
        except OSError as error:
            log.warn(self._paths, "what rates are in force not written", error=str(error))

    def _tell(self, problem: str, sessions: dict[str, object]) -> None:
        """Log what is not enforced, once for each session and reason."""
        now: dict[str, str] = {"": problem} if problem else {}
        for where, entry in sessions.items():
            why = entry.get("why") if isinstance(entry, dict) else None
            if why:
                now[where] = "; ".join(why)
        for where, text in now.items():
            if self._said.get(where) != text:
                log.warn(self._paths, "network rates not enforced", session=where, error=text)
        self._said = now


class _Service:
    """Wakes a keeper."""

    def __init__(self, loop: Loop, paths: Paths) -> None:
        self._loop = loop
        self._paths = paths
        self._keeper = Keeper(paths)
        self._planned = False
        self._rest_until = float("-inf")
        self._inotify = inotify.Inotify(lambda fd: loop.watch(fd, select.EPOLLIN, self._file_changed))
        self._state = -1  # the watch of our directory of state, where much else happens
        self._links = link_notices()

    def start(self) -> None:
        self._loop.watch(self._links.fileno(), select.EPOLLIN, self._link_changed)
        self._beat()

    def _beat(self) -> None:
        self._soon()
        self._loop.later(status.EVERY_S, self._beat)

    def _soon(self) -> None:
        """Look now, or after the rest that the last look deserves."""
        if not self._planned:
            self._planned = True
            self._loop.later(max(0.0, self._rest_until - time.monotonic()), self._look)

    def _look(self) -> None:
        self._planned = False
        began = time.monotonic()
        sessions = f"{self._paths.run}/{names.SESSIONS}"
        self._state = self._watch(self._paths.state)
        self._watch(sessions)  # before we look, so that nothing comes in between unseen
        for name in _list(sessions):
            self._watch(f"{sessions}/{name}")
        self._keeper.step()
        now = time.monotonic()
        self._rest_until = now + max(_SPACING_S, _SHARE * (now - began))

    def _watch(self, directory: str) -> int:
        try:
            return self._inotify.add(directory, _EVENTS)
        except OSError:
            return -1  # not there yet, gone again, or no watches left: the next look tries again

    def _link_changed(self, _: int) -> None:
        # ENOBUFS: some were lost, which tells the same as one that was not.
        with contextlib.suppress(OSError):
            while self._links.recv(_READ):
                continue
        self._soon()

    def _file_changed(self, _: int) -> None:
        compiled = os.path.basename(self._paths.compiled)
        if any(event.watch != self._state or event.name == compiled for event in self._inotify.read()):
            self._soon()


def _list(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []


def keep(paths: Paths) -> None:
    """Keep rates in force until a signal ends us. Raises AgentrunError where another does already."""
    loop = Loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: loop.stop())
    lock = take_lock(paths)
    os.close(files.open_private_directory(f"{paths.run}/{names.SESSIONS}", StateError))
    _Service(loop, paths).start()
    systemd.notify("READY=1")
    while loop.turn():
        pass
    systemd.notify("STOPPING=1")
    os.close(lock)
