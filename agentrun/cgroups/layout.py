"""The nested layout below a container's cgroup.

    <container cgroup>      the engine's own limits stay here
    ├── agentrun-agent/     init and everything that is not a call
    └── agentrun-calls/     all calls: one knob to freeze, throttle or kill them without the agent
        └── call-N/         one call

The engine's cgroup path is never changed: `docker stats`, `docker update` and `kill` keep working on it.
"""

from __future__ import annotations

from agentrun.base.errors import CgroupError
from agentrun.base.limits import amount
from agentrun.cgroups.cgroup import Cgroup

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

AGENT = "agentrun-agent"
CALLS = "agentrun-calls"
CONTROLLERS = ("memory", "pids", "cpu", "io")
# The agent's own loop is light and must stay responsive beside calls that burn every CPU: twice the
# share of all calls together, and nothing at all while it sleeps.
AGENT_CPU_WEIGHT = 200
_DELEGATE = "/sys/kernel/cgroup/delegate"
_ENABLE_TRIES = 5


def is_ready(container: Cgroup) -> bool:
    """Whether calls can be made: `agentrun-calls` comes last, after everything that it needs."""
    return container.child(CALLS).exists()


def ensure(container: Cgroup, agent_policy: Mapping[str, Any] | None = None) -> list[str]:
    """Make the layout and move every process of the container into the agent's leaf.

    `agent_policy` is the policy's `agent`: weight and memory protection of that leaf.

    Idempotent, and safe beside another one doing the same. Returns the controllers that could not be
    enabled (rootless delegation has fewer). Raises CgroupError when init cannot be moved.
    """
    agent = container.child(AGENT)
    agent.make()
    _copy_owner(container.path, agent.path)
    missing = _enable_controllers(container, lambda: container.move_all(agent))
    _protect_agent(container, agent, agent_policy or {})
    calls = container.child(CALLS)
    calls.make()
    return sorted(set(missing + _enable_controllers(calls, lambda: None)))


def remove(calls: Cgroup) -> None:
    """Remove the cgroup of a deleted container, found by its `agentrun-calls`, if nothing lives there.

    Raises CgroupError.
    """
    head, _, name = calls.path.rpartition("/")
    if name == CALLS:
        Cgroup(head).remove()


def _protect_agent(container: Cgroup, agent: Cgroup, policy: Mapping[str, Any]) -> None:
    """The agent's share and protection against its own calls; what has no controller cannot be had."""
    _try_write(agent, "cpu.weight", str(policy.get("cpu", {}).get("weight", AGENT_CPU_WEIGHT)))
    for name, value in policy.get("memory", {}).items():
        size = amount(value, container.number("memory.max"), None)
        if size is not None:
            _try_write(agent, f"memory.{name}", str(int(size)))


def protect_calls(calls: Cgroup) -> None:
    """Hand the calls' own protection through their parent: a child's counts only as far as its parent's."""
    for name in ("memory.min", "memory.low"):
        total = sum(call.number(name) or 0 for call in calls.children())
        if total != (calls.number(name) or 0):
            _try_write(calls, name, str(total))


def enable_cpuset(container: Cgroup) -> bool:
    """Enable `cpuset` down to the calls: only where a class pins its calls, for it is not free."""
    calls = container.child(CALLS)
    return all(
        "cpuset" in (cgroup.read("cgroup.subtree_control") or "").split()
        or _try_write(cgroup, "cgroup.subtree_control", "+cpuset")
        for cgroup in (container, calls)
    )


def share_cpu(container: Cgroup, weight: int | None) -> None:
    """Give the whole container its tier's share among others, unless its engine gave it one."""
    if weight is not None and container.read("cpu.weight") == "100":
        _try_write(container, "cpu.weight", str(weight))


def _enable_controllers(cgroup: Cgroup, empty: Callable[[], None]) -> list[str]:
    """Enable the controllers for the children of `cgroup`, one by one; returns those it could not.

    A cgroup that holds processes cannot enable one ("no internal processes"), so `empty` moves them out
    first, and again when a fork slipped in between.
    """
    missing = []
    empty()
    available = (cgroup.read("cgroup.controllers") or "").split()
    enabled = (cgroup.read("cgroup.subtree_control") or "").split()
    for controller in CONTROLLERS:
        if controller in enabled:
            continue
        if controller not in available or not _enable(cgroup, controller, empty):
            missing.append(controller)
    return missing


def _enable(cgroup: Cgroup, controller: str, empty: Callable[[], None]) -> bool:
    for _ in range(_ENABLE_TRIES):
        if _try_write(cgroup, "cgroup.subtree_control", f"+{controller}"):
            return True
        empty()
    return False


def _try_write(cgroup: Cgroup, name: str, value: str) -> bool:
    try:
        cgroup.write(name, value)
    except CgroupError:
        return False
    return True


def _copy_owner(source: str, target: str) -> None:
    """Give a delegated container (user namespace) the leaf of its own init, as its cgroup was given to it."""
    try:
        import os

        owner = os.stat(source)
        if owner.st_uid == 0:
            return
        with open(_DELEGATE, encoding="ascii") as file:
            names = file.read().split()
        os.chown(target, owner.st_uid, owner.st_gid)
        for name in names:
            if os.path.exists(f"{target}/{name}"):
                os.chown(f"{target}/{name}", owner.st_uid, owner.st_gid)
    except OSError as error:
        raise CgroupError("delegate cgroup", target, error) from error
