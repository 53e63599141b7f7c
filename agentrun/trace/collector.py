"""Which cgroup is which call, and what each did since the trace began.

What the kernel counts itself (CPU time, time off for cpu.max, memory) is read from the cgroup's files; the
probes count the rest, by the cgroup's id.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from agentrun.base.errors import StateError
from agentrun.base.paths import Paths
from agentrun.calls import names
from agentrun.calls.session import open_all, open_where
from agentrun.calls.slots import is_starting
from agentrun.cgroups import layout
from agentrun.cgroups.cgroup import Cgroup
from agentrun.trace.rows import AGENT, ENDED, LIVE, OTHERS, Row, Totals, add, since
from agentrun.trace.source import Counts, Reading
from agentrun.trace.target import Target

KEPT_ENDED = 1000  # ended calls with a row of their own; older ones are together in one


class Source(Protocol):
    """Where counters come from (`source.Probes`)."""

    def read(self) -> Reading:
        """All counters."""

    def forget(self, cgroup_id: int, syscalls: Iterable[int]) -> None:
        """Drop those of one cgroup."""

    def syscall_name(self, number: int) -> str:
        """The name of a syscall."""


@dataclass(slots=True)
class Member:
    """One cgroup with a row of its own. `kept` is what the probes counted and have dropped since."""

    cgroup_id: int
    id: str
    command: str
    state: str
    cgroup: Cgroup
    call: dict[str, Any] = field(default_factory=dict)
    kept: Totals = field(default_factory=Totals)
    counted: Totals = field(default_factory=Totals)
    begin: Totals = field(default_factory=Totals)
    files: Totals = field(default_factory=Totals)
    memory: int | None = None
    peak: int | None = None

    def row(self) -> Row:
        """What it did so far."""
        used = since(self.files, self.begin)
        return Row(self.id, self.command, self.state, add(self.counted, used), self.memory, self.peak)


def read_files(cgroup: Cgroup) -> Totals | None:
    """What the kernel counts of a cgroup itself; None when it is gone."""
    stat = cgroup.pairs("cpu.stat")
    if stat is None:
        return None
    return Totals(cpu_us=stat.get("usage_usec"), throttled_us=stat.get("throttled_usec"))


class Collector:
    """The rows of one container. `look` finds new calls, `sample` reads everything."""

    def __init__(self, paths: Paths, target: Target, source: Source) -> None:
        self.paths = paths
        self.target = target
        self.source = source
        self.lost = 0
        self._members: dict[int, Member] = {}
        self._others = Totals()
        self._add(target.cgroup.child(layout.AGENT), "agent", AGENT, {})
        self.look()
        for member in self._members.values():
            member.begin = member.files = read_files(member.cgroup) or Totals()

    def is_over(self) -> bool:
        """Whether the container has ended."""
        same = self.target.cgroup.kernel_id() == self.target.cgroup_id
        return not same or not self.target.cgroup.is_populated()

    def look(self) -> None:
        """Find calls that are new; cheap enough for every time that a cgroup is made."""
        try:
            with os.scandir(self.target.calls.path) as entries:
                found = [(e.name, e.inode()) for e in entries if names.is_slot(e.name)]
        except OSError:
            return  # the container ends
        fresh = [(slot, inode) for slot, inode in found if inode not in self._members]
        if not fresh:
            return
        states = self._states([slot for slot, _ in fresh])
        for slot, inode in fresh:
            state, cgroup = states.get(slot), self.target.calls.child(slot)
            # The slot may have another call by now: its cgroup is another then.
            if state is not None and cgroup.kernel_id() == inode:
                self._add(cgroup, str(state.get("id")), LIVE, state)

    def _states(self, slots: Iterable[str]) -> dict[str, dict[str, Any]]:
        """The states of live calls, by slot."""
        if self.target.where is None:
            return self._states_anywhere(slots)
        try:
            session = open_where(self.paths, self.target.where)
        except StateError:
            return {}
        if session is None:
            return {}
        try:
            read = {slot: session.read(slot) for slot in slots}
        finally:
            session.close()
        return {slot: state for slot, state in read.items() if state is not None}

    def _states_anywhere(self, slots: Iterable[str]) -> dict[str, dict[str, Any]]:
        """The same before it is known where they are: the container had no call when the trace began."""
        wanted, found = set(slots), {}
        for session in open_all(self.paths):
            for slot in wanted.intersection(session.slots()):
                state = session.read(slot)
                if state is not None and state.get("calls") == self.target.calls.path:
                    found[slot] = state
        return found

    def _add(self, cgroup: Cgroup, name: str, state: str, call: dict[str, Any]) -> None:
        inode = cgroup.kernel_id()
        if inode is not None:
            command = call.get("command")
            word = str(command.get("name") or "-") if isinstance(command, dict) else "-"
            self._members[inode] = Member(inode, name, word, state, cgroup, call)

    def sample(self) -> list[Row]:
        """Read everything; the rows of what was done since the beginning."""
        reading = self.source.read()  # before we look: whoever is in it and still there becomes known
        self.look()
        self.lost = reading.lost
        for member in list(self._members.values()):
            self._update(member, reading)
        for inode in reading.counts.keys() | reading.syscalls.keys():
            if inode not in self._members:
                self._others = add(self._others, self._counted(reading, inode))
                self.source.forget(inode, reading.syscalls.get(inode, ()))
        self._fold_old()
        return self.rows()

    def _counted(self, reading: Reading, inode: int) -> Totals:
        name = self.source.syscall_name
        syscalls = {name(number): both for number, both in reading.syscalls.get(inode, {}).items()}
        return Totals(reading.counts.get(inode, Counts()), syscalls)

    def _update(self, member: Member, reading: Reading) -> None:
        member.counted = add(member.kept, self._counted(reading, member.cgroup_id))
        if member.state == ENDED:
            if member.cgroup_id in reading.counts or member.cgroup_id in reading.syscalls:
                member.kept = member.counted
                self.source.forget(member.cgroup_id, reading.syscalls.get(member.cgroup_id, ()))
            return
        is_there = member.cgroup.kernel_id() == member.cgroup_id
        if is_there:
            member.files = read_files(member.cgroup) or member.files
            member.memory = member.cgroup.number("memory.current")
            member.peak = member.cgroup.number("memory.peak") or member.peak
        if member.state == LIVE and not (
            is_there and (member.cgroup.is_populated() or is_starting(member.call))
        ):
            member.state, member.memory = ENDED, None

    def _fold_old(self) -> None:
        """Keep the number of rows bounded: the oldest of those that ended go together."""
        ended = [member for member in self._members.values() if member.state == ENDED]
        for member in ended[: max(0, len(ended) - KEPT_ENDED)]:
            self._others = add(self._others, member.row().done)
            del self._members[member.cgroup_id]

    def complete(self, records: Mapping[str, Mapping[str, Any]]) -> None:
        """Take the last numbers of ended calls from their records, by id: they ended between two looks."""
        for member in self._members.values():
            record = records.get(member.id) if member.state == ENDED else None
            if record is None:
                continue
            cpu, throttled = record.get("cpu_usage_us"), record.get("cpu_throttled_us")
            if isinstance(cpu, int):
                member.files = Totals(cpu_us=cpu, throttled_us=throttled)
            member.peak = record.get("memory_peak") or member.peak

    def rows(self) -> list[Row]:
        """The rows again, as they were at the last `sample` or have been completed since."""
        rows = [member.row() for member in self._members.values()]
        return [*rows, Row("short calls", "-", OTHERS, self._others)] if self._others != Totals() else rows
