"""A call is opened: what is known of it before it begins, its slot, its cgroup with its limits."""

from __future__ import annotations

import posix
import time

from agentrun.base.errors import CgroupError
from agentrun.base.procfs import start_ticks
from agentrun.calls import netmark, record, slots
from agentrun.cgroups import around, layout
from agentrun.cgroups.cgroup import Cgroup
from agentrun.decision import match
from agentrun.decision.decide import Decision
from agentrun.oci import processdoc
from agentrun.oci.argv import absolute, exec_id

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from agentrun.decision.config import Config
    from agentrun.decision.intent import Intent
    from agentrun.decision.plan import Plan
    from agentrun.oci.argv import Invocation
    from agentrun.oci.container import Container

# Without these a plan still protects everyone else; what could not be set is named in the record.
_OPTIONAL_FILES = frozenset(("cpuset.cpus", "io.weight", "io.max", "memory.min", "memory.low"))


def _enabled_controllers(container: Cgroup, config: Config) -> set[str]:
    """Controllers that calls of this container have, the layout made first where it is not there yet.

    Not there: a container that `run` started, or one from before agentrun was configured.
    """
    calls_cgroup = container.child(layout.CALLS)
    enabled = set((calls_cgroup.read("cgroup.subtree_control") or "").split())
    available = set((container.read("cgroup.controllers") or "").split())
    if calls_cgroup.exists() and available.intersection(layout.CONTROLLERS) <= enabled:
        return enabled
    layout.ensure(container, config.policy.get("agent"))
    return set((calls_cgroup.read("cgroup.subtree_control") or "").split())


def open_call(
    config: Config, found: Container, live: slots.Calls, decision: Decision, state: dict[str, Any]
) -> str:
    """Take a slot, make the call's cgroup and write its limits; returns the slot's name."""
    container, plan = Cgroup(found.cgroup), decision.plan
    assert plan is not None
    enabled = _enabled_controllers(container, config)
    if plan.cpuset is not None and layout.enable_cpuset(container):
        enabled.add("cpuset")
    planned = plan.files() if decision.mode == "enforce" else []
    state["not_enforced"] = sorted({controller for controller, _, _ in planned if controller not in enabled})
    name = _make_cgroup(container.child(layout.CALLS), live, state)
    call = container.child(layout.CALLS).child(name)
    try:
        failed = _write_limits(call, [(file, value) for c, file, value in planned if c in enabled])
        if decision.mode == "enforce":
            failed += _limit_more(config, container, call, plan, enabled)
        if "cpuset" not in enabled or "cpuset.cpus" in failed:
            plan.cpuset = None  # as an affinity, CPUs that are not there would fail the exec (crun)
        if failed:
            live.note(name, state["id"], not_enforced=sorted({*state["not_enforced"], *failed}))
    except Exception:
        call.remove()
        live.free_slot(name)
        raise
    return name


def _limit_more(config: Config, container: Cgroup, call: Cgroup, plan: Plan, enabled: set[str]) -> list[str]:
    """What is not one file of the call's cgroup; returns what this host did not take."""
    failed = [] if netmark.mark(config, call, plan.net) else ["network"]
    if plan.io_max and "io" in enabled:
        failed += _limit_devices(call, plan.io_max)
    if plan.memory_min or plan.memory_low:
        layout.protect_calls(container.child(layout.CALLS))
    return failed


def new_state(
    config: Config,
    invocation: Invocation,
    found: Container,
    process: processdoc.Process,
    decision: Decision,
) -> dict[str, Any]:
    """What is known of a call before it begins: its state file, and most of its record."""
    container, plan = Cgroup(found.cgroup), decision.plan
    assert plan is not None
    client = _find_client(decision.intent)
    enforced = decision.mode == "enforce"
    pid_file = invocation.last("pid-file")
    stored, unwrapped = config.policy.get("record_command", "name"), decision.command
    return {
        "id": record.new_id(),
        "container": found.container_id,
        "root": found.root,
        "backend": found.kind,
        "exec_id": exec_id(pid_file),
        "pid_file": absolute(pid_file),
        "detached": "detach" in invocation.options,
        "oom_before": around.oom_counts(container),
        "calls": container.child(layout.CALLS).path,
        "command": record.describe_command(process.argv, unwrapped.program, stored, unwrapped.family),
        "mode": decision.mode,
        "policy": config.policy["hash"],
        "session": decision.session.why,
        "tier": decision.tier,
        "class": plan.class_name,
        "rank": plan.rank if enforced else None,
        "rule": decision.rule,
        "client": client,
        "intent": decision.describe_intent(),
        "limits": plan.limits() if enforced else None,
        "reasons": plan.reasons,
        "ceilings": plan.ceilings,
        "tty": process.tty,
        "care": _care(config, decision),
        "start": time.time(),
    }


def _find_client(intent: Intent) -> list[int] | None:
    """[pid, start ticks] of the process that the call is run for; pids are reused."""
    if intent.client is None:
        return None
    ticks = start_ticks(intent.client)
    if ticks is not None:
        return [intent.client, ticks]
    intent.refuse(f"client={intent.client}", "no such process on the host")
    intent.client = None
    return None


def _care(config: Config, decision: Decision) -> dict[str, Any]:
    """What agentrund is to do about the call while it runs and when it has ended."""
    plan = decision.plan
    assert plan is not None
    feedback = match.feedback_of(decision.mode, decision.session.feedback, plan.feedback)
    care: dict[str, Any] = {"feedback": feedback}
    if feedback != "off" and config.policy.get("feedback"):
        care["templates"] = config.policy["feedback"]
    if decision.mode == "enforce":
        care["background"] = plan.background
        care["stall"] = plan.stall
        care["oom_score_adj"] = plan.oom_score_adj
        if plan.on_disconnect != "keep":
            care["on_disconnect"] = plan.on_disconnect
        if plan.learned:
            care["learned"] = True
        if not plan.boost:
            care["boost"] = False
    return care


def _write_limits(call: Cgroup, values: list[tuple[str, str]]) -> list[str]:
    """Write (file, value) pairs; returns the optional files that this kernel or disk did not take."""
    failed = []
    for file, value in values:
        try:
            call.write(file, value)
        except CgroupError:
            if file not in _OPTIONAL_FILES:
                raise
            failed.append(file)
    return failed


def _limit_devices(call: Cgroup, limits: list[list[str]]) -> list[str]:
    """Write `io.max` for each device; one that this host does not have has nothing to limit."""
    lines = []
    for device, values in limits:
        number = device
        if device.startswith("/"):
            try:
                rdev = posix.stat(device).st_rdev
            except OSError:
                continue
            number = f"{posix.major(rdev)}:{posix.minor(rdev)}"
        lines.append(("io.max", f"{number} {values}"))
    return _write_limits(call, lines)


def _make_cgroup(parent: Cgroup, session: slots.Calls, state: dict[str, Any]) -> str:
    """Take a slot and make the cgroup of that name.

    A cgroup that is there without a slot of ours is somebody else's (a container that can write cgroupfs
    makes what it likes): it is stepped over, and its slot is freed only after a better one was found.
    """
    stepped_over: list[str] = []
    try:
        while True:
            name = session.take_slot(state)
            try:
                if parent.child(name).make():
                    return name
            except Exception:
                session.free_slot(name)
                raise
            stepped_over.append(name)
    finally:
        for name in stepped_over:
            session.free_slot(name)
