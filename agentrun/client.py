"""The calls of this host, for programs: evaluation harnesses, dashboards, `agentrunctl` itself.

    from agentrun.client import Client, blame

    client = Client()
    record = client.wait(exec_id=docker_exec_id, timeout_s=60)
    if blame(record) == "infrastructure":
        retry()

Records are the plain dictionaries of docs/records.md. All of this needs root, as the engines do.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

from agentrun import calls, fastjson, log
from agentrun.cgroup import Cgroup
from agentrun.errors import AgentrunError, CallNotFoundError
from agentrun.paths import Paths, host_paths

VERDICTS = ("ok", "failed", "oom-killed", "timed-out", "killed")
_POLL_S = 0.05


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
    if verdict == "killed":
        return {"operator": "operator", "engine": "infrastructure", "controller": "infrastructure"}.get(
            str(level), "agent"
        )
    return "agent"


def select_calls(
    rows: list[dict[str, Any]],
    container: str | None = None,
    tier: str | None = None,
    verdict: str | None = None,
    since: float | None = None,
) -> list[dict[str, Any]]:
    """The rows that fit all that is given; `since` is in seconds since the epoch."""
    wanted = {"tier": tier, "verdict": verdict}
    return [
        row
        for row in rows
        if (container is None or str(row["container"]).startswith(container))
        and all(value is None or row.get(key) == value for key, value in wanted.items())
        and (since is None or (row.get("end") or time.time()) >= since)
    ]


class Client:
    """The calls of a host."""

    def __init__(self, paths: Paths | None = None) -> None:
        self.paths = paths or host_paths()

    def calls(self) -> list[dict[str, Any]]:
        """Every call that is known, by age; `end` is None for those that run. Raises AgentrunError."""
        if os.geteuid() != 0:
            raise AgentrunError("needs root, like the engines whose containers it looks at")
        if not calls.is_daemon_alive(self.paths):  # it knows better when and how a call ended
            for session in calls.open_all(self.paths):
                session.harvest(limit=1 << 16, wait=True)
                session.forget_if_gone()
        return sorted(self._records() + self._live(), key=lambda row: str(row["id"]))

    def call(self, call_id: str | None = None, *, exec_id: str | None = None) -> dict[str, Any]:
        """The call whose id begins so, or that the engine knows by `exec_id`. Raises CallNotFoundError."""
        found = [
            row
            for row in self.calls()
            if (call_id is not None and str(row["id"]).startswith(call_id))
            or (exec_id is not None and row.get("exec_id") == exec_id)
        ]
        if len(found) != 1:
            why = "no such call" if not found else "several begin so"
            raise CallNotFoundError(f"find call {call_id or exec_id!r}: {why}")
        return found[0]

    def wait(
        self, call_id: str | None = None, *, exec_id: str | None = None, timeout_s: float | None = None
    ) -> dict[str, Any]:
        """The record of a call, once it has ended. Raises CallNotFoundError, TimeoutError."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while (row := self.call(call_id, exec_id=exec_id))["end"] is None:
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError(f"call {row['id']} still runs")
            time.sleep(_POLL_S)
        return row

    def kill(self, call_id: str | None = None, container: str | None = None) -> list[str]:
        """Kill a running call, those of a container, or (neither given) all; returns their ids."""
        killed = []
        for session in calls.open_all(self.paths):
            for slot in session.slots():
                state = session.read(slot) or {}
                wanted = str(state.get("id")).startswith(call_id or "")
                wanted &= str(state.get("container")).startswith(container or "")
                cgroup = Cgroup(str(state.get("calls"))).child(slot)
                if not wanted or not cgroup.is_populated():
                    continue
                if session.note(slot, str(state["id"]), killed_by="operator"):
                    cgroup.write("cgroup.kill", "1")
                    killed.append(str(state["id"]))
        return killed

    def _records(self) -> list[dict[str, Any]]:
        """Records of finished calls. A call recorded twice (after a crash) counts once."""
        found: dict[str, dict[str, Any]] = {}
        for path in (self.paths.records + ".1", self.paths.records):
            try:
                with open(path, encoding="utf-8") as file:
                    lines = file.readlines()
            except FileNotFoundError:
                continue
            for number, line in enumerate(lines, 1):
                try:
                    record = fastjson.loads(line)
                    found.setdefault(str(record["id"]), record)
                except (ValueError, KeyError, TypeError):
                    log.warn(self.paths, "damaged record passed over", path=path, line=number)
        return list(found.values())

    def _live(self) -> list[dict[str, Any]]:
        """States of calls that have not ended, with what the kernel says of them now."""
        live = []
        for session in calls.open_all(self.paths):
            for slot in session.slots():
                state = session.read(slot)
                if state is not None:
                    cgroup = Cgroup(str(state.get("calls"))).child(slot)
                    measured = {"cgroup": cgroup.path, "memory_peak": cgroup.number("memory.peak")}
                    live.append({**state, "slot": slot, **measured, "verdict": None, "end": None})
        return live
