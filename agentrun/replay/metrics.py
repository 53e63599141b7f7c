"""Pure: from the result of a run to figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import median
from typing import Any

from agentrun.replay.run import Curve, RunResult, SessionResult

GB = 1e9


def percentile(values: Sequence[float], percent: float) -> float | None:
    """The value that `percent` of the values do not exceed (nearest rank); None where there are none."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]


def area(curve: Curve) -> float:
    """Byte-seconds below a curve."""
    return sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairwise(curve))


def fairness(shares: Sequence[float]) -> float | None:
    """Jain's index: 1 where all shares are equal, 1/n where one has all; None without shares."""
    squares = sum(share * share for share in shares)
    return sum(shares) ** 2 / (len(shares) * squares) if squares else None


def _rounded(value: float | None, digits: int = 3) -> float | None:
    return None if value is None else round(value, digits)


def latency(values: Sequence[float]) -> dict[str, float | int | None]:
    """Percentiles of the time for one chunk, in milliseconds."""
    found: dict[str, float | int | None] = {"chunks": len(values)}
    for percent in (50, 95, 99):
        found[f"p{percent}_ms"] = _rounded(percentile(values, percent))
    return found


def tier_figures(sessions: Sequence[SessionResult]) -> dict[str, Any]:
    """Figures of all sessions of one tier."""
    values = [ms for session in sessions for ms in session.latencies_ms()]
    return {
        **latency(values),
        "done_s": [_rounded(session.done_s) for session in sessions],
        "planned_s": [_rounded(session.planned_s) for session in sessions],
    }


def figures(run: RunResult) -> dict[str, Any]:
    """Everything that is reported about a run, JSON-ready. Times in seconds, memory in bytes.

    `work_per_gb_s`: seconds of planned calls that ended well, for each GB-second of memory that all sessions
    held. `fairness`: Jain's index of planned time by real time, 0 for a session that was not done. `exec_ms`:
    median from the exec to the worker's first word. `run_again`: how often a call had to be.
    """
    calls = [call for session in run.sessions for call in session.calls]
    execs = [call.exec_s * 1000 for call in calls if call.exec_s is not None]
    held = area(run.curve) / GB
    work = sum(call.planned_s for call in calls if call.outcome == "ok")
    tiers = sorted({session.tier for session in run.sessions})
    shares = [s.planned_s / s.done_s if s.done_s else 0.0 for s in run.sessions]
    return {
        "seconds": _rounded(run.seconds),
        "sessions": len(run.sessions),
        "done": sum(session.done_s is not None for session in run.sessions),
        "oom_kills": run.oom_kills,
        "agents_killed": sum(session.agent_killed for session in run.sessions),
        "calls": {name: sum(call.outcome == name for call in calls) for name in OUTCOMES},
        "run_again": sum(call.lost_runs for call in calls),
        "exec_ms": _rounded(median(execs)) if execs else None,
        "peak_bytes": max((used for _, used in run.curve), default=None),
        "gb_seconds": _rounded(held) if run.curve else None,
        "work_per_gb_s": _rounded(work / held) if held else None,
        "fairness": _rounded(fairness(shares)),
        "tiers": {tier: tier_figures([s for s in run.sessions if s.tier == tier]) for tier in tiers},
    }


OUTCOMES = ("ok", "killed", "failed", "lost")
