"""Processes that a test puts into cgroups of its own, without an engine."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from runtimes import wait_for

_JOIN = 'import sys, time\nopen(sys.argv[1] + "/cgroup.procs", "w").write("0")\n'
# Takes so many MiB, and stays.
TAKE = """
held = [bytearray(b"x") * (1 << 20) for _ in range(int(sys.argv[2]))]
print("there", flush=True)
time.sleep(1000)
"""


def begin(script: str, cgroup: Path, *arguments: str) -> subprocess.Popen[str]:
    """A process that has joined a cgroup, once its script has said `there`."""
    command = [sys.executable, "-c", _JOIN + script, str(cgroup), *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "there\n"
    process.stdout.close()
    return process


def remove(top: Path, processes: Iterable[subprocess.Popen[str]]) -> None:
    """Kill all below a cgroup, and take it away with what is in it."""
    (top / "cgroup.kill").write_text("1")
    wait_for(lambda: "populated 0" in (top / "cgroup.events").read_text(), "all to be dead")
    for process in processes:
        process.wait()
    for folder, _, _ in os.walk(top, topdown=False):
        os.rmdir(folder)
