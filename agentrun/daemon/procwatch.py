"""agentrund's ear at the proc connector, which a restart by systemd does not close.

systemd holds the socket meanwhile, and what is told waits there. What was read already is left in a file.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any

from agentrun.base import log
from agentrun.base.paths import Paths
from agentrun.kernel.procevents import ProcEvents
from agentrun.service import statusfile, systemd
from agentrun.service.loop import Loop

_NAME = "proc-events"  # of the socket, while systemd holds it
_EVERY_S = 1.0  # so often what is queued is read; in between, when something is asked
_LEFT_LIMIT = 4 << 20


class ProcWatch:
    """The `events`, and whether agentrund `returns`: ends, and is started again and lacks nothing."""

    def __init__(self, loop: Loop, paths: Paths) -> None:
        self.events = ProcEvents()
        self._is_kept = False
        self._loop = loop
        self._paths = paths
        self._left = f"{paths.run}/{_NAME}.json"

    @property
    def returns(self) -> bool:
        """Whether systemd holds the socket, should agentrund end."""
        return self._is_kept and self.events.is_listening

    def start(self) -> None:
        """Have the kernel tell of processes from now on; without, some short calls have no exit status."""
        stored = systemd.kept().get(_NAME)
        try:
            self._is_kept = stored is not None and self._adopt(stored)
            if not self._is_kept:
                self.events.start()
                self._is_kept = systemd.keep(_NAME, self.events.fileno())
        except OSError as error:
            lost = "the kernel does not tell of processes: no exit code of calls that end at once"
            log.warn(self._paths, lost, error=str(error))
        else:
            self._read()

    def _adopt(self, stored: int) -> bool:
        """Go on where an agentrund that was stopped, or died, has ended; False where that cannot be."""
        try:
            return self.events.adopt(stored, self._take_left())
        except (OSError, TypeError, ValueError) as error:
            log.warn(self._paths, "what was told of processes during a restart is lost", error=str(error))
            return False

    def _read(self) -> None:
        self.events.read()
        self._loop.later(_EVERY_S, self._read)

    def _take_left(self) -> dict[str, Any]:
        """What an agentrund that was stopped had been told; once."""
        found = statusfile.read(self._left, _LEFT_LIMIT) or {}
        with contextlib.suppress(OSError):
            os.unlink(self._left)
        return found

    def close(self) -> None:
        """Listen no more; leave to the next start what this one was told."""
        if not self.returns:
            self.events.close()
            return
        self.events.leave()
        try:
            statusfile.write(self._left, self.events.known())
        except OSError as error:
            log.warn(self._paths, "what is known of processes not left to the next start", error=str(error))
