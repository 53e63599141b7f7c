"""Every field of a record: its type, its unit and what it means.

`configs/record.schema.json` and the fields in `docs/records.md` are made from this table (`make reference`).
`calls.fields` has the same names by source: that is all of it that the hot path needs.
"""

from __future__ import annotations

from agentrun.calls import fields, verdict
from agentrun.calls.record import COMMAND_LIMIT, VERSION, WORD_LIMIT
from agentrun.decision.match import FEEDBACK_EVENTS
from agentrun.store.kinds import (
    ANY,
    COUNT,
    FLAG,
    INTEGER,
    NUMBER,
    OBJECT,
    TEXT,
    Field,
    bounded,
    choice,
    constant,
    many,
    mapping,
    optional,
    table,
)

# Each source, the names that come from there, and what that means.
SOURCES = {
    "identity": (fields.IDENTITY, "which call it is, and where"),
    "planned": (fields.PLANNED, "decided before it starts"),
    "noted": (
        fields.NOTED,
        "written down while it runs, by the runtime and by agentrund, or when its record is made or stored",
    ),
    "measured": (fields.MEASURED, "read from the kernel"),
    "judged": (fields.JUDGED, "concluded from the others"),
}

_TIME = "seconds since the epoch"
_AT = Field(optional(NUMBER), "When.", _TIME)
_POSITIVE = bounded(INTEGER, minimum=1)
_OOM_COUNTS = optional(many(INTEGER, minItems=2, maxItems=2))
_COUNTERS = optional(mapping(INTEGER))

_COMMAND = table(
    {
        "sha256": Field(
            bounded(TEXT, pattern="^[0-9a-f]{16}$"),
            "The first 16 hex digits of the SHA-256 of its words, each but the last followed by a zero byte. "
            "An intent typed into the command is left out.",
        ),
        "name": Field(
            bounded(TEXT, maxLength=WORD_LIMIT),
            "The program's name, without what only wraps it (`bash -c`, `timeout`, `env`).",
        ),
        "family": Field(
            bounded(TEXT, maxLength=WORD_LIMIT),
            "The name, with the word after it where that decides what a call needs: `npm install`.",
        ),
        "argv": Field(many(TEXT), f"All its words, at most {COMMAND_LIMIT:,} characters."),
    }
)
_INTENT = table(
    {
        "raw": Field(ANY, "The intent as it was said, cut."),
        "accepted": Field(OBJECT, "What counted, by name."),
        "refused": Field(many(many(TEXT)), "What did not count, as (part, reason)."),
    }
)
_LIMITS = table(
    {
        "memory": Field(optional(NUMBER), "Limit of its memory.", "bytes"),
        "memory_high": Field(optional(NUMBER), "Memory beyond which it is slowed down.", "bytes"),
        "memory_adaptive": Field(FLAG, "Whether agentrund may raise `memory_high`."),
        "memory_low": Field(optional(NUMBER), "Memory that is reclaimed last.", "bytes"),
        "memory_min": Field(optional(NUMBER), "Memory that is never reclaimed.", "bytes"),
        "cpu": Field(optional(NUMBER), "Limit of its CPU time.", "CPUs"),
        "cpu_weight": Field(optional(NUMBER), "Share of the CPU among calls."),
        "cpuset": Field(TEXT, "CPUs that it may run on."),
        "pids": Field(optional(NUMBER), "Limit of its processes and threads."),
        "io_weight": Field(optional(NUMBER), "Share of the disk among calls."),
        "io_max": Field(many(many(TEXT)), "Limits of devices, as (device, limits)."),
        "time_soft": Field(optional(NUMBER), "Time after which it counts as slow.", "seconds"),
        "time_hard": Field(optional(NUMBER), "Time after which agentrund kills it.", "seconds"),
        "net": Field(TEXT, "Network profile."),
    }
)
_CEILINGS = table(
    {
        "memory": Field(optional(NUMBER), "The most memory.", "bytes"),
        "cpu": Field(optional(NUMBER), "The most CPU time.", "CPUs"),
        "pids": Field(optional(NUMBER), "The most processes and threads."),
        "time": Field(optional(NUMBER), "The longest time.", "seconds"),
        "session_memory": Field(optional(NUMBER), "The narrowest limit around the container.", "bytes"),
    }
)
_WAITED = table(
    {
        "seconds": Field(NUMBER, "How long it waited.", "seconds"),
        "outcome": Field(
            choice("room", "bound", "gone", "refused"),
            "`room`: there was room again. `bound`: it started after its longest wait all the same. "
            "`gone`: agentrund ended. `refused`: it did not start.",
        ),
        "level": Field(
            choice(*list(verdict.LIMITS)[1:]),
            "Whose memory was short: the container's, that of something above it, or the machine's.",
        ),
        "why": Field(TEXT, "What was left, and what needed it."),
    },
    required=("seconds", "outcome", "level", "why"),
)
_STALLED = table(
    {
        "share": Field(optional(NUMBER), "How much of the time they waited.", "percent"),
        "seconds": Field(optional(NUMBER), "Over how long a time.", "seconds"),
        "action": Field(choice("tell", "kill"), "What the policy had agentrund do about it."),
        "at": _AT,
    }
)
_PROCESS = table(
    {
        "pid": Field(INTEGER, "The process's id on the host."),
        "name": Field(TEXT, "What the process calls itself."),
    }
)
_BACKGROUND = table(
    {
        "action": Field(choice("keep", "demote", "kill"), "What the policy had agentrund do about it."),
        "at": _AT,
        "processes": Field(many(_PROCESS), "The first 16 of them."),
        "not_changed": Field(
            many(TEXT), "Files that `demote` writes and this host does not have or did not take."
        ),
    }
)
_ADAPTED = table(
    {
        "t": Field(NUMBER, "When.", _TIME),
        "what": Field(
            choice("freeze", "thaw", "limit", "reclaim", "kill", "boost", "unboost"), "The action."
        ),
        "why": Field(TEXT, "The reason."),
        "bytes": Field(INTEGER, "The new limit, or what was reclaimed.", "bytes"),
        "weight": Field(INTEGER, "`cpu.weight` from then on (`boost`, `unboost`)."),
    },
    required=("t", "what", "why"),
)
_TOLD = table(
    {
        "event": Field(choice(*FEEDBACK_EVENTS), "What happened."),
        "text": Field(TEXT, "The text as it was written."),
        "at": _AT,
        "delivered": Field(FLAG, "Whether it could be written."),
        "why": Field(optional(TEXT), "Why it could not."),
    }
)
_NETWORK = table(
    {
        "profile": Field(optional(TEXT), "The profile that held."),
        "denied": Field(INTEGER, "Attempts that were denied."),
        "tx_bytes": Field(INTEGER, "Data sent.", "bytes"),
        "rx_bytes": Field(INTEGER, "Data received.", "bytes"),
    }
)
_OOM = table(
    {
        "process": Field(TEXT, "What the chosen process called itself."),
        "pid": Field(INTEGER, "The process's id on the host."),
        "memory": Field(optional(INTEGER), "What it had in memory, nearly.", "bytes"),
        "level": Field(
            optional(choice(*verdict.LIMITS)), "Whose limit was hit. Null where the kernel did not tell."
        ),
        "limit": Field(optional(TEXT), "The cgroup whose limit it was. Null for the machine's memory."),
    }
)
_LEARNED = table(
    {
        "memory_high": Field(_POSITIVE, "Where its `memory.high` was to begin.", "bytes"),
        "calls": Field(_POSITIVE, "How many calls that is known from."),
        "peak_p95": Field(COUNT, "The P95 of their memory peaks.", "bytes"),
    },
    required=("memory_high", "calls", "peak_p95"),
)

# In the order of a record.
FIELDS = {
    "version": Field(constant(VERSION), "The version of this format. New fields do not change it."),
    "id": Field(
        bounded(TEXT, minLength=1),
        "The call's id: 11 hex digits of milliseconds since the epoch and 8 random ones. It sorts by time.",
    ),
    "container": Field(optional(TEXT), "The container's id."),
    "root": Field(optional(TEXT), "The backend's state directory. It tells engines and namespaces apart."),
    "backend": Field(optional(choice("runc", "crun")), "The kind of the real runtime."),
    "exec_id": Field(optional(TEXT), "The engine's id of the exec, where it gave one."),
    "slot": Field(
        optional(bounded(TEXT, pattern="^call-[0-9]+$")),
        "The name of the call's cgroup below agentrun-calls. It is used again. Null where the call was "
        "refused.",
    ),
    "cgroup": Field(optional(TEXT), "The call's cgroup on the host. Null where the call was refused."),
    "command": Field(
        optional(_COMMAND),
        "What the policy lets be stored of the command (`record-command`). Its environment never is.",
    ),
    "mode": Field(optional(choice("enforce", "observe")), "Whether limits were set."),
    "policy": Field(optional(TEXT), "The hash of the policy's content."),
    "session": Field(optional(TEXT), "What made this container a session."),
    "tier": Field(optional(TEXT), "The tenant's tier: `high`, `normal`, `low`, or one of the policy's own."),
    "class": Field(optional(TEXT), "The class of calls whose limits it has."),
    "rank": Field(
        optional(many(INTEGER)),
        "The priority of its tier and its own. They decide which calls wait when memory gets short. Null "
        "where agentrund adapts nothing.",
    ),
    "rule": Field(optional(TEXT), "The rule of the policy that recognised it."),
    "intent": Field(optional(_INTENT), "What the call asked for.", page="intent.md"),
    "limits": Field(optional(_LIMITS), "The limits that it ran with. Null where none were set."),
    "ceilings": Field(
        optional(_CEILINGS), "The most that an intent could have got. Null where nothing bounds it."
    ),
    "reasons": Field(optional(many(TEXT)), "Why the limits are what they are, one line each."),
    "not_enforced": Field(
        optional(many(TEXT)),
        "Parts of the plan that this host does not have or did not take: controllers, files, `network` (its "
        "profile), `network.rate` (its tier's rate).",
    ),
    "waited": Field(
        optional(_WAITED), "That it waited before it started, because memory was short.", page="memory.md"
    ),
    "start": Field(optional(NUMBER), "When the runtime started it.", _TIME),
    "end": Field(NUMBER, "When its last process was gone. `end_is` says how that is known.", _TIME),
    "end_is": Field(
        choice("seen", "found-empty", "found-removed"),
        "`seen` by agentrund. With `found-empty` (its cgroup was empty) and `found-removed` (its cgroup was "
        "gone) the end was earlier.",
    ),
    "exit_code": Field(
        optional(bounded(INTEGER, minimum=0, maximum=255)),
        "The exit code of its first process as engines report it (128 + signal).",
    ),
    "signal": Field(optional(TEXT), "The signal that ended its first process, by name."),
    "timed_out": Field(optional(NUMBER), "The hard time limit that passed.", "seconds"),
    "slow": Field(optional(NUMBER), "The soft time limit that passed.", "seconds"),
    "stalled": Field(optional(_STALLED), "That all its processes only waited for memory."),
    "killed_by": Field(optional(choice(*verdict.KILLERS)), "What killed it, where that is known."),
    "background": Field(optional(_BACKGROUND), "What its first process left behind when it ended."),
    "adapted": Field(
        optional(many(_ADAPTED)),
        "What agentrund did to it for want of memory or CPU, the latest 32.",
        page="cpu.md#short-calls-first",
    ),
    "feedback": Field(
        optional(many(_TOLD)), "What the agent was told on the call's stderr.", page="feedback.md"
    ),
    "network": Field(
        optional(_NETWORK),
        "Network counters. Null where the eBPF programs were not loaded.",
        page="network.md",
    ),
    "oom": Field(
        optional(_OOM),
        "The latest OOM kill in it, as the kernel told it. Null where the eBPF programs were not loaded.",
    ),
    "image": Field(
        optional(TEXT),
        "The container's image as its engine names it. agentrund looks it up. Null where that is not known.",
    ),
    "learned": Field(
        optional(_LEARNED),
        "Where its `memory.high` was to begin, from what calls like it used. Null where nothing was known or "
        "wanted. `adapted` says what became of it.",
        page="memory.md",
    ),
    "retry_of": Field(
        optional(TEXT),
        "The call that this one tries again: the same command in the same container, at most 30 minutes "
        "after limits ended that one. It is set when the record is taken into the store.",
    ),
    "oom_before": Field(
        _OOM_COUNTS, "OOM counts when it started, as [of the container's own limit, of limits above it]."
    ),
    "oom_after": Field(_OOM_COUNTS, "The same when it ended."),
    "memory_peak": Field(optional(COUNT), "The most memory that it had.", "bytes"),
    "memory_events": Field(_COUNTERS, "Counters of its cgroup and what is below it (`memory.events`)."),
    "memory_events_local": Field(_COUNTERS, "Counters of its cgroup alone (`memory.events.local`)."),
    "cpu_usage_us": Field(optional(COUNT), "CPU time.", "microseconds"),
    "cpu_user_us": Field(optional(COUNT), "CPU time in user mode.", "microseconds"),
    "cpu_system_us": Field(optional(COUNT), "CPU time in the kernel.", "microseconds"),
    "cpu_throttled_us": Field(optional(COUNT), "How long it waited for its CPU limit.", "microseconds"),
    "pids_peak": Field(optional(COUNT), "The most processes and threads at once."),
    "pressure": Field(
        optional(mapping(optional(mapping(INTEGER)))),
        "How long its processes waited for `memory`, `cpu` and `io` (PSI): `some` of them, or all (`full`).",
        "microseconds",
    ),
    "verdict": Field(
        optional(choice(*verdict.VERDICTS)), "How it ended. Null where that was not seen.", page="#verdicts"
    ),
    "level": Field(
        optional(choice(*verdict.LEVELS)), "Whose limit it was, or what ended it.", page="#verdicts"
    ),
    "flags": Field(many(choice(*verdict.FLAGS)), "What slowed it down.", page="#verdicts"),
}
