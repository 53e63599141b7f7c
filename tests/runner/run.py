"""Steps and parts: run each, read what it prints, and run again what may have been bad luck."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from runner.guests import Guests, is_ci
from runner.parts import Guest, Part, Turn, longest_first, next_turn, room, title
from runner.processes import TREE, VM, EndedError, Processes, tell
from runner.results import LOST_GUEST, Result, to_run_again

SAY_S = 60.0
PYTEST = ["python3", "-m", "pytest", "-q", "-rfE", "--durations=10", "-p", "no:cacheprovider"]


class Run:
    """One run of the suite."""

    def __init__(self, processes: Processes, matrix: str) -> None:
        self.began = time.monotonic()
        self.results: list[Result] = []
        self._processes = processes
        self._matrix = matrix

    def wall_s(self) -> float:
        return time.monotonic() - self.began

    def step(self, name: str, argv: Sequence[str]) -> Result:
        """A step on this machine."""
        return self._keep(self._stream(Result(name), argv))

    def steps(self, commands: Mapping[str, Sequence[str]]) -> list[Result]:
        """Steps on this machine, side by side."""
        before = len(self.results)
        side_by_side([functools.partial(self.step, *command) for command in commands.items()], _nothing)
        return self.results[before:]

    def parts(self, parts: Sequence[Part], guests: Guests, jobs: int) -> None:
        """All parts, so many side by side, the longest first; then the few tests that failed once more."""
        Queue(self, parts, guests, jobs).work()
        for result in to_run_again(self.results):
            tests = list(dict.fromkeys(result.failed))
            part = next(part for part in parts if title(part) == result.name)
            second = Result(f"{result.name} again", result.guest)
            result.take_second(self._in_guest(second, part, Guest(result.guest), tests))

    def part(self, part: Part, guest: Guest) -> Result:
        """One part in a guest of its own; once more in a new one where that died before a test failed."""
        arguments = part.arguments(self._matrix)
        if guest is not part.guest:
            tell(title(part), "there is no fast guest here: it runs in the full one, which is slower")
        result = self._in_guest(Result(title(part), guest), part, guest, arguments)
        if result.lost_guest():
            tell(title(part), "its guest was lost; once more, in a new one")
            both = Result(title(part), guest, started=result.started, seconds=result.seconds)
            result = self._in_guest(both, part, guest, arguments)
            result.is_unstable = True
            result.notes.append("its guest was lost, and all was run again in a new one")
        elif result.status == LOST_GUEST:
            result.notes.append("its guest was lost")
        if guest is not part.guest:
            result.notes.append("run in the full guest: there is no fast one")
        return self._keep(result)

    def without_guest(self, part: Part, turn: Turn) -> Result:
        """A part that is not run."""
        result = Result(title(part), "-", status=0 if turn is Turn.SKIP else 1, started=self.wall_s())
        result.is_skipped = turn is Turn.SKIP
        result.notes.append(f"not run: there is no {part.guest} guest here (the reason stands above)")
        return self._keep(result)

    def _in_guest(self, result: Result, part: Part, guest: Guest, arguments: Sequence[str]) -> Result:
        name = f"test-{result.name.replace('/', '-').replace(' ', '-')}"
        kind = ["--fast"] if guest is Guest.FAST else []
        argv = [VM, "run", *kind, "--name", name, "--fresh", "--env", "AGENTRUN_TEST_STRICT=1"]
        argv += part.vm if guest is part.guest else []
        if part.module and self._stream(result, [VM, "module", str(TREE / part.module)]).status:
            return result
        self._processes.note_guest(name)
        try:
            return self._stream(result, [*argv, "--", *PYTEST, *arguments])
        finally:
            self._processes.take_down(name)

    def _stream(self, result: Result, argv: Sequence[str]) -> Result:
        """Run a command and print its output, each line under the step's name."""
        began = self.wall_s()
        if not result.seconds:
            result.started = began
        process = self._processes.start(argv)
        assert process.stdout is not None
        for line in process.stdout:
            tell(result.name, line.rstrip())
            result.read(line)
        result.status = self._processes.finish(process)
        result.seconds += self.wall_s() - began
        tell(result.name, f"status {result.status} after {result.seconds:.0f} s")
        return result

    def _keep(self, result: Result) -> Result:
        self.results.append(result)
        return result


def _nothing() -> None:
    """What is done every second where nothing is to be said."""


def side_by_side(actions: Sequence[Callable[[], object]], every_second: Callable[[], None]) -> None:
    """Do all of them, each in a thread."""
    threads = [threading.Thread(target=action, daemon=True) for action in actions]
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive():
            thread.join(1)  # a signal's handler may end the run meanwhile
            every_second()


class Queue:
    """Parts that wait for a place and for their guest."""

    def __init__(self, run: Run, parts: Sequence[Part], guests: Guests, jobs: int) -> None:
        self._run, self._guests, self._jobs = run, guests, jobs
        self._waiting = longest_first(parts)
        self._running: dict[str, float] = {}
        self._error: BaseException | None = None

    def work(self) -> None:
        """Run all of them; returns when the last has ended."""
        said = self._run.wall_s()

        def say() -> None:
            nonlocal said
            if self._run.wall_s() - said > SAY_S:
                said = self._run.wall_s()
                tell("vm tests", self._now())

        side_by_side([self._worker] * self._jobs, say)
        if self._error is not None:
            raise self._error

    def _worker(self) -> None:
        try:
            while (taken := self._take()) is not None:
                part, turn = taken
                try:
                    if isinstance(turn, Guest):
                        self._run.part(part, turn)
                    else:
                        self._run.without_guest(part, turn)
                finally:
                    self._leave(part)
        except EndedError:
            pass
        except BaseException as error:
            with self._guests.changed:
                self._error = error
                self._waiting.clear()
                self._guests.changed.notify_all()

    def _take(self) -> tuple[Part, Guest | Turn] | None:
        """The next part, once there is one to do and a place for it; None when none is left."""
        guests = self._guests
        with guests.changed:
            while self._waiting:
                found = next_turn(self._waiting, guests.states, is_ci=is_ci())
                if found is not None and len(self._running) < room(self._jobs, guests.states):
                    self._waiting.remove(found[0])
                    self._running[title(found[0])] = self._run.wall_s()
                    return found
                guests.changed.wait()
        return None

    def _leave(self, part: Part) -> None:
        with self._guests.changed:
            del self._running[title(part)]
            self._guests.changed.notify_all()

    def _now(self) -> str:
        """What is going on: pytest says nothing for minutes where tests are slow."""
        with self._guests.changed:
            running = [
                f"{name} for {self._run.wall_s() - began:.0f} s" for name, began in self._running.items()
            ]
            building = [f"the {kind} guest is built" for kind in self._guests.building()]
            return "; ".join((*running, *building, f"{len(self._waiting)} waiting"))
