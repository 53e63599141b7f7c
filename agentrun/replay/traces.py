"""Traces of agents at work: how much memory and CPU a container used, and when its tool calls ran.

The form (one JSON object a file) is that of docs/replay.md:

    name         text
    samples      [[seconds, bytes, cpu percent], ...] by time; the third number is optional
    cpu_inst_pct optional, as long as samples: CPU of the time since the sample before (100 = one core).
                 Without it, it is derived from the third number, which is what `podman stats --no-stream`
                 says: the mean since the container's start
    tool_calls   [{"tool": "Bash", "start_s": 1.5, "end_s": 3.0 or null, "command_head": "pytest"}, ...]

Other keys are kept out and do no harm. What is wrong is a TraceError that names the file and the place.
"""

from __future__ import annotations

import hashlib
import json
import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from agentrun.base.errors import AgentrunError

_SIZE_LIMIT = 64 << 20
_SAMPLES_LIMIT = 200_000
_MARGIN_S = 0.5  # before the first call and after the last one of a trace that is made from records
_SHORTEST_S = 0.001
# Tools that the agent runs itself, inside its own process. Everything else is a command: an exec.
_OWN_TOOLS = frozenset(("Read", "Write", "Edit", "MultiEdit", "Glob", "Grep", "LS", "TodoWrite", "Task"))


class TraceError(AgentrunError):
    """A trace cannot be read; the text names the file and the place."""


@dataclass(frozen=True, slots=True)
class Sample:
    """The container's use at `t` (seconds): bytes, and CPUs busy since the sample before (1.0 = one core)."""

    t: float
    memory: float
    cpus: float


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One command that the agent ran, in seconds of the trace."""

    start: float
    end: float
    command: str


@dataclass(frozen=True, slots=True)
class Trace:
    """One session; `calls` are commands only, by start. `digest` is of the content that is replayed.

    Samples that were taken now and then may show a call's memory as late as one interval after its end; none
    does in a trace that `is_exact`.
    """

    name: str
    samples: tuple[Sample, ...]
    calls: tuple[ToolCall, ...]
    is_exact: bool = False

    @property
    def duration(self) -> float:
        """Seconds from the first sample to the last."""
        return self.samples[-1].t - self.samples[0].t

    @property
    def lag(self) -> float:
        """How long after a call's end a sample may still show it, in seconds."""
        return 0.0 if self.is_exact else self.duration / (len(self.samples) - 1)

    @property
    def peak(self) -> float:
        """Most memory that any sample shows, in bytes."""
        return max(sample.memory for sample in self.samples)

    @property
    def mean(self) -> float:
        """Mean of the samples' memory, in bytes."""
        return sum(sample.memory for sample in self.samples) / len(self.samples)

    @property
    def mean_cpus(self) -> float:
        """CPUs busy on average."""
        return cpu_seconds(self) / self.duration

    def digest(self) -> str:
        """16 hex digits that change with anything that is replayed."""
        return hashlib.sha256(repr((self.samples, self.calls)).encode()).hexdigest()[:16]


def cpu_seconds(trace: Trace) -> float:
    """CPU time of the whole trace in seconds."""
    return sum((after.t - before.t) * after.cpus for before, after in pairwise(trace.samples))


def read_trace(path: Path) -> Trace:
    """Read one file. Raises TraceError."""
    try:
        if path.stat().st_size > _SIZE_LIMIT:
            raise TraceError(f"read trace {str(path)!r}: larger than {_SIZE_LIMIT >> 20} MiB")
        document = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise TraceError(f"read trace {str(path)!r}: {error}") from error
    return parse_trace(document, str(path))


def read_folder(folder: Path) -> list[Trace]:
    """Every trace of a folder (`*.json`), by name. Raises TraceError where there is none."""
    traces = [read_trace(path) for path in sorted(folder.glob("*.json"))]
    if not traces:
        raise TraceError(f"read traces {str(folder)!r}: no *.json there")
    return traces


def parse_trace(document: Any, where: str) -> Trace:
    """The trace in a decoded document; `where` is for messages. Raises TraceError."""
    if not isinstance(document, Mapping):
        raise TraceError(f"read trace {where!r}: not an object")
    for key, kind in (("name", str), ("samples", list), ("tool_calls", list)):
        if not isinstance(document.get(key), kind):
            raise TraceError(f"read trace {where!r}: {key}: missing, or not a {kind.__name__}")
    samples = _parse_samples(document, where)
    calls = _parse_calls(document["tool_calls"], samples[-1].t - samples[0].t, where)
    return Trace(document["name"], samples, calls)


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise TraceError(f"read trace {where}: {value!r} is not a number")
    return float(value)


def _parse_samples(document: Mapping[str, Any], where: str) -> tuple[Sample, ...]:
    rows, cpus = document["samples"], document.get("cpu_inst_pct")
    if not 2 <= len(rows) <= _SAMPLES_LIMIT:
        raise TraceError(f"read trace {where!r}: samples: {len(rows)} of them, need 2 to {_SAMPLES_LIMIT}")
    if cpus is not None and (not isinstance(cpus, list) or len(cpus) != len(rows)):
        raise TraceError(f"read trace {where!r}: cpu_inst_pct: not one number for each sample")
    samples: list[Sample] = []
    for index, row in enumerate(rows):
        place = f"{where!r}: samples[{index}]"
        if not isinstance(row, list) or len(row) not in (2, 3):
            raise TraceError(f"read trace {place}: not [seconds, bytes, cpu percent]")
        t, memory = _number(row[0], place), _number(row[1], place)
        percent = _number(cpus[index] if cpus is not None else row[2] if len(row) == 3 else 0, place)
        if memory < 0 or percent < 0:
            raise TraceError(f"read trace {place}: negative")
        if samples and t <= samples[-1].t:
            raise TraceError(f"read trace {place}: not later than the one before")
        samples.append(Sample(t, memory, percent / 100))
    first = samples[0].t
    moved = [Sample(sample.t - first, sample.memory, sample.cpus) for sample in samples]
    return tuple(moved if cpus is not None else _instantaneous(moved))


def _instantaneous(samples: list[Sample]) -> list[Sample]:
    """CPU since the sample before, from samples whose CPU is the mean since the start."""
    found = [Sample(samples[0].t, samples[0].memory, 0.0)]
    for before, after in pairwise(samples):
        burned = after.cpus * after.t - before.cpus * before.t
        found.append(Sample(after.t, after.memory, max(0.0, burned / (after.t - before.t))))
    return found


def _parse_calls(rows: list[Any], duration: float, where: str) -> tuple[ToolCall, ...]:
    """Commands that ran inside the trace; an end that is not known is the trace's end."""
    calls = []
    for index, row in enumerate(rows):
        place = f"{where!r}: tool_calls[{index}]"
        if not isinstance(row, Mapping) or not isinstance(row.get("tool"), str):
            raise TraceError(f"read trace {place}: not an object with a tool")
        start = _number(row.get("start_s"), place)
        end = duration if row.get("end_s") is None else _number(row["end_s"], place)
        if end < start and row.get("end_s") is not None:
            raise TraceError(f"read trace {place}: ends before it starts")
        start, end = max(0.0, start), min(end, duration)
        if row["tool"] not in _OWN_TOOLS and start < end:
            calls.append(ToolCall(start, end, str(row.get("command_head", ""))[:80]))
    return tuple(sorted(calls, key=lambda call: (call.start, call.end)))


def from_records(records: Iterable[Mapping[str, Any]], base: float) -> list[Trace]:
    """Own records (`agentrunctl calls --json`) as one trace for each container.

    A record knows a call's peak and CPU time, not its curve, and nothing of the agent: a call is taken to
    grow during the first half of its time, to burn evenly, and the agent to hold `base` bytes. Raises
    TraceError.
    """
    sessions: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        if record.get("end") is not None and record.get("memory_peak") is not None:
            sessions.setdefault(str(record.get("container")), []).append(record)
    traces = [_trace_of(name, rows, base) for name, rows in sessions.items()]
    if not traces:
        raise TraceError("read records: none of a call that ended and was measured")
    return traces


def _trace_of(container: str, rows: list[Mapping[str, Any]], base: float) -> Trace:
    """One session, with samples where something changes: most calls are shorter than any interval."""
    begin = min(float(row["start"]) for row in rows) - _MARGIN_S
    calls = []
    for row in rows:
        start, end = float(row["start"]) - begin, float(row["end"]) - begin
        command = str((row.get("command") or {}).get("name", ""))
        calls.append(ToolCall(start, max(end, start + _SHORTEST_S), command))
    times = sorted(
        {0.0, max(call.end for call in calls) + _MARGIN_S}
        | {t for call in calls for t in (call.start, (call.start + call.end) / 2, call.end)}
    )
    memory, cpus = [base] * len(times), [0.0] * len(times)
    for call, row in zip(calls, rows, strict=True):
        length = call.end - call.start
        for index in range(bisect_right(times, call.start), bisect_right(times, call.end)):
            memory[index] += row["memory_peak"] * min(1.0, 2 * (times[index] - call.start) / length)
            cpus[index] += (row.get("cpu_usage_us") or 0) / 1e6 / length
    samples = tuple(Sample(*each) for each in zip(times, memory, cpus, strict=True))
    return Trace(container[:12], samples, tuple(sorted(calls, key=lambda call: call.start)), is_exact=True)
