"""Carry out decisions. A call that ended meanwhile is no error; what fails is logged."""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Callable, Iterable
from typing import Any

from agentrun.base import log
from agentrun.base.errors import AgentrunError, CgroupError
from agentrun.base.paths import Paths
from agentrun.calls import slots
from agentrun.calls.session import open_where
from agentrun.calls.verdict import CONTROLLER
from agentrun.cgroups.cgroup import Cgroup
from agentrun.daemon.controller.model import Action
from agentrun.kernel import killing

_NOTED = frozenset(("freeze", "thaw", "reclaim", "kill"))
_WEIGHTS = ("boost", "unboost")
_NOTES_LIMIT = 32  # of one call: the latest
_GONE = (errno.ENOENT, errno.ENODEV)


def apply(action: Action) -> bool:
    """Do it; whether it took effect. Raises CgroupError."""
    cgroup = Cgroup(action.key)
    if action.what in ("freeze", "thaw"):
        cgroup.write("cgroup.freeze", "1" if action.what == "freeze" else "0")
    elif action.what == "limit":
        cgroup.write_at_once("memory.high", _text(action.value))
    elif action.what == "bound":
        cgroup.write_at_once("memory.max", _text(action.value))
    elif action.what == "kill":
        killing.kill(cgroup, needed=True)
    elif action.what in _WEIGHTS:
        return _weigh(cgroup, action)
    else:
        _reclaim(cgroup, action.value or 0)
    return True


def _weigh(cgroup: Cgroup, action: Action) -> bool:
    """Change a call's share, unless somebody else did: it was demoted, or an operator came."""
    if cgroup.read("cpu.weight") != str(action.was):
        return False
    cgroup.write("cpu.weight", str(action.value))
    return True


def _text(limit: int | None) -> str:
    return "max" if limit is None else str(limit)


def _reclaim(cgroup: Cgroup, size: int) -> None:
    try:
        cgroup.write("memory.reclaim", str(size))
    except CgroupError as error:
        if error.errno != errno.EAGAIN:  # it got less than that
            raise


def apply_all(paths: Paths, actions: Iterable[Action]) -> list[Action]:
    """Carry out all of them; returns those that took effect."""
    done = []
    for action in actions:
        try:
            if apply(action):
                done.append(action)
        except CgroupError as error:
            if error.errno not in _GONE:
                log.warn(paths, "not adapted", what=action.what, cgroup=action.key, error=str(error))
    return done


class Journal:
    """What was done to each call, as its record will show it: a list of {t, what, why}, bytes or weight."""

    def __init__(self, paths: Paths) -> None:
        self.paths = paths
        self._notes: dict[str, list[dict[str, Any]]] = {}

    def add(self, call_id: str, where: str, slot: str, before: object, action: Action) -> None:
        """Note an action in the call's state; `before` is what that says already."""
        if not (action.what in _NOTED or action.why):
            return
        notes = self._notes.setdefault(call_id, list(before) if isinstance(before, list) else [])
        last = notes[-1] if notes else {}
        if action.what == "reclaim" and last.get("what") == "reclaim":
            last["bytes"] = last.get("bytes", 0) + (action.value or 0)
            return  # written with whatever comes next: a line for each of hundreds says nothing
        entry: dict[str, Any] = {"t": round(time.time(), 3), "what": action.what, "why": action.why}
        if action.value is not None:
            entry["weight" if action.what in _WEIGHTS else "bytes"] = action.value
        notes.append(entry)
        del notes[:-_NOTES_LIMIT]
        extra = {"killed_by": CONTROLLER} if action.what == "kill" else {}
        self._write(call_id, where, slot, adapted=notes, **extra)

    def _write(self, call_id: str, where: str, slot: str, **notes: object) -> None:
        self._keep(where, lambda session: session.note(slot, call_id, **notes), "adaptation", call=call_id)

    def keep_bound(self, where: str, parent: str) -> None:
        """Note that the calls of a container, all below the cgroup `parent`, are bounded."""
        self._keep(where, lambda session: session.keep_bound(parent), "bound of calls", path=where)

    def _keep(self, where: str, write: Callable[[slots.Calls], object], what: str, **fields: object) -> None:
        """Write to what is kept of a container's calls, unless it is gone; a failure is logged."""
        try:
            session = open_where(self.paths, where)
            if session is not None:
                with contextlib.closing(session):
                    write(session)
        except (OSError, AgentrunError) as error:
            log.warn(self.paths, f"{what} not noted", **fields, error=str(error))

    def forget(self, call_id: str) -> None:
        """The call is over."""
        self._notes.pop(call_id, None)
