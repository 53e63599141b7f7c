"""The calls of this host, for programs: evaluation harnesses, dashboards, `agentrunctl` itself.

    from agentrun.client import Client, Query, blame

    client = Client()
    failed = client.calls(Query(container=container_id, verdict="failed"))
    record = client.wait(exec_id=docker_exec_id, timeout_s=60)
    if blame(record) == "infrastructure":
        retry()

Records are the plain dictionaries of docs/records.md. All of this needs root, as the engines do.
"""

from __future__ import annotations

import collections
import heapq
import os
import signal
import time
from collections.abc import Iterator, Mapping
from typing import Any

from agentrun.base import agentrund, fastjson
from agentrun.base.errors import AgentrunError, CallNotFoundError, StoreError
from agentrun.base.paths import Paths, host_paths
from agentrun.calls.session import open_all
from agentrun.calls.verdict import OPERATOR, VERDICTS, blame
from agentrun.cgroups.cgroup import Cgroup
from agentrun.kernel import killing as mrelease
from agentrun.kernel import processes
from agentrun.store import database, history
from agentrun.store.history import Row
from agentrun.store.query import Query, matches

__all__ = ("VERDICTS", "Client", "Query", "blame")

_POLL_S = 0.05
_FREED_S = 1.0  # a killed call of some GB gives them back within that


class Client:
    """The calls of a host."""

    def __init__(self, paths: Paths | None = None) -> None:
        self.paths = paths or host_paths()
        # Why the store could not be used for the last answer, which then comes from the journal.
        self.problems: list[str] = []

    def calls(self, query: Query | None = None) -> list[dict[str, Any]]:
        """The calls that are asked for (all without a query), by age; `end` is None for those that run.

        Raises AgentrunError.
        """
        return [fastjson.loads(text) for _, _, text in self.rows(query or Query())]

    def rows(self, query: Query) -> Iterator[Row]:
        """The same one by one, as (seq, id, JSON): for more than fit in memory. Raises AgentrunError."""
        self._harvest()
        # First those that run: one that ends meanwhile is then met twice, and not missed.
        live = [row for row in self._live() if matches(query, row)]
        running: list[Row] = sorted((None, str(row["id"]), fastjson.dumps(row)) for row in live)
        self.problems.clear()
        found = _merge(history.read(self.paths, query, self.problems), running)
        return found if query.last is None else iter(collections.deque(found, query.last))

    def newest(self) -> int | None:
        """The `seq` of the call that the store learned of last; None where it cannot be read or is empty."""
        try:
            with database.reading(self.paths) as connection:
                row = connection.execute("SELECT max(seq) FROM calls").fetchone() if connection else (None,)
        except StoreError as error:
            self.problems.append(str(error))
            return None
        return None if row[0] is None else int(row[0])

    def call(self, call_id: str | None = None, *, exec_id: str | None = None) -> dict[str, Any]:
        """The call whose id begins so, or that the engine knows by `exec_id`. Raises CallNotFoundError."""
        wanted = Query(id_prefix=call_id, exec_id=exec_id, last=2)
        found = self.calls(wanted) if call_id or exec_id else []
        if len(found) != 1:
            why = "no such call" if not found else "several begin so"
            raise CallNotFoundError(f"find call {call_id or exec_id!r}: {why}")
        return found[0]

    def retried_by(self, call_id: str) -> list[str]:
        """Ids of the calls that are retries of this one (`retry_of` in their records), by age."""
        return [str(row["id"]) for row in self.calls(Query(retry_of=call_id))]

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
        """Kill a running or waiting call, those of a container, or (neither given) all; returns their ids."""
        killed, dying = [], []
        for session in open_all(self.paths):
            killed += [
                str(state["id"])
                for state in session.waiting()
                if _is_wanted(state, call_id, container) and _end_waiting(state)
            ]
            for slot, state in session.states():
                cgroup = Cgroup(str(state.get("calls"))).child(slot)
                if not _is_wanted(state, call_id, container) or not cgroup.is_populated():
                    continue
                if session.note(slot, str(state["id"]), killed_by=OPERATOR):
                    dying.append(mrelease.kill(cgroup))
                    killed.append(str(state["id"]))
        for killing in dying:  # nobody waits for another's memory before he is killed himself
            killing.freed(_FREED_S)
        return killed

    def _harvest(self) -> None:
        if os.geteuid() != 0:
            raise AgentrunError("needs root, like the engines whose containers it looks at")
        if not agentrund.is_daemon_near(self.paths):  # it knows better when and how a call ended
            for session in open_all(self.paths):
                session.harvest(limit=1 << 16, wait=True)
                session.forget_if_gone()

    def _live(self) -> list[dict[str, Any]]:
        """States of calls that have not ended, with what the kernel says of them now."""
        live = []
        for session in open_all(self.paths):
            # First those that wait: one that starts meanwhile is then met twice, and not missed.
            nothing = dict.fromkeys(("slot", "cgroup", "memory_peak", "verdict", "end"))
            live += [{**waiting, **nothing} for waiting in session.waiting()]
            for slot, state in session.states():
                cgroup = Cgroup(str(state.get("calls"))).child(slot)
                measured = {"cgroup": cgroup.path, "memory_peak": cgroup.number("memory.peak")}
                live.append({**state, "slot": slot, **measured, "verdict": None, "end": None})
        return live


def _is_wanted(state: Mapping[str, Any], call_id: str | None, container: str | None) -> bool:
    return str(state.get("id")).startswith(call_id or "") and str(state.get("container")).startswith(
        container or ""
    )


def _end_waiting(state: Mapping[str, Any]) -> bool:
    """End the runtime that waits with a call; whether it still was there."""
    pidfd = processes.pidfd_of(*state["owner"])
    if pidfd is None:
        return False
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGTERM)
    except ProcessLookupError:
        return False
    finally:
        os.close(pidfd)
    return True


def _merge(finished: Iterator[Row], running: list[Row]) -> Iterator[Row]:
    """By id; of a call that ended while we looked, the record."""
    last_id = None
    for row in heapq.merge(finished, running, key=lambda row: row[1]):
        if row[1] != last_id:
            yield row
        last_id = row[1]
