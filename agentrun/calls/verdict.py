"""How a call ended, judged from what the kernel and agentrund saw; and whose doing that is. Pure.

All verdicts, levels and flags are here; what lists them elsewhere takes them from here.

| verdict | evidence |
|---|---|
| `oom-killed` | the kernel counted an OOM kill in the call's cgroup; never exit code 137 alone |
| `timed-out` | agentrund killed the call at its hard time limit |
| `stalled` | agentrund killed the call because it only waited for memory, and the policy said so |
| `killed` | the first process ended by a signal that is none of the above; `level` says by whom, if known |
| `refused` | it waited for memory before it started, and the policy refused it then |
| `ok`, `failed` | its exit code |
| None | its exit code was not seen (no agentrund, or a process shorter than it takes to look) |
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

VERDICTS = ("ok", "failed", "oom-killed", "timed-out", "stalled", "killed", "refused")
BY_LIMITS = ("oom-killed", "timed-out", "stalled")
KILLED = (*BY_LIMITS, "killed")
FLAGS = ("cpu-throttled", "memory-throttled", "slow", "stalled", "background", "waited")
# `level` is one of these two tables, each with the words for it: whose limit was hit, ...
LIMITS = {
    "call": "its own limit",
    "session": "the container's limit",
    "above": "a limit above it",
    "host": "the host's limit",
}
# ... or what killed the call (`killed_by`).
OPERATOR, ENGINE, CONTROLLER, CLIENT = "operator", "engine", "controller", "client"
KILLERS = {
    OPERATOR: "by agentrunctl",
    ENGINE: "with its container",
    CONTROLLER: "for a call of higher priority",
    CLIENT: "its client was gone",
}
LEVELS = {**LIMITS, **KILLERS}


def describe_status(status: int | None) -> dict[str, Any]:
    """`exit_code` as engines report it (128 + signal), and `signal` by name."""
    if status is None:
        return {"exit_code": None, "signal": None}
    number = status & 0x7F
    if number == 0:
        return {"exit_code": status >> 8 & 0xFF, "signal": None}
    import signal  # brings enum along, which the hot path cannot afford

    try:
        name = signal.Signals(number).name
    except ValueError:
        name = str(number)
    return {"exit_code": 128 + number, "signal": name}


def judge(record: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """The verdict of a measured call and its level: whose limit, or who ended it (operator, engine...)."""
    waited = record.get("waited") or {}
    if waited.get("outcome") == "refused":
        return "refused", waited.get("level")
    if _was_oom_killed(record):
        return "oom-killed", _oom_level(record)
    if record.get("timed_out"):
        return "timed-out", "call"
    stalled = record.get("stalled") or {}
    if stalled.get("action") == "kill":
        return "stalled", "call"
    if record.get("signal") is not None:
        return "killed", record.get("killed_by")
    code = record.get("exit_code")
    if code is None:
        return ("killed", record["killed_by"]) if record.get("killed_by") else (None, None)
    return ("ok" if code == 0 else "failed"), None


def flags(record: Mapping[str, Any]) -> list[str]:
    """What slowed a call down, however it ended."""
    found = []
    if record.get("cpu_throttled_us"):
        found.append("cpu-throttled")
    if _count(record, "memory_events", "high") > 0:
        found.append("memory-throttled")
    if record.get("slow"):
        found.append("slow")
    if record.get("stalled"):
        found.append("stalled")
    if record.get("background"):
        found.append("background")
    if record.get("waited"):
        found.append("waited")
    return found


def blame(record: Mapping[str, Any]) -> str | None:
    """Whose doing a call's end is: `agent`, `infrastructure`, `operator`, or None where it did not go wrong.

    A call that hit its own limits would do so again; one that died for the container's, the pod's or the
    host's memory says nothing about the agent. See docs/harness.md.
    """
    verdict, level = record.get("verdict"), record.get("level")
    if verdict in (None, "ok"):
        return None
    if verdict == "oom-killed":
        return "agent" if level == "call" else "infrastructure"
    if verdict == "refused":
        return "infrastructure"
    if verdict == "killed" and level in KILLERS:
        return "operator" if level == OPERATOR else "infrastructure"
    return "agent"


def _was_oom_killed(record: Mapping[str, Any]) -> bool:
    """By the count where there is one: the kernel also tells of a victim that was dying already."""
    if record.get("memory_events") is None:
        return record.get("oom") is not None
    return _count(record, "memory_events", "oom_kill") > 0


def _oom_level(record: Mapping[str, Any]) -> str:
    """Whose limit was hit: by the kernel's event, else by its counts.

    `oom` counts where the limit is, `oom_kill` where the victim was.
    `oom_before` and `oom_after` hold [the container's, those above it: a pod, a slice]. With none of them
    hit it was the machine that ran out.
    """
    told = (record.get("oom") or {}).get("level")
    if told is not None:
        return str(told)
    local = record.get("memory_events_local")
    own = _count(record, "memory_events_local", "oom") if local else _count(record, "memory_events", "oom")
    if own > 0:
        return "call"
    before, after = record.get("oom_before"), record.get("oom_after")
    if not before or not after:
        return "above"
    if after[0] > before[0]:
        return "session"
    return "above" if after[1] > before[1] else "host"


def _count(record: Mapping[str, Any], file: str, name: str) -> int:
    return int((record.get(file) or {}).get(name, 0))
