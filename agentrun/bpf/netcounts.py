"""What agentrund takes from the network programs: the counters of a call.

They are there only while the module is loaded, come back when it is loaded later, and nothing depends on
them: without them a record has no `network`. It needs no capability: pins are opened by the owner of their
files, root (Linux 5.19, c8644cd0efe7).
"""

from __future__ import annotations

import ctypes
import os
from typing import Any

from agentrun.base.errors import BpfError
from agentrun.bpf import modules, pins, syscall, types

_COUNTS = "ar_net_counts"


class NetCounts:
    """The counters of calls, by the path of a call's cgroup: those of the module that is loaded now."""

    def __init__(self) -> None:
        self._identity: tuple[str, int] | None = None
        self._map: syscall.Map | None = None

    def _open(self) -> syscall.Map | None:
        module = modules.MODULES["net"]
        identity = modules.identity(module)
        if identity != self._identity:
            self.close()
            if identity is not None:
                self._map = pins.open_map(f"{module.directory}/{identity[0]}/map_{_COUNTS}", _COUNTS)
            self._identity = identity
        return self._map

    def read(self, cgroup: str) -> dict[str, int] | None:
        """`denied`, `tx_bytes`, `rx_bytes` of a call whose cgroup is still there; None where nobody counts.

        Zeros mean that it made no internet socket. Bytes include the heads of IP and transport. Of a call
        that nested cgroups of its own, only what was sent and received outside of them is counted.
        """
        try:
            counts = self._open()
            if counts is None:
                return None
            data = counts.lookup(syscall.id_key(os.stat(cgroup).st_ino))
        except (OSError, BpfError):
            return None
        found = types.NetCount.from_buffer_copy(data or bytes(ctypes.sizeof(types.NetCount)))
        return {"denied": found.denied, "tx_bytes": found.tx_bytes, "rx_bytes": found.rx_bytes}

    def note(self, cgroup: str, limits: dict[str, Any] | None) -> dict[str, Any]:
        """What to note in the state of a call that has ended: `network`, or nothing."""
        counts = self.read(cgroup)
        if counts is None:
            return {}
        return {"network": {"profile": (limits or {}).get("net") or "default", **counts}}

    def close(self) -> None:
        """Let go of the map."""
        if self._map is not None:
            self._map.close()
        self._map = self._identity = None
