"""Tell the agent what happened to its call, as early as that is known, and note what was told.

conmon reads what is in the pipes when the first process is gone, and then ends. So a text has to be in the
pipe before the call dies: at a time limit before the kill, at an OOM when the kernel counts it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from agentrun.calls import record as records
from agentrun.daemon.call import Call
from agentrun.daemon.keeperlink import KeeperLink
from agentrun.daemon.part import Part
from agentrun.feedback import text as feedback

if TYPE_CHECKING:
    from agentrun.daemon.daemon import Daemon


def _nothing() -> None:
    """What follows a text that nothing waits for."""


@dataclass(slots=True)
class _Told:
    """What was told to a call: the notes for its record, and how many texts are still on their way."""

    notes: list[dict[str, Any]] = field(default_factory=list)
    waiting: int = 0
    finished: bool = False

    def has(self, event: str) -> bool:
        """Whether this was told before."""
        return any(note.get("event") == event for note in self.notes)


class Teller(Part):
    """Feedback to all live calls that are to get some."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.link = KeeperLink(daemon, daemon.paths, self._hold_all)
        self._told: dict[str, _Told] = {}

    def start(self) -> None:
        """Start the keeper."""
        self.link.start()

    def close(self) -> None:
        """End the keeper: nothing is told any more."""
        self.link.close()

    def began(self, call: Call) -> None:
        """Hold the call's stderr, unless nothing will be told there."""
        if _mode(call) == "off" or call.state.get("tty"):
            return  # with a terminal, the runtime's stderr is for its own errors, and the engine waits for it
        notes = call.state.get("feedback")
        self._told[call.id] = _Told(list(notes) if isinstance(notes, list) else [])
        self._hold(call)

    def _hold(self, call: Call) -> None:
        for pidfd, is_owner in ((call.owner_pidfd, True), (call.main_pidfd, False)):
            if pidfd is not None:
                self.link.hold(call.id, pidfd, is_owner=is_owner)

    def _hold_all(self) -> None:
        for call in self.daemon.live.values():
            told = self._told.get(call.id)
            if told is not None and not told.finished:
                self._hold(call)

    def main_found(self, call: Call) -> None:
        """From now on the keeper knows when to let go."""
        if call.id in self._told and call.main_pidfd is not None:
            self.link.hold(call.id, call.main_pidfd, is_owner=False)
            if feedback.events(call.state) == ["waited"]:
                # Now, for at its end there may be worse to tell.
                self.tell(call, "waited")

    def main_ended(self, call: Call) -> None:
        """Say what is left to say, and let go: the engine waits for the end of stderr."""
        told = self._told.get(call.id)
        if told is None or told.finished:
            return
        told.finished = True
        self.look(call)
        self.link.drop(call.id)

    def look(self, call: Call) -> None:
        """Tell the worst that happened to a call, if it was not told yet."""
        told = self._told.get(call.id)
        if told is None:
            return
        record = self._record(call)
        for event in feedback.events(record)[:1]:
            if not told.has(event):
                self._tell(call, told, event, record, _nothing)

    def tell(self, call: Call, event: str, then: Callable[[], None] = _nothing) -> None:
        """Tell a call of an event; `then` follows soon in any case, whether or not it could be told."""
        told = self._told.get(call.id)
        if told is None or told.has(event):
            then()
        else:
            self._tell(call, told, event, records.glance(call.state, call.cgroup), then)

    def is_told(self, call: Call, event: str) -> bool:
        """Whether there is nothing to tell of that event any more."""
        told = self._told.get(call.id)
        return told is None or told.has(event)

    def _record(self, call: Call) -> dict[str, Any]:
        """The record as it would be now: what is told is what it says."""
        return records.make(call.slot, {**call.state, **self.daemon.network_of(call)}, call.cgroup)

    def _tell(
        self, call: Call, told: _Told, event: str, record: dict[str, Any], then: Callable[[], None]
    ) -> None:
        if not feedback.is_wanted(_mode(call), event, record):
            then()
            return
        text = feedback.compose(event, record, call.state["care"].get("templates") or {})
        note: dict[str, Any] = {"event": event, "text": text, "at": time.time()}
        told.notes.append(note)
        told.waiting += 1

        def answered(why: str | None) -> None:
            told.waiting -= 1
            note["delivered"], note["why"] = why is None, why
            self.daemon.note(call, feedback=told.notes)

        self.link.tell(call.id, text, then, answered)

    def is_done(self, call: Call) -> bool:
        """A call too short to be seen running is told now; answers come soon in any case."""
        self.main_ended(call)
        told = self._told.get(call.id)
        return told is None or told.waiting == 0

    def ended(self, call: Call) -> None:
        """Forget it."""
        if self._told.pop(call.id, None) is not None:
            self.link.drop(call.id)


def _mode(call: Call) -> str:
    """`on`, `quiet` or `off`; a call that an older agentrun started is not spoken to."""
    care = call.state.get("care")
    return str(care.get("feedback", "off")) if isinstance(care, dict) else "off"
