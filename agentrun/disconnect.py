"""Kill calls whose client is gone: `docker exec` was killed, and the command would go on for nobody.

Nothing reaches the runtime or the container when a client goes away (docs/feedback.md), so the call has to
name it: `client=PID` in its intent, the process on the host that it is run for. What happens then is the
policy's to say (`on-disconnect`). A client that goes because the call's first process has ended is none that
went away: what is left then is for `background` to see to.
"""

from __future__ import annotations

import select
from typing import TYPE_CHECKING

from agentrun import deadlines, processes
from agentrun.container import start_ticks
from agentrun.live import Call, Part

if TYPE_CHECKING:
    from agentrun.daemon import Daemon

KILLED_BY = "client"
_AGAIN_S = 0.05
_NO_PIDFD_S = 1.0


def _has_ended(pidfd: int) -> bool:
    """A pidfd is readable once its process has ended, reaped or not."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


class Disconnect(Part):
    """Watches the clients of calls that are not to outlive them."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self._watched: dict[str, int] = {}

    def began(self, call: Call) -> None:
        """Watch the call's client; one that went while no agentrund ran is gone at once."""
        client, care = call.state.get("client"), call.state.get("care")
        if isinstance(client, list) and isinstance(care, dict) and care.get("on_disconnect") == "kill":
            self._watch(call, *client)

    def _watch(self, call: Call, pid: int, ticks: int) -> None:
        pidfd = processes.pidfd_of(pid, ticks)
        if pidfd is not None:
            self._watched[call.id] = pidfd
            self.daemon.watch(pidfd, select.EPOLLIN, lambda _: self._gone(call))
        elif start_ticks(pid) == ticks:  # no descriptor to be had: not a reason to kill anything
            call.timers.append(self.daemon.later(_NO_PIDFD_S, lambda: self._watch(call, pid, ticks)))
        else:
            self._kill(call)

    def _gone(self, call: Call) -> None:
        self._forget(call)
        if call.main_pidfd is not None and _has_ended(call.main_pidfd):
            return  # docker and podman end a moment after their command, and may be seen first
        self._kill(call)

    def _forget(self, call: Call) -> None:
        pidfd = self._watched.pop(call.id, None)
        if pidfd is not None:
            self.daemon.drop(pidfd)

    def main_ended(self, call: Call) -> None:
        """The client has what it waited for."""
        self._forget(call)

    def ended(self, call: Call) -> None:
        """Nothing is left to kill."""
        self._forget(call)

    def _kill(self, call: Call) -> None:
        if call.over:
            return
        if not call.cgroup.is_populated():  # the runtime has not placed its process yet
            call.timers.append(self.daemon.later(_AGAIN_S, lambda: self._kill(call)))
            return
        self.daemon.note(call, killed_by=KILLED_BY)
        deadlines.kill(self.daemon, call)
