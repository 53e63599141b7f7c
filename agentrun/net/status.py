"""What the keeper of rates says: `/run/agentrun/net.json`, for agentrund, `doctor` and nobody else.

It is true for as long as the containers live: rates stay in the kernel when the keeper is gone.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from agentrun.base.paths import Paths
from agentrun.net.look import Network
from agentrun.service import statusfile

EVERY_S = 10.0
STALE_S = 45.0
_SIZE_LIMIT = 16 << 20


def path_of(paths: Paths) -> str:
    """Where the file is."""
    return f"{paths.run}/net.json"


def describe(networks: Iterable[Network]) -> dict[str, Any]:
    """What each session that is to have a rate has, by its directory."""
    return {
        session.where: {
            "tier": session.tier,
            "rates": dict(session.rates.items()),
            "enforced": not network.why,
            "why": network.why,
        }
        for network in networks
        for session in network.sessions
        if session.rates
    }


def write(paths: Paths, sessions: dict[str, Any], problem: str) -> None:
    """Say it. `problem` is why nothing could be looked at, or empty. Raises OSError."""
    statusfile.write(path_of(paths), {"problem": problem, "sessions": sessions})


def read(paths: Paths) -> dict[str, Any]:
    """What was said last: `at` (CLOCK_MONOTONIC, s), `pid`, `problem`, `sessions`; else empty."""
    found = statusfile.read(path_of(paths), _SIZE_LIMIT)
    return found if found is not None and isinstance(found.get("sessions"), dict) else {}


def holds(said: dict[str, Any], where: str) -> bool:
    """Whether the rates of a session were in force when the keeper looked last."""
    entry = said.get("sessions", {}).get(where)
    return isinstance(entry, dict) and entry.get("enforced") is True
