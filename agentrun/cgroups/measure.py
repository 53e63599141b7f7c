"""What a cgroup says of what was used in it."""

from __future__ import annotations

from agentrun.cgroups.cgroup import Cgroup, parse_pressure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def measure_memory(call: Cgroup) -> dict[str, Any]:
    """What says of its memory how it ended."""
    return {
        "memory_peak": call.number("memory.peak"),
        "memory_events": call.pairs("memory.events"),
        "memory_events_local": call.pairs("memory.events.local"),
    }


def measure_all(call: Cgroup) -> dict[str, Any]:
    """All that its record will have."""
    cpu = call.pairs("cpu.stat") or {}
    return {
        **measure_memory(call),
        "cpu_usage_us": cpu.get("usage_usec"),
        "cpu_user_us": cpu.get("user_usec"),
        "cpu_system_us": cpu.get("system_usec"),
        "cpu_throttled_us": cpu.get("throttled_usec"),
        "pids_peak": call.number("pids.peak"),
        "pressure": {kind: stalled_us(call, kind) for kind in ("memory", "cpu", "io")},
    }


def stalled_us(call: Cgroup, kind: str) -> dict[str, int] | None:
    """Microseconds in which some, and all, of a call's processes waited for `memory`, `cpu` or `io` (PSI).

    None where the kernel does not tell.
    """
    pressure = parse_pressure(call.read(f"{kind}.pressure") or "")
    return {who: total for who, (_, total) in pressure.items()} or None
