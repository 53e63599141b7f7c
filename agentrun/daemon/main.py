"""Entry of `agentrund`: the only one of this host, with all its parts, watched by systemd."""

from __future__ import annotations

import os
import signal
import sys
import time

from agentrun.base import agentrund, files, log
from agentrun.base.errors import AgentrunError, StateError
from agentrun.base.paths import Paths, host_paths
from agentrun.calls import names
from agentrun.daemon.controller.controller import Controller
from agentrun.daemon.daemon import Daemon
from agentrun.daemon.parts.background import Background
from agentrun.daemon.parts.deadlines import Deadlines
from agentrun.daemon.parts.disconnect import Disconnect
from agentrun.daemon.parts.images import Images
from agentrun.daemon.parts.kernelevents import KernelEvents
from agentrun.daemon.parts.learnedstarts import Starts
from agentrun.daemon.parts.memorywatch import MemoryWatch
from agentrun.daemon.parts.oomorder import OomOrder
from agentrun.daemon.parts.ratenotes import RateNotes
from agentrun.daemon.parts.scheduler import SchedulerKeeper
from agentrun.daemon.parts.stalls import Stalls
from agentrun.daemon.parts.teller import Teller
from agentrun.daemon.status import DaemonStatus
from agentrun.kernel import ownmemory
from agentrun.service import systemd

_WATCHDOG_FACTOR = 0.5
_PRESENCE_S = 1.0
_LOCK_WAIT_S = 0.5


def take_lock(paths: Paths) -> int:
    """Be the only agentrund, visibly to execs. Raises StateError.

    An exec that looks whether we live holds the lock for a moment.
    """
    os.close(files.open_private_directory(paths.run, StateError))
    os.close(files.open_private_directory(f"{paths.run}/{names.SESSIONS}", StateError))
    deadline = time.monotonic() + _LOCK_WAIT_S
    while True:
        try:
            return files.open_locked(paths.daemon_lock)
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                raise StateError("be the only agentrund, lock", paths.daemon_lock, error) from error
            time.sleep(0.01)
        except OSError as error:
            raise StateError("be the only agentrund, lock", paths.daemon_lock, error) from error


def _keep_memory(paths: Paths) -> None:
    """Have no step wait for memory of our own. The keeper gets the second of it from us."""
    for keep, late in (
        (ownmemory.lock_memory, "memory not locked: late where the host runs out of it"),
        (ownmemory.refuse_huge_pages, "huge pages not refused: late while the kernel makes one"),
    ):
        try:
            keep()
        except OSError as error:
            log.warn(paths, late, error=str(error))


def _show_presence(daemon: Daemon, lock: int) -> None:
    """Show on our lock that we are here, for those who meet a call's end while we are restarted."""
    try:
        agentrund.note_daemon_is_near(lock, returns=daemon.proc_watch.returns)
    except OSError as error:
        log.warn(daemon.paths, "a restart may cost exit codes: presence not shown", error=str(error))
        return
    daemon.later(_PRESENCE_S, lambda: _show_presence(daemon, lock))


def _start_watchdog(daemon: Daemon) -> None:
    """Tell systemd's watchdog, from the loop itself, that the loop turns."""
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    if not microseconds.isdigit():
        return
    period = int(microseconds) / 1e6 * _WATCHDOG_FACTOR

    def beat() -> None:
        systemd.notify("WATCHDOG=1")
        daemon.later(period, beat)

    beat()


def main() -> None:
    """Entry of `agentrund`."""
    if os.geteuid() != 0:
        sys.exit("agentrund: needs root, like the engines whose calls it watches")
    paths = host_paths()
    try:
        daemon = Daemon(paths)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: daemon.stop())  # before the lock tells others that we live
        _keep_memory(paths)
        lock = take_lock(paths)
        daemon.proc_watch.start()  # early: what ends while we look for calls is told of
        _show_presence(daemon, lock)
        teller = Teller(daemon)
        events = KernelEvents(daemon, teller)
        daemon.parts += (
            events,  # first: the others say what it has learned
            teller,
            Deadlines(daemon, teller),
            MemoryWatch(daemon, teller),
            Stalls(daemon, teller),
            OomOrder(daemon),
            Background(daemon),
            Disconnect(daemon),
            Images(daemon),
            Starts(daemon),  # after it: it looks at the image
            RateNotes(daemon),
        )
        controller = Controller(daemon, paths)
        daemon.on_change.append(controller.changed)
        events.on_pressure.append(controller.pressed)
        teller.start()
        events.start()
        scheduler = SchedulerKeeper(daemon, paths)
        scheduler.start()
        status = DaemonStatus(daemon, paths)
        status.sources |= {
            "keeper": teller.link.check,
            "events": events.status,
            "proc_events": daemon.proc_watch.events.status,
            "scheduler": scheduler.status,
        }
        status.start()
        _start_watchdog(daemon)
        try:
            daemon.run()
        finally:
            controller.close()
            scheduler.close()
            events.close()
            teller.close()
    except AgentrunError as error:
        sys.exit(f"agentrund: {error}")
    os.close(lock)
