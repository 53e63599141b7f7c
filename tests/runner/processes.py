"""Every process that a run starts, so that none of them, and no guest, outlives it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path

TREE = Path(__file__).resolve().parents[2]
VM = str(TREE / "tests/vm/vm")
PATIENCE_S = 60.0


class EndedError(Exception):
    """The run is being ended: nothing more is started."""


class Processes:
    """What was started and has not ended yet, and the guests that may be up."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[str]] = set()
        self._guests: set[str] = set()
        self._is_over = False

    def start(self, argv: Sequence[str], *, nice: int = 0) -> subprocess.Popen[str]:
        """Start a command with both outputs in one pipe. Raises EndedError.

        In a process group of its own, so that a terminal's Ctrl-C ends it by `end` alone; in our session, for
        where sessions share the CPUs (autogroup) `nice` means nothing between them.
        """
        command = ["nice", "-n", str(nice), *argv] if nice else list(argv)
        with self._lock:
            if self._is_over:
                raise EndedError
            process = subprocess.Popen(  # type: ignore[call-overload]  # process_group is Python 3.11's
                command,
                cwd=TREE,
                env={name: value for name, value in os.environ.items() if not name.startswith("MAKE")},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                process_group=0,
            )
            self._running.add(process)
        return process

    def finish(self, process: subprocess.Popen[str]) -> int:
        """Wait for a command whose output was read; returns its status."""
        status = process.wait()
        if process.stdout is not None:
            process.stdout.close()
        with self._lock:
            self._running.discard(process)
        return status

    def note_guest(self, name: str) -> None:
        """A guest of that name may be up from now on."""
        with self._lock:
            self._guests.add(name)

    def take_down(self, name: str) -> None:
        """End a guest."""
        null = subprocess.DEVNULL
        subprocess.run([VM, "down", "--name", name], check=False, stdin=null, stdout=null, stderr=null)
        with self._lock:
            self._guests.discard(name)

    def end(self) -> None:
        """End everything: first as each of them undoes what it does, in the end by force."""
        with self._lock:
            self._is_over = True
            running, guests = list(self._running), list(self._guests)
        for process in running:
            _signal(process, signal.SIGTERM, is_vm=VM in process.args)  # type: ignore[operator]
        for process in running:
            try:
                process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        for name in guests:
            self.take_down(name)


def _signal(process: subprocess.Popen[str], number: int, *, is_vm: bool) -> None:
    """The VM tool ends by itself what it started, and needs its ssh for that; else the whole group is told.

    SIGINT for a group: pytest then takes down what its tests have set up.
    """
    with contextlib.suppress(ProcessLookupError):
        if is_vm:
            process.send_signal(number)
        else:
            os.killpg(process.pid, signal.SIGINT)


def tell(name: str, line: str) -> None:
    """Print a line of somebody, at once and in one piece: several do so."""
    print(f"{name}| {line}\n", end="", flush=True)


def ease(process: subprocess.Popen[str]) -> None:
    """What was started with `nice` has waited long enough (only root may say so)."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PGRP, process.pid, 0)
