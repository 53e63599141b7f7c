"""The evaluation's quick form, on synthetic sessions: with agentrun more comes to its end than without.

`make bench-isolation QUICK=1` is the same, as a command, and takes recorded traces as well.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import isolation
import pytest
from isolation_table import ordering_problems, table

TREE = Path(__file__).parents[2]


@pytest.mark.needs("cpus:2")  # its sessions work at the same time, and their figures were taken so
def test_arms_of_the_isolation_benchmark_come_in_their_order(host, tmp_path, monkeypatch):
    monkeypatch.setenv("QUICK", "1")
    out = tmp_path / "runs.jsonl"
    _, program, _, *options = isolation.guest_command(has_traces=False)
    done = subprocess.run(
        [sys.executable, TREE / program, out, *options],
        env={**os.environ, "PYTHONPATH": str(TREE)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    print(table(rows))
    assert {row["arm"] for row in rows} == set(isolation.QUICK["ARMS"].split(",")), done.stdout
    assert ordering_problems(rows) == [], done.stdout
