"""Pure: the tables of docs/data/isolation.md from rows of `make bench-isolation`, and what QUICK=1 checks.

`python3 tests/bench/isolation_table.py FILE [SECTION]` prints the tables of a file of rows, and puts them in
that section of the page (`isolation`, `isolation-counted`).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import inf, nan
from pathlib import Path
from statistics import median
from typing import Any

from page import write_between

PAGE = Path(__file__).parents[2] / "docs/data/isolation.md"
Row = Mapping[str, Any]
HEADER = (
    "| mix | arm | runs | all done | OOM kills | agents killed in | run again | HIGH P95 by alone "
    "| HIGH P95 ms | HIGH done s | LOW done s | LOW never |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|---|"
)
AIMS_HEADER = (
    "| mix | arm | survived | HIGH P95 by alone | best control that survived | its HIGH P95 by alone "
    "| LOW done by that of the earliest control |\n|---|---|---|---|---|---|---|"
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
    """HIGH's P95 as a multiple of HIGH alone in the same seed; None where a session of HIGH was lost."""
    if row["high_done_s"] is None:
        return None
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
        sum(row.get("run_again", 0) for row in rows),
        spread(map(by_alone, rows)),
        spread(row["high_p95_ms"] for row in rows if row["high_done_s"] is not None),
        spread(row["high_done_s"] for row in rows),
        spread(low),
        sum(done is None for done in low),
    )
    return "| " + " | ".join(map(str, cells)) + " |"


def last_low(row: Row) -> float | None:
    """When the last LOW session was done; None where one never was."""
    return None if None in row["low_done_s"] else max(row["low_done_s"], default=None)


def _middle(rows: Iterable[Row], value: Callable[[Row], float | None]) -> float:
    """The median over the runs that have the value; infinite where none has."""
    return median([found for row in rows if (found := value(row)) is not None] or [inf])


def aims(rows: Iterable[Row]) -> str:
    """What is aimed at, for each arm with agentrun: medians, against the controls that lost nothing."""
    groups = grouped(row for row in rows if row["mix"] != "density")
    lines = [AIMS_HEADER]
    for (mix, arm), found in groups.items():
        if not arm.startswith("agentrun"):
            continue
        controls = {
            name: runs
            for (of, name), runs in groups.items()
            if of == mix and not name.startswith("agentrun") and all(map(is_done, runs))
        }
        best = min(controls, key=lambda name: _middle(controls[name], by_alone), default="none")
        earliest = min((_middle(runs, last_low) for runs in controls.values()), default=nan)
        cells = (
            mix,
            arm,
            f"{sum(map(is_done, found))} of {len(found)}",
            f"{_middle(found, by_alone):.2f}",
            best,
            f"{_middle(controls[best], by_alone):.2f}" if controls else "-",
            f"{_middle(found, last_low) / earliest:.2f}" if controls else "-",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


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
        if agents := [row["seed"] for row in found if row["agent_killed"]]:
            problems.append(f"mix {mix}: {arm} lost an agent in seeds {agents}")
        if arm == "agentrun-adaptive":
            killed = [row["seed"] for row in found if row["oom_kills"]]
            if killed:
                problems.append(f"mix {mix}: in {arm} the kernel killed something in seeds {killed}")
    if not any(arm.startswith("agentrun") for _, arm in groups):
        problems.append("no arm with agentrun was run")
    return problems


def main(source: str, section: str | None = None) -> None:
    """Print the tables of a file of rows, and put them into a section of the page."""
    found = [json.loads(line) for line in Path(source).read_text().splitlines()]
    text = f"{table(found)}\n\n{aims(found)}"
    print(text)
    if section:
        write_between(PAGE, section, text)


if __name__ == "__main__":
    main(*sys.argv[1:])
