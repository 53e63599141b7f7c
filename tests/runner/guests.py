"""Both kinds of guest are built in the background, while lint and native tests run."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from pathlib import Path

from runner.parts import Guest, State
from runner.processes import TREE, VM, EndedError, Processes, ease, tell

LOGS = TREE / "build/test-logs"
CHECK = "fast-check"
NICE = 10
QUIET_S = 60.0
# One after the other, for the fast guest's disk is made of the full one's.
STEPS: dict[Guest, list[list[str]]] = {
    Guest.FULL: [[VM, "build"]],
    Guest.FAST: [
        [VM, "build", "--fast"],
        [VM, "run", "--fast", "--name", CHECK, "--fresh", "--no-install", "--", "true"],
    ],
}


class Guests:
    """What is known of each kind; whoever waits for a change waits for `changed`."""

    def __init__(self, processes: Processes, kinds: frozenset[Guest]) -> None:
        self.changed = threading.Condition()
        self.states = {kind: State.BUILDING if kind in kinds else State.ABSENT for kind in Guest}
        self._kinds = [kind for kind in Guest if kind in kinds]
        self._processes = processes
        self._process: subprocess.Popen[str] | None = None
        self._is_urgent = False

    def build(self) -> None:
        """Begin to build; returns at once."""
        LOGS.mkdir(parents=True, exist_ok=True)
        for kind in self._kinds:
            _log(kind).unlink(missing_ok=True)
        threading.Thread(target=self._build_all, name="build", daemon=True).start()

    def building(self) -> list[Guest]:
        return [kind for kind, state in self.states.items() if state is State.BUILDING]

    def hurry(self) -> None:
        """Nothing else is to be done first any more."""
        self._is_urgent = True
        if self._process is not None:
            ease(self._process)

    def _build_all(self) -> None:
        for kind in self._kinds:
            try:
                is_built = all(self._run(kind, argv) for argv in STEPS[kind])
            except EndedError:
                return
            except OSError as error:
                tell(f"build {kind}", str(error))
                is_built = False
            with self.changed:
                self.states[kind] = State.READY if is_built else State.ABSENT
                self.changed.notify_all()

    def _run(self, kind: Guest, argv: list[str]) -> bool:
        """One step, with its output in a log and some of it shown."""
        if CHECK in argv:
            self._processes.note_guest(CHECK)
        nice = 0 if self._is_urgent else NICE  # tests that run meanwhile have deadlines
        self._process = self._processes.start(argv, nice=nice)
        _show(self._process, _log(kind), f"build {kind}")
        status = self._processes.finish(self._process)
        self._process = None
        if CHECK in argv:
            self._processes.take_down(CHECK)
        if status:
            tell(f"build {kind}", f"status {status}; all of its output: {_log(kind)}")
        return status == 0


def _log(kind: Guest) -> Path:
    return LOGS / f"build-{kind}.log"


def _show(process: subprocess.Popen[str], log: Path, name: str) -> None:
    """Write a command's output to a log; print what is news, and now and then that it goes on."""
    assert process.stdout is not None
    shown = time.monotonic()
    with log.open("a") as file:
        for line in process.stdout:
            file.write(line)
            file.flush()
            if "  ... " not in line or time.monotonic() - shown > QUIET_S:
                tell(name, line.rstrip())
                shown = time.monotonic()


def is_ci() -> bool:
    """Whether what is missing is a failure."""
    return os.environ.get("CI") == "true"
