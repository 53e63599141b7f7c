"""Time limits of calls: a soft one is noted, a hard one kills the call with all that it started."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

from agentrun.base import log
from agentrun.base.errors import CgroupError
from agentrun.daemon.call import Call
from agentrun.daemon.part import Part
from agentrun.daemon.parts.teller import Teller
from agentrun.kernel import killing

if TYPE_CHECKING:
    from agentrun.daemon.daemon import Daemon


_AGAIN_S = 0.05


class Deadlines(Part):
    """Keeps the time limits of every live call."""

    def __init__(self, daemon: Daemon, teller: Teller) -> None:
        self.daemon = daemon
        self.teller = teller

    def began(self, call: Call) -> None:
        """Set what is left of the call's limits; one that passed while no daemon ran is due at once."""
        for name, action in (("time_soft", self._soft_limit), ("time_hard", self._hard_limit)):
            seconds = call.limits.get(name)
            if isinstance(seconds, (int, float)):
                due = functools.partial(action, call, seconds)
                call.timers.append(self.daemon.later(max(0.0, seconds - call.ran()), due))

    def _soft_limit(self, call: Call, seconds: float) -> None:
        if not call.over:
            self.daemon.note(call, slow=seconds)
            self.teller.tell(call, "slow")

    def _hard_limit(self, call: Call, seconds: float) -> None:
        def end() -> None:
            self.daemon.note(call, timed_out=seconds)
            self.teller.tell(call, "timed-out", functools.partial(kill, self.daemon, call))

        when_placed(self.daemon, call, end)


def when_placed(daemon: Daemon, call: Call, action: Callable[[], None]) -> None:
    """Do it to a live call once it has a process: on a busy host its runtime may be late to place one."""
    if call.over:
        return
    if call.cgroup.is_populated():
        action()
    else:
        again = functools.partial(when_placed, daemon, call, action)
        call.timers.append(daemon.later(_AGAIN_S, again))


def kill(daemon: Daemon, call: Call) -> None:
    """Kill the whole tree: cgroup.kill reaches what setsid, a double fork or SIGSTOP would hide."""
    if call.over:
        return  # and the slot may be another call's by now
    try:
        killing.kill(call.cgroup)
    except CgroupError as error:
        log.warn(daemon.paths, "call not killed", call=call.id, error=str(error))
