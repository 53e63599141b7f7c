"""The keeper: holds a copy of each call's stderr, so that agentrund's text can still be written there.

A process of its own, started by agentrund, because a held copy of a pipe's writing end keeps its reader (a
shim, conmon, `docker exec`) waiting. Whatever happens to agentrund, the copies must go away in time:

- the call's first process ended: the copy is closed when agentrund says so, at the latest after `_GRACE_S`;
- agentrund died: its socket ends, and this process with it;
- this process was stopped or hangs: a kernel timer that is set anew in every round kills it (`_ALARM_S`).

The copy is taken with pidfd_getfd(2): the same open pipe, found without a path. Nothing is ever waited for
longer than `_WRITE_S`, and the pipe's own flags are left alone: they belong to everyone who has it.

Messages are JSON, one a datagram. In: `hold` and `main` (with a pidfd), `tell`, `drop`, `ping`. Out: what
became of a `hold` or a `tell`, and `pong`.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import select
import signal
import socket
import stat
import sys
import time
from typing import Any

from agentrun.base import fastjson
from agentrun.kernel import ownmemory
from agentrun.kernel.libc import check, libc

MESSAGE_LIMIT = 1 << 14
TEXT_LIMIT = 4096  # PIPE_BUF: as much as a pipe takes as a whole or not at all (pipe.7)
_GRACE_S = 0.4  # agentrund needs a few milliseconds; on a starved host a hundred times that
_WRITE_S = 0.05
_ROUND_S = 0.3
_ALARM_S = 1.0
_STDOUT, _STDERR = 1, 2
_PIDFD_GETFD = 438  # the same number on every architecture since Linux 5.6
_CLOCK_MONOTONIC = 1
_SIGEV_SIGNAL = 0


class _Event(ctypes.Structure):
    """struct sigevent (sigevent.7): 64 bytes, of which we need three members."""

    _fields_ = (
        ("value", ctypes.c_void_p),
        ("signo", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("unused", ctypes.c_char * 48),
    )


class _TimeSpec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Alarm:
    """A kernel timer that kills this process unless it is set anew in time, even while it is stopped."""

    def __init__(self) -> None:
        self._timer = ctypes.c_void_p()
        event = _Event(None, signal.SIGKILL, _SIGEV_SIGNAL, b"")
        check(
            libc.timer_create(_CLOCK_MONOTONIC, ctypes.byref(event), ctypes.byref(self._timer)),
            "timer_create",
        )

    def set(self, seconds: float) -> None:
        """Due after so many seconds from now; never, for 0."""
        whole = int(seconds)
        value = (_TimeSpec * 2)(
            _TimeSpec(0, 0), _TimeSpec(whole, int((seconds - whole) * 1_000_000_000))
        )  # struct itimerspec: interval, value
        check(libc.timer_settime(self._timer, 0, ctypes.byref(value), None), "timer_settime")


def _descriptor_of(pidfd: int, number: int) -> int:
    """A copy of another process's descriptor. Raises OSError."""
    return check(libc.syscall(_PIDFD_GETFD, pidfd, number, 0), "pidfd_getfd")


class RefusedError(Exception):
    """A descriptor that is not for us to write to; the text says why."""


def take_stderr(pidfd: int, *, is_owner: bool) -> int:
    """A descriptor that writes to a process's stderr and never blocks. Raises OSError or RefusedError.

    `is_owner`: the process is the runtime, whose stderr the engine chose. A command's own may lead anywhere
    in its container, so only what leads out again (a pipe, a socket) will do, and not what stdout is, too.
    """
    fd = _descriptor_of(pidfd, _STDERR)
    try:
        found = os.fstat(fd)
        if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise RefusedError("stderr is not open for writing")
        if not is_owner and _is_stdout(pidfd, found):
            raise RefusedError("stderr is the same as stdout")
        if stat.S_ISFIFO(found.st_mode):
            # Opened anew it can be non-blocking for us alone. ENXIO: nobody reads.
            return os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        if stat.S_ISSOCK(found.st_mode) or (is_owner and stat.S_ISREG(found.st_mode)):
            return os.dup(fd)
        raise RefusedError("stderr is a terminal" if os.isatty(fd) else "stderr leads nowhere")
    finally:
        os.close(fd)


def _is_stdout(pidfd: int, found: os.stat_result) -> bool:
    try:
        fd = _descriptor_of(pidfd, _STDOUT)
    except OSError:
        return False  # it is closed
    try:
        return os.path.samestat(os.fstat(fd), found)
    finally:
        os.close(fd)


def write(fd: int, data: bytes, wait_s: float = _WRITE_S) -> None:
    """Write all of `data` or nothing, without waiting longer than that. Raises OSError."""
    deadline = time.monotonic() + wait_s
    is_socket = stat.S_ISSOCK(os.fstat(fd).st_mode)
    while True:
        try:
            if is_socket:
                with socket.socket(fileno=os.dup(fd)) as sock:
                    sock.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            else:
                os.write(fd, data)
            return
        except BlockingIOError:
            left = deadline - time.monotonic()
            if left <= 0:
                raise
            poller = select.poll()
            poller.register(fd, select.POLLOUT)
            poller.poll(min(left, 0.005) * 1000)


class _Held:
    """What is held for one call: `fd` is its stderr, the pidfds tell when to let go of it."""

    __slots__ = ("close_at", "fd", "main", "owner")

    def __init__(self) -> None:
        self.fd: int | None = None
        self.owner: int | None = None
        self.main: int | None = None
        self.close_at: float | None = None

    def close(self) -> None:
        """Let go of everything."""
        for fd in (self.fd, self.owner, self.main):
            if fd is not None:
                os.close(fd)


class Keeper:
    """The process's state. `turn` serves until agentrund is gone."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)  # recv_fds does not pass flags on
        self._socket = sock
        self._held: dict[str, _Held] = {}
        self._watched: dict[int, _Held] = {}
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        self._alarm = _Alarm()

    def turn(self) -> bool:
        """One round; False when agentrund is gone."""
        self._alarm.set(_ALARM_S if self._held else 0)
        ready = [fd for fd, _ in self._poll.poll(self._timeout())]
        self._alarm.set(_ALARM_S)  # what comes in may make us hold something
        for fd in ready:
            held = self._watched.get(fd)
            if held is not None:
                self._process_ended(held, fd)
        if self._socket.fileno() in ready and not self._read():
            return False
        now = time.monotonic()
        for call, held in list(self._held.items()):
            if held.close_at is not None and held.close_at <= now:
                self._drop(call)
        return True

    def _timeout(self) -> int | None:
        """Milliseconds until something is due; None for never."""
        if not self._held:
            return None
        now = time.monotonic()
        due = [held.close_at - now for held in self._held.values() if held.close_at is not None]
        return max(0, round(min([_ROUND_S, *due]) * 1000) + (1 if due else 0))

    def _process_ended(self, held: _Held, pidfd: int) -> None:
        """The owner has ended: the first process must be named soon. That has ended: it is nearly over."""
        del self._watched[pidfd]
        self._poll.unregister(pidfd)
        if pidfd == held.main or held.main is None:
            held.close_at = time.monotonic() + _GRACE_S

    def _read(self) -> bool:
        while True:
            try:
                data, fds, _, _ = socket.recv_fds(self._socket, MESSAGE_LIMIT, 1)
            except BlockingIOError:
                return True
            except OSError:
                return False
            if not data:
                return False
            self._serve(fastjson.loads(data), fds[0] if fds else None)

    def _serve(self, message: dict[str, Any], pidfd: int | None) -> None:
        call, verb = str(message.get("call")), message["do"]
        if verb in ("hold", "main") and pidfd is not None:
            self._hold(call, pidfd, is_owner=verb == "hold")
        elif verb == "tell":
            self._tell(call, message)
        elif verb == "drop":
            self._drop(call)
        elif verb == "ping":
            self._answer({"pong": True})

    def _hold(self, call: str, pidfd: int, *, is_owner: bool) -> None:
        held = self._held.setdefault(call, _Held())
        if (held.owner if is_owner else held.main) is not None:
            os.close(pidfd)
            return
        if is_owner:
            held.owner = pidfd
        else:
            held.main, held.close_at = pidfd, None
        self._watched[pidfd] = held
        self._poll.register(pidfd, select.POLLIN)
        if held.fd is None:
            why = None
            try:
                held.fd = take_stderr(pidfd, is_owner=is_owner)
            except (OSError, RefusedError) as error:
                why = str(error)
            self._answer({"call": call, "held": why is None, "why": why})

    def _tell(self, call: str, message: dict[str, Any]) -> None:
        held = self._held.get(call)
        why = None
        if held is None or held.fd is None:
            why = "stderr was not held"
        else:
            try:
                write(held.fd, str(message["text"]).encode()[:TEXT_LIMIT])
            except OSError as error:
                why = os.strerror(error.errno or 0)
        self._answer({"call": call, "told": message.get("number"), "why": why})

    def _answer(self, answer: dict[str, Any]) -> None:
        """Tell agentrund; one that does not read its answers is stopped, and must not stop us."""
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            self._socket.send(fastjson.dumps(answer).encode("ascii"))

    def _drop(self, call: str) -> None:
        held = self._held.pop(call, None)
        if held is None:
            return
        for pidfd in (held.owner, held.main):
            if pidfd is not None and self._watched.pop(pidfd, None) is not None:
                self._poll.unregister(pidfd)
        held.close()


def main(fd: int) -> None:
    """Entry of the process; `fd` is its end of agentrund's socket."""
    # Only agentrund ends it: a service's stop signals both, and agentrund may still have something to say.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with contextlib.suppress(OSError):  # agentrund could not either, and said so
        ownmemory.lock_memory()
    with socket.socket(fileno=fd) as sock:
        keeper = Keeper(sock)
        while keeper.turn():
            pass


if __name__ == "__main__":
    main(int(sys.argv[1]))
