"""The names of a record's fields, by source, in the order in which a record has them.

`store.spec` has the type, unit and meaning of each: texts would cost every tool call their reading.
"""

from __future__ import annotations

# Which call it is.
IDENTITY = ("version", "id", "container", "root", "backend", "exec_id", "slot", "cgroup", "command")
# Decided before its start.
PLANNED = (
    "mode", "policy", "session", "tier", "class", "rank", "rule", "intent", "limits", "ceilings", "reasons",
    "not_enforced", "waited",
)  # fmt: skip
# Kept in its state while it ran: by the runtime, which starts it, and by agentrund. `retry_of` by the store.
NOTED = (
    "start", "end", "end_is", "exit_code", "signal", "timed_out", "slow", "stalled", "killed_by",
    "background", "adapted", "feedback", "network", "oom", "image", "learned", "retry_of",
)  # fmt: skip
# Read from the kernel.
MEASURED = (
    "oom_before", "oom_after", "memory_peak", "memory_events", "memory_events_local", "cpu_usage_us",
    "cpu_user_us", "cpu_system_us", "cpu_throttled_us", "pids_peak", "pressure",
)  # fmt: skip
# Concluded from all of these.
JUDGED = ("verdict", "level", "flags")
