"""agentrund's thread that takes records into the store: a disk that hangs must not hold up a time limit."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from agentrun.base import log
from agentrun.base.errors import AgentrunError
from agentrun.base.paths import Paths

if TYPE_CHECKING:
    from agentrun.store.ingest import Progress

_COLLECT_S = 1.0  # calls that end together become one transaction
_LOOK_S = 60.0  # for records that execs wrote, and for what has become too old
_BUDGET_S = 0.2
_PAUSE_S = 0.05  # between turns, so that a large backlog does not take the loop's interpreter for long


class Ingester:
    """Ingests some time after `soon` was called, and once in a while."""

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self._wake = threading.Event()
        self._stopped = threading.Event()
        self._problem = ""
        self.after: list[Callable[[], None]] = []  # called in the thread, when all is taken for now
        self._thread = threading.Thread(target=self._work, name="ingester", daemon=True)

    def start(self) -> None:
        """Begin, with what ended while agentrund was not there."""
        self._wake.set()
        self._thread.start()

    def soon(self) -> None:
        """There is a record: take it, with those that come in the next moment. Returns at once."""
        self._wake.set()

    def stop(self) -> None:
        """Stop after the transaction under way, if that is soon; what is left is left in the journal."""
        self._stopped.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout=0.5)

    def _work(self) -> None:
        # Here, as loading SQLite must not hold up the restart of agentrund: calls end meanwhile.
        from agentrun.store import ingest

        while not self._stopped.is_set():
            self._wake.wait(_LOOK_S)
            self._stopped.wait(_COLLECT_S)
            self._wake.clear()
            while not self._stopped.is_set() and not self._turn(ingest.ingest):
                self._stopped.wait(_PAUSE_S)
            for action in self.after:
                if not self._stopped.is_set():
                    action()

    def _turn(self, take: Callable[[Paths, float], Progress]) -> bool:
        """One turn; whether all is done for now. What goes wrong is logged once, not every second."""
        try:
            done = take(self._paths, _BUDGET_S).is_complete
        except (AgentrunError, OSError) as error:
            if str(error) != self._problem:
                log.warn(self._paths, "records wait in the journal", error=str(error))
            self._problem = str(error)
            return True
        self._problem = ""
        return done
