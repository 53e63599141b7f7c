"""What an agent is told about its call: at most six lines on stderr. Pure.

Every number is the record's at that moment, the level is the one that was hit, and what is advised is
possible: nobody is told to ask for more than the ceilings of class, tier, container and host allow.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from agentrun.base.units import show_number, show_size
from agentrun.calls.verdict import CLIENT, CONTROLLER, KILLED, OPERATOR

PREFIX = "[agentrun] "
LINES = 6
_WIDTH = 150  # six lines of four-byte characters still are less than PIPE_BUF
_KILLERS = {  # not the engine: with its container, what would read this is gone as well
    OPERATOR: "by the operator of this machine",
    CLIENT: "because the process that it was run for is gone",
    CONTROLLER: "because memory was short and calls of higher priority came first",
}
_SHARE = 0.1  # of its time, and...
SECONDS = 1.0  # ...this long at least: below, being slowed down is how limits work
_WORTH_ASKING = 1.1  # times what it has
_NAME = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._+-")

Record = Mapping[str, Any]


def events(record: Record) -> list[str]:
    """What happened to a call that is worth telling, the worst first."""
    found = []
    if _count(record, "oom_kill") > 0:
        found.append("oom-killed")
    if record.get("timed_out"):
        found.append("timed-out")
    if record.get("stalled"):
        found.append("stalled")
    if record.get("killed_by") in _KILLERS:
        found.append("killed")
    if found:
        return found  # that it was slow as well would not help
    if _denied_count(record):
        found.append("denied")
    if record.get("slow"):
        found.append("slow")
    if _memory_wait(record) is not None or _cpu_wait(record) is not None:
        found.append("throttled")
    if _waited(record) >= SECONDS:
        found.append("waited")
    return found


def is_wanted(mode: str, event: str, record: Record) -> bool:
    """Whether an event is to be told where feedback is `on`, `quiet` (kills only) or `off`."""
    if mode == "quiet":
        is_kill = event != "stalled" or (record.get("stalled") or {}).get("action") == "kill"
        return event in KILLED and is_kill
    return mode == "on"


def compose(event: str, record: Record, templates: Mapping[str, str]) -> str:
    """The block for one event: lines that begin with `[agentrun] ` and end with a newline."""
    text = _text(event, record, templates)
    wrapped = [part for line in text.split("\n") for part in textwrap.wrap(_clean(line), _WIDTH)]
    return "".join(f"{PREFIX}{line}\n" for line in wrapped[:LINES])


def sentence(event: str, record: Record, templates: Mapping[str, str]) -> str:
    """The same as one line of a runtime's error message: no prefix, no full stop: engines add to it."""
    words = _text(event, record, templates).split()
    return textwrap.shorten(_clean(" ".join(words)), _WIDTH * LINES).rstrip(".")


def _text(event: str, record: Record, templates: Mapping[str, str]) -> str:
    lines, advice = _TEXTS[event](record)
    template = templates.get(event)
    return _fill(template, record, advice) if template else "\n".join([*lines, advice])


def _clean(text: str) -> str:
    """Nothing that moves a cursor or hides text, whoever wrote it."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _fill(template: str, record: Record, advice: str) -> str:
    limits, command = record.get("limits") or {}, record.get("command") or {}
    asked = ((record.get("intent") or {}).get("accepted") or {}).get("memory")
    values = {
        "name": "".join(c if c in _NAME else "?" for c in str(command.get("name", "?"))),
        "class": str(record.get("class")),
        "limit": _size(limits.get("memory")),
        "peak": _size(record.get("memory_peak")),
        "asked": _size(asked) if isinstance(asked, (int, float)) else "nothing",
        "level": str(record.get("level")),
        "seconds": show_number(_ran(record)),
        "waited": show_number(_waited(record)),
        "advice": advice,
        "session_limit": _size(_ceiling(record, "session_memory")),
    }
    parts = template.split("{")
    filled = [parts[0]]
    for part in parts[1:]:  # one pass: what was filled in is never looked at again
        name, _, rest = part.partition("}")
        filled += [values.get(name, ""), rest]
    return "".join(filled)


def _size(size: Any) -> str:
    return show_size(size) if isinstance(size, (int, float)) else "no limit"


def show_time(seconds: float) -> str:
    """Seconds as an intent takes them: `1h30m`, `90s`, `2.5s`."""
    if seconds < 60 or seconds != int(seconds) or seconds % 60:
        return f"{show_number(seconds)}s"
    hours, minutes = divmod(int(seconds) // 60, 60)
    return (f"{hours}h" if hours else "") + (f"{minutes}m" if minutes or not hours else "")


def _count(record: Record, name: str) -> int:
    return int((record.get("memory_events") or {}).get(name, 0))


def _ran(record: Record) -> float:
    return max(0.0, float(record.get("end") or 0) - float(record.get("start") or 0))


def _ceiling(record: Record, name: str) -> float | None:
    ceiling: float | None = (record.get("ceilings") or {}).get(name)
    return ceiling


def _more(record: Record, name: str, has: float | None) -> float | None:
    """Twice of what a call has, if it may ask for that or at least for noticeably more."""
    ceiling = _ceiling(record, name)
    if has is None or not record.get("ceilings"):
        return None
    more = 2 * has if ceiling is None else min(2 * has, ceiling)
    return more if more >= has * _WORTH_ASKING else None


def _memory_advice(record: Record) -> str:
    limit, ceiling = (record.get("limits") or {}).get("memory"), _ceiling(record, "memory")
    more = _more(record, "memory", limit)
    if more is None:
        most = f" ({show_size(limit)} is the most that a call can get here)" if limit is not None else ""
        return f"Use less memory: fewer workers at once, smaller pieces of data{most}."
    most = "" if ceiling is None else f" (at most {int(ceiling) >> 20}M here)"
    return (
        f'If it needs more, ask for it: AGENTRUN_INTENT="memory={int(more) >> 20}M" before the command'
        f"{most}; or use less: fewer workers at once."
    )


def _dies_whole(record: Record) -> bool:
    """Whether the kernel kills all of a call at once: where its limits hold, memory.oom.group is set.

    `oom_group_kill` is counted a moment after `oom_kill`, when this may be written already.
    """
    is_limited = record.get("limits") is not None and "memory" not in (record.get("not_enforced") or ())
    return is_limited or _count(record, "oom_group_kill") > 0


def _oom_killed(record: Record) -> tuple[list[str], str]:
    who = "This call was killed, with all its processes" if _dies_whole(record) else "A process was killed"
    limit, peak = (record.get("limits") or {}).get("memory"), record.get("memory_peak")
    used = "" if peak is None else f"; its peak was {show_size(peak)}"
    level = record.get("level")
    if level == "call":
        of = "" if limit is None else f" of {show_size(limit)}"
        return [f"{who}: it reached its own memory limit{of}{used}."], _memory_advice(record)
    if level == "host":
        return (
            [f"{who}: the whole machine ran out of memory{used}.", "No limit of this call was reached."],
            "The same command may work when less is running here, or with less memory.",
        )
    whole = _ceiling(record, "session_memory")
    of = "" if whole is None else f" of {show_size(whole)}"
    where = "the container reached its" if level == "session" else "what runs with this container reached a"
    return (
        [f"{who}: {where} memory limit{of}, shared with the agent and other calls{used}."],
        "Run fewer commands at once, or with less memory each; asking for more would not help.",
    )


def _timed_out(record: Record) -> tuple[list[str], str]:
    limit = float(record.get("timed_out") or 0)
    lines = [f"This call was killed, with all its processes: its time limit of {show_time(limit)} passed."]
    more, ceiling = _more(record, "time", limit), _ceiling(record, "time")
    if more is None:
        return lines, "No call may take longer here: split the work into shorter commands."
    most = "" if ceiling is None else f" (at most {show_time(ceiling)} here)"
    wanted = show_time(int(more) if more >= 1 else more)
    return lines, f'If it needs longer, ask for it: AGENTRUN_INTENT="time={wanted}" before the command{most}.'


def _slow(record: Record) -> tuple[list[str], str]:
    hard = (record.get("limits") or {}).get("time_hard")
    line = (
        f"This call has been running for {show_time(float(record.get('slow') or 0))}, which is long for it."
    )
    return [line], "" if hard is None else f"It is killed when it has run for {show_time(hard)}."


def _memory_wait(record: Record) -> float | None:
    """Seconds in which a call at its memory.high waited for memory, where that is worth telling."""
    some = ((record.get("pressure") or {}).get("memory") or {}).get("some", 0) / 1e6
    is_long = some >= max(SECONDS, _SHARE * _ran(record))
    return some if _count(record, "high") > 0 and is_long else None


def _cpu_wait(record: Record) -> float | None:
    """Seconds in which a call over its cpu.max was made to wait, where that is worth telling."""
    waited = (record.get("cpu_throttled_us") or 0) / 1e6
    return waited if waited >= max(SECONDS, _SHARE * _ran(record)) else None


def _throttled(record: Record) -> tuple[list[str], str]:
    limits, ran = record.get("limits") or {}, show_number(round(_ran(record), 1))
    lines, advice = [], ""
    cpu = _cpu_wait(record)
    if cpu is not None:
        cpus = limits.get("cpu")
        of = "" if cpus is None else f" of {show_number(cpus)} CPUs"
        waited = show_number(round(cpu, 1))
        lines.append(f"This call was slowed down by its limit{of}: it waited {waited}s in {ran}s.")
        advice = "Start fewer workers at once."
        more = _more(record, "cpu", cpus)
        if more is not None:
            advice = (
                f'If it needs more CPUs, ask: AGENTRUN_INTENT="cpu={show_number(more)}" before the command.'
            )
    memory = _memory_wait(record)
    if memory is not None:
        high = limits.get("memory_high")
        at = "" if high is None else f" at {show_size(high)}"
        waited = show_number(round(memory, 1))
        lines.append(f"This call was slowed down by its memory limit{at}: it waited {waited}s in {ran}s.")
        advice = _memory_advice(record)
    return lines, advice


def _stalled(record: Record) -> tuple[list[str], str]:
    stalled = record.get("stalled") or {}
    share, window = show_number(stalled.get("share", 0)), show_time(stalled.get("seconds", 0))
    lines = [f"All processes of this call waited for memory in {share}% of the last {window}."]
    if stalled.get("action") == "kill":
        lines.append("It would hardly have got on, so it was killed, with all its processes.")
    return lines, _memory_advice(record)


def _denied_count(record: Record) -> int:
    """Attempts to use the network that the call's profile denied; 0 where nobody counts."""
    return int((record.get("network") or {}).get("denied") or 0)


def _denied(record: Record) -> tuple[list[str], str]:
    count = _denied_count(record)
    profile = "".join(c if c in _NAME else "?" for c in str((record.get("network") or {}).get("profile")))
    what = "one attempt" if count == 1 else f"{count} attempts"
    lines = [f"The network denied this call {what} to connect or send: its profile is {profile}."]
    asked = ((record.get("intent") or {}).get("accepted") or {}).get("net")
    if asked is not None and asked == profile:
        return lines, f"It was asked for (net={asked}): leave that out if the command needs the network."
    return lines, "Trying again does not help: do without, or use what this machine already has."


def _killed(record: Record) -> tuple[list[str], str]:
    why = _KILLERS.get(str(record.get("killed_by")), "from outside")
    return [f"This call was killed, with all its processes, {why}."], ""


def _waited(record: Record) -> float:
    """Seconds that a call waited before it started."""
    return float((record.get("waited") or {}).get("seconds") or 0)


_SHORT = {
    "host": "this machine was short of memory",
    "session": "the container was short of memory",
    "above": "what runs beside this container was short of memory",
}


def _wait_text(record: Record) -> str:
    """How long it waited, and whose memory was short."""
    short = _SHORT.get(str((record.get("waited") or {}).get("level")), "memory was short")
    return f"waited {show_number(round(_waited(record), 1))}s before it could start, because {short}"


def _waited_text(record: Record) -> tuple[list[str], str]:
    lines = [f"This call {_wait_text(record)} and others came first."]
    if (record.get("waited") or {}).get("outcome") == "bound":
        return lines, "It still is: use little memory, or this call may be slowed down or killed."
    return lines, ""


def _refused(record: Record) -> tuple[list[str], str]:
    lines = [f"This call was refused and did not run: it {_wait_text(record)} and still is."]
    return lines, "Nothing is wrong with the command: run it again in a while, and fewer commands at once."


_TEXTS = {
    "oom-killed": _oom_killed,
    "timed-out": _timed_out,
    "slow": _slow,
    "throttled": _throttled,
    "stalled": _stalled,
    "killed": _killed,
    "denied": _denied,
    "waited": _waited_text,
    "refused": _refused,
}
