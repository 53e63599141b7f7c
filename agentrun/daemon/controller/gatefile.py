"""Tell execs which gates are closed: `/run/agentrun/gate` is there only while one is."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from agentrun.base import fastjson, files, log
from agentrun.base.paths import Paths
from agentrun.daemon.controller.model import Gate

VALID_S = 3.0  # should agentrund hang, calls wait no longer than that
REFRESH_S = 1.0


class GateFile:
    """The file, written when a gate changes and once a second while one is closed."""

    def __init__(self, paths: Paths) -> None:
        self.paths = paths
        self._shown: list[tuple[str, Any]] | None = None
        self._written_at = float("-inf")
        self.remove()

    def publish(self, gates: Mapping[str, Gate], now: float) -> None:
        """Show the gates as they are; `now` is CLOCK_MONOTONIC. What fails leaves the gates open."""
        closed = sorted((key, gate.below) for key, gate in gates.items() if gate.is_closed)
        if not closed:
            if self._shown is not None:
                self.remove()
        elif closed != self._shown or now - self._written_at >= REFRESH_S:
            self._shown, self._written_at = closed, now
            entries = [{"domain": key, "below": below, "why": gates[key].why} for key, below in closed]
            try:
                files.write_atomic(
                    self.paths.gate, fastjson.dump_bytes({"until": now + VALID_S, "closed": entries})
                )
            except OSError as error:
                log.warn(self.paths, "gate not written", path=self.paths.gate, error=str(error))

    def remove(self) -> None:
        """Open all."""
        self._shown = None
        try:
            os.unlink(self.paths.gate)
        except FileNotFoundError:
            return
        except OSError as error:  # it is believed for seconds only
            log.warn(self.paths, "gate not removed", path=self.paths.gate, error=str(error))


def admits(policy: Mapping[str, Any]) -> bool:
    """Whether a compiled policy lets any call wait. Pure."""
    return any("admission" in tier for tier in policy["tiers"].values())
