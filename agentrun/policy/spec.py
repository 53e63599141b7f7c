"""Every key of a policy file: what it takes, what it means, its default and an example.

The compiler reads by these tables; `configs/policy.schema.json` and `docs/policy-reference.md` are
made from them (`agentrunctl policy schema`, `agentrunctl policy reference`).
"""

from __future__ import annotations

from agentrun.base.limits import (
    ADMISSION_WAIT,
    ADMISSION_WAIT_MOST,
    OOM_SCORE_ADJ,
    TIER_PRIORITY,
    WEIGHT_MAX,
    WEIGHT_MIN,
)
from agentrun.base.units import show_number
from agentrun.decision.match import ANNOTATION_KEYS, FEEDBACK, FEEDBACK_EVENTS, MODES
from agentrun.policy.frame import Key, Many, MapOf, Table
from agentrun.policy.values import (
    Amount,
    Choice,
    Command,
    Count,
    CpuSet,
    Duration,
    Flag,
    Name,
    Network,
    Percent,
    Rate,
    Template,
    Text,
    User,
)

VERSION = 1
ENGINES = ("docker", "podman", "cri-o", "kubernetes", "containerd", "unknown")
PLACEHOLDERS = (
    "name", "class", "limit", "peak", "asked", "level", "seconds", "advice", "session_limit", "waited",
)  # fmt: skip
STORED = ("none", "hash", "name", "full")

_WEIGHT = Count(WEIGHT_MIN, WEIGHT_MAX)
_MEMORY = Amount("memory")
_OF_MAX = Amount("memory", ("session", "host", "max"))
_GLOBS = Many(Text("glob"), or_one=True)
_ANNOTATIONS = MapOf(Text("glob"), Text("glob"))

CLASS_MEMORY = Table(
    {
        "default": Key(_MEMORY, "Limit of a call that asks for nothing.", "`max`", "1GiB", "bytes"),
        "max": Key(
            _MEMORY, "Most that a call can get (`memory.max`).", "the session's limit", "4GiB", "bytes"
        ),
        "high": Key(
            _OF_MAX,
            "Above this the kernel slows the call down and reclaims (`memory.high`). `of max` is a share of "
            "the call's own limit.",
            "none",
            "90% of max",
            "bytes",
        ),
        "adaptive": Key(
            Flag(),
            "agentrund raises `high` while the call is slowed down and there is room, up to its limit.",
            "false",
            "true",
        ),
        "learned": Key(
            Flag(),
            "Where neither `high` nor the intent says anything of memory, agentrund begins with a "
            "`memory.high` from what calls like it used, and raises it as an adaptive one.",
            "false",
            "true",
        ),
        "low": Key(
            _OF_MAX, "Protected from reclaim while others have some (`memory.low`).", "none", "256M", "bytes"
        ),
        "min": Key(_OF_MAX, "Never reclaimed (`memory.min`): a guarantee.", "none", "128M", "bytes"),
    }
)
CLASS_CPU = Table(
    {
        "default": Key(Amount("cpu"), "Quota of a call that asks for nothing.", "`max`", "1", "CPUs"),
        "max": Key(
            Amount("cpu"), "Most that a call can get (`cpu.max`).", "the session's limit", "2", "CPUs"
        ),
        "weight": Key(_WEIGHT, "Share when CPUs are short (`cpu.weight`).", "100", "50"),
        "boost": Key(
            Flag(),
            "Beside longer calls of its container, a call begins with four times its weight, for one second "
            "of CPU time (by agentrund).",
            "true; false with priority `low`",
            "false",
        ),
        "cpus": Key(CpuSet(), "CPUs the call may run on (`cpuset.cpus`).", "the session's", "0-3"),
    }
)
CLASS_IO = Table(
    {
        "weight": Key(_WEIGHT, "Share when a disk is busy (`io.weight`; needs iocost or BFQ).", "100", "50"),
        "max": Key(
            MapOf(
                Table(
                    {
                        "rbps": Key(Amount("memory", ()), "Bytes read per second.", "none", "50M", "bytes/s"),
                        "wbps": Key(
                            Amount("memory", ()), "Bytes written per second.", "none", "50M", "bytes/s"
                        ),
                        "riops": Key(Count(1, 1 << 31), "Reads per second.", "none", "500", "1/s"),
                        "wiops": Key(Count(1, 1 << 31), "Writes per second.", "none", "500", "1/s"),
                    }
                ),
                Text("device path or MAJOR:MINOR"),
            ),
            "Ceilings per block device (`io.max`).",
            "none",
            "{/dev/sda: {wbps: 50M}}",
        ),
    }
)
PIDS = Table(
    {
        "default": Key(Amount("pids"), "Limit of a call that asks for nothing.", "`max`", "512"),
        "max": Key(Amount("pids"), "Most processes and threads of a call (`pids.max`).", "none", "4096"),
    }
)
TIME = Table(
    {
        "soft": Key(Duration(), "After this the agent is told that the call is slow.", "none", "5m", "time"),
        "hard": Key(Duration(), "After this the call is killed, with all it started.", "none", "30m", "time"),
    }
)
STALL = Table(
    {
        "share": Key(
            Percent(), "How much of the time all its processes wait for memory at once.", "80%", "60%"
        ),
        "time": Key(Duration(), "Over how long a time.", "30s", "1m", "time"),
        "action": Key(
            Choice(("tell", "kill")), "`kill` also ends it, with the verdict `stalled`.", "tell", "kill"
        ),
    }
)
CLASS = Table(
    {
        "memory": Key(CLASS_MEMORY, "Memory of a call."),
        "cpu": Key(CLASS_CPU, "CPU of a call."),
        "pids": Key(PIDS, "Processes and threads of a call."),
        "io": Key(CLASS_IO, "Disk of a call."),
        "time": Key(TIME, "How long a call may take (enforced by agentrund)."),
        "network": Key(Name("network"), "Network profile, defined under `networks`.", "`default`", "none"),
        "priority": Key(
            Choice(("low", "normal", "high")),
            "Halves or doubles the weights; `low` also is SCHED_BATCH. An intent can only lower it.",
            "normal",
            "low",
        ),
        "feedback": Key(Choice(FEEDBACK), "`quiet` tells only of kills.", "on", "quiet"),
        "background": Key(
            Choice(("keep", "demote", "kill")),
            "What happens to processes that a call leaves behind when its first process has ended (by "
            "agentrund): `demote` gives them the least share of CPU and disk.",
            "demote",
            "kill",
        ),
        "on-disconnect": Key(
            Choice(("keep", "kill")),
            "What happens to a call when the process that its intent names as `client` is gone (by "
            "agentrund).",
            "keep",
            "kill",
        ),
        "stall": Key(STALL, "A call that only waits for memory (watched by agentrund)."),
        "may-wait": Key(
            Flag(),
            "Whether calls of this class wait before they start, where their tier's do (`admission`).",
            "true",
            "false",
        ),
        "selectable": Key(Flag(), "Whether an intent may choose this class.", "true", "false"),
        "description": Key(Text(), "For people.", "", "unit and integration tests"),
    }
)
ADMISSION = Table(
    {
        "wait": Key(
            Duration(),
            f"Longest wait, at most {show_number(ADMISSION_WAIT_MOST)}s.",
            f"{show_number(ADMISSION_WAIT)}s",
            "5s",
            "time",
        ),
        "then": Key(
            Choice(("start", "refuse")),
            "What follows when memory still is short: it starts all the same, or fails with a message.",
            "start",
            "refuse",
        ),
    }
)
TIER = Table(
    {
        "memory": Key(
            Table({"max": Key(_MEMORY, "Ceiling of every call in this tier.", "none", "2GiB", "bytes")}),
            "Memory ceiling.",
        ),
        "cpu": Key(
            Table(
                {
                    "max": Key(Amount("cpu"), "Ceiling of every call in this tier.", "none", "2", "CPUs"),
                    "weight": Key(
                        _WEIGHT,
                        "Share of the whole container among others (`cpu.weight` of its own cgroup); left "
                        "alone where the engine set one. Below 100 also of what it takes to start its calls.",
                        "the engine's",
                        "400",
                    ),
                }
            ),
            "CPU ceiling and share.",
        ),
        "pids": Key(
            Table({"max": Key(Amount("pids"), "Ceiling of every call in this tier.", "none", "1024")}),
            "Process ceiling.",
        ),
        "time": Key(
            Table({"hard": Key(Duration(), "Ceiling of every call in this tier.", "none", "10m", "time")}),
            "Time ceiling.",
        ),
        "network": Key(
            Table(
                {
                    "egress": Key(Rate(), "What each container sends, at most.", "none", "10Mbit", "bit/s"),
                    "ingress": Key(
                        Rate(), "What each container receives, at most.", "none", "50Mbit", "bit/s"
                    ),
                }
            ),
            "Network rates of whole containers of this tier (enforced by agentrun-net).",
        ),
        "classes": Key(
            Many(Name("class")),
            "Classes that an intent may choose in this tier.",
            "all selectable",
            "[light, test]",
        ),
        "priority": Key(
            Count(1, 1000),
            "Who waits when memory gets short: calls of a tier with less before those of one with more.",
            str(TIER_PRIORITY),
            "200",
        ),
        "oom-score-adj": Key(
            Count(0, 1000),
            "Added to the container's own `oom_score_adj` for its calls (agentrund does it): the kernel "
            "picks them before agents when a limit that they share, or the host, runs out. 0: left alone.",
            str(OOM_SCORE_ADJ),
            "800",
        ),
        "admission": Key(
            ADMISSION,
            "New calls of this tier wait before they start while memory is short (agentrund says so). `{}` "
            "has the defaults.",
            "no call waits",
            "{wait: 10s}",
        ),
        "description": Key(Text(), "For people.", "", "paying tenants"),
    }
)
SESSION = Table(
    {
        "name": Key(Text("name"), "For reasons and messages.", "its position", "swe-bench"),
        "match": Key(
            Table(
                {
                    "annotation": Key(
                        _ANNOTATIONS, "All of these annotations.", "", "{agentrun.dev/tier: '*'}"
                    ),
                    "engine": Key(Many(Choice(ENGINES), or_one=True), "One of these engines.", "", "docker"),
                    "name": Key(_GLOBS, "The container's name in its engine.", "", "minisweagent-*"),
                    "image": Key(
                        _GLOBS, "The image the container was made from.", "", "ghcr.io/acme/agent:*"
                    ),
                    "cgroup": Key(
                        Many(Text("path prefix"), or_one=True),
                        "The container's cgroup begins so.",
                        "",
                        "/kubepods.slice/",
                    ),
                }
            ),
            "All that is given must hold; nothing given chooses every container.",
        ),
        "mode": Key(Choice(MODES), "What happens in the chosen containers.", "enforce", "observe"),
        "tier": Key(Name("tier"), "Their tier.", "none", "low"),
        "class": Key(Name("class"), "Class of calls that no rule matches.", "`default-class`", "standard"),
        "feedback": Key(
            Choice(FEEDBACK),
            "The most that their calls are told, whatever their classes say.",
            "on; in mode `observe` off",
            "off",
        ),
        "annotations": Key(
            Many(Choice(ANNOTATION_KEYS)),
            "Which `agentrun.dev/*` annotations of the container count.",
            "[mode, tier, class, intent, feedback]",
            "[class]",
        ),
    }
)
RULE = Table(
    {
        "name": Key(Text("name"), "For reasons and messages.", "its position", "unit tests"),
        "match": Key(
            Table(
                {
                    "command": Key(
                        Many(Command(), or_one=True),
                        "Leading words after unwrapping (`timeout 30 bash -lc 'pytest -q'` is `pytest -q`); "
                        "options in between are stepped over.",
                        "",
                        "[pytest, npm test]",
                    ),
                    "user": Key(Many(User(), or_one=True), "The call's user.", "", "1000"),
                    "cwd": Key(_GLOBS, "The call's working directory.", "", "/workspace/*"),
                    "tty": Key(Flag(), "Whether the call has a terminal.", "", "true"),
                    "image": Key(_GLOBS, "The container's image.", "", "*/sweb.eval.*"),
                    "annotation": Key(_ANNOTATIONS, "All of these annotations.", "", "{team: ml-*}"),
                    "tier": Key(Many(Name("tier"), or_one=True), "One of these tiers.", "", "low"),
                    "healthcheck": Key(
                        Flag(),
                        "The image's own healthcheck (docker's; elsewhere match its command).",
                        "",
                        "true",
                    ),
                }
            ),
            "All that is given must hold; nothing given matches every call.",
        ),
        "class": Key(Name("class"), "The call's class, unless its intent chooses another.", "", "test"),
        "mode": Key(Choice(MODES), "A weaker mode for this call.", "the session's", "observe"),
        "skip": Key(Flag(), "Leave the call alone: no cgroup, no record.", "false", "true"),
    }
)
POLICY = Table(
    {
        "version": Key(Count(VERSION, VERSION), "Version of this format.", "", "1", required=True),
        "default-class": Key(Name("class"), "Class of calls that nothing else chooses.", "standard", "light"),
        "classes": Key(MapOf(CLASS, Name("class", refers=False)), "Kinds of calls and what they may use."),
        "tiers": Key(MapOf(TIER, Name("tier", refers=False)), "Kinds of tenants and their ceilings."),
        "sessions": Key(
            Many(SESSION),
            "Which containers are ours, first match wins. Those that none chooses pass through untouched.",
            "every container",
        ),
        "rules": Key(Many(RULE), "Which call gets which class, first match wins.", "none"),
        "networks": Key(
            MapOf(
                Table(
                    {
                        "default": Key(
                            Choice(("allow", "deny")), "What the lists do not name.", "allow", "deny"
                        ),
                        "allow": Key(Many(Network()), "Allowed destinations.", "none", "['10.0.0.0/8:443']"),
                        "deny": Key(Many(Network()), "Denied destinations.", "none", "['169.254.169.254']"),
                    }
                ),
                Name("network", refers=False),
            ),
            "Network profiles. `none`, `loopback`, and `default` or `open` (no rule) exist without one.",
        ),
        "agent": Key(
            Table(
                {
                    "memory": Key(
                        Table(
                            {
                                "min": Key(_MEMORY, "Never reclaimed.", "none", "64M", "bytes"),
                                "low": Key(_MEMORY, "Reclaimed last.", "none", "256M", "bytes"),
                            }
                        ),
                        "Memory protection inside the container.",
                    ),
                    "cpu": Key(
                        Table({"weight": Key(_WEIGHT, "Against 100 of all calls together.", "200", "400")}),
                        "CPU share inside the container.",
                    ),
                }
            ),
            "The agent's own leaf: init and everything that is not a call.",
        ),
        "feedback": Key(
            MapOf(Template(PLACEHOLDERS), Choice(FEEDBACK_EVENTS)),
            "What the agent is told on each event (by agentrund).",
            "built-in texts",
            "{oom-killed: 'Killed at {limit}. {advice}'}",
        ),
        "adapt": Key(
            Choice(("on", "off")),
            "Whether agentrund freezes, slows down and thaws calls when memory gets short.",
            "on",
            "off",
        ),
        "record-command": Key(
            Choice(STORED), "What of a command's text is stored. Environment never is.", "name", "hash"
        ),
        "machine-truth": Key(
            Flag(),
            "Tell a call its own CPUs and memory (`OMP_NUM_THREADS`, `GOMAXPROCS`, `MAKEFLAGS` ...).",
            "true",
            "false",
        ),
        "strip-intent": Key(
            Flag(), "Take the intent variables out of the call's environment.", "false", "true"
        ),
    }
)
