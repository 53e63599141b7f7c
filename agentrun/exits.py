"""Exit statuses of processes that ended before agentrund knew them, from the kernel's proc connector.

A pidfd tells how a process ended only if it was opened before the parent reaped the process, and only since
Linux 6.15. A call may live for 5 ms. The proc connector (CONFIG_PROC_EVENTS, drivers/connector/cn_proc.c)
queues a message for each thread that exits, from the moment of `start`, whoever looks or not. The queue is
read when a status is asked for, and once a second.

What it needs: the host's network and pid namespaces, and CAP_NET_ADMIN (before Linux 6.6, and for a queue
of more than `net.core.rmem_max`). What it misses: exits while nobody listened, and exits beyond the queue's
size in one second (some 10,000; a fork bomb in a container can do it): `lost` counts how often that was.
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
_PROC_EVENT_EXIT = 0x8000_0000
_NLMSG_DONE = 3
_SO_ATTACH_FILTER = 26  # asm-generic/socket.h
_SO_RCVBUFFORCE = 33
_QUEUE = 4 << 20  # doubled by the kernel (socket.7); a message takes 0.8 KiB of it
_KEEP_S = (
    5.0  # at least, after it was read; agentrund asks when it learns of a process, or of an empty cgroup
)
_KEEP_MOST = 10_000  # some 2.5 MB, twice

_NLMSGHDR = struct.Struct("=IHHII")
_CN_MSG = struct.Struct("=IIIIHH")
_HEAD = _NLMSGHDR.size + _CN_MSG.size
# struct proc_event: what, cpu, timestamp_ns; of an exit: pid, tgid, code, signal, the parent's pid and tgid
_EXIT = struct.Struct("=IIQIIIIII")


class Exit(NamedTuple):
    """How a process ended: its wait status, when (CLOCK_MONOTONIC, ns), and who was its parent then."""

    status: int
    at_ns: int
    parent: int


class Exits:
    """The exits of the last seconds. Nothing is known of any while it could not be `start`ed."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self._found: dict[int, Exit] = {}  # by pid
        self._older: dict[int, Exit] = {}
        self._turned_s = time.monotonic()
        self.lost = 0

    @property
    def is_listening(self) -> bool:
        """Whether exits are kept from now on."""
        return self._socket is not None

    def start(self) -> None:
        """Listen from now on. Raises OSError where this kernel, or this process's namespaces, have it not."""
        connector = socket.socket(
            socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, _NETLINK_CONNECTOR
        )
        try:
            connector.setblocking(False)
            _only_exits(connector)
            _enlarge(connector)
            connector.bind((0, _CN_IDX_PROC))
            # Before Linux 6.6 the longer message is ignored; after, it leaves us with exits only.
            connector.send(_message(struct.pack("=I", _PROC_CN_MCAST_LISTEN)))
            connector.send(_message(struct.pack("=II", _PROC_CN_MCAST_LISTEN, _PROC_EVENT_EXIT)))
        except BaseException:
            connector.close()
            raise
        self._socket = connector

    def close(self) -> None:
        """Listen no more."""
        if self._socket is not None:
            # Before Linux 6.6 a listener that only closes is counted for ever, and events are made for it.
            with contextlib.suppress(OSError):
                self._socket.send(_message(struct.pack("=I", _PROC_CN_MCAST_IGNORE)))
            self._socket.close()
            self._socket = None

    def of(self, pid: int, since_ns: int) -> Exit | None:
        """How the process ended that had this pid at `since_ns` (CLOCK_MONOTONIC) or later, if known."""
        self.read()
        found = self._found.get(pid) or self._older.get(pid)
        return found if found is not None and found.at_ns >= since_ns else None

    def of_last_child(self, parent: int, since_ns: int) -> Exit | None:
        """How the latest child of a process ended whose parent that still was."""
        self.read()
        known = itertools.chain(self._older.values(), self._found.values())
        ended = [e for e in known if e.parent == parent and e.at_ns >= since_ns]
        return max(ended, key=lambda e: e.at_ns, default=None)

    def read(self) -> None:
        """Take over what is queued, and forget what is old. Raises OSError where the socket is broken."""
        self._forget()
        while self._socket is not None:
            try:
                data = self._socket.recv(4096)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self.lost += 1  # messages were dropped (netlink.7); what is queued can be read
                continue
            if len(data) < _HEAD + _EXIT.size:
                continue
            what, _, at_ns, _, tgid, code, _, _, parent = _EXIT.unpack_from(data, _HEAD)
            if what == _PROC_EVENT_EXIT:
                # Of a process with threads the last one counts: `exit_group` gives all of them its status.
                self._found[tgid] = Exit(code, at_ns, parent)

    def _forget(self) -> None:
        if time.monotonic() - self._turned_s >= _KEEP_S or len(self._found) >= _KEEP_MOST:
            self._older, self._found = self._found, {}
            self._turned_s = time.monotonic()

    def status(self) -> dict[str, Any]:
        """What doctor shows: whether exits are kept, and how often the queue was too short."""
        return {"is_listening": self.is_listening, "lost": self.lost}


def _message(data: bytes) -> bytes:
    body = _CN_MSG.pack(_CN_IDX_PROC, _CN_VAL_PROC, 0, 0, len(data), 0) + data
    return _NLMSGHDR.pack(_NLMSGHDR.size + len(body), _NLMSG_DONE, 0, 0, os.getpid()) + body


def _enlarge(connector: socket.socket) -> None:
    try:
        connector.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _QUEUE)
    except PermissionError:
        connector.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _QUEUE)  # as much of it as there may be


def _only_exits(connector: socket.socket) -> None:
    """Have the kernel queue exits only: before Linux 6.6 a listener gets forks, execs and more."""
    load_word, jump_if_equal, give = (
        0x20,
        0x15,
        0x06,
    )  # BPF_LD|BPF_W|BPF_ABS, BPF_JMP|BPF_JEQ|BPF_K, BPF_RET|BPF_K
    what = int.from_bytes(struct.pack("=I", _PROC_EVENT_EXIT), "big")  # a loaded word is in network order
    program = b"".join(
        struct.pack("=HBBI", *instruction)
        for instruction in (
            (load_word, 0, 0, _HEAD),
            (jump_if_equal, 0, 1, what),
            (give, 0, 0, 0xFFFF_FFFF),
            (give, 0, 0, 0),
        )
    )
    buffer = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog (linux/filter.h): the number of instructions, and where they are.
    connector.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", 4, ctypes.addressof(buffer)))
