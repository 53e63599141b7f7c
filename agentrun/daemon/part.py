"""What agentrund knows of a live call, and what a part of agentrund is told about it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from agentrun.cgroups.cgroup import Cgroup
from agentrun.service.loop import Timer


@dataclass(slots=True)
class Call:
    """A live call: where its state is, and what is watched for it."""

    where: str
    slot: str
    state: dict[str, Any]
    cgroup: Cgroup
    descriptors: list[int] = field(default_factory=list)
    timers: list[Timer] = field(default_factory=list)
    owner_pidfd: int | None = None
    main_pid: int | None = None  # the process may be gone, and the number another's
    main_pidfd: int | None = None
    status: int | None = None
    unsaved: dict[str, Any] = field(default_factory=dict)  # for its record, not in its state file yet
    ended_at: float | None = None
    tries: int = 0
    looks: int = 0
    lives: bool = False  # it had a process
    over: bool = False
    stamp: tuple[int, int] | None = None  # of its state file, when that was read

    @property
    def key(self) -> tuple[str, str]:
        """What names it on this host."""
        return self.where, self.slot

    @property
    def id(self) -> str:
        """The call's id."""
        return str(self.state.get("id"))

    @property
    def limits(self) -> dict[str, Any]:
        """The limits that hold; empty in mode observe."""
        limits = self.state.get("limits")
        return limits if isinstance(limits, dict) else {}

    def ran(self) -> float:
        """Seconds since it started."""
        return max(0.0, time.time() - float(self.state.get("start") or time.time()))


class Part:
    """A part of agentrund that does something about calls. All of it is optional, and none may block."""

    def began(self, call: Call) -> None:
        """A call is watched from now on: a new one, or a live one after a restart."""

    def main_found(self, call: Call) -> None:
        """`call.main_pidfd` is known from now on."""

    def populated(self, call: Call) -> None:
        """The call's cgroup was looked at and has processes (may come again and again)."""

    def main_ended(self, call: Call) -> None:
        """The call's first process has ended; others of the call may live."""

    def is_done(self, call: Call) -> bool:
        """All of it has ended; whether its record may be written now. Who says no says yes soon."""
        return True

    def ended(self, call: Call) -> None:
        """The call is watched no more."""
