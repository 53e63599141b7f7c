"""`make bench-isolation`: the isolation evaluation of docs/evaluation.md, in the test VM.

make bench-isolation OUT=runs.jsonl             all mixes and arms, 10 seeds or 38 minutes
make bench-isolation QUICK=1                    five minutes; fails where the arms are not in their order
make bench-isolation TRACES=DIR                 recorded traces; stand-ins are synthesised without
make bench-isolation CLOCK=counted              one CPU whose clock counts instructions (tests/vm/README.md)
also: SEEDS=N FIRST=SEED MINUTES=M MIXES=a-1100,b ARMS=bare,agentrun-adaptive VM_NAME=NAME
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from clocks import CLOCKS
from isolation_table import aims, ordering_problems, table

ROOT = Path(__file__).parents[2]
GUEST_OUT, GUEST_TRACES = "/root/isolation.jsonl", "/root/isolation-traces"
QUICK = {"SEEDS": "2", "MINUTES": "5", "MIXES": "a-1100", "DENSITY": "0"}
QUICK["ARMS"] = "bare,static-max,user-freezer,agentrun-cgroup,agentrun-adaptive"


def setting(name: str, default: str) -> str:
    """A variable of the command line; QUICK=1 changes the defaults."""
    quick = QUICK.get(name, default) if os.environ.get("QUICK") == "1" else default
    return os.environ.get(name) or quick


def vm(*arguments: str, data: bytes | None = None, capture: bool = False) -> bytes:
    """Run the VM tool; a failure ends the benchmark with its status."""
    done = subprocess.run(
        ["tests/vm/vm", *arguments],
        cwd=ROOT,
        input=data,
        stdout=subprocess.PIPE if capture else None,
        check=False,
    )
    if done.returncode:
        sys.exit(f"bench: vm {arguments[0]}: status {done.returncode}")
    return done.stdout or b""


def send_traces(instance: list[str], folder: Path) -> None:
    """Copy the traces of a folder into the guest."""
    pack = subprocess.run(["tar", "-C", folder, "-c", "."], stdout=subprocess.PIPE, check=True).stdout
    unpack = f"rm -rf {GUEST_TRACES} && mkdir {GUEST_TRACES} && tar -C {GUEST_TRACES} -x"
    vm("ssh", *instance, "--", unpack, data=pack)


def guest_command(has_traces: bool) -> list[str]:
    """What runs in the guest."""
    command = ["python3", "tests/bench/isolation_run.py", GUEST_OUT]
    for option, name, default in (
        ("--seeds", "SEEDS", "10"),
        ("--first", "FIRST", "0"),
        ("--minutes", "MINUTES", "38"),
        ("--mixes", "MIXES", ""),
        ("--arms", "ARMS", ""),
        ("--density", "DENSITY", "1"),
    ):
        if value := setting(name, default):
            command += [option, value]
    return [*command, "--traces", GUEST_TRACES] if has_traces else command


def run_in_vm() -> bytes:
    """All runs, as JSON lines."""
    name = os.environ.get("VM_NAME")
    instance = ["--name", name or "isolation"]
    folder = os.environ.get("TRACES")
    vm("build")
    try:
        vm("up", *instance, *CLOCKS[setting("CLOCK", "host")])
        if folder:
            send_traces(instance, Path(folder))
        vm("ssh", *instance, "--", f": >{GUEST_OUT}")
        vm("run", *instance, "--env", "PYTHONPATH=/src", "--", *guest_command(bool(folder)))
        return vm("ssh", *instance, "--", f"cat {GUEST_OUT}", capture=True)
    finally:
        if not name:
            vm("down", *instance)


def revision() -> str:
    """What the tree is at, for runs that are kept and compared with later ones; empty without git."""
    command = ["git", "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip()


def main() -> None:
    """Run, write OUT, print the table, and with QUICK=1 check the order of the arms."""
    made_of = revision()
    said = {"revision": made_of, "clock": setting("CLOCK", "host")}
    rows = [{**json.loads(line), **said} for line in run_in_vm().splitlines()]
    out = Path(os.environ.get("OUT") or tempfile.gettempdir() + "/isolation.jsonl")
    out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    print(table(rows), aims(rows), sep="\n\n")
    print(f"\n{len(rows)} rows in {out}")
    problems = ordering_problems(rows) if os.environ.get("QUICK") == "1" else []
    for problem in problems:
        print(f"bench: {problem}", file=sys.stderr)
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
