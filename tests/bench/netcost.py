"""What network profiles cost: UDP connect(2) and a send, by where the process is; needs root and `make bpf`.

    python3 tests/bench/netcost.py [CGROUP_ROOT]

Interleaved rounds, the fastest of each in microseconds: others disturb, nothing speeds up. The first row has
no program loaded at all.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from agentrun.base.paths import Paths
from agentrun.bpf import modules
from agentrun.calls.netmark import ATTRIBUTE
from agentrun.policy.netprofile import compile_profile

ROUNDS, CALLS = 15, 2000
NET = modules.MODULES["net"]


def timed(action: Callable[[], object]) -> float:
    """Microseconds for one."""
    begin = time.perf_counter_ns()
    for _ in range(CALLS):
        action()
    return (time.perf_counter_ns() - begin) / CALLS / 1000


def measure(cgroup: Path) -> tuple[float, float, float]:
    """connect, send and socket+close, as a process of a cgroup."""
    reading, writing = os.pipe()
    if os.fork() == 0:
        (cgroup / "cgroup.procs").write_text(str(os.getpid()))
        server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        server.bind(("127.0.0.1", 0))
        out = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        connect = timed(lambda: out.connect(server.getsockname()))
        send = timed(lambda: out.send(b"x"))
        made = timed(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close())
        os.write(writing, f"{connect} {send} {made}".encode())
        os._exit(0)
    os.close(writing)
    with open(reading) as pipe:
        text = pipe.read()
    os.wait()
    connect, send, made = map(float, text.split())
    return connect, send, made


def main() -> None:
    """Measure and print a table."""
    root = Path(sys.argv[1] if len(sys.argv) > 1 else "/sys/fs/cgroup")
    paths = Paths(cgroup_root=str(root))
    top = root / "agentrun-netcost"
    full = [[f"10.0.{n}.0/24", None] for n in range(126)]
    profiles = {
        "outside of any call": None,
        "a call without a profile": None,
        "a call with one rule": compile_profile({"default": "deny", "allow": [["127.0.0.0/8", None]]}),
        "a call with 128 rules": compile_profile({"default": "deny", "allow": [*full, ["loopback", None]]}),
    }
    places = {"outside of any call": root}
    for number, (name, program) in enumerate(list(profiles.items())[1:]):
        places[name] = top / f"agentrun-calls/call-{number}"
        places[name].mkdir(parents=True)
        if program:
            os.setxattr(places[name], ATTRIBUTE, program)
    rows: dict[str, list[tuple[float, float, float]]] = {"no program": [], **{name: [] for name in places}}
    try:
        for _ in range(ROUNDS):
            modules.unload(paths, NET)
            rows["no program"].append(measure(root))
            modules.load(paths, NET)
            for name, place in places.items():
                rows[name].append(measure(place))
    finally:
        for folder in sorted(top.rglob("call*"), reverse=True):
            if folder.is_dir():
                folder.rmdir()
        (top / "agentrun-calls").rmdir()
        top.rmdir()
    print("| where | connect, us | send, us | socket + close, us |\n|---|---|---|---|")
    for name, samples in rows.items():
        cells = (f"{min(column):.2f}" for column in zip(*samples, strict=True))
        print(f"| {name} | {' | '.join(cells)} |")


main()
