"""In agentrund: notice that the kernel threw our CPU scheduler out, say so once, and have it loaded again.

Only where somebody loaded it (`systemctl enable --now agentrun-scx`, `agentrunctl bpf load scx`) and nobody
took it out on purpose. The load takes seconds and capabilities that agentrund does without, so it is done by
the unit `agentrun-scx.service`; where agentrund was started without systemd, by a child of its own.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from agentrun.base import log
from agentrun.base.paths import Paths
from agentrun.bpf import scheduler
from agentrun.decision import inforce
from agentrun.service.loop import Loop

_LOOK_S = 1.0
_GIVE_UP_S = 300.0  # the verifier takes seconds, in an emulated machine half a minute
_WORDS = 1000  # bytes of what a load that failed said
UNIT = "agentrun-scx.service"
_LOAD = (
    "import sys; sys.path.insert(0, sys.argv[1])\n"
    "from agentrun.bpf import scheduler; from agentrun.base.errors import AgentrunError\n"
    "from agentrun.base.paths import host_paths\n"
    "try: scheduler.load(host_paths())\n"
    "except AgentrunError as error: sys.exit(str(error))\n"
)


def load_command() -> list[str]:
    """What loads the scheduler: its unit where systemd started us, else the same by hand."""
    if os.environ.get("INVOCATION_ID"):
        return ["systemctl", "restart", UNIT]
    return [sys.executable, "-I", "-S", "-c", _LOAD, str(Path(__file__).resolve().parents[3])]


class SchedulerKeeper:
    """Looks every second, and starts the load when it is time."""

    def __init__(self, loop: Loop, paths: Paths) -> None:
        self._loop = loop
        self._paths = paths
        self._memory = scheduler.Memory()
        self._said: str | None = None
        self._ejections = 0
        self._last: str | None = None
        self._loading: subprocess.Popen[bytes] | None = None

    def status(self) -> dict[str, Any]:
        """What doctor shows: `ejections` since agentrund started, the `last` in words, and `next_s`.

        That is in how many seconds it is loaded again; None where nothing is to come or it is being loaded.
        """
        at = self._memory.rearm_at
        next_s = None if at is None else round(max(0.0, at - time.monotonic()), 1)
        return {"ejections": self._ejections, "last": self._last, "next_s": next_s}

    def start(self) -> None:
        """Look, now and again and again."""
        if self._loading is None:
            self._look()
        self._loop.later(_LOOK_S, self.start)

    def close(self) -> None:
        """End a load that was started by hand; the unit's goes on."""
        if self._loading is not None:
            self._loading.kill()
            self._loading.wait()

    def _look(self) -> None:
        step, text, self._memory = scheduler.look(self._paths, time.monotonic(), self._memory)
        if step is scheduler.Step.REPORT and text is not None:
            self._ejections += 1
            self._last = text
            log.warn(self._paths, text)
        elif text is not None:
            self._say_once(text)
        if step is not scheduler.Step.REARM:
            return
        if inforce.load(self._paths).uses_bpf:
            self._load()
        else:  # not asked for any more: ask again later
            self._memory = replace(self._memory, rearm_at=time.monotonic() + _GIVE_UP_S)

    def _say_once(self, text: str) -> None:
        """What goes wrong again and again in the same way is one record in the log."""
        if text != self._said:
            log.warn(self._paths, text)
        self._said = text

    def _load(self) -> None:
        command = load_command()
        said = os.memfd_create("scheduler")  # a pipe would have to be read while it is written
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=said
            )
        except OSError as error:
            os.close(said)
            self._loaded(f"{command[0]}: {error.strerror}")
            return
        self._loading = process
        pidfd = os.pidfd_open(process.pid)
        timer = self._loop.later(_GIVE_UP_S, process.kill)

        def ended(_: int) -> None:
            self._loop.drop(pidfd)
            self._loop.cancel(timer)
            self._loading = None
            words = os.pread(said, _WORDS, 0).decode("utf-8", "replace").strip()
            os.close(said)
            status = process.wait()
            self._loaded(None if status == 0 else words or f"status {status}")

        self._loop.watch(pidfd, select.EPOLLIN, ended)

    def _loaded(self, problem: str | None) -> None:
        """The load has ended: where it failed, another try follows as after an ejection."""
        if problem is None:
            log.warn(self._paths, "scheduler loaded again")
            return
        self._memory = scheduler.failed(self._memory)
        self._say_once(f"scheduler not loaded again: {problem}")
