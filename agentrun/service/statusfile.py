"""What a long-running part of ours says of itself, in a file that is replaced as a whole: for `doctor`."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

from agentrun.base import fastjson, files


def write(path: str, said: Mapping[str, object]) -> None:
    """Say it, with our `pid` and `at`, the time (CLOCK_MONOTONIC, s). Raises OSError."""
    stamped = {**said, "pid": os.getpid(), "at": time.monotonic()}
    files.write_atomic(path, fastjson.dumps(stamped).encode("ascii"))


def read(path: str, limit: int) -> dict[str, Any] | None:
    """What was said last; None where nothing is there that can be read."""
    try:
        data = files.read_regular(path, limit)
        found = fastjson.loads(data) if data else None
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and isinstance(found.get("at"), (int, float)) else None
