"""agentrund's side of the keeper: start it, start it again when it dies, and talk to it without waiting."""

from __future__ import annotations

import contextlib
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentrun.base import fastjson, log
from agentrun.base.paths import Paths
from agentrun.feedback.keeper import MESSAGE_LIMIT
from agentrun.service.loop import Loop, Timer

_RUN = (
    "import sys; sys.path.insert(0, sys.argv[1]); from agentrun.feedback.keeper import main\n"
    "main(int(sys.argv[2]))"
)
_RESTART_S = 0.2
_RETRY_S = 5.0  # of a host that had no process or memory to give
_REAP_S = 0.02
_PATIENCE_S = 0.25  # a keeper answers in a hundredth of it; who has to wait for a text goes on after this
_ANSWER_S = 2.0  # one that still has not answered has been killed by its alarm, or holds nothing
_SILENCE_S = 20.0  # a busy machine may keep it from its turn for seconds
_BUFFER = 1 << 20

Answer = Callable[[str | None], None]


@dataclass(slots=True)
class _Waiting:
    """A text on its way: what follows it, who wants to know, and the timers for when nobody answers."""

    then: Callable[[], None]
    answer: Answer
    late: Timer
    lost: Timer


class KeeperLink:
    """The keeper, as the rest of agentrund sees it. `restarted` is called when a new one holds nothing."""

    def __init__(self, loop: Loop, paths: Paths, restarted: Callable[[], None]) -> None:
        self._loop = loop
        self._paths = paths
        self._restarted = restarted
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._number = 0
        self._waiting: dict[int, _Waiting] = {}
        self._is_closed = False
        self._has_failed = False
        self._pinged_at: float | None = None  # and not answered since
        self._heard_at: float | None = None

    @property
    def pid(self) -> int | None:
        """The keeper's process."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Start the keeper. Where that fails there is no feedback until it works; the log says so, once."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            ours.setsockopt(socket.SOL_SOCKET, option, _BUFFER)
        library = str(Path(__file__).resolve().parents[2])
        command = [sys.executable, "-I", "-S", "-c", _RUN, library, str(theirs.fileno())]
        try:
            self._process = subprocess.Popen(
                command, pass_fds=(theirs.fileno(),), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
            )
        except OSError as error:
            if not self._has_failed:
                log.warn(self._paths, "keeper not started: no feedback", error=str(error))
            self._has_failed = True
            ours.close()
            self._loop.later(_RETRY_S, self._start_again)
            return
        finally:
            theirs.close()
        self._has_failed = False
        self._socket = ours
        self._pinged_at = self._heard_at = None
        self._loop.watch(ours.fileno(), select.EPOLLIN, self._read)

    def check(self) -> dict[str, Any]:
        """Ask the keeper whether it works, and say what it did when it was asked before; not waiting for it.

        `pid` of its process (None: there is none) and `heard_s`, how long ago it last answered anything. One
        that holds nothing has no alarm of its own: what has not answered after `_SILENCE_S` is replaced.
        """
        now = time.monotonic()
        if self._pinged_at is not None and now - self._pinged_at > _SILENCE_S:
            log.warn(self._paths, "keeper did not answer: another one is started", pid=self.pid)
            self._lost()
        elif self._pinged_at is None and self._send({"do": "ping"}):
            self._pinged_at = now
        heard_s = None if self._heard_at is None else round(now - self._heard_at, 1)
        return {"pid": self.pid, "heard_s": heard_s}

    def close(self) -> None:
        """End the keeper; what it holds goes with it."""
        self._is_closed = True
        self._lost()

    def hold(self, call: str, pidfd: int, *, is_owner: bool) -> None:
        """Hold the stderr of a process of a call, and let go when the first process has ended."""
        self._send({"call": call, "do": "hold" if is_owner else "main"}, pidfd)

    def drop(self, call: str) -> None:
        """Nothing more will be said to a call."""
        self._send({"call": call, "do": "drop"})

    def tell(self, call: str, text: str, then: Callable[[], None], answer: Answer) -> None:
        """Write a text to a call's stderr.

        `then` follows when the text is there or cannot be, and soon in any case; `answer` gets None once
        the text is there, else why it is not.
        """
        self._number += 1
        number = self._number
        late = self._loop.later(_PATIENCE_S, then)
        lost = self._loop.later(_ANSWER_S, lambda: self._answered(number, "the keeper did not answer"))
        self._waiting[number] = _Waiting(then, answer, late, lost)
        if not self._send({"call": call, "do": "tell", "text": text, "number": number}):
            self._answered(number, "no keeper")

    def _answered(self, number: int, why: str | None) -> None:
        waiting = self._waiting.pop(number, None)
        if waiting is None:
            return
        is_late = waiting.late.action is None
        self._loop.cancel(waiting.late)
        self._loop.cancel(waiting.lost)
        waiting.answer(why)
        if not is_late:
            waiting.then()

    def _send(self, message: dict[str, Any], pidfd: int | None = None) -> bool:
        if self._socket is None:
            return False
        data = fastjson.dumps(message).encode("ascii")
        try:
            socket.send_fds(self._socket, [data], [] if pidfd is None else [pidfd])
        except OSError:  # full, because it is stopped or hangs, or gone
            self._lost()
            return False
        return True

    def _read(self, _: int) -> None:
        while self._socket is not None:
            try:
                data = self._socket.recv(MESSAGE_LIMIT)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._lost()
                return
            answer: dict[str, Any] = fastjson.loads(data)
            self._pinged_at, self._heard_at = None, time.monotonic()
            if "told" in answer:
                self._answered(int(answer["told"]), answer.get("why"))

    def _lost(self) -> None:
        """The keeper is gone, or has to be: what it held is closed by the kernel."""
        process, sock = self._process, self._socket
        self._process = self._socket = None
        if sock is not None:
            self._loop.unwatch(sock.fileno())
            sock.close()
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            self._reap(process)
        for number in list(self._waiting):
            self._answered(number, "the keeper was gone")
        if not self._is_closed:
            self._loop.later(_RESTART_S, self._start_again)

    def _reap(self, process: subprocess.Popen[bytes]) -> None:
        if process.poll() is None:
            self._loop.later(_REAP_S, lambda: self._reap(process))

    def _start_again(self) -> None:
        if self._is_closed or self._process is not None:
            return
        self.start()
        if self.pid is not None:
            self._restarted()
