"""Decide the limits of one call. Pure: the same input gives the same plan.

One function for the hot path, for `agentrunctl policy explain`, for tests and for the daemon.
"""

from __future__ import annotations

from agentrun.units import show_number, show_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from agentrun.intent import Intent

# runc's own init starts inside the call's cgroup (several threads, ~10 MiB), and below these it fails
# with an error that looks like the command's own (runc#4427; pids.max=1: "connection reset by peer").
MEMORY_FLOOR = 32 << 20
PIDS_FLOOR = 16
PIDS_MOST = 1 << 22  # PIDS_MAX - 1 (kernel/cgroup/pids.c): of more the kernel takes nothing
CPU_FLOOR = 0.1
CPU_PERIOD_US = 100_000
LARGEST = 1 << 62  # what AgentCgroup's `high` asks for: as much as is allowed
WEIGHT_MIN, WEIGHT_MAX, WEIGHT_DEFAULT = 1, 10_000, 100  # cpu.weight and io.weight (cgroup-v2.rst)
PRIORITIES = {"low": 50, "normal": 100, "high": 200}  # percent of the class's weights


TIER_PRIORITY = 100
# Added to the container's own oom_score_adj for its calls: half of what ran out, in the kernel's order of
# victims (oom_badness in mm/oom_kill.c), so that an agent is picked only where it is larger by that.
OOM_SCORE_ADJ = 500
# Seconds that a call may wait before it starts. docker gives a healthcheck's exec 30 s to start, and is the
# least patient of the engines (docs/memory.md).
ADMISSION_WAIT = 10.0
ADMISSION_WAIT_MOST = 20.0


class Limits:
    """What surrounds a call (a session, the host): None where there is no limit."""

    __slots__ = ("cpus", "memory", "pids")

    def __init__(self, memory: int | None = None, cpus: float | None = None, pids: int | None = None) -> None:
        self.memory = memory
        self.cpus = cpus
        self.pids = pids


class Plan:
    """The decision for one call: sizes in bytes, `cpus` in CPUs, times in seconds, each None for none."""

    __slots__ = (
        "admission", "background", "boost", "ceilings", "class_name", "cpu_weight", "cpus", "cpuset",
        "feedback", "io_max", "io_weight", "learned", "memory", "memory_adaptive", "memory_high",
        "memory_low", "memory_min", "net", "on_disconnect", "oom_score_adj", "pids", "priority", "rank",
        "reasons", "stall", "time_hard", "time_soft",
    )  # fmt: skip

    def __init__(self, class_name: str = "standard") -> None:
        self.class_name = class_name
        self.memory: int | None = None
        self.memory_high: int | None = None
        self.memory_adaptive = False
        self.learned = False  # whether agentrund may begin with a memory.high from what calls like it used
        self.memory_low: int | None = None
        self.memory_min: int | None = None
        self.cpus: float | None = None
        self.cpu_weight: int | None = None
        self.boost = True  # whether agentrund lets it begin with more CPU weight
        self.cpuset: str | None = None
        self.pids: int | None = None
        self.io_weight: int | None = None
        self.io_max: list[list[str]] = []
        self.time_soft: float | None = None
        self.time_hard: float | None = None
        self.net: str | None = None
        self.priority = "normal"
        # [of its tier, its own] among all calls of the host; None where agentrund is not to adapt it.
        self.rank: list[int] | None = None
        # {"wait": seconds, "then": "start" | "refuse"} where it may have to wait before it starts.
        self.admission: dict[str, Any] | None = None
        self.oom_score_adj = OOM_SCORE_ADJ
        self.feedback = "on"
        self.background = "demote"
        self.on_disconnect = "keep"
        self.stall: dict[str, Any] | None = None
        self.reasons: list[str] = []
        # The most that any intent could have got, None for no bound: what feedback may advise to ask for.
        self.ceilings: dict[str, float | None] = {}

    def files(self) -> list[tuple[str, str, str]]:
        """The cgroup files to write, in order: (controller, file, value)."""
        numbers = (
            ("memory", "memory.min", self.memory_min),
            ("memory", "memory.low", self.memory_low),
            ("memory", "memory.high", self.memory_high),
            ("memory", "memory.max", self.memory),
            ("pids", "pids.max", self.pids),
            ("cpu", "cpu.weight", self.cpu_weight),
            ("io", "io.weight", self.io_weight),
        )
        files = [("memory", "memory.oom.group", "1")]
        files += [(controller, file, str(value)) for controller, file, value in numbers if value is not None]
        if self.cpus is not None:
            files.append(("cpu", "cpu.max", f"{round(self.cpus * CPU_PERIOD_US)} {CPU_PERIOD_US}"))
        if self.cpuset is not None:
            files.append(("cpuset", "cpuset.cpus", self.cpuset))
        return files

    def limits(self) -> dict[str, Any]:
        """The limits by name, as the record shows them; memory, cpu and pids always, others where set."""
        always = {"memory": self.memory, "cpu": self.cpus, "pids": self.pids}
        others = {
            "memory_high": self.memory_high,
            "memory_adaptive": self.memory_adaptive or None,
            "memory_low": self.memory_low,
            "memory_min": self.memory_min,
            "cpu_weight": self.cpu_weight,
            "cpuset": self.cpuset,
            "io_weight": self.io_weight,
            "io_max": self.io_max or None,
            "time_soft": self.time_soft,
            "time_hard": self.time_hard,
            "net": self.net,
        }
        return always | {name: value for name, value in others.items() if value is not None}


def amount(value: Any, session: float | None, host: float | None, own: float | None = None) -> float | None:
    """An amount of the compiled policy as a number; None where it is a share of something unlimited.

    A share of a session without a limit of its own is that share of the host.
    """
    if not isinstance(value, (list, tuple)):
        return None if value is None else float(value)
    percent, of = value
    whole = {"session": session if session is not None else host, "host": host, "max": own}[of]
    return None if whole is None else whole * percent / 100


class _Clamp:
    """One quantity on its way from what was asked to what is granted, with the reasons."""

    __slots__ = ("name", "reasons", "show", "value")

    def __init__(self, plan: Plan, name: str, show: Callable[[float], str]) -> None:
        self.reasons = plan.reasons
        self.name = name
        self.show = show
        self.value: float | None = None

    def take(self, value: float | None, source: str) -> None:
        """The starting value, unless there is one already."""
        if self.value is None and value is not None:
            self.value = value
            self.reasons.append(f"{self.name}: {self.show(value)} {source}")

    def cut(self, ceiling: float | None, source: str, *, imposes: bool = False) -> None:
        """Keep the value below a ceiling; one that `imposes` holds also where nothing was asked."""
        if ceiling is None:
            return
        if self.value is None and imposes:
            self.value = ceiling
            self.reasons.append(f"{self.name}: {self.show(ceiling)} by the {source}")
        elif self.value is not None and self.value > ceiling:
            self.value = ceiling
            self.reasons.append(f"{self.name}: cut to {self.show(ceiling)} by the {source}")

    def raise_to(self, floor: float, *room: float | None) -> None:
        """Keep the value at a floor, as far as session and host have room for it."""
        floor = min([floor, *(r for r in room if r is not None)])
        if self.value is not None and self.value < floor:
            self.value = floor
            self.reasons.append(f"{self.name}: raised to the floor of {self.show(floor)}")


def _asked_name(asked: float) -> str:
    return "asked by the intent" if asked < LARGEST else "(as much as is allowed) asked by the intent"


class _Around:
    """What surrounds one quantity of a call: class and tier (tables of the policy), session and host."""

    __slots__ = ("host", "klass", "session", "tier")

    def __init__(self, klass: Any, tier: Any, session: float | None, host: float | None) -> None:
        self.klass = klass
        self.tier = tier
        self.session = session
        self.host = host

    def amount(self, value: Any, own: float | None = None) -> float | None:
        """An amount of the policy as a number."""
        return amount(value, self.session, self.host, own)


def _grant(
    clamp: _Clamp, asked: float | None, around: _Around, class_name: str, floor: float
) -> tuple[float | None, float | None]:
    """What a call gets, and the most it could get.

    It gets what it asked, else its class's default, inside every ceiling and above the floor.
    """
    if asked is not None:
        clamp.take(float(asked), _asked_name(asked))
    clamp.take(around.amount(around.klass.get("default")), f"by default in class {class_name}")
    by_class, by_tier = around.amount(around.klass.get("max")), around.amount(around.tier.get("max"))
    clamp.cut(by_class, f"class {class_name}", imposes=True)
    clamp.cut(by_tier, "tier", imposes=True)
    clamp.cut(around.session, "session")
    clamp.cut(around.host, "host")
    clamp.raise_to(floor, around.session, around.host)
    return clamp.value, _least(by_class, by_tier, around.session, around.host)


def _least(*ceilings: float | None) -> float | None:
    return min((ceiling for ceiling in ceilings if ceiling is not None), default=None)


def _memory(plan: Plan, around: _Around, asked: float | None) -> None:
    clamp = _Clamp(plan, "memory", show_size)
    maximum, plan.ceilings["memory"] = _grant(clamp, asked, around, plan.class_name, MEMORY_FLOOR)
    plan.memory = None if maximum is None else int(maximum)
    for name in ("high", "low", "min"):
        part = _Clamp(plan, f"memory.{name}", show_size)
        part.take(around.amount(around.klass.get(name), maximum), f"by class {plan.class_name}")
        part.cut(maximum, "call's own memory.max")
        if name == "high":
            part.raise_to(MEMORY_FLOOR, around.session, around.host)
        setattr(plan, f"memory_{name}", None if part.value is None else int(part.value))
    plan.memory_adaptive = plan.memory_high is not None and bool(around.klass.get("adaptive"))
    plan.learned = plan.memory_high is None and asked is None and bool(around.klass.get("learned"))
    if plan.learned:
        plan.reasons.append("memory.high: begins at what calls like it used, where agentrund knows that")


def _cpu(plan: Plan, around: _Around, asked: float | None) -> None:
    clamp = _Clamp(plan, "cpu", show_number)
    plan.cpus, plan.ceilings["cpu"] = _grant(clamp, asked, around, plan.class_name, CPU_FLOOR)
    plan.cpuset = around.klass.get("cpus")


def _pids(plan: Plan, around: _Around, asked: float | None) -> None:
    clamp = _Clamp(plan, "pids", show_number)
    _, plan.ceilings["pids"] = _grant(clamp, asked, around, plan.class_name, PIDS_FLOOR)
    clamp.cut(PIDS_MOST, "kernel")
    plan.pids = None if clamp.value is None else int(clamp.value)


def _show_time(seconds: float) -> str:
    return f"{show_number(seconds)}s"


def _time(plan: Plan, klass: Any, tier: Any, intent: Intent) -> None:
    own = klass.get("time", {})
    clamp = _Clamp(plan, "time", _show_time)
    clamp.take(intent.time, "asked by the intent")
    by_class, by_tier = own.get("hard"), tier.get("time", {}).get("hard")
    clamp.cut(by_class, f"class {plan.class_name}", imposes=True)
    clamp.cut(by_tier, "tier", imposes=True)
    plan.time_hard, plan.ceilings["time"] = clamp.value, _least(by_class, by_tier)
    soft = own.get("soft")
    if soft is not None:
        plan.time_soft = soft if clamp.value is None else min(soft, clamp.value)


def _weights(plan: Plan, klass: Any, intent: Intent) -> None:
    """Weights of the class, moved by the priority; an intent can only lower that."""
    own = klass.get("priority", "normal")
    plan.priority = own
    asked = intent.priority
    if asked is not None and PRIORITIES[asked] <= PRIORITIES[own]:
        plan.priority = asked
        plan.reasons.append(f"priority: {asked} asked by the intent")
    elif asked is not None:
        intent.refuse(f"priority={asked}", f"class {plan.class_name} has priority {own} at most")
    percent = PRIORITIES[plan.priority]
    cpu, io = klass.get("cpu", {}).get("weight"), klass.get("io", {}).get("weight")
    if cpu is not None or percent != 100:
        plan.cpu_weight = _weight(cpu, percent)
    plan.boost = klass.get("cpu", {}).get("boost", plan.priority != "low")
    if io is not None:
        plan.io_weight = _weight(io, percent)
    plan.io_max = klass.get("io", {}).get("max", [])


def _weight(weight: int | None, percent: int) -> int:
    scaled = (WEIGHT_DEFAULT if weight is None else weight) * percent // 100
    return max(WEIGHT_MIN, min(WEIGHT_MAX, scaled))


def _network(plan: Plan, klass: Any, intent: Intent) -> None:
    """The class's profile; an intent can only give the network up."""
    plan.net = klass.get("network")
    if intent.net in (None, plan.net):
        return
    if intent.net == "none":
        plan.net = "none"
        plan.reasons.append("net: none asked by the intent")
    else:
        intent.refuse(f"net={intent.net}", f"class {plan.class_name} has the profile {plan.net or 'default'}")


def choose_class(policy: Mapping[str, Any], chosen: str | None, tier: Any, intent: Intent) -> tuple[str, str]:
    """The class of a call and why: what the intent asks where it may, else `chosen`, else the default."""
    classes, permitted = policy["classes"], tier.get("classes")
    asked = intent.class_name
    if asked is not None:
        if asked not in classes:
            intent.refuse(f"class={asked}", "no such class")
        elif not classes[asked].get("selectable", True):
            intent.refuse(f"class={asked}", "this class is not for intents to choose")
        elif permitted is not None and asked not in permitted:
            intent.refuse(f"class={asked}", "not in this tier")
        else:
            return asked, "asked by the intent"
    if chosen in classes:
        return str(chosen), ""
    return str(policy["default_class"]), "by default"


def make_plan(
    policy: Mapping[str, Any],
    class_name: str,
    tier_name: str | None,
    session: Limits,
    host: Limits,
    intent: Intent,
) -> Plan:
    """The plan for one call of a class. An intent moves only inside class, tier, session and host."""
    klass, tier = policy["classes"][class_name], policy["tiers"].get(tier_name, {})
    plan = Plan(class_name)

    def around(name: str, session_limit: float | None, host_limit: float | None) -> _Around:
        return _Around(klass.get(name, {}), tier.get(name, {}), session_limit, host_limit)

    _memory(plan, around("memory", session.memory, host.memory), intent.memory)
    _cpu(plan, around("cpu", session.cpus, host.cpus), intent.cpu)
    _pids(plan, around("pids", session.pids, host.pids), intent.pids)
    _time(plan, klass, tier, intent)
    _weights(plan, klass, intent)
    _network(plan, klass, intent)
    plan.ceilings["session_memory"] = session.memory
    plan.feedback = klass.get("feedback", "on")
    plan.background = klass.get("background", "demote")
    plan.on_disconnect = klass.get("on-disconnect", "keep")
    plan.stall = klass.get("stall")
    plan.oom_score_adj = tier.get("oom-score-adj", OOM_SCORE_ADJ)
    if policy.get("adapt", "on") == "on":
        plan.rank = [tier.get("priority", TIER_PRIORITY), PRIORITIES[plan.priority]]
        _admission(plan, klass, tier)
    return plan


def _admission(plan: Plan, klass: Any, tier: Any) -> None:
    """How long the call may have to wait before it starts, while memory is short."""
    own = tier.get("admission")
    if own is None or not klass.get("may-wait", True):
        return
    wait = min(own.get("wait", ADMISSION_WAIT), ADMISSION_WAIT_MOST)
    then = own.get("then", "start")
    plan.admission = {"wait": wait, "then": then}
    ends = "is refused" if then == "refuse" else "starts all the same"
    plan.reasons.append(f"admission: waits up to {_show_time(wait)} while memory is short, then {ends}")
