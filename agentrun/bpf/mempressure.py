"""Memory pressure seen where memory is charged (bpf/mempressure.bpf.c): what is watched, and how.

For each limit that calls share, one entry says who they are, by rank, and when it gets tight. The program
then tells (an event in the ring buffer) or marks (the scheduler parks who is marked) at once: nobody polls.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass

from agentrun.base.errors import BpfError
from agentrun.bpf import modules, pins, syscall, types
from agentrun.bpf.syscall import id_key

MODULE = modules.MODULES["mempressure"]
How = types.How
_PRIORITY_MOST = (1 << 16) - 1
_WATCHED = bytes(8)


@dataclass(frozen=True, slots=True)
class Member:
    """A call: the id (inode) of its cgroup, its rank, and the bytes below which it is never marked."""

    id: int
    rank: tuple[int, int]
    soft: int = 0


@dataclass(frozen=True, slots=True)
class Limit:
    """A limit that calls share, in bytes: short when less than `tight` is left, until `ample` is again."""

    limit: int
    tight: int
    ample: int
    members: tuple[Member, ...]
    how: types.How = How.TELL


def rank_number(rank: tuple[int, int]) -> int:
    """A rank as one number: the tier's priority counts first."""
    tier, own = (max(0, min(part, _PRIORITY_MOST)) for part in rank)
    return tier << 16 | own


def entry(limit: Limit, before: types.Pressure | None = None) -> types.Pressure:
    """The map's value; what the program knows of calls that stay is kept. Pure.

    Of more than `types.PRESSURE_MEMBERS` calls the highest and the lowest matter: the middle is left out.
    """
    known = {} if before is None else {each.id: each for each in before.members[: before.count]}
    made = types.Pressure(
        limit_bytes=limit.limit, tight_bytes=limit.tight, ample_bytes=limit.ample, told_left=limit.limit
    )
    made.how, members = int(limit.how), _chosen(limit.members)
    made.count = len(members)
    for place, member in enumerate(members):
        kept = known.get(member.id, types.PressureMember(id=member.id))
        kept.rank, kept.soft_bytes = rank_number(member.rank), member.soft
        made.members[place] = kept
    return made


def _chosen(members: tuple[Member, ...]) -> tuple[Member, ...]:
    ordered = sorted(members, key=lambda member: member.rank, reverse=True)
    half = types.PRESSURE_MEMBERS // 2
    return tuple(ordered if len(ordered) <= 2 * half else [*ordered[:half], *ordered[-half:]])


class MemPressure:
    """The loaded program's maps: `publish` what is to be watched, and `close` them.

    Whoever opens them has them to itself: what an earlier one left there is forgotten.
    """

    def __init__(self) -> None:
        directory = modules.loaded_directory(MODULE, "watch memory pressure")
        self._published: dict[int, Limit] = {}
        with contextlib.ExitStack() as opened:

            def table(path: str, name: str) -> syscall.Map:
                found = pins.open_map(path, name)
                opened.callback(found.close)
                return found

            self._limits = table(f"{directory}/map_ar_pressure", "ar_pressure")
            self._watched = table(f"{directory}/map_ar_pressure_calls", "ar_pressure_calls")
            self._marks = table(f"{pins.SHARED}/ar_marks", "ar_marks")
            for each in (self._limits, self._watched, self._marks):
                _empty(each)
            self._opened = opened.pop_all()

    def publish(self, limits: Mapping[int, Limit]) -> None:
        """Watch these limits, by the id of their cgroup, and no others.

        Raises BpfError for those that cannot be watched (there is room for 64); the others are.
        """
        problems = []
        for number in self._published.keys() - limits.keys():
            self._forget(number)
        for number, limit in limits.items():
            if self._published.get(number) == limit:
                continue
            try:
                self._watch(number, limit)
            except BpfError as error:
                problems.append(str(error))
        if problems:
            raise BpfError(f"{len(problems)} limits are not watched: {problems[0]}")

    def _watch(self, number: int, limit: Limit) -> None:
        before = self._published.get(number)
        self._limits.update(id_key(number), bytes(entry(limit, self.read(number))))
        self._published[number] = limit
        for member in limit.members:
            self._watched.update(id_key(member.id), _WATCHED)
        if before is not None:
            self._let_go(before.members)

    def _forget(self, number: int) -> None:
        gone = self._published.pop(number)
        self._limits.delete(id_key(number))
        self._let_go(gone.members)

    def _let_go(self, members: tuple[Member, ...]) -> None:
        """Calls that no limit names any more are not watched, and not marked."""
        left = {member.id for limit in self._published.values() for member in limit.members}
        for member in members:
            if member.id not in left:
                self._watched.delete(id_key(member.id))
                self._marks.delete(id_key(member.id))

    def read(self, number: int) -> types.Pressure | None:
        """What the program knows of a limit; None where it is not watched."""
        found = self._limits.lookup(id_key(number))
        return None if found is None else types.Pressure.from_buffer_copy(found)

    def close(self) -> None:
        """Watch nothing any more. Raises BpfError."""
        with self._opened:
            self.publish({})


def _empty(table: syscall.Map) -> None:
    while (key := table.next_key(None)) is not None:
        table.delete(key)
