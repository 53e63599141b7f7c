"""The mixes of `make bench-isolation`: which traces, in which tiers, in how much memory.

Every session replays a part of its trace around the highest moment of its commands, so that the peaks of one
mix tend to coincide; chance (the seed) then moves starts and think times. Recorded traces come from a folder,
chosen by name where the paper names them and by their figures otherwise; without a folder, stand-ins are
synthesised.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from agentrun.replay.schedule import Options, SessionPlan, plan_session, stagger
from agentrun.replay.synthetic import MB, PROFILES, describe, synthesize
from agentrun.replay.traces import Trace

LEAST = 8 * MB  # a command that adds less stays with the agent: under emulation an exec costs a second


@dataclass(frozen=True, slots=True)
class Role:
    """A kind of session: the trace that the paper or we mean, how to find one like it, its stand-in."""

    wanted: str
    key: Callable[[Trace], float]  # the trace of the folder with the most of this
    stand_in: str
    always_synthetic: bool = False


def spread(trace: Trace) -> float:
    """Peak by mean."""
    return trace.peak / trace.mean


ROLES = {
    "agent-1": Role("dask-11628", lambda t: -abs(spread(t) - 1.6), "like-dask-11628"),
    "agent-2": Role("github3py-673", lambda t: -abs(spread(t) - 1.4), "like-github3py-673"),
    "flat": Role("faker-1520", lambda t: -spread(t), "like-faker-1520"),
    "spiky-1": Role("pydicom-2065", spread, "like-pydicom-2065"),
    "spiky-2": Role("dask-5510", lambda t: -abs(spread(t) - 6), "like-dask-5510"),
    "interactive": Role("starlette-1147", lambda t: len(t.calls) / t.duration, "like-starlette-1147"),
    # Coding agents wait for their model most of the time; no recorded trace keeps a core busy.
    "cpu-heavy": Role("", lambda t: t.mean_cpus, "cpu-heavy", always_synthetic=True),
}


@dataclass(frozen=True, slots=True)
class Mix:
    """Sessions as (tier, role); `memory` in bytes, or (up to 1) as a share of the sum of their peaks."""

    name: str
    sessions: tuple[tuple[str, str], ...]
    memory: float
    window_s: float
    scale: float = 1.0
    base: int = 0
    speed: float = 8.0


_PAPER = (("high", "agent-1"), ("low", "agent-2"), ("low", "agent-2"))
_EIGHT = (
    *(("high", role) for role in ("agent-1", "flat")),
    *(("low", role) for role in ("spiky-1", "spiky-1", "spiky-2", "spiky-2", "agent-2", "flat")),
)
# The paper adds 100 MB to every session of (a).
MIXES = {
    mix.name: mix
    for mix in (
        Mix("a-1100", _PAPER, 1100 * MB, 40, base=100 * MB),
        Mix("a-1300", _PAPER, 1300 * MB, 40, base=100 * MB),
        Mix("b", (("high", "flat"), ("low", "spiky-1"), ("low", "spiky-2")), 0.75, 40, scale=0.35),
        Mix("c", _EIGHT, 0.6, 40, scale=0.15),
        Mix("c-roomy", _EIGHT, 1.0, 40, scale=0.15),
        Mix("d", (("high", "interactive"), ("low", "cpu-heavy"), ("low", "cpu-heavy")), 1.0, 30, scale=0.3),
    )
}
# What is run unless MIXES says otherwise: `c-roomy` tells what of `c` is the doing of the CPU, not of memory.
USUAL = tuple(name for name in MIXES if name != "c-roomy")


def resolve(role: str, traces: Sequence[Trace]) -> Trace:
    """The trace that plays a role: by name, by figures, or a stand-in where there are no traces."""
    wanted = ROLES[role]
    if wanted.always_synthetic or not traces:
        return synthesize(PROFILES[wanted.stand_in], seed=0)
    named = [trace for trace in traces if wanted.wanted in trace.name]
    return named[0] if named else max(traces, key=wanted.key)


def origin(traces: Sequence[Trace]) -> list[str]:
    """Which trace plays which role, with the distributions of those that are synthetic."""
    lines = []
    for role, wanted in ROLES.items():
        trace = resolve(role, traces)
        synthetic = wanted.always_synthetic or not traces
        what = f"SYNTHETIC {describe(PROFILES[wanted.stand_in])}" if synthetic else f"recorded {trace.name}"
        lines.append(f"{role}: {what}")
    return lines


def busiest(trace: Trace, seconds: float) -> tuple[float, float]:
    """The window of a trace in which the highest moment of its commands lies at two thirds."""
    best, at = -1.0, trace.duration / 2
    for sample in trace.samples:
        busy = any(call.start <= sample.t <= call.end + trace.lag for call in trace.calls)
        if busy and sample.memory > best:
            best, at = sample.memory, sample.t
    begin = min(max(0.0, at - seconds * 2 / 3), max(0.0, trace.duration - seconds))
    return begin, begin + seconds


def peak(plan: SessionPlan) -> int:
    """The most that a session holds when one of its calls runs at its own peak."""
    agent = max(step.memory for step in plan.agent)
    return agent + max((call.peak for call in plan.calls), default=0)


def plans(mix: Mix, traces: Sequence[Trace]) -> list[SessionPlan]:
    """The sessions of a mix, without chance."""
    made = []
    for number, (tier, role) in enumerate(mix.sessions):
        trace = resolve(role, traces)
        options = Options(mix.speed, mix.scale, mix.base, LEAST, busiest(trace, mix.window_s))
        made.append(plan_session(trace, options, f"{tier}-{number}", tier))
    return made


def memory(mix: Mix, sessions: Sequence[SessionPlan]) -> int:
    """The memory that all sessions of a mix share, in bytes."""
    return int(mix.memory if mix.memory > 1 else mix.memory * sum(map(peak, sessions)))


def with_chance(sessions: Sequence[SessionPlan], seed: int) -> list[SessionPlan]:
    """Even seeds start all sessions at once, odd ones within 1.5 s; think times vary in both."""
    return stagger(sessions, 1.5 if seed % 2 else 0.0, seed)
