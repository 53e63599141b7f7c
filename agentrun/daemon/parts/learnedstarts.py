"""Where a call's memory.high begins when nobody said what it needs: at what calls like it used.

Only where the policy says so (`memory: {learned: true}` in its class), and never as a limit that kills: the
controller sets it and raises it while the call is slowed down, as it does any soft limit. Here is only looked
up what is known. That is read from the store by the ingester's thread, once in a while; no exec and no event
waits for it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from agentrun.base import log
from agentrun.base.errors import AgentrunError
from agentrun.base.paths import Paths
from agentrun.daemon.call import Call, rank_of
from agentrun.daemon.part import Part
from agentrun.decision import inforce
from agentrun.learning.usage import Kind, Usage, start_of, usages

if TYPE_CHECKING:
    from agentrun.daemon.daemon import Daemon

_EVERY_S = 60.0
_SINCE_S = 14 * 86400.0
_ROWS = 5000


class Starts(Part):
    """Notes in a call's state where its memory.high begins (`learned`); the controller does the rest."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.known: Mapping[Kind, Usage] = {}
        self._read_at = float("-inf")
        self._problem = ""
        daemon.ingester.after.append(self.refresh)

    def began(self, call: Call) -> None:
        """Note what is known, for a call that is new and takes part in what the controller does."""
        care = call.state.get("care")
        is_wanted = isinstance(care, dict) and care.get("learned") and rank_of(call.state) is not None
        if not is_wanted or call.state.get("learned") is not None:
            return
        command = call.state.get("command")
        family = command.get("family") if isinstance(command, dict) else None
        usage = self.known.get(Kind(str(call.state.get("image") or ""), str(family)))
        high = None if usage is None else start_of(usage, call.limits.get("memory"))
        if usage is not None and high is not None:
            found: dict[str, Any] = {"memory_high": high, "calls": usage.calls, "peak_p95": usage.memory.p95}
            self.daemon.note(call, learned=found)

    def refresh(self) -> None:
        """Read again what calls used, where a class wants it. Called in the ingester's thread."""
        paths, now = self.daemon.paths, time.monotonic()
        if now - self._read_at < _EVERY_S or not _is_wanted(paths):
            return
        self._read_at = now
        from agentrun.learning import samples  # SQLite: see Ingester

        try:
            newest = samples.samples(paths, time.time() - _SINCE_S, _ROWS)
        except AgentrunError as error:
            if str(error) != self._problem:
                log.warn(paths, "what calls used cannot be read", error=str(error))
            self._problem = str(error)
            return
        self._problem = ""
        self.known = {usage.kind: usage for usage in usages(newest)}


def _is_wanted(paths: Paths) -> bool:
    classes = inforce.load(paths).policy["classes"]
    return any(klass.get("memory", {}).get("learned") for klass in classes.values())
