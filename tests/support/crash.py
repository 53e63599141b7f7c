"""Processes that die in the middle of something."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable


def in_child(work: Callable[[], object]) -> int:
    """Run something in a process of its own; returns its exit status."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:  # nothing of pytest may go on in a child
            os._exit(99)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def die_at_line(number: int, *modules: object) -> None:
    """Let this process be gone, as with SIGKILL, before the given line that it runs of some modules."""
    files = {module.__file__ for module in modules}  # type: ignore[attr-defined]
    left = number

    def trace(frame, event, _):
        nonlocal left
        if frame.f_code.co_filename not in files:
            return None
        if event == "line":
            left -= 1
            if left < 0:
                os._exit(9)
        return trace

    sys.settrace(trace)
