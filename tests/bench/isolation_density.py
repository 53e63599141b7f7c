"""Density: how many sessions of one mix fit in 3 GB, in each arm. Part of isolation_run.py.

At a quarter of the recorded sizes, in a quarter of 3 GB: what fits is the same, and an emulated machine can
touch it in time. So many fit as one run shows: nothing killed, every session done, and the P95 latency of
HIGH at most twice that of HIGH alone. Found by halving: a smaller count that fails by chance is not seen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from isolation_mixes import Mix, plans, with_chance

from agentrun.replay.metrics import percentile
from agentrun.replay.run import RunResult
from agentrun.replay.schedule import SessionPlan
from agentrun.replay.synthetic import MB
from agentrun.replay.traces import Trace

TOTAL = 750 * MB
SCALE = 0.25
MOST = 16
LATENCY_FACTOR = 2.0
LOW_ROLES = ("agent-2", "flat", "spiky-2")

Run = Callable[[Sequence[SessionPlan], int], RunResult]


def sessions_of(count: int, traces: Sequence[Trace], seed: int) -> list[SessionPlan]:
    """One HIGH session and LOW ones in turn, `count` together."""
    low = [("low", LOW_ROLES[number % len(LOW_ROLES)]) for number in range(count - 1)]
    mix = Mix("density", (("high", "agent-1"), *low), TOTAL, window_s=40, scale=SCALE)
    return with_chance(plans(mix, traces), seed)


def high_p95(run: RunResult) -> float | None:
    """P95 latency of HIGH's chunks, in milliseconds."""
    return percentile([ms for s in run.sessions if s.tier == "high" for ms in s.latencies_ms()], 95)


def fits(run: RunResult, alone_p95: float | None) -> bool:
    """Whether a run is one in which all sessions fitted."""
    p95 = high_p95(run)
    if run.oom_kills or any(session.done_s is None for session in run.sessions):
        return False
    return p95 is not None and alone_p95 is not None and p95 <= LATENCY_FACTOR * alone_p95


def most_that_fit(run: Run, traces: Sequence[Trace], seed: int, alone_p95: float | None) -> int:
    """The number of sessions that fit; 0 where not even HIGH alone does."""
    fitting, failing = 0, MOST + 1
    while failing - fitting > 1:
        count = (fitting + failing) // 2
        if fits(run(sessions_of(count, traces, seed), TOTAL), alone_p95):
            fitting = count
        else:
            failing = count
    return fitting
