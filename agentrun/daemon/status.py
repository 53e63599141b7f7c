"""What agentrund says of itself, in `/run/agentrun/agentrund.json`: for `agentrunctl doctor` only.

A file and no socket, as for everything about agentrund: nobody waits for it, and it waits for nobody. It is
written anew every few seconds, so one that is old while agentrund lives means that its loop does not turn.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from agentrun.base import agentrund, log
from agentrun.base.paths import Paths
from agentrun.service import statusfile
from agentrun.service.loop import Loop

EVERY_S = 5.0
STALE_S = agentrund.STALE_S
_SIZE_LIMIT = 1 << 16


def path_of(paths: Paths) -> str:
    """Where the file is."""
    return agentrund.status_path(paths)


def read(paths: Paths) -> dict[str, Any] | None:
    """What agentrund wrote last: `pid`, `at` (CLOCK_MONOTONIC, s), `up_s`, and what each of its parts said.

    None where nothing is there that can be read.
    """
    return statusfile.read(path_of(paths), _SIZE_LIMIT)


class DaemonStatus:
    """Writes the file while agentrund runs. `sources` give what each part has to say, by name."""

    def __init__(self, loop: Loop, paths: Paths) -> None:
        self._loop = loop
        self._paths = paths
        self._failed = False
        self._started = time.monotonic()
        self.sources: dict[str, Callable[[], dict[str, Any] | None]] = {}

    def start(self) -> None:
        """Write, now and again and again."""
        self.write()
        self._loop.later(EVERY_S, self.start)

    def write(self) -> None:
        """Write what is so now; that it cannot be written is said once."""
        said: dict[str, object] = {name: source() for name, source in self.sources.items()}
        said["up_s"] = time.monotonic() - self._started
        try:
            statusfile.write(path_of(self._paths), said)
            self._failed = False
        except OSError as error:
            if not self._failed:
                log.warn(self._paths, "agentrund's status not written", error=str(error))
            self._failed = True
