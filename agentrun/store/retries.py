"""Which call is a retry of which: the same command again in its container, soon after limits ended it. Pure.

Decided when a record is taken into the store (`ingest`), where the earlier one is: no exec waits for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agentrun.calls.verdict import BY_LIMITS

WITHIN_S = 1800.0  # from the end of the earlier call to the start of the later one
_CLOCK_S = 1.0  # the engine may tell its client of the end before that is noted here


def was_limited(record: Mapping[str, Any]) -> bool:
    """Whether a call ended badly for its limits: killed by them, or slowed down by them and then not well.

    One that was slowed down and ended well needs no retry: its next run is just the next run. Nor does it say
    much that a call was slowed down where its memory.high began at a learned value: that is raised at once.
    """
    verdict, flags = record.get("verdict"), record.get("flags")
    if verdict in BY_LIMITS:
        return True
    if verdict == "ok" or not isinstance(flags, list):
        return False
    return "stalled" in flags or ("memory-throttled" in flags and not record.get("learned"))


def is_retry(later: Mapping[str, Any], earlier: Mapping[str, Any]) -> bool:
    """Whether `later` is a retry of `earlier`, the latest call before it of that command and container."""
    start, end = later.get("start"), earlier.get("end")
    if not isinstance(start, (int, float)) or not isinstance(end, (int, float)):
        return False
    return was_limited(earlier) and -_CLOCK_S <= start - end <= WITHIN_S
