"""Look at live calls now and then: is one slowed down by its limits, or does it only wait for memory?

A call at its memory.high or its cpu.max gets on slowly; one that thrashes may not get on at all, for hours.
Pressure stall information (PSI) of the call's own cgroup tells how long all its processes waited at once.

Most calls are idle, and there may be hundreds. So a look costs a few reads of descriptors that stay open;
only where these say something new is the whole record made, to see whether that is worth telling. And looks
at several calls fall together: to be woken costs more than to look.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from agentrun.daemon.call import Call
from agentrun.daemon.controller.snapshot import Files
from agentrun.daemon.part import Part
from agentrun.daemon.parts import deadlines
from agentrun.daemon.parts.teller import Teller
from agentrun.feedback.text import SECONDS

if TYPE_CHECKING:
    from agentrun.daemon.daemon import Daemon

_LOOK_S = 2.0
_WINDOW_S = 30.0  # what the policy does not say
_SHARE = 80.0  # percent
_LOOKS_IN_WINDOW = 6
_GRID_S = 0.25  # looks at all calls fall on multiples of it


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


class Signs:
    """What a call that is slowed down shows, by the few reads that cost least.

    `waited_us` is how long all, and some, of its processes waited for memory at the last look.
    """

    def __init__(self, files: Files) -> None:
        self.files = files
        self.waited_us: dict[str, int] = {}
        self._before: tuple[int, int, int] = (0, 0, 0)

    def look(self) -> None:
        """Read how long it waited for memory."""
        self.waited_us = {who: total for who, (_, total) in self.files.pressure("memory").items()}

    def is_news(self, denied: int) -> bool:
        """Whether anything is worth a closer look, since the last one that was.

        Waits that are too short in all to be told of are not. `denied`: attempts that the network denied.
        """
        least = SECONDS * 1e6
        throttled = self.files.count("cpu.stat", b"throttled_usec")
        waits = (throttled, self.waited_us.get("some", 0))
        now = (*(wait if wait >= least else 0 for wait in waits), denied)
        is_news = now != self._before
        self._before = (now[0], now[1], now[2])
        return is_news


def until_look(every: float, now: float) -> float:
    """Seconds until the next look on the grid, `every` seconds from now or a little less."""
    due = max(1, int((now + every) / _GRID_S + 1e-6)) * _GRID_S
    return due - now if due > now else every


class Stalls(Part):
    """Looks at every live call that has limits which could slow it down."""

    def __init__(self, daemon: Daemon, teller: Teller) -> None:
        self.daemon = daemon
        self.teller = teller
        self._signs: dict[str, Signs] = {}

    def began(self, call: Call) -> None:
        """Look again and again, as often as the policy's window needs, until the call is over."""
        if not {"memory", "memory_high", "cpu"} & {name for name, value in call.limits.items() if value}:
            return
        rule = _rule(call)
        window = Window(float(rule.get("time", _WINDOW_S)))
        every = min(_LOOK_S, window.seconds / _LOOKS_IN_WINDOW)
        is_done = [not rule]  # tells of a stall once
        signs = self._signs[call.id] = Signs(Files(call.cgroup.path))

        def look() -> None:
            if call.over:
                return
            signs.look()
            if not is_done[0]:
                is_done[0] = self._watch_stall(call, window, rule, signs)
            if not call.over and not self.teller.is_told(call, "throttled"):
                self._tell_news(call, signs)
            call.timers = [timer for timer in call.timers if timer.action is not None]
            plan()

        def plan() -> None:
            call.timers.append(self.daemon.later(until_look(every, time.monotonic()), look))

        plan()

    def ended(self, call: Call) -> None:
        """Let go of its files."""
        signs = self._signs.pop(call.id, None)
        if signs is not None:
            signs.files.close()

    def _tell_news(self, call: Call, signs: Signs) -> None:
        """Look closely where the signs are new. Only a call with a network profile is denied anything."""
        network = self.daemon.network_of(call).get("network") if call.limits.get("net") else None
        if signs.is_news((network or {}).get("denied", 0)):
            self.teller.look(call)

    def _watch_stall(self, call: Call, window: Window, rule: dict[str, Any], signs: Signs) -> bool:
        """Whether the call stalled, and what had to be done about that was done."""
        full = signs.waited_us.get("full")
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
