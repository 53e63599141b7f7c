"""Have OOM victims wait on their way out until their call was told why it dies.

The waiting itself is in bpf/events.bpf.c.

A victim waits for its listener's `hold_ms` at most, and not at all for a listener that has not said for some
seconds that it is there. So nothing is lost when agentrund dies, is stopped, or is late.
"""

from __future__ import annotations

import sys
import time

from agentrun.base.errors import BpfError
from agentrun.bpf import pins, syscall, types

_LISTENER = (0).to_bytes(4, sys.byteorder)
_TOLD = bytes(8)


class OomHold:
    """The two maps that agentrund and the programs share. A write that fails costs a wait, nothing else."""

    def __init__(self, listener: syscall.Map, held: syscall.Map) -> None:
        self._listener = listener
        self._held = held
        self.problem: str | None = None

    def listen(self, hold_ms: int, seconds: float) -> None:
        """For so long from now, victims wait for `hold_ms` at most to be let go of; 0: they do not wait."""
        until = time.clock_gettime_ns(time.CLOCK_BOOTTIME) + int(seconds * 1e9)
        self._write(self._listener, _LISTENER, bytes(types.Listener(until_ns=until, hold_ms=hold_ms)))

    def let_go(self, call: int) -> None:
        """Victims of the call with this cgroup id go on; they will not wait again."""
        self._write(self._held, syscall.id_key(call), _TOLD)

    def forget(self, call: int) -> None:
        """The call is over."""
        try:
            self._held.delete(syscall.id_key(call))
        except BpfError as error:
            self.problem = str(error)

    def _write(self, table: syscall.Map, key: bytes, value: bytes) -> None:
        try:
            table.update(key, value)
        except BpfError as error:
            self.problem = str(error)

    def close(self) -> None:
        """Nobody listens any more."""
        self._write(self._listener, _LISTENER, bytes(types.Listener()))
        self._listener.close()
        self._held.close()


def open_hold() -> OomHold | None:
    """Open the pinned maps, checked; None where the loaded version has none. Raises BpfError."""
    try:
        listener = pins.open_map(f"{pins.SHARED}/ar_listener", "ar_listener")
    except BpfError as error:
        if syscall.is_missing(error):
            return None
        raise
    try:
        return OomHold(listener, pins.open_map(f"{pins.SHARED}/ar_held", "ar_held"))
    except BpfError:
        listener.close()
        raise
