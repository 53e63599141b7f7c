"""Who survives when calls together need more memory than there is; rewrites the table of its page.

    RUNS=20 python3 tests/bench/memory_arms.py [PACE ...]     # paced, unpaced, burst, late

ARMS=alone,controller chooses some; MINUTES=30 bounds each pace: no run begins after that. GO_ON=1 adds to the
runs that are kept already. COST=1: see memory_guest.py. CLOCK=counted: the VM's clock counts instructions
(tests/vm/README.md); the table is another one of the page.
Compiles the workload here (the guest has no compiler), runs `memory_guest.py` in the test VM, all arms
interleaved, and keeps every run in `build/memory-SECTION.jsonl`.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from clocks import CLOCKS
from page import write_between

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/data/memory-arms.md"
VM = ["tests/vm/vm"]
# Those that need our scheduler stand together: to load it takes longer than a run.
YIELDING = ["polling-weights", "controller", "controller-bpf", "controller-park", "park-timer", "park-hook"]
ARMS = {
    "paced": ["alone", "max-only", "static-high", *YIELDING],
    "unpaced": ["alone", "max-only", "static-high", *YIELDING],
    "burst": ["alone", "max-only", "static-high", *YIELDING],
    "late": ["late-max-only", "late-controller"],
}
SETTINGS = ("CLOCK", "ARMS", "MINUTES", "GO_ON", "COST")
GUEST_SETTINGS = {"MINUTES": "inf", "COST": "0"}
HEADER = (
    "| arm | runs | OOM | HIGH lost | HIGH P50 / P95 / P99 ms | P95 to alone | HIGH done s | LOW done s "
    "| LOW lost | killed by us | CPU s |\n|---|---|---|---|---|---|---|---|---|---|---|"
)


def compile_hog(folder: Path) -> Path:
    """The workload, static."""
    hog = folder / "hog"
    source = ROOT / "tests/bench/hog.c"
    subprocess.run(["gcc", "-O2", "-Wall", "-Werror", "-static", "-o", hog, source], check=True)
    return hog


def measure(instance: str, pace: str, runs: int, section: str) -> list[dict[str, Any]]:
    """All runs of one pace, from the guest; each is kept under the name of the table's section."""
    arms = os.environ["ARMS"].split(",") if os.environ.get("ARMS") else ARMS[pace]
    guest_pace = "unpaced" if pace == "late" else pace
    settings = [f"--env={name}={os.environ.get(name, default)}" for name, default in GUEST_SETTINGS.items()]
    command = ["python3", "tests/bench/memory_guest.py", "/root/hog", str(runs), guest_pace, *arms]
    (ROOT / "build").mkdir(exist_ok=True)
    file = ROOT / f"build/memory-{section}.jsonl"
    goes_on = os.environ.get("GO_ON") == "1" and file.exists()
    rows = [json.loads(line) for line in file.read_text().splitlines()] if goes_on else []
    first = max((row["run"] + 1 for row in rows), default=0)
    with (
        subprocess.Popen(
            [*VM, "run", "--name", instance, *settings, "--", *command],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        ) as process,
        open(file, "a" if goes_on else "w", encoding="utf-8") as kept,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("{"):
                row = json.loads(line)
                rows.append({**row, "run": first + row["run"]})
                kept.write(json.dumps(rows[-1]) + "\n")
                kept.flush()
    if process.returncode:
        sys.exit(process.returncode)
    return rows


def middle(values: list[float], digits: int = 1) -> str:
    """Median and range."""
    if not values:
        return "-"
    low, high = min(values), max(values)
    return f"{statistics.median(values):.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def table(results: list[dict[str, Any]]) -> str:
    """One row an arm."""
    alone = {r["run"]: r["high"].get("p95") for r in results if r["arm"] == "alone"}
    arms = list(dict.fromkeys(r["arm"] for r in results))
    return "\n".join([HEADER, *(row(arm, [r for r in results if r["arm"] == arm], alone) for arm in arms)])


def row(arm: str, runs: list[dict[str, Any]], alone: dict[int, float]) -> str:
    """One arm: medians of the runs with their range, over those in which the call in question lived."""
    lived = [r for r in runs if r["high"]["status"] == 0]
    lows = [low for r in runs for low in r["low"]]

    def of_high(name: str) -> list[float]:
        return [r["high"][name] for r in lived]

    ratios = [r["high"]["p95"] / alone[r["run"]] for r in lived if alone.get(r["run"])]
    percentiles = (
        " / ".join(f"{statistics.median(of_high(name)):.1f}" for name in ("p50", "p95", "p99"))
        if lived
        else "-"
    )
    last = [
        max(low["done_s"] for low in r["low"])
        for r in runs
        if r["low"] and all(low["status"] == 0 for low in r["low"])
    ]
    cells = [
        arm,
        len(runs),
        sum(r["oom_kills"] > 0 for r in runs),
        len(runs) - len(lived),
        percentiles,
        middle(ratios, 2),
        middle(of_high("done_s")),
        middle(last),
        f"{sum(low['status'] != 0 for low in lows)} of {len(lows)}",
        sum(r["adapted"].count("kill") for r in runs),
        middle([r["helper_cpu_s"] for r in runs if "helper_cpu_s" in r]),
    ]
    return "| " + " | ".join(map(str, cells)) + " |"


def main(show: Callable[[str], None] = print) -> None:
    """Measure and write."""
    runs, instance = int(os.environ.get("RUNS", "20")), os.environ.get("INSTANCE", "memory")
    clock = os.environ.get("CLOCK", "host")
    with tempfile.TemporaryDirectory() as folder:
        hog = compile_hog(Path(folder))
        subprocess.run([*VM, "up", "--name", instance, *CLOCKS[clock]], cwd=ROOT, check=True)
        subprocess.run([*VM, "cp", "--name", instance, hog, ":/root/hog"], cwd=ROOT, check=True)
    for pace in sys.argv[1:] or list(ARMS):
        section = pace if clock == "host" else f"{pace}-{clock}"
        text = table(measure(instance, pace, runs, section))
        when = time.strftime("%Y-%m-%d", time.gmtime())
        how = "".join(f"{name}={os.environ[name]} " for name in SETTINGS if name in os.environ)
        write_between(
            PAGE, section, f"{text}\n\n{when}, `{how}RUNS={runs} python3 tests/bench/memory_arms.py {pace}`"
        )
        show(text)


if __name__ == "__main__":
    main()
