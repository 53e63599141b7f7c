"""Boosts of short calls: look at those that may get or lose one. What is read, `boosts` judges.

Cheap where there is nothing to do: a container with one live call is not looked at; without a wait for CPUs
it costs one read for each container; and a call that is spent is never read again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable

from agentrun.daemon.controller import boosts
from agentrun.daemon.controller.boosts import Contender, Family, Judgement
from agentrun.daemon.controller.snapshot import Member, Reader

_RECENT_S = 2.0  # the kernel's own average is made anew so often (kernel/sched/psi.c, PSI_FREQ)


class Booster:
    """Remembers who is boosted, who is spent, and how long calls had waited at the last look."""

    def __init__(self, reader: Reader, wall: Callable[[], float] = time.time) -> None:
        self._reader = reader
        self._wall = wall
        self._boosts: dict[str, int] = {}
        self._spent: set[str] = set()
        self._waited: dict[str, tuple[float, int]] = {}

    def look(self, populated: Collection[str], now: float) -> Judgement:
        """Look at the calls of each container with several; `now` is CLOCK_MONOTONIC."""
        families = self._families(populated)
        self._waited = {parent: was for parent, was in self._waited.items() if parent in families}
        judgement = boosts.judge(
            [self._family(parent, members, now) for parent, members in families.items()], self._boosts
        )
        self._boosts = judgement.boosts
        return judgement

    def forget(self, key: str) -> None:
        """The call is over; the next one in its slot has the same path."""
        self._boosts.pop(key, None)
        self._spent.discard(key)

    def _families(self, populated: Iterable[str]) -> dict[str, list[Member]]:
        """Who has siblings, or is still boosted since it had."""
        found: dict[str, list[Member]] = {}
        for key in populated:
            member = self._reader.members.get(key)
            if member is not None and not (self._boosts.get(key) and not member.is_populated()):
                found.setdefault(key.rpartition("/")[0], []).append(member)
        return {
            parent: members
            for parent, members in found.items()
            if len(members) > 1 or self._boosts.get(members[0].files.path)
        }

    def _family(self, parent: str, members: Iterable[Member], now: float) -> Family:
        is_contended = self._is_contended(parent, now)
        calls = tuple(self._contender(member, reads=is_contended) for member in members)
        return Family(calls, is_contended)

    def _contender(self, member: Member, *, reads: bool) -> Contender:
        key, used_s = member.files.path, 0.0
        age_s = self._wall() - member.start
        if key in self._spent:
            used_s = boosts.BUDGET_S
        elif member.may_boost and age_s < boosts.AGE_MOST_S and (reads or self._boosts.get(key)):
            used_s = member.cpu_s()
            if used_s >= boosts.BUDGET_S:
                self._spent.add(key)
        return Contender(key, member.rank, member.weight, used_s, age_s, member.may_boost)

    def _is_contended(self, parent: str, now: float) -> bool:
        """Whether calls of a container wait for CPUs; yes where the kernel does not say."""
        files = self._reader.above(parent)
        waited = None if files is None else files.pressure("cpu").get("some")
        if waited is None:
            return True
        average, total = waited
        before, self._waited[parent] = self._waited.get(parent), (now, total)
        if before is None or not 0 < now - before[0] < _RECENT_S:
            return average >= boosts.CONTENDED
        return (total - before[1]) / 1e6 / (now - before[0]) * 100 >= boosts.CONTENDED
