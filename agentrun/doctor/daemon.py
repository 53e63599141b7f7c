"""agentrund: what it says of itself."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from agentrun.base import agentrund
from agentrun.base.paths import Paths
from agentrun.daemon import status as daemonstatus
from agentrun.doctor.finding import Finding


def daemon(paths: Paths) -> Iterator[Finding]:
    """Whether agentrund runs and works."""
    if not agentrund.is_daemon_alive(paths):
        text = "does not run: no exit codes, no time limits (systemctl enable --now agentrund)"
        yield Finding("note", "agentrund", text)
        return
    yield from daemon_findings(daemonstatus.read(paths), time.monotonic())


def daemon_findings(status: dict[str, Any] | None, now_s: float) -> Iterator[Finding]:
    """What agentrund, which runs, says of itself (`daemon.status.read`). Pure; `now_s` by CLOCK_MONOTONIC."""
    if status is None:
        yield Finding("note", "agentrund", "runs, but says nothing of itself (systemctl restart agentrund)")
        return
    age = now_s - status["at"]
    if age > daemonstatus.STALE_S:
        text = (
            f"its loop has not turned for {age:.0f} s: nothing is seen or told (systemctl restart agentrund)"
        )
        yield Finding("problem", "agentrund", text)
        return
    yield Finding("ok", "agentrund", f"runs (pid {status.get('pid')})")
    keeper = status.get("keeper") or {}
    heard_s = keeper.get("heard_s")
    if keeper.get("pid") is None:
        yield Finding("problem", "agentrund: keeper", "does not run: no feedback")
    elif heard_s is None or heard_s > daemonstatus.STALE_S:
        is_new = heard_s is None and status.get("up_s", 0) < daemonstatus.STALE_S
        text = f"pid {keeper['pid']} has not answered{' yet' if is_new else ': no feedback'}"
        yield Finding("note" if is_new else "problem", "agentrund: keeper", text)
    else:
        yield Finding("ok", "agentrund: keeper", f"answers (pid {keeper['pid']})")
    scheduler = status.get("scheduler") or {}
    if scheduler.get("ejections"):
        next_s = scheduler.get("next_s")
        then = "" if next_s is None else f"; it is loaded again in {next_s:.0f} s"
        text = (
            f"ejected {scheduler['ejections']} times since agentrund started, the last: {scheduler['last']}"
        )
        yield Finding("note", "agentrund: scheduler", text + then)
    events = status.get("events") or {}
    if events.get("problem"):
        yield Finding("problem", "agentrund: events", str(events["problem"]))
    elif events.get("is_read"):
        yield Finding(
            "ok", "agentrund: events", f"reads the kernel's events; OOM kills seen: {events['kills']}"
        )
    else:
        yield Finding("note", "agentrund: events", "none are read: OOM kills are only counted")
    yield _proc_events_finding(status.get("proc_events") or {})


def _proc_events_finding(said: dict[str, Any]) -> Finding:
    what = "agentrund: processes"
    if not said.get("is_listening"):
        text = "the kernel does not tell of them (CONFIG_PROC_EVENTS): short calls may have no exit code"
        return Finding("note", what, text)
    if lost := said.get("lost"):
        return Finding(
            "note", what, f"more than its queue holds, {lost} times: short calls may have no exit code"
        )
    return Finding("ok", what, "the kernel tells of all")
