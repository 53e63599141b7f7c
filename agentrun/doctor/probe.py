"""`agentrunctl doctor --probe`: prove in throw-away cgroups that limits hold on this host.

Each probe really does what a limit is for: 64 MiB are allocated under 32, a CPU is burned under a tenth of
one, a tree that hid in a new session is killed, a connection is made under the profile `none`. Each says what
it saw; a control without the limit goes first, so that nothing is proven by a probe that cannot work.
"""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

from agentrun.base.errors import CgroupError
from agentrun.base.paths import Paths
from agentrun.calls import netmark
from agentrun.cgroups import layout
from agentrun.cgroups.cgroup import Cgroup

Result = tuple[str, str, str]  # level, what, text: see doctor.Finding

_ALLOCATE = "b = bytearray(64 << 20); b[::4096] = b'x' * len(b[::4096])"
_BURN = "import time; end = time.monotonic() + 0.6\nwhile time.monotonic() < end: pass"
_HIDE = "import os, time\nif os.fork() == 0: os.setsid()\ntime.sleep(60)"
_CONNECT = (
    "import socket, sys; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
    "try: s.connect(('127.0.0.1', 9))\nexcept OSError as e: sys.exit(e.errno)"
)
_MEMORY_MAX = 32 << 20
_TIMEOUT_S = 60.0


def _start(cgroup: Cgroup, code: str) -> subprocess.Popen[bytes]:
    """Run Python code in a cgroup, from its first instruction."""
    line = 'echo $$ > "$1/cgroup.procs" && exec "$2" -I -S -c "$3"'
    return subprocess.Popen(
        ["/bin/sh", "-c", line, "sh", cgroup.path, sys.executable, code],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def _status(cgroup: Cgroup, code: str) -> int:
    return _start(cgroup, code).wait(_TIMEOUT_S)


def _parent(paths: Paths) -> str:
    """Where containers could be as well: below a cgroup that hands all controllers down, else the root."""
    for name in ("", "/system.slice", "/machine.slice", "/user.slice"):
        enabled = (Cgroup(paths.cgroup_root + name).read("cgroup.subtree_control") or "").split()
        if {"memory", "pids", "cpu"} <= set(enabled):
            return paths.cgroup_root + name
    return paths.cgroup_root


@contextlib.contextmanager
def _throw_away(paths: Paths) -> Iterator[Cgroup]:
    """A cgroup with the layout of a container's: `agentrun-calls` and the controllers below it."""
    top = Cgroup(f"{_parent(paths)}/agentrun-probe-{os.getpid()}")
    try:
        top.make()
        layout.ensure(top)
        yield top.child(layout.CALLS)
    finally:
        with contextlib.suppress(CgroupError):
            top.write("cgroup.kill", "1")
        top.remove()


@contextlib.contextmanager
def _call(calls: Cgroup, name: str) -> Iterator[Cgroup]:
    call = calls.child(name)
    call.make()
    try:
        yield call
    finally:
        call.remove()


def _out_of_memory(calls: Cgroup) -> Result:
    what = "probe: memory"
    with _call(calls, "call-0") as call:
        if call.read("memory.max") is None:
            return "problem", what, "no memory controller here"
        if (control := _status(call, _ALLOCATE)) != 0:
            return "problem", what, f"64 MiB without a limit: status {control}, so nothing was proven"
        call.write("memory.max", str(_MEMORY_MAX))
        with contextlib.suppress(CgroupError):  # no swap controller: then there is no swap to go to
            call.write("memory.swap.max", "0")
        status = _status(call, _ALLOCATE)
        kills = (call.pairs("memory.events") or {}).get("oom_kill", 0)
    if status == -9 and kills:
        return "ok", what, "64 MiB under a limit of 32 MiB: killed, alone"
    return "problem", what, f"64 MiB under a limit of 32 MiB: status {status}, {kills} OOM kills"


def _throttled(calls: Cgroup) -> Result:
    what = "probe: CPU"
    with _call(calls, "call-0") as call:
        if call.read("cpu.max") is None:
            return "problem", what, "no cpu controller here"
        call.write("cpu.max", "10000 100000")
        _status(call, _BURN)
        throttled = (call.pairs("cpu.stat") or {}).get("nr_throttled", 0)
    if throttled:
        return "ok", what, f"a loop under a tenth of a CPU: throttled {throttled} times"
    return "problem", what, "a loop under a tenth of a CPU was not throttled"


def _killed(calls: Cgroup) -> Result:
    what = "probe: kill"
    with _call(calls, "call-0") as call:
        running = _start(call, _HIDE)
        deadline = time.monotonic() + _TIMEOUT_S
        while len(call.pids()) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        before = len(call.pids())
        call.write("cgroup.kill", "1")
        running.wait(_TIMEOUT_S)
        while call.is_populated() and time.monotonic() < deadline:
            time.sleep(0.01)
        if before >= 2 and not call.is_populated():
            return "ok", what, "a process and its child in a session of its own: both gone"
        return "problem", what, f"{before} processes, still populated: {call.is_populated()}"


def _denied(calls: Cgroup) -> Result:
    what = "probe: network"
    if not netmark.is_in_force():
        return "note", what, "not tried: the eBPF programs are not loaded (agentrunctl bpf load)"
    program = netmark.program_of({}, "none")
    assert program is not None
    with _call(calls, "call-0") as free, _call(calls, "call-1") as kept:
        os.setxattr(kept.path, netmark.ATTRIBUTE, program)
        control, status = _status(free, _CONNECT), _status(kept, _CONNECT)
    if (control, status) == (0, errno.EPERM):
        return "ok", what, "a connection under the profile `none`: denied (EPERM), without one: made"
    return "problem", what, f"a connection under `none`: status {status}, without a profile: {control}"


def run(paths: Paths) -> Iterator[Result]:
    """All probes; a second or two. One that fails is a problem, and the others go on."""
    probes: tuple[Callable[[Cgroup], Result], ...] = (_out_of_memory, _throttled, _killed, _denied)
    try:
        with _throw_away(paths) as calls:
            for probe in probes:
                try:
                    yield probe(calls)
                except (OSError, CgroupError, subprocess.TimeoutExpired) as error:
                    yield "problem", f"probe: {probe.__name__.strip('_')}", str(error)
    except CgroupError as error:
        yield "problem", "probe", str(error)
