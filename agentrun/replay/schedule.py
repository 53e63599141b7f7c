"""Pure: from a trace to what one session does. Nothing here looks at a clock, a file or a container.

A trace shows a container's memory as a whole. It is taken apart: while no command runs, all of it is the
agent's; while some run, what is above the agent's level before them is theirs, in equal shares. Likewise for
CPU time, by overlap. A sample may show a call's memory as late as the trace's lag after its end.

The replay is closed-loop, as an agent is: a call starts a think time after the call before it *really* ended,
so a session that is slowed down takes longer, and how much longer is a result.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from agentrun.replay.traces import ToolCall, Trace

MAX_STEPS = 1500  # a plan travels as one argument, which Linux limits to 128 KiB
_THINK_JITTER = 0.1


@dataclass(frozen=True, slots=True)
class Options:
    """How to replay: `speed` divides time (and CPU time with it), `scale` multiplies memory.

    `base` is added to what the agent holds, in bytes. Commands that add less than `least` bytes are left to
    the agent instead of becoming an exec. `window` is a part of the trace in seconds (None: all): the calls
    that start in it are run, as a whole.
    """

    speed: float = 1.0
    scale: float = 1.0
    base: int = 0
    least: int = 0
    window: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """Hold `memory` bytes at the end of `duration` seconds, and burn `cpu` seconds meanwhile."""

    duration: float
    memory: int
    cpu: float


@dataclass(frozen=True, slots=True)
class CallPlan:
    """One exec: it starts `gap` seconds after call `after` ended (after the session's start when None)."""

    name: str
    after: int | None
    gap: float
    steps: tuple[Step, ...]

    @property
    def duration(self) -> float:
        """Seconds it takes where nothing slows it down."""
        return sum(step.duration for step in self.steps)

    @property
    def peak(self) -> int:
        """Most bytes that it holds."""
        return max(step.memory for step in self.steps)


@dataclass(frozen=True, slots=True)
class SessionPlan:
    """One container: `start` seconds into the run the agent begins to follow its curve."""

    name: str
    tier: str
    start: float
    agent: tuple[Step, ...]
    calls: tuple[CallPlan, ...]

    @property
    def duration(self) -> float:
        """Seconds until its last call and the agent's curve have ended, where nothing slows it down."""
        ends: list[float] = []
        for call in self.calls:
            ends.append((0.0 if call.after is None else ends[call.after]) + call.gap + call.duration)
        return max([sum(step.duration for step in self.agent), *ends])


def plan_session(
    trace: Trace, options: Options, name: str = "", tier: str = "normal", start: float = 0.0
) -> SessionPlan:
    """What the session of a trace does, without chance. ValueError where the window holds nothing."""
    chosen = _choose_calls(trace, options.least)
    memory, raw = _split_memory(trace, chosen)
    agent_cpu, call_cpu = _split_cpu(trace, chosen)
    begin, end = options.window or (-math.inf, math.inf)
    agent = [
        Step(
            shown / options.speed,
            int(held * options.scale) + options.base,
            cpu * (shown / (after.t - before.t)) / options.speed,
        )
        for (before, after), held, cpu in zip(pairwise(trace.samples), memory[1:], agent_cpu, strict=True)
        if (shown := _shown(trace, before.t, after.t, begin, end)) > 0
    ]
    if not agent:
        raise ValueError(f"window {options.window} of trace {trace.name!r}: under two samples there")
    kept = [index for index, call in enumerate(chosen) if begin <= call.start < end]
    within = [chosen[index] for index in kept]
    calls = tuple(
        _plan_call(within, number, raw[index], call_cpu[index], max(0.0, begin), options)
        for number, index in enumerate(kept)
    )
    return SessionPlan(name or trace.name, tier, start, _at_most(tuple(agent), MAX_STEPS), calls)


def _shown(trace: Trace, before: float, after: float, begin: float, end: float) -> float:
    """Seconds of an interval between two samples that are in the window.

    Of samples at an interval only whole ones count; in an exact trace they may be days apart.
    """
    if trace.is_exact:
        return min(after, end) - max(before, begin)
    return after - before if begin <= before and after <= end else 0.0


def stagger(plans: Sequence[SessionPlan], seconds: float, seed: int) -> list[SessionPlan]:
    """The sessions with chance: starts spread over `seconds`, think times up to 10 % shorter or longer."""
    dice = random.Random(seed)  # noqa: S311 - a replay must be repeatable, not secret
    changed = []
    for plan in plans:
        start = plan.start + dice.uniform(0, seconds)
        calls = tuple(
            replace(call, gap=call.gap * dice.uniform(1 - _THINK_JITTER, 1 + _THINK_JITTER))
            for call in plan.calls
        )
        changed.append(replace(plan, start=start, calls=calls))
    return changed


def _choose_calls(trace: Trace, least: int) -> list[ToolCall]:
    """The commands that become execs: all whose memory rises by `least` or more."""
    lag = trace.lag
    chosen = []
    for call in trace.calls:
        before = [sample.memory for sample in trace.samples if sample.t < call.start]
        during = [sample.memory for sample in trace.samples if call.start <= sample.t <= call.end + lag]
        level = before[-1] if before else trace.samples[0].memory
        if least <= 0 or max(during, default=level) - level >= least:
            chosen.append(call)
    return chosen


def _split_memory(trace: Trace, calls: Sequence[ToolCall]) -> tuple[list[float], list[list[Step]]]:
    """The agent's bytes at each sample, and for each call its raw steps (duration, bytes) before scaling."""
    lag = trace.lag
    level = trace.samples[0].memory
    agent: list[float] = []
    curves: list[list[tuple[float, float]]] = [[] for _ in calls]
    for sample in trace.samples:
        active = [n for n, call in enumerate(calls) if call.start <= sample.t <= call.end + lag]
        level = min(level, sample.memory) if active else sample.memory
        agent.append(level)
        for n in active:
            # Stretched samples (to the lag after the end) are pulled back into the call's own time.
            call = calls[n]
            share = (sample.t - call.start) / (call.end + lag - call.start)
            curves[n].append((share * (call.end - call.start), (sample.memory - level) / len(active)))
    return agent, [_steps_of(curve, call) for curve, call in zip(curves, calls, strict=True)]


def _steps_of(curve: list[tuple[float, float]], call: ToolCall) -> list[Step]:
    """Steps through the points of a curve, up to the call's end."""
    steps, before = [], 0.0
    for at, memory in curve:
        if at > before:
            steps.append(Step(at - before, int(memory), 0.0))
            before = at
    rest = call.end - call.start - before
    if rest > 0 or not steps:
        steps.append(Step(max(rest, 0.0), int(curve[-1][1]) if curve else 0, 0.0))
    return steps


def _split_cpu(trace: Trace, calls: Sequence[ToolCall]) -> tuple[list[float], list[float]]:
    """CPU seconds of the agent for each interval between samples, and of each call as a whole."""
    agent: list[float] = []
    of_calls = [0.0] * len(calls)
    for before, after in pairwise(trace.samples):
        length = after.t - before.t
        overlaps = [max(0.0, min(call.end, after.t) - max(call.start, before.t)) for call in calls]
        total = sum(overlaps)
        burned = length * after.cpus
        # Calls get the CPU of the time in which any of them may have run, by overlap; the agent the rest.
        given = burned * min(1.0, total / length)
        agent.append(burned - given)
        if total > 0:
            for n, overlap in enumerate(overlaps):
                of_calls[n] += given * overlap / total
    return agent, of_calls


def _predecessor(calls: Sequence[ToolCall], index: int) -> int | None:
    """The call that ended last before this one started; calls that overlap do not wait for each other."""
    ended = [n for n in range(index) if calls[n].end <= calls[index].start]
    return max(ended, key=lambda n: calls[n].end, default=None)


def _plan_call(
    calls: Sequence[ToolCall], index: int, raw: Sequence[Step], cpu: float, begin: float, options: Options
) -> CallPlan:
    """Call `index` of `calls`; `begin` is where the session starts, in seconds of the trace."""
    call, after = calls[index], _predecessor(calls, index)
    gap = call.start - (begin if after is None else calls[after].end)
    length = sum(step.duration for step in raw)
    steps = tuple(
        Step(
            step.duration / options.speed,
            int(step.memory * options.scale),
            cpu * (step.duration / length if length else 1 / len(raw)) / options.speed,
        )
        for step in raw
    )
    return CallPlan(call.command, after, gap / options.speed, _at_most(steps, MAX_STEPS))


def _at_most(steps: tuple[Step, ...], limit: int) -> tuple[Step, ...]:
    """At most so many steps: neighbours are joined, with the higher memory of each group."""
    size = math.ceil(len(steps) / limit)
    if size <= 1:
        return steps
    groups = (steps[n : n + size] for n in range(0, len(steps), size))
    return tuple(
        Step(sum(s.duration for s in group), max(s.memory for s in group), sum(s.cpu for s in group))
        for group in groups
    )
