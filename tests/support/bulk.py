"""Play an engine that starts many calls: bulk.py TREE ROOT CGROUP COUNT SECONDS PER_SECOND AT_ONCE COMMAND...

For each call a runtime of its own takes a slot, makes the cgroup, starts the command there, writes the pid
file and ends. This process reaps the commands, as a shim does. At most AT_ONCE processes live at a time.
Starts COUNT calls, or as many as it can in SECONDS. Prints the ids; ends when all commands have ended.
"""

from __future__ import annotations

import ctypes
import os
import posix
import struct
import sys
import time

sys.path.insert(0, sys.argv[1])

from agentrun.base.paths import Paths  # noqa: E402
from agentrun.calls import (
    record,  # noqa: E402
    slots,
)
from agentrun.calls.session import open_calls

PR_SET_CHILD_SUBREAPER = 36
CLONE3 = 435
CLONE_INTO_CGROUP = 0x2_0000_0000
SIGCHLD = 17
libc = ctypes.CDLL(None, use_errno=True)


def fork_into(cgroup: str) -> int:
    """fork(2) with the child in a cgroup from its first instruction, as runc and crun do it.

    Moving a process instead waits for an RCU grace period each time, under a lock of all cgroups.
    """
    fd = posix.open(cgroup, posix.O_RDONLY)
    # struct clone_args (linux/sched.h): flags, pidfd, child_tid, parent_tid, exit_signal, stack,
    # stack_size, tls, set_tid, set_tid_size, cgroup
    arguments = struct.pack("11Q", CLONE_INTO_CGROUP, 0, 0, 0, SIGCHLD, 0, 0, 0, 0, 0, fd)
    pid = int(libc.syscall(CLONE3, arguments, len(arguments)))
    posix.close(fd)
    if pid < 0:
        raise OSError(ctypes.get_errno(), "clone3")
    return pid


def runtime(session: slots.Calls, root: str, cgroup: str, call_id: str, command: list[str]) -> None:
    """What the runtime of one call does."""
    pid_file = f"{root}/pids/{call_id}.pid"
    state = {
        "id": call_id,
        "container": "c1",
        "calls": f"{cgroup}/agentrun-calls",
        "start": time.time(),
        "pid_file": pid_file,
        "limits": {"time_hard": 1000},
        "care": {"feedback": "on"},
    }
    slot = session.take_slot(state)
    own = f"{cgroup}/agentrun-calls/{slot}"
    posix.mkdir(own)
    pid = fork_into(own)
    if pid == 0:
        posix.execv(command[0], command)
    fd = posix.open(pid_file + ".tmp", posix.O_WRONLY | posix.O_CREAT, 0o600)
    posix.write(fd, str(pid).encode())
    posix.close(fd)
    posix.rename(pid_file + ".tmp", pid_file)


def reap(flags: int) -> int:
    """Reap whoever has ended; returns how many live on (as far as this process knows of them)."""
    while True:
        try:
            if os.waitpid(-1, flags)[0] == 0:
                break
        except ChildProcessError:
            return 0
    with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as file:
        return len(file.read().split())


def main() -> None:
    """See above."""
    root, cgroup, count, seconds, rate, at_once, *command = sys.argv[2:]
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    session = open_calls(Paths(root, os.environ["AGENTRUN_CGROUP_ROOT"]), f"{root}/runc", "c1")
    assert session
    began = time.monotonic()
    for number in range(int(count)):
        if time.monotonic() - began > float(seconds):
            break
        call_id = record.new_id()
        if posix.fork() == 0:
            try:
                runtime(session, root, cgroup, call_id, command)
            finally:
                posix._exit(0)
        print(call_id)
        while reap(os.WNOHANG) >= int(at_once):
            time.sleep(0.002)
        time.sleep(max(0.0, began + (number + 1) / float(rate) - time.monotonic()))
    sys.stdout.flush()
    reap(0)


main()
