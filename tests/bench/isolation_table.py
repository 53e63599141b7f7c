"""Pure: the table of docs/evaluation.md from the rows of `make bench-isolation`, and what QUICK=1 checks.

`python3 tests/bench/isolation_table.py FILE` prints the table of a file of rows.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

Row = Mapping[str, Any]
HEADER = (
    "| mix | arm | runs | all done | OOM kills | agents killed in | HIGH P95 by alone | HIGH P95 ms "
    "| HIGH done s | LOW done s | LOW never |\n|---|---|---|---|---|---|---|---|---|---|---|"
)


def spread(values: Iterable[float | None]) -> str:
    """Median with range; a dash for none."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    return f"{median(known):.2f} ({min(known):.2f} to {max(known):.2f})"


def grouped(rows: Iterable[Row]) -> dict[tuple[str, str], list[Row]]:
    """Rows of runs by mix and arm, in the order of their first appearance by name."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["mix"], row["arm"]), []).append(row)
    return dict(sorted(groups.items()))


def is_done(row: Row) -> bool:
    """Whether every session of a run came to its end."""
    return row["high_done_s"] is not None and None not in row["low_done_s"]


def by_alone(row: Row) -> float | None:
    """HIGH's P95 as a multiple of HIGH alone in the same seed."""
    both = (row["high_p95_ms"], row["high_alone_p95_ms"])
    return both[0] / both[1] if None not in both and both[1] else None


def _line(mix: str, arm: str, rows: Sequence[Row]) -> str:
    low = [done for row in rows for done in row["low_done_s"]]
    cells = (
        mix,
        arm,
        len(rows),
        sum(map(is_done, rows)),
        sum(row["oom_kills"] or 0 for row in rows),
        sum(bool(row["agent_killed"]) for row in rows),
        spread(map(by_alone, rows)),
        spread(row["high_p95_ms"] for row in rows),
        spread(row["high_done_s"] for row in rows),
        spread(low),
        sum(done is None for done in low),
    )
    return "| " + " | ".join(map(str, cells)) + " |"


def table(rows: Sequence[Row]) -> str:
    """Medians with ranges over the seeds of each arm, and below them the density."""
    runs = [row for row in rows if row["mix"] != "density"]
    lines = [HEADER, *(_line(mix, arm, found) for (mix, arm), found in grouped(runs).items())]
    density = [row for row in rows if row["mix"] == "density"]
    if density:
        lines += ["", "| arm | sessions that fit in 3 GB, each seed |", "|---|---|"]
        for (_, arm), found in grouped(density).items():
            lines.append(f"| {arm} | {', '.join(str(row['sessions']) for row in found)} |")
    return "\n".join(lines)


def ordering_problems(rows: Sequence[Row]) -> list[str]:
    """What is not as it must be, in words: agentrun's arms against `bare` in the same mix and seeds."""
    groups = grouped(row for row in rows if row["mix"] != "density")
    problems = []
    for (mix, arm), found in groups.items():
        bare = groups.get((mix, "bare"))
        if not arm.startswith("agentrun") or not bare:
            continue
        done, bare_done = sum(map(is_done, found)) / len(found), sum(map(is_done, bare)) / len(bare)
        if done < bare_done:
            problems.append(f"mix {mix}: {arm} finished {done:.0%} of its runs, bare {bare_done:.0%}")
        if arm == "agentrun-adaptive":
            killed = [row["seed"] for row in found if row["oom_kills"] or row["agent_killed"]]
            if killed:
                problems.append(f"mix {mix}: {arm} lost something in seeds {killed}")
    if not any(arm.startswith("agentrun") for _, arm in groups):
        problems.append("no arm with agentrun was run")
    return problems


if __name__ == "__main__":
    print(table([json.loads(line) for line in Path(sys.argv[1]).read_text().splitlines()]))
