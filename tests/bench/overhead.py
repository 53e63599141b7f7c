"""What agentrun costs while nothing contends; rewrites its table in docs/benchmarks.md.

    python3 tests/bench/overhead.py [idle] [load]
    also: SECONDS=60 RUNS=3 PAIRS=10 WHERE=native,vm INSTANCE=overhead

`idle` runs `overhead_guest.py` on this machine, which needs a cgroup2 mount, and in the test VM; `load`
needs a runtime and runs in a VM whose clock counts instructions. Results are kept in
`docs/data/overhead.jsonl`, from which the table is made.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from clocks import CLOCKS
from page import write_between

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/benchmarks.md"
RESULTS = ROOT / "docs/data/overhead.jsonl"
GUEST = "tests/bench/overhead_guest.py"
MARK = "overhead"
VM_TOOL = "tests/vm/vm"


def measure(command: list[str], where: str) -> list[dict[str, Any]]:
    """Run a command that prints results; each with the place where it ran."""
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return [{**row, "place": where} for row in rows]


def spread(values: list[float], unit: str, digits: int = 2) -> str:
    """Median and range."""
    low, high = min(values), max(values)
    return f"{statistics.median(values):.{digits}f} ({low:.{digits}f} to {high:.{digits}f}){unit}"


def idle_rows(results: list[dict[str, Any]]) -> list[list[str]]:
    """agentrund's CPU, one row for each place and number of calls that burn CPU."""
    keys = sorted({(r["place"], r["where"], r["burning"]) for r in results if r["part"] == "idle"})
    rows = []
    for place, where, burning in keys:
        runs = [r for r in results if r["part"] == "idle" and (r["place"], r["burning"]) == (place, burning)]
        calls = f"{runs[0]['calls']} live calls, " + (
            f"{burning} of them burn CPU" if burning else "all idle"
        )
        seconds = statistics.median(r["wall_s"] for r in runs)
        percent = spread([r["percent"] for r in runs], " % of a core")
        has = "" if where == "memory, cpu" else f" ({where})"
        rows.append(
            [
                f"agentrund's CPU: {calls}",
                f"{place}{has}",
                f"{len(runs)} of {seconds:.0f} s",
                percent,
                "0.5 %",
            ]
        )
    return rows


def load_rows(results: list[dict[str, Any]]) -> list[list[str]]:
    """What a load takes longer, one row for each."""
    rows = []
    for name in dict.fromkeys(r["load"] for r in results if r["part"] == "load"):
        pairs = [r for r in results if r["part"] == "load" and r["load"] == name]
        longer = [(r["agentrun"] / r["bare"] - 1) * 100 for r in pairs]
        place = str(pairs[0]["place"])
        rows.append(
            [f"{name} load in a call, against bare crun", place, f"{len(pairs)} pairs",
             spread(longer, " % longer", 1), "1 %"]
        )  # fmt: skip
    return rows


def table(results: list[dict[str, Any]]) -> str:
    """All rows."""
    header = ["what", "where", "runs", "median (range)", "aim, below"]
    rows = [header, ["---"] * len(header), *idle_rows(results), *load_rows(results)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def kept(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """These results, with earlier ones of parts and places that were not measured now."""
    now = {(r["part"], r["place"]) for r in results}
    lines = RESULTS.read_text().splitlines() if RESULTS.exists() else []
    before = [row for line in lines if ((row := json.loads(line))["part"], row["place"]) not in now]
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text("".join(json.dumps(row) + "\n" for row in [*before, *results]))
    return [*before, *results]


def main(show: Callable[[str], None] = print) -> None:
    """Measure and write."""
    parts = sys.argv[1:] or ["idle", "load"]
    places = os.environ.get("WHERE", "native,vm").split(",")
    seconds, runs, pairs = (os.environ.get(name, default) for name, default in SETTINGS)
    instance = os.environ.get("INSTANCE", "overhead")
    vm = [VM_TOOL, "run", "--name", instance, "--", "python3", GUEST]
    counted_vm = [VM_TOOL, "run", "--name", f"{instance}-counted", *CLOCKS["counted"], "--", "python3", GUEST]
    results: list[dict[str, Any]] = []
    if "idle" in parts and "native" in places:
        results += measure([sys.executable, GUEST, "idle", seconds, runs], "native")
    if "idle" in parts and "vm" in places:
        results += measure([*vm, "idle", seconds, runs], "emulated VM")
    if "load" in parts and "vm" in places:
        results += measure([*counted_vm, "load", pairs], "VM, time by instructions")
    command = f"SECONDS={seconds} RUNS={runs} PAIRS={pairs} python3 tests/bench/overhead.py"
    text = f"{table(kept(results))}\n\n`{command}`"
    write_between(PAGE, MARK, text)
    show(text)


SETTINGS = (("SECONDS", "60"), ("RUNS", "3"), ("PAIRS", "10"))

if __name__ == "__main__":
    main()
