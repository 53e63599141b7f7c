"""The plots of docs/data/isolation.md: every run of `make bench-isolation` as a dot.

    pip install -e '.[plots]'; python3 tests/bench/isolation_plot.py RUNS.jsonl docs/data/isolation.svg

One row of panels a mix: HIGH's P95 as a multiple of HIGH alone, and when the last LOW session was done. A run
in which something was lost stands as a cross at the right edge.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from isolation_table import Row, by_alone, grouped, last_low
from matplotlib.figure import Figure

# Text stays text, and the same runs give the same file.
mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "agentrun", "font.size": 9})
OURS, CONTROL, LOST = "#1b6ca8", "#777777", "#b00020"
AIM = 1.5
ARM_HEIGHT, WIDTH = 0.24, 9.0


def panel(
    axes: Any, arms: dict[str, Sequence[Row]], value: Callable[[Row], float | None], most: float
) -> None:
    """One value of all runs of a mix, a line an arm."""
    for line, (arm, rows) in enumerate(arms.items()):
        found = [value(row) for row in rows]
        known = [min(number, most) for number in found if number is not None]
        colour = OURS if arm.startswith("agentrun") else CONTROL
        axes.plot(known, [line] * len(known), "o", color=colour, alpha=0.6, markersize=4)
        lost = len(found) - len(known)
        axes.plot([most] * lost, [line] * lost, "x", color=LOST)
    axes.set_xlim(0, most * 1.03)
    axes.set_yticks(range(len(arms)), list(arms))
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)


def figure(rows: Sequence[Row]) -> Figure:
    """All mixes."""
    mixes: dict[str, dict[str, Sequence[Row]]] = {}
    for (mix, arm), found in grouped(row for row in rows if row["mix"] != "density").items():
        mixes.setdefault(mix, {})[arm] = found
    heights = [len(arms) + 2 for arms in mixes.values()]
    made = Figure(figsize=(WIDTH, sum(heights) * ARM_HEIGHT), layout="constrained")
    grid = made.subplots(len(mixes), 2, squeeze=False, height_ratios=heights, sharey="row")
    for (mix, arms), (left, right) in zip(mixes.items(), grid, strict=True):
        panel(left, arms, by_alone, 6.0)
        left.axvline(AIM, color=OURS, linewidth=0.8, linestyle="--")
        left.set_title(f"{mix}: HIGH's P95 by alone", loc="left")
        slowest = max((last_low(row) or 0.0 for found in arms.values() for row in found), default=0.0)
        panel(right, arms, last_low, (slowest or 1.0) * 1.1)
        right.set_title(f"{mix}: last LOW session done, s", loc="left")
    return made


def main() -> None:
    """Read, draw, write."""
    source, target = map(Path, sys.argv[1:])
    rows = [json.loads(line) for line in source.read_text().splitlines()]
    figure(rows).savefig(target, format="svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
