"""Pure: rows for people and for programs."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from typing import Any

from rich.table import Table

from agentrun.terminal import format_size, plain
from agentrun.trace.rows import Row, Totals

_TOP_SYSCALLS = 3
_JSON_SYSCALLS = 20


def format_ns(ns: float | None) -> str:
    """A time for people: `85 us`, `1.2 s`; a dash for None, and for none."""
    if not ns:
        return "-"
    for unit, size in (("s", 1e9), ("ms", 1e6)):
        if ns >= size:
            return f"{ns / size:.1f} {unit}" if ns < 10 * size else f"{ns / size:.0f} {unit}"
    return f"{ns / 1e3:.0f} us"


def format_count(count: int | None) -> str:
    """A number for people: `812`, `45k`, `3.1M`; a dash for None, and for none."""
    if not count:
        return "-"
    for unit, size in (("M", 10**6), ("k", 10**3)):
        if count >= 10 * size:
            return f"{count / size:.0f}{unit}"
        if count >= size:
            return f"{count / size:.1f}{unit}"
    return str(count)


def top_syscalls(done: Totals, most: int) -> list[tuple[str, int, int]]:
    """Name, count and nanoseconds of the syscalls that were made most."""
    flat = ((name, count, ns) for name, (count, ns) in done.syscalls.items())
    return heapq.nlargest(most, flat, key=lambda one: (one[1], one[2], one[0]))


def _describe_syscalls(done: Totals) -> str:
    found = top_syscalls(done, _TOP_SYSCALLS)
    return ", ".join(f"{name} {format_count(count)} {format_ns(ns)}" for name, count, ns in found) or "-"


def _us(value: int | None) -> int | None:
    return None if value is None else value * 1000


# Heading, the counter that it needs of the probes, the cell.
_Column = tuple[str, str, Callable[[Row], str]]
_COLUMNS: dict[str, tuple[_Column, ...]] = {
    "memory": (
        ("FAULTS", "faults", lambda row: format_count(row.done.counts.faults)),
        ("ALLOC", "", lambda row: format_size(row.done.counts.allocated or None)),
        ("RECLAIM", "", lambda row: format_ns(row.done.counts.reclaim_ns)),
        ("HIGH", "highs", lambda row: format_ns(row.done.counts.high_ns)),
        ("MEMORY", "", lambda row: format_size(row.memory)),
    ),
    "cpu": (
        ("CPU", "", lambda row: format_ns(_us(row.done.cpu_us))),
        ("THROTTLED", "", lambda row: format_ns(_us(row.done.throttled_us))),
        ("RUNQ", "", lambda row: format_ns(row.done.counts.wait_ns)),
    ),
    "syscalls": (
        ("SYSCALLS", "", lambda row: format_count(row.done.syscall_count)),
        ("MOST", "", lambda row: _describe_syscalls(row.done)),
    ),
}


def as_table(rows: Sequence[Row], what: Sequence[str], unknown: set[str], title: str) -> Table:
    """A table of what rows did. Counters that the kernel does not give are question marks."""
    table = Table(box=None, header_style="bold", pad_edge=False, title=title, title_justify="left")
    chosen = [column for part in what for column in _COLUMNS[part]]
    for heading in ("CALL", "COMMAND", "STATE"):
        table.add_column(heading, no_wrap=True, max_width=20)
    for heading, _, _ in chosen:
        numeric = heading != "MOST"
        table.add_column(heading, no_wrap=True, justify="right" if numeric else "left", overflow="ellipsis")
    for row in rows:
        cells = ["?" if needs in unknown else cell(row) for _, needs, cell in chosen]
        table.add_row(*map(plain, (row.id, row.command, row.state, *cells)))
    return table


def as_json(row: Row, what: Sequence[str], unknown: set[str]) -> dict[str, Any]:
    """A row for programs: bytes, microseconds and counts, None for what the kernel does not give."""
    done, counts = row.done, row.done.counts
    told: dict[str, Any] = {"id": row.id, "command": row.command, "state": row.state}
    if "memory" in what:
        told |= {
            "faults": None if "faults" in unknown else counts.faults,
            "allocated": counts.allocated,
            "reclaims": counts.reclaims,
            "reclaim_us": counts.reclaim_ns // 1000,
            "high_waits": None if "highs" in unknown else counts.highs,
            "high_wait_us": None if "highs" in unknown else counts.high_ns // 1000,
            "memory": row.memory,
            "memory_peak": row.peak,
        }
    if "cpu" in what:
        told |= {
            "cpu_us": done.cpu_us,
            "throttled_us": done.throttled_us,
            "runqueue_waits": counts.waits,
            "runqueue_wait_us": counts.wait_ns // 1000,
        }
    if "syscalls" in what:
        most = top_syscalls(done, _JSON_SYSCALLS)
        told |= {
            "syscalls": done.syscall_count,
            "top_syscalls": [{"name": n, "count": count, "us": ns // 1000} for n, count, ns in most],
        }
    return told
