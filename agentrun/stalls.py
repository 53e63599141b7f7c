"""Look at live calls now and then: is one slowed down by its limits, or does it only wait for memory?

A call at its memory.high or its cpu.max gets on slowly; one that thrashes may not get on at all, for hours.
Pressure stall information (PSI) of the call's own cgroup tells how long all its processes waited at once.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from agentrun import deadlines, records
from agentrun.live import Call, Part
from agentrun.teller import Teller

if TYPE_CHECKING:
    from agentrun.daemon import Daemon

_LOOK_S = 2.0
_WINDOW_S = 30.0  # what the policy does not say
_SHARE = 80.0  # percent
_LOOKS_IN_WINDOW = 6


@dataclass(slots=True)
class Window:
    """How long a call waited for memory, as (monotonic seconds, microseconds of `full` in all)."""

    seconds: float
    samples: deque[tuple[float, int]] = field(default_factory=deque)

    def add(self, now: float, full_us: int) -> float | None:
        """Add a sample; the percentage of the window that was waited, None before a window has passed."""
        self.samples.append((now, full_us))
        while len(self.samples) > 2 and self.samples[1][0] <= now - self.seconds:
            self.samples.popleft()
        began, before = self.samples[0]
        if now - began < self.seconds:
            return None
        return min(100.0, (full_us - before) / (now - began) / 1e4)


class Stalls(Part):
    """Looks at every live call that has limits which could slow it down."""

    def __init__(self, daemon: Daemon, teller: Teller) -> None:
        self.daemon = daemon
        self.teller = teller

    def began(self, call: Call) -> None:
        """Look again and again, as often as the policy's window needs, until the call is over."""
        if not {"memory", "memory_high", "cpu"} & {name for name, value in call.limits.items() if value}:
            return
        rule = _rule(call)
        window = Window(float(rule.get("time", _WINDOW_S)))
        every = min(_LOOK_S, window.seconds / _LOOKS_IN_WINDOW)
        is_done = [not rule]  # tells of a stall once

        def look() -> None:
            if call.over:
                return
            if not is_done[0]:
                is_done[0] = self._watch_stall(call, window, rule)
            if not self.teller.is_told(call, "throttled") and not call.over:
                self.teller.look(call)
            call.timers = [timer for timer in call.timers if timer.action is not None]
            call.timers.append(self.daemon.later(every, look))

        call.timers.append(self.daemon.later(every, look))

    def _watch_stall(self, call: Call, window: Window, rule: dict[str, Any]) -> bool:
        """Whether the call stalled, and what had to be done about that was done."""
        full = (records.stalled_us(call.cgroup, "memory") or {}).get("full")
        if full is None:
            return False
        share = window.add(time.monotonic(), full)
        if share is None or share < float(rule.get("share", _SHARE)):
            return False
        action = str(rule.get("action", "tell"))
        noted = {"share": round(share), "seconds": window.seconds, "action": action, "at": time.time()}
        self.daemon.note(call, stalled=noted)
        if action == "kill":
            self.teller.tell(call, "stalled", lambda: deadlines.kill(self.daemon, call))
        else:
            self.teller.tell(call, "stalled")
        return True


def _rule(call: Call) -> dict[str, Any]:
    """What the policy says about calls that stall; empty where it says nothing."""
    care = call.state.get("care")
    return (care.get("stall") or {}) if isinstance(care, dict) else {}
