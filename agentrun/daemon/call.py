"""What agentrund knows of a live call."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from agentrun.cgroups.cgroup import Cgroup
from agentrun.daemon.controller.model import Rank
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
    main_seen_ns: int | None = None  # when that process was seen in the call's cgroup (CLOCK_MONOTONIC)
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

    @property
    def has_status(self) -> bool:
        """Whether it is known how its first process ended, maybe by an earlier agentrund."""
        return self.status is not None or self.state.get("exit_code") is not None

    def ran(self) -> float:
        """Seconds since it started."""
        return max(0.0, time.time() - float(self.state.get("start") or time.time()))


def rank_of(state: Mapping[str, Any]) -> Rank | None:
    """The rank in a call's state; None where the call is to be left alone."""
    rank = state.get("rank")
    if isinstance(rank, list) and len(rank) == 2 and all(isinstance(part, int) for part in rank):
        return rank[0], rank[1]
    return None
