"""Pure: what calls did between two looks, and which of them are shown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace

from agentrun.trace.source import Counts

AGENT, LIVE, ENDED, OTHERS = "agent", "live", "ended", "others"


@dataclass(frozen=True, slots=True)
class Totals:
    """What was done so far. `syscalls`: by name, (calls, nanoseconds in them). The times of the cgroup's own
    `cpu.stat` are in microseconds, and None where it has no cpu controller.
    """

    counts: Counts = field(default_factory=Counts)
    syscalls: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    cpu_us: int | None = None
    throttled_us: int | None = None

    @property
    def syscall_count(self) -> int:
        """How many syscalls of all names."""
        return sum(count for count, _ in self.syscalls.values())


@dataclass(frozen=True, slots=True)
class Row:
    """One call, the agent's leaf, or several in one (`id` says how many). `memory` and `peak` are bytes."""

    id: str
    command: str
    state: str
    done: Totals = field(default_factory=Totals)
    memory: int | None = None
    peak: int | None = None


def _combine(left: Counts, right: Counts, sign: int) -> Counts:
    """Numbers that went back (an entry that was dropped meanwhile) count as nothing."""
    names = [f.name for f in fields(Counts)]
    return Counts(**{n: max(0, getattr(left, n) + sign * getattr(right, n)) for n in names})


def _combine_known(left: int | None, right: int | None, sign: int) -> int | None:
    return left if left is None or right is None else max(0, left + sign * right)


def add(left: Totals, right: Totals) -> Totals:
    """Both together; a time that one of them does not know is the other's."""
    syscalls = dict(left.syscalls)
    for name, (count, ns) in right.syscalls.items():
        before = syscalls.get(name, (0, 0))
        syscalls[name] = (before[0] + count, before[1] + ns)
    cpu, throttled = (
        b if a is None else _combine_known(a, b or 0, 1)
        for a, b in ((left.cpu_us, right.cpu_us), (left.throttled_us, right.throttled_us))
    )
    return Totals(_combine(left.counts, right.counts, 1), syscalls, cpu, throttled)


def since(now: Totals, before: Totals) -> Totals:
    """What was done between two looks."""
    syscalls = {}
    for name, (count, ns) in now.syscalls.items():
        known = before.syscalls.get(name, (0, 0))
        more = (max(0, count - known[0]), max(0, ns - known[1]))
        if any(more):
            syscalls[name] = more
    return Totals(
        _combine(now.counts, before.counts, -1),
        syscalls,
        _combine_known(now.cpu_us, before.cpu_us or 0, -1),
        _combine_known(now.throttled_us, before.throttled_us or 0, -1),
    )


def interval(now: Sequence[Row], before: Sequence[Row]) -> list[Row]:
    """The rows of what was done between two looks. Calls that had ended before are left out."""
    known = {row.id: row for row in before}
    rows = []
    for row in now:
        old = known.get(row.id)
        if row.state == ENDED and old is not None and old.state == ENDED:
            continue
        rows.append(replace(row, done=since(row.done, old.done)) if old else row)
    return rows


def weight(done: Totals, what: Sequence[str]) -> tuple[int, int, int]:
    """By what rows are ordered: time lost first, then use. All parts in comparable units of their own."""
    counts = done.counts
    lost = use = 0
    if "memory" in what:
        lost += counts.reclaim_ns + counts.high_ns
    if "cpu" in what:
        lost += counts.wait_ns + (done.throttled_us or 0) * 1000
        use = done.cpu_us or 0
    return lost // 1_000_000, use, counts.allocated if "memory" in what else done.syscall_count


def top(rows: Iterable[Row], what: Sequence[str], most: int) -> list[Row]:
    """The agent first, then the `most` calls that lost or used most, the rest as one row."""
    agent: list[Row] = []
    calls: list[Row] = []
    for row in rows:
        (agent if row.state == AGENT else calls).append(row)
    calls.sort(key=lambda row: (row.state != OTHERS, weight(row.done, what), row.id), reverse=True)
    shown, rest = calls[:most], calls[most:]
    return agent + shown + ([merged(rest)] if rest else [])


def merged(rows: Sequence[Row]) -> Row:
    """Several rows as one."""
    done = Totals()
    for row in rows:
        done = add(done, row.done)
    known = [row.memory for row in rows if row.memory is not None]
    return Row(f"{len(rows)} more", "-", OTHERS, done, sum(known) if known else None)
