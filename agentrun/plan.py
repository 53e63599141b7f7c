"""Decide the limits of one call. Pure: the same input gives the same plan, for the hot path and for tests.

This is the seam for the policy language: rules and classes will replace `Defaults` as the first argument.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from agentrun.config import Defaults
    from agentrun.intent import Intent

# runc's own init starts inside the call's cgroup (several threads, ~10 MiB), and below these it fails
# with an error that looks like the command's own (runc#4427; pids.max=1: "connection reset by peer").
MEMORY_FLOOR = 32 << 20
PIDS_FLOOR = 16
CPU_FLOOR = 0.1
CPU_PERIOD_US = 100_000


class Session:
    """What the engine and the host allow the container as a whole; None where there is no limit."""

    __slots__ = ("cpus", "memory", "pids")

    def __init__(self, memory: int | None = None, cpus: float | None = None, pids: int | None = None) -> None:
        self.memory = memory
        self.cpus = cpus
        self.pids = pids


class Plan:
    """The limits of one call: `memory` in bytes, `cpus`, `pids`, each None for none, and the reasons."""

    __slots__ = ("cpus", "memory", "pids", "reasons")

    def __init__(self) -> None:
        self.memory: int | None = None
        self.cpus: float | None = None
        self.pids: int | None = None
        self.reasons: list[str] = []

    def files(self) -> list[tuple[str, str, str]]:
        """The cgroup files to write, in order: (controller, file, value)."""
        files = [("memory", "memory.oom.group", "1")]
        if self.memory is not None:
            files.append(("memory", "memory.max", str(self.memory)))
        if self.pids is not None:
            files.append(("pids", "pids.max", str(self.pids)))
        if self.cpus is not None:
            files.append(("cpu", "cpu.max", f"{round(self.cpus * CPU_PERIOD_US)} {CPU_PERIOD_US}"))
        return files

    def limits(self) -> dict[str, float | int | None]:
        """The limits by name, as the record shows them."""
        return {"memory": self.memory, "cpu": self.cpus, "pids": self.pids}


def _show(value: float) -> str:
    return str(int(value)) if value == int(value) else f"{value:.2f}"


def _clamp(
    plan: Plan, name: str, asked: float | None, floor: float, ceilings: dict[str, float | None]
) -> float | None:
    """The asked amount (else the lowest class ceiling), inside the floor and every ceiling, with reasons."""
    value = asked
    if asked is not None:
        plan.reasons.append(f"{name}: {_show(asked)} asked by the intent")
    for source, ceiling in ceilings.items():
        if ceiling is None:
            continue
        if value is None and source == "class":
            value = ceiling
            plan.reasons.append(f"{name}: {_show(ceiling)} by the built-in class")
        elif value is not None and value > ceiling:
            value = ceiling
            plan.reasons.append(f"{name}: cut to {_show(ceiling)} by the {source}")
    if value is not None and value < floor:
        value = floor
        plan.reasons.append(f"{name}: raised to the floor of {_show(floor)}")
    return value


def make_plan(defaults: Defaults, session: Session, host: Session, intent: Intent) -> Plan:
    """The plan for one call. An intent can only move inside what class, session and host allow."""
    plan = Plan()
    share = defaults.memory_percent
    class_memory = session.memory * share / 100 if session.memory and share else None
    memory = _clamp(
        plan,
        "memory",
        intent.memory,
        MEMORY_FLOOR,
        {"class": class_memory, "session": session.memory, "host": host.memory},
    )
    pids = _clamp(
        plan,
        "pids",
        intent.pids,
        PIDS_FLOOR,
        {"class": defaults.pids_max, "session": session.pids, "host": host.pids},
    )
    plan.memory = None if memory is None else int(memory)
    plan.pids = None if pids is None else int(pids)
    plan.cpus = _clamp(plan, "cpu", intent.cpu, CPU_FLOOR, {"session": session.cpus, "host": host.cpus})
    return plan
