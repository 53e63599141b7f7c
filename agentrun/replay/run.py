"""Run sessions: an agent in each container, and every planned call as an exec into it, closed-loop.

A session is done when the agent has followed its curve and every call has ended well. It is not done (None)
when a call was killed or failed (with `retries`: each time), when the agent was killed, or when the run's
time is up.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Awaitable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from agentrun.replay.engines import Container, Engine, ReplayError, spawn
from agentrun.replay.parent import oom_kills, read_number
from agentrun.replay.protocol import Report, worker_command
from agentrun.replay.schedule import CallPlan, SessionPlan

SAMPLE_S = 0.1
_START_TIMEOUT_S = 120.0
_END_TIMEOUT_S = 10.0
_KILLED = (128 + signal.SIGKILL, -signal.SIGKILL)

Curve = list[tuple[float, int]]  # (seconds of the run, bytes)


@dataclass(slots=True)
class CallResult:
    """How one call went. `exec_s` is from the exec to the worker's first word; None: it never came so far.

    Of a call that was run again, times and outcome are the last run's; `lost_runs` counts those before it,
    and `latencies_ms` has the chunks of all.
    """

    name: str
    planned_s: float
    exec_s: float | None = None
    ran_s: float | None = None
    outcome: str = "lost"  # ok, killed (SIGKILL), failed, lost (its session ended before it)
    latencies_ms: list[float] = field(default_factory=list)
    lost_runs: int = 0


@dataclass(slots=True)
class SessionResult:
    """How one session went; times in seconds since its agent was up."""

    name: str
    tier: str
    planned_s: float
    done_s: float | None = None
    agent_killed: bool = False
    calls: list[CallResult] = field(default_factory=list)
    agent_latencies_ms: list[float] = field(default_factory=list)
    curve: Curve = field(default_factory=list)

    def latencies_ms(self) -> list[float]:
        """Every chunk of the session, the agent's and the calls'."""
        return [*self.agent_latencies_ms, *(ms for call in self.calls for ms in call.latencies_ms)]


@dataclass(slots=True)
class RunResult:
    """How a run went. `oom_kills` is None where no cgroup counts them."""

    sessions: list[SessionResult]
    seconds: float
    oom_kills: int | None
    curve: Curve


@dataclass(frozen=True, slots=True)
class Session:
    """A plan, and the container that it runs in."""

    plan: SessionPlan
    container: Container


def run_sessions(
    engine: Engine,
    sessions: Sequence[Session],
    parent: tuple[str, Path] | None,
    limit_s: float,
    cache_percent: int = 0,
    retries: int = 0,
) -> RunResult:
    """Run all sessions at once; `parent` as parent_cgroup() gives it. Raises ReplayError.

    A call that does not end well is run again after its think time, `retries` times, as an agent does that is
    told of it.
    """
    run = _Run(engine, parent, cache_percent, retries)
    try:
        for session in sessions:
            agent = worker_command("agent", session.plan.agent, cache_percent)
            run.engine.create(session.container, agent, parent[0] if parent else None)
        return asyncio.run(run.all(sessions, limit_s))
    finally:
        for session in sessions:
            engine.remove(session.container.name)


class _Run:
    def __init__(
        self, engine: Engine, parent: tuple[str, Path] | None, cache_percent: int, retries: int
    ) -> None:
        self.engine = engine
        self.parent = parent[1] if parent else None
        self.cache_percent = cache_percent
        self.retries = retries
        self.began = time.monotonic()
        self.kills_before = 0
        self.curve: Curve = []
        self.watched: dict[Path, Curve] = {}
        self.clients: list[Process] = []

    async def all(self, sessions: Sequence[Session], limit_s: float) -> RunResult:
        """Every session to its end, or to the time limit."""
        self.began = time.monotonic()
        self.kills_before = oom_kills(self.parent) if self.parent else 0
        results = [SessionResult(s.plan.name, s.plan.tier, s.plan.duration) for s in sessions]
        sampler = asyncio.create_task(self.sample())
        tasks = [
            asyncio.create_task(self.session(session, result))
            for session, result in zip(sessions, results, strict=True)
        ]
        try:
            await asyncio.wait(tasks, timeout=limit_s, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            for task in (*tasks, sampler):
                task.cancel()
            ended = await asyncio.gather(*tasks, sampler, return_exceptions=True)
            # Their pipes close with their containers; asyncio warns of one that does not.
            waits = [asyncio.ensure_future(client.wait()) for client in self.clients]
            if waits:
                await asyncio.wait(waits, timeout=_END_TIMEOUT_S)
        for error in ended:
            if isinstance(error, Exception):
                raise error
        kills = oom_kills(self.parent) - self.kills_before if self.parent else None
        return RunResult(results, time.monotonic() - self.began, kills, self.curve)

    async def sample(self) -> None:
        """Read memory.current of the parent and of each session for as long as the run lasts."""
        while True:
            now = round(time.monotonic() - self.began, 3)
            for path, curve in list(self.watched.items()):
                used = read_number(path / "memory.current")
                if used is not None:
                    curve.append((now, used))
            if self.parent and (used := read_number(self.parent / "memory.current")) is not None:
                self.curve.append((now, used))
            await asyncio.sleep(SAMPLE_S)

    async def session(self, session: Session, result: SessionResult) -> None:
        """One session, from its container's start to its removal."""
        plan, name = session.plan, session.container.name
        await asyncio.sleep(plan.start)
        report = Report()
        agent = await self.engine.start(name)
        self.clients.append(agent)
        words = _Words(agent, report)
        try:
            if not await self._is_up(words, name):
                result.agent_killed = True
                return
            began = time.monotonic()
            await self._prepare(session, result)
            finished = await self._calls(session, result, words)
            if finished and all(call.outcome == "ok" for call in result.calls):
                result.done_s = time.monotonic() - began
            result.agent_killed = words.ended.is_set()
        finally:
            result.agent_latencies_ms = report.latencies_ms
            words.close()
            await asyncio.to_thread(self.engine.remove, name)

    async def _is_up(self, words: _Words, name: str) -> bool:
        """Whether the agent came up; False where memory was too short for it. Raises ReplayError."""
        await words.first(words.started.wait(), timeout=_START_TIMEOUT_S)
        if not words.started.is_set() and not (self.parent and oom_kills(self.parent) > self.kills_before):
            raise ReplayError(f"start session {name!r}: its agent (python3 in the container) did not come up")
        return words.started.is_set()

    async def _prepare(self, session: Session, result: SessionResult) -> None:
        """Find the container's cgroup, watch it, and write what is to be written there."""
        path = await asyncio.to_thread(self.engine.cgroup, session.container.name)
        if path is None:
            return
        self.watched[path] = result.curve
        for name, value in session.container.files.items():
            try:
                (path / name).write_text(value, encoding="ascii")
            except OSError as error:
                if path.is_dir():  # else the session has been killed meanwhile
                    raise ReplayError(f"write {str(path / name)!r}: {error}") from error

    async def _calls(self, session: Session, result: SessionResult, words: _Words) -> bool:
        """Run the calls; True when they and the agent's curve came to their end."""
        result.calls = [CallResult(call.name, call.duration) for call in session.plan.calls]
        ended = [asyncio.Event() for _ in result.calls]
        tasks = [asyncio.create_task(self.call(session, result, ended, n)) for n in range(len(ended))]
        work = asyncio.create_task(_finish(tasks, words.done))
        try:
            await words.first(work)
            return work.done()
        finally:
            for task in (work, *tasks):
                task.cancel()
            await asyncio.gather(work, *tasks, return_exceptions=True)

    async def call(
        self, session: Session, result: SessionResult, ended: Sequence[asyncio.Event], number: int
    ) -> None:
        """One call, when the one before it has ended and the agent has thought."""
        plan, call = session.plan.calls[number], result.calls[number]
        if plan.after is not None:
            await ended[plan.after].wait()
        for lost_runs in range(1 + self.retries):
            call.lost_runs, call.outcome = lost_runs, "lost"
            await asyncio.sleep(plan.gap)
            await self.run_call(session, plan, call)
            if call.outcome == "ok":
                break
        ended[number].set()

    async def run_call(self, session: Session, plan: CallPlan, call: CallResult) -> None:
        """Run a call, once."""
        command = worker_command("call", plan.steps, self.cache_percent)
        began, call.exec_s = time.monotonic(), None
        report = Report()
        report.latencies_ms = call.latencies_ms
        process = await spawn(self.engine.exec_command(session.container.name, command))
        self.clients.append(process)
        try:
            async for line in _lines(process):
                report.feed(line)
                if report.started and call.exec_s is None:
                    call.exec_s = time.monotonic() - began
            code = await process.wait()
            call.ran_s = time.monotonic() - began
            call.outcome = _outcome(code, report.done)
        finally:
            _kill(process)


class _Words:
    """What an agent says, as events; `ended` when it is gone."""

    def __init__(self, process: Process, report: Report) -> None:
        self.process = process
        self.report = report
        self.started, self.done, self.ended = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for line in _lines(self.process):
            self.report.feed(line)
            if self.report.started:
                self.started.set()
            if self.report.done:
                self.done.set()
        self.ended.set()

    async def first(self, what: Awaitable[object], timeout: float | None = None) -> None:
        """Wait until `what` is there, the agent is gone, or the time is up. An error of `what` is raised."""
        waits = [asyncio.ensure_future(what), asyncio.ensure_future(self.ended.wait())]
        done, pending = await asyncio.wait(waits, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        for wait in pending:
            wait.cancel()
        for wait in done:
            wait.result()

    def close(self) -> None:
        """Stop listening; the process that carries the words (a client) is ended."""
        self.task.cancel()
        _kill(self.process)


async def _finish(calls: Sequence[asyncio.Task[None]], curve_done: asyncio.Event) -> None:
    await asyncio.gather(*calls)
    await curve_done.wait()


async def _lines(process: Process) -> AsyncIterator[bytes]:
    """Lines of a process's stdout; a line over the limit ends them, for no worker of ours writes one."""
    assert process.stdout is not None  # noqa: S101 - spawn() opens it
    with contextlib.suppress(ValueError):
        async for line in process.stdout:
            yield line


def _outcome(code: int, is_done: bool) -> str:
    if code in _KILLED:
        return "killed"
    return "ok" if code == 0 and is_done else "failed"


def _kill(process: Process) -> None:
    """End a client and what it started here; a no-op once it has ended."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
