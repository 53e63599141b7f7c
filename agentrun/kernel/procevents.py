"""Processes that were over before agentrund knew them, from the kernel's proc connector.

A pidfd tells how a process ended only if it was opened before the parent reaped the process, and only since
Linux 6.15. A call may live for 5 ms, and its engine may have removed the pid file by then. The proc connector
(CONFIG_PROC_EVENTS, drivers/connector/cn_proc.c) queues a message for each process that forks or executes a
program and each thread that exits, from the moment of `start`, whoever looks or not. The queue is read when
something is asked, and once a second.

What it needs: the host's network and pid namespaces, and CAP_NET_ADMIN (before Linux 6.6, and for a queue
of more than `net.core.rmem_max`). What it misses: all while nobody listened, and what is beyond the queue's
size in a second (some 3,000 processes; a fork bomb in a container can do it). `lost` counts how often.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import itertools
import os
import socket
import struct
import time
from typing import Any, NamedTuple

_NETLINK_CONNECTOR = 11  # linux/netlink.h
_CN_IDX_PROC = _CN_VAL_PROC = 1  # linux/connector.h
_PROC_CN_MCAST_LISTEN, _PROC_CN_MCAST_IGNORE = 1, 2  # linux/cn_proc.h
_FORK, _EXEC, _EXIT = 0x1, 0x2, 0x8000_0000
_NLMSG_DONE = 3
_SO_ATTACH_FILTER = 26  # asm-generic/socket.h
_SO_RCVBUFFORCE = 33
_QUEUE = 4 << 20  # doubled by the kernel (socket.7); a message takes 0.8 KiB of it
_KEEP_S = (
    5.0  # at least, after it was read; agentrund asks when it learns of a process, or of an empty cgroup
)
_KEEP_MOST = 4_000  # processes, some 1.1 MB, twice; a busier host is remembered for a shorter time
_READ_MOST = 20_000  # messages in one go, some 50 ms: twice what the queue holds
_NAMES = "/proc/net/connector"  # who speaks by connectors

_NLMSGHDR = struct.Struct("=IHHII")
_CN_MSG = struct.Struct("=IIIIHH")
_HEAD = _NLMSGHDR.size + _CN_MSG.size
# struct proc_event: what, cpu, timestamp_ns (CLOCK_MONOTONIC), and six words by kind. fork: the parent's pid
# and tgid, the child's; exec: pid, tgid; exit: pid, tgid, code, signal, the parent's pid and tgid.
_EVENT = struct.Struct("=IIQIIIIII")
_CHILD_PID, _CHILD_TGID = _HEAD + 24, _HEAD + 28


class Exit(NamedTuple):
    """How a process ended: its wait status, and when (CLOCK_MONOTONIC, ns)."""

    status: int
    at_ns: int


class _Process:
    """What was told of a process; None for what was before that, or is not yet."""

    __slots__ = ("born", "executed", "exit", "parent")

    def __init__(self, born: int | None = None, parent: int | None = None) -> None:
        self.born = born
        self.parent = parent
        self.executed = False  # a program
        self.exit: Exit | None = None


class ProcEvents:
    """The processes of the last seconds. Nothing is known of any while it could not be `start`ed."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self._buffer = bytearray(4096)
        self._known: dict[int, _Process] = {}  # by pid; of one that was used again the later process
        self._older: dict[int, _Process] = {}
        self._turned_s = time.monotonic()
        self._gap_ns = 0  # until when messages were dropped
        self.lost = 0

    @property
    def is_listening(self) -> bool:
        """Whether processes are told of from now on."""
        return self._socket is not None

    def start(self) -> None:
        """Listen from now on. Raises OSError where this kernel, or this process's namespaces, have it not."""
        # Without CONFIG_PROC_EVENTS all of the below works, and nothing is ever told.
        with open(_NAMES, encoding="ascii") as file:
            if not any(line.startswith("cn_proc ") for line in file):
                raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), "cn_proc")
        connector = socket.socket(
            socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, _NETLINK_CONNECTOR
        )
        try:
            connector.setblocking(False)
            _leave_out_others(connector)
            _enlarge(connector)
            connector.bind((0, _CN_IDX_PROC))
            # Before Linux 6.6 the longer message is ignored; after, it leaves us with these kinds only.
            connector.send(_message(struct.pack("=I", _PROC_CN_MCAST_LISTEN)))
            connector.send(_message(struct.pack("=II", _PROC_CN_MCAST_LISTEN, _FORK | _EXEC | _EXIT)))
        except BaseException:
            connector.close()
            raise
        self._socket = connector

    def known(self) -> dict[str, Any]:
        """What was read in the last seconds, for `adopt`; as JSON has it."""
        both = itertools.chain(self._older.items(), self._known.items())
        return {"processes": [[pid, p.born, p.parent, p.executed, p.exit] for pid, p in both]}

    def adopt(self, descriptor: int, known: dict[str, Any]) -> bool:
        """Go on with the socket of an earlier process, with what that had read, and what was queued since.

        Whether it is one; another is closed.
        """
        connector = socket.socket(fileno=descriptor)
        is_ours = (connector.family, connector.proto) == (socket.AF_NETLINK, _NETLINK_CONNECTOR)
        if not is_ours:
            connector.close()
            return False
        connector.setblocking(False)
        self._socket = connector
        for pid, born, parent, executed, ended in known.get("processes", ()):
            process = self._known[pid] = _Process(born, parent)
            process.executed, process.exit = bool(executed), Exit(*ended) if ended else None
        return True

    def fileno(self) -> int:
        """The socket's descriptor; -1 where there is none."""
        return self._socket.fileno() if self._socket is not None else -1

    def leave(self) -> None:
        """Listen no more, but where another holds the socket: what comes is queued there."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def close(self) -> None:
        """Listen no more."""
        if self._socket is not None:
            # Before Linux 6.6 a listener that only closes is counted for ever, and events are made for it.
            with contextlib.suppress(OSError):
                self._socket.send(_message(struct.pack("=I", _PROC_CN_MCAST_IGNORE)))
            self.leave()

    def exit_of(self, pid: int, born_after_ns: int, born_before_ns: int) -> Exit | None:
        """How the process ended that had this pid and was forked in that time; None where that was not told.

        Times are of CLOCK_MONOTONIC, here and below. Nothing here reads what is queued: that is `read`.
        """
        found = self._find(pid)
        if found is None or found.born is None or not born_after_ns <= found.born <= born_before_ns:
            return None
        return found.exit

    def exit_since(self, pid: int, since_ns: int, seen_ns: int) -> Exit | None:
        """How the process ended, after `since_ns`, that had this pid at `seen_ns`; None if that was not told.

        Where it is not known when it was forked, that was before anything was told.
        """
        found = self._find(pid)
        if found is None or found.exit is None or found.exit.at_ns < since_ns:
            return None
        return found.exit if found.born is None or found.born <= seen_ns else None

    def started_by(self, runtime: int, since_ns: int, kind: str) -> int | None:
        """The process that a runtime of a kind (`runc`, `crun`) started for its exec; None if not certain.

        To be asked when the runtime is over. The last child of runc is the process. Before it came one that
        executed runc once more, and one that only forked (nsenter/nsexec.c; all are runc's by CLONE_PARENT).
        crun's child only forks the process (libcrun_join_process), or is the process. An event that was lost
        must not make another process of it: so the process has executed its program, and those that only fork
        were seen, and have not.
        """
        if since_ns <= self._gap_ns:
            return None
        children = self._children(runtime, since_ns)
        if not children:
            return None
        _, pid, last = children[-1]
        if last.executed:
            is_certain = kind == "crun" or not all(child.executed for _, _, child in children)
            return pid if is_certain else None
        below = self._children(pid, since_ns) if kind == "crun" else []
        return below[-1][1] if below and below[-1][2].executed else None

    def _children(self, parent: int, since_ns: int) -> list[tuple[int, int, _Process]]:
        """Those that were forked since then: when, pid, and what is known; in order."""
        known = itertools.chain(self._older.items(), self._known.items())
        found = [
            (process.born, pid, process)
            for pid, process in known
            if process.parent == parent and process.born is not None and process.born >= since_ns
        ]
        return sorted(found, key=lambda child: child[0])

    def _find(self, pid: int) -> _Process | None:
        return self._known.get(pid) or self._older.get(pid)

    def read(self) -> None:
        """Take over what is queued, some of much, and forget what is old. Closes a socket that is broken."""
        self._forget()
        buffer, has_gap = self._buffer, False
        for _ in range(_READ_MOST):
            if self._socket is None:
                break
            try:
                length = self._socket.recv_into(buffer)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    self.leave()
                    break
                self.lost += 1  # messages were dropped (netlink.7); what is queued can be read
                has_gap = True
                continue
            if length >= _HEAD + _EVENT.size:
                self._take(*_EVENT.unpack_from(buffer, _HEAD))
        if has_gap:
            self._gap_ns = time.monotonic_ns()

    def _take(
        self, what: int, _: int, at_ns: int, first: int, second: int, third: int, fourth: int, *__: int
    ) -> None:
        if what == _FORK:
            if third == fourth:
                self._forget()
                self._older.pop(third, None)
                self._known[third] = _Process(at_ns, second)
            return
        process = self._known.get(second) or self._older.pop(second, None) or _Process()
        self._known[second] = process
        if what == _EXEC:
            process.executed = True
            process.exit = None  # of the other threads, and maybe of the first one (de_thread in fs/exec.c)
        elif what == _EXIT and (first == second or process.exit is not None):
            # A thread that ends says nothing of its process, unless the first one has ended (pthread_exit.3).
            process.exit = Exit(third, at_ns)

    def _forget(self) -> None:
        if len(self._known) >= _KEEP_MOST or time.monotonic() - self._turned_s >= _KEEP_S:
            self._older, self._known = self._known, {}
            self._turned_s = time.monotonic()

    def status(self) -> dict[str, Any]:
        """What doctor shows: whether processes are told of, and how often the queue was too short."""
        return {"is_listening": self.is_listening, "lost": self.lost}


def _message(data: bytes) -> bytes:
    body = _CN_MSG.pack(_CN_IDX_PROC, _CN_VAL_PROC, 0, 0, len(data), 0) + data
    return _NLMSGHDR.pack(_NLMSGHDR.size + len(body), _NLMSG_DONE, 0, 0, os.getpid()) + body


def _enlarge(connector: socket.socket) -> None:
    try:
        connector.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _QUEUE)
    except PermissionError:
        connector.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _QUEUE)  # as much of it as there may be


def _leave_out_others(connector: socket.socket) -> None:
    """Have the kernel queue neither new threads nor, before Linux 6.6, renames, new sessions and the like."""
    # BPF_LD|BPF_W|BPF_ABS, BPF_MISC|BPF_TAX, BPF_JMP|BPF_JEQ|BPF_K, BPF_JMP|BPF_JEQ|BPF_X, BPF_RET|BPF_K
    load, to_x, if_equal, if_equal_x, give = 0x20, 0x07, 0x15, 0x1D, 0x06
    program = b"".join(
        struct.pack("=HBBI", *instruction)
        for instruction in (
            (load, 0, 0, _HEAD),
            (if_equal, 6, 0, _network_order(_EXIT)),
            (if_equal, 5, 0, _network_order(_EXEC)),
            (if_equal, 0, 5, _network_order(_FORK)),
            (load, 0, 0, _CHILD_PID),
            (to_x, 0, 0, 0),
            (load, 0, 0, _CHILD_TGID),
            (if_equal_x, 0, 1, 0),
            (give, 0, 0, 0xFFFF_FFFF),
            (give, 0, 0, 0),
        )
    )
    buffer = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog (linux/filter.h): the number of instructions, and where they are.
    fprog = struct.pack("HP", len(program) // 8, ctypes.addressof(buffer))
    connector.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, fprog)


def _network_order(word: int) -> int:
    """What a filter loads where a message has this word."""
    return int.from_bytes(struct.pack("=I", word), "big")
