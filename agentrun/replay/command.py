"""What `agentrunctl replay` does: read, plan, run, report."""

from __future__ import annotations

import json
import secrets
import signal
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from agentrun.base.errors import AgentrunError
from agentrun.replay.engines import ByHand, Container, Engine, EngineCli, Processes
from agentrun.replay.page import page
from agentrun.replay.parent import parent_cgroup
from agentrun.replay.report import report, session_table, summary
from agentrun.replay.run import Session, run_sessions
from agentrun.replay.schedule import Options, SessionPlan, plan_session, stagger
from agentrun.replay.synthetic import PROFILES, describe, synthesize
from agentrun.replay.traces import Trace, TraceError, from_records, read_trace
from agentrun.terminal import plain

RECORDS_BASE = 185_000_000  # a coding agent between its calls, in the median of the recorded ones
_NAME_LIMIT = 40


@dataclass(frozen=True, slots=True)
class Request:
    """The options of the command: sizes in bytes, times in seconds."""

    traces: tuple[str, ...]
    tiers: list[tuple[str, str]]
    engine: str
    runtime: str | None
    image: str
    rootfs: Path | None
    memory: int | None
    session_memory: int | None
    speed: float
    scale: float
    base: int | None
    least: int | None
    window: tuple[float, float] | None
    stagger: float
    seed: int
    file_cache: int
    retries: int
    limit: float
    out: Path | None
    html: Path | None


def read_source(source: str, seed: int) -> list[Trace]:
    """The traces that one argument names. Raises TraceError."""
    if source.startswith("synthetic:"):
        profile = PROFILES.get(source.removeprefix("synthetic:"))
        if profile is None:
            raise TraceError(f"synthesise {source!r}: there are only {', '.join(sorted(PROFILES))}")
        print(f"SYNTHETIC trace, not a recorded one: {describe(profile)}", file=sys.stderr)
        return [synthesize(profile, seed)]
    if not source.endswith(".jsonl"):
        return [read_trace(Path(source))]
    try:
        lines = Path(source).read_text(encoding="utf-8").splitlines()
        return from_records([json.loads(line) for line in lines if line.strip()], RECORDS_BASE)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TraceError(f"read records {source!r}: {error!r}") from error


def session_name(number: int, tier: str, trace: Trace) -> str:
    """A name that is unique in a run and that an engine takes."""
    letters = (c if c.isascii() and (c.isalnum() or c in "_.-") else "-" for c in trace.name[:_NAME_LIMIT])
    return f"{tier}-{number}-{''.join(letters)}"


def choose_engine(request: Request) -> Engine:
    """The place to run sessions."""
    if request.engine == "process":
        return Processes()
    if request.engine == "hand" and request.runtime and request.rootfs:
        return ByHand(request.runtime, request.rootfs)
    return EngineCli(request.engine, request.runtime, request.image)


def make_plans(request: Request, sessions: Sequence[tuple[str, Trace]]) -> list[SessionPlan]:
    """The plans of (tier, trace). Raises TraceError."""
    options = Options(request.speed, request.scale, request.base or 0, request.least or 0, request.window)
    try:
        plans = [
            plan_session(trace, options, session_name(number, tier, trace), tier)
            for number, (tier, trace) in enumerate(sessions)
        ]
    except ValueError as error:
        raise TraceError(str(error)) from error
    return stagger(plans, request.stagger, request.seed)


def make_sessions(plans: Sequence[SessionPlan], memory: int | None) -> list[Session]:
    """Containers for the plans, their tier as an annotation; chance in the names, against leftovers."""
    suffix = secrets.token_hex(3)
    return [
        Session(plan, Container(f"replay-{plan.name}-{suffix}", {"agentrun.dev/tier": plan.tier}, memory))
        for plan in plans
    ]


def execute(request: Request) -> None:
    """Replay, print the table, write the reports. Raises AgentrunError."""
    # Containers and cgroups are removed on the way out, of SIGTERM as of ^C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    wanted = [*(("normal", source) for source in request.traces), *request.tiers]
    sessions = [
        (tier, trace)
        for number, (tier, source) in enumerate(wanted)
        for trace in read_source(source, request.seed + number)
    ]
    containers = make_sessions(make_plans(request, sessions), request.session_memory)
    has_cgroups = request.engine != "process"
    parent = parent_cgroup(request.engine != "hand", request.memory) if has_cgroups else nullcontext()
    with parent as made:
        run = run_sessions(
            choose_engine(request), containers, made, request.limit, request.file_cache, request.retries
        )
    _write(report(run, settings(request, sessions)), request)


def settings(request: Request, sessions: Sequence[tuple[str, Trace]]) -> dict[str, Any]:
    """What a report says about how it was made."""
    names = (
        "engine runtime memory session_memory speed scale base least window stagger seed file_cache retries"
    )
    found = {name: getattr(request, name) for name in names.split()}
    found["sessions"] = [f"{tier}={trace.name} {trace.digest()}" for tier, trace in sessions]
    return found


def _write(found: dict[str, Any], request: Request) -> None:
    try:
        if request.out is not None:
            request.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        if request.html is not None:
            request.html.write_text(page([found]), encoding="utf-8")
    except OSError as error:
        raise AgentrunError(f"write report: {error}") from error
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(session_table(found["sessions"]))
    console.print(plain(summary(found["figures"])))
