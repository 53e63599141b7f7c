"""Kill calls whose client is gone: `docker exec` was killed, and the command would go on for nobody.

Nothing reaches the runtime or the container when a client goes away (docs/feedback.md), so the call has to
name it: `client=PID` in its intent, the process on the host that it is run for. What happens then is the
policy's to say (`on-disconnect`). A client that goes because the call's first process has ended is none that
went away: what is left then is for `background` to see to.
"""

from __future__ import annotations

import select
from typing import TYPE_CHECKING

from agentrun.base.procfs import start_ticks
from agentrun.calls.verdict import CLIENT
from agentrun.daemon.call import Call
from agentrun.daemon.part import Part
from agentrun.daemon.parts import deadlines
from agentrun.kernel import processes

if TYPE_CHECKING:
    from agentrun.daemon.daemon import Daemon

_NO_PIDFD_S = 1.0


class Disconnect(Part):
    """Watches the clients of calls that are not to outlive them."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon

    def began(self, call: Call) -> None:
        """Watch the call's client; one that went while no agentrund ran is gone at once."""
        client, care = call.state.get("client"), call.state.get("care")
        if isinstance(client, list) and isinstance(care, dict) and care.get("on_disconnect") == "kill":
            self._watch(call, *client)

    def _watch(self, call: Call, pid: int, ticks: int) -> None:
        pidfd = processes.pidfd_of(pid, ticks)
        if pidfd is not None:
            call.descriptors.append(pidfd)
            self.daemon.watch(pidfd, select.EPOLLIN, lambda _: self._gone(call, pidfd))
        elif start_ticks(pid) == ticks:  # no descriptor to be had: not a reason to kill anything
            call.timers.append(self.daemon.later(_NO_PIDFD_S, lambda: self._watch(call, pid, ticks)))
        else:  # after this turn, which finds the first process: killed before, it took its exit code along
            call.timers.append(self.daemon.later(0, lambda: self._kill(call)))

    def _gone(self, call: Call, pidfd: int) -> None:
        call.descriptors.remove(pidfd)
        self.daemon.drop(pidfd)
        # docker and podman end because their command has, and may be seen first.
        if call.main_pidfd is None or not processes.has_ended(call.main_pidfd):
            self._kill(call)

    def _kill(self, call: Call) -> None:
        def end() -> None:
            self.daemon.note(call, killed_by=CLIENT)
            deadlines.kill(self.daemon, call)

        deadlines.when_placed(self.daemon, call, end)
