"""What agentrund knows of a live call, and what a part of agentrund is told about it."""

from __future__ import annotations

from agentrun.daemon.call import Call


class Part:
    """A part of agentrund that does something about calls. All of it is optional, and none may block."""

    def began(self, call: Call) -> None:
        """A call is watched from now on: a new one, or a live one after a restart."""

    def main_found(self, call: Call) -> None:
        """`call.main_pidfd` is known from now on."""

    def populated(self, call: Call) -> None:
        """The call's cgroup was looked at and has processes (may come again and again)."""

    def main_ended(self, call: Call) -> None:
        """The call's first process has ended; others of the call may live."""

    def is_done(self, call: Call) -> bool:
        """All of it has ended; whether its record may be written now. Who says no says yes soon."""
        return True

    def ended(self, call: Call) -> None:
        """The call is watched no more."""
