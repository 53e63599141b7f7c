"""What a replay found: a JSON object, and a table for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from agentrun.replay.metrics import figures, latency
from agentrun.replay.run import Curve, RunResult, SessionResult
from agentrun.terminal import plain

_CURVE_POINTS = 400


def thin(curve: Curve, limit: int = _CURVE_POINTS) -> Curve:
    """At most about `limit` points of a curve; of neighbours that are joined the highest stays."""
    size = max(1, -(-len(curve) // limit))
    return [max(curve[n : n + size], key=lambda point: point[1]) for n in range(0, len(curve), size)]


def session_report(session: SessionResult) -> dict[str, Any]:
    """One session, JSON-ready."""
    return {
        "name": session.name,
        "tier": session.tier,
        "planned_s": round(session.planned_s, 3),
        "done_s": None if session.done_s is None else round(session.done_s, 3),
        "agent_killed": session.agent_killed,
        "latency": latency(session.latencies_ms()),
        "calls": [
            {
                "name": call.name,
                "outcome": call.outcome,
                "lost_runs": call.lost_runs,
                "planned_s": round(call.planned_s, 3),
                "ran_s": None if call.ran_s is None else round(call.ran_s, 3),
                "exec_ms": None if call.exec_s is None else round(call.exec_s * 1000, 1),
                "latency": latency(call.latencies_ms),
            }
            for call in session.calls
        ],
        "curve": thin(session.curve),
    }


def report(run: RunResult, settings: dict[str, Any]) -> dict[str, Any]:
    """Everything about a run, JSON-ready; curves are [[seconds, bytes], ...]."""
    return {
        "version": 1,
        "settings": settings,
        "figures": figures(run),
        "sessions": [session_report(session) for session in run.sessions],
        "curve": thin(run.curve),
    }


def _cell(value: Any, unit: str = "") -> str:
    return "-" if value is None else f"{value:g}{unit}" if isinstance(value, float) else f"{value}{unit}"


_COLUMNS = ("SESSION", "TIER", "PLANNED", "TOOK", "CALLS", "KILLED", "P50", "P95", "P99", "AGENT")


def session_table(sessions: Sequence[dict[str, Any]]) -> Table:
    """One row a session; latencies are of one chunk of 1 MiB."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in _COLUMNS:
        table.add_column(column, no_wrap=True)
    for session in sessions:
        outcomes = [call["outcome"] for call in session["calls"]]
        cells = (
            session["name"],
            session["tier"],
            _cell(session["planned_s"], " s"),
            _cell(session["done_s"], " s"),
            f"{outcomes.count('ok')}/{len(outcomes)}",
            outcomes.count("killed"),
            *(_cell(session["latency"][f"p{percent}_ms"], " ms") for percent in (50, 95, 99)),
            "killed" if session["agent_killed"] else "alive",
        )
        table.add_row(*map(plain, cells))
    return table


def summary(found: dict[str, Any]) -> str:
    """The run as a whole, in one line."""
    parts = [
        f"{found['done']} of {found['sessions']} sessions done in {found['seconds']:g} s",
        f"OOM kills {_cell(found['oom_kills'])}",
        f"agents killed {found['agents_killed']}",
        f"exec {_cell(found['exec_ms'], ' ms')}",
        f"work per GB s {_cell(found['work_per_gb_s'])}",
        f"fairness {_cell(found['fairness'])}",
    ]
    return ", ".join(parts)
