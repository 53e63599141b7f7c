"""`exec`: give the call a cgroup of its own with its limits, before the backend starts it there."""

from __future__ import annotations

import errno
import posix
import time

from agentrun import calls, files, layout, log, netmark, policy, processdoc, records, session, surroundings
from agentrun.cgroup import Cgroup
from agentrun.container import start_ticks
from agentrun.decide import Decision, decide
from agentrun.errors import CgroupError, RefusedError, StateError, reason

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from agentrun import admission
    from agentrun.argv import Invocation
    from agentrun.config import Config
    from agentrun.container import Container
    from agentrun.intent import Intent
    from agentrun.paths import Paths
    from agentrun.plan import Limits, Plan

# Without these a plan still protects everyone else; what could not be set is named in the record.
_OPTIONAL_FILES = frozenset(("cpuset.cpus", "io.weight", "io.max", "memory.min", "memory.low"))


def prepare(paths: Paths, config: Config, invocation: Invocation, found: Container) -> list[str]:
    """Make the call; returns the options that place the process in it, empty to leave it alone.

    Raises AgentrunError or OSError, and then nothing of the call is left behind.
    """
    if "cgroup" in invocation.options or not found.is_running():
        return []
    facts = session.facts_of(found, paths.cgroup_root, paths.root)
    process = processdoc.read(invocation)
    limits = surroundings.session_limits(Cgroup(found.cgroup), paths.cgroup_root)
    decision = decide(config.policy, config.mode, facts, process, limits, surroundings.host_limits())
    if decision.plan is None:
        return []
    state = _new_state(config, invocation, found, process, decision)
    waited = _wait_for_room(paths, found, decision, state)
    try:
        if waited is not None and not found.is_running():
            return []  # it ended meanwhile; the backend says so in its own words
        name = _live_call(paths, config, found, decision, state)
    except StateError as error:
        if error.errno != errno.ENOENT:
            raise
        # The session's directory was removed between opening it and using it: somebody tidied up.
        name = _live_call(paths, config, found, decision, state)
    finally:
        if waited is not None:
            waited.forget()
    if name is None:
        return []
    if decision.mode == "enforce":
        _become_killable()
        _tell_truth(paths, config, process, decision.plan, limits)
        _become_nice(paths, process, decision.plan)
    return ["--cgroup", f"{layout.CALLS}/{name}"]


def _wait_for_room(
    paths: Paths, found: Container, decision: Decision, state: dict[str, Any]
) -> admission.Waited | None:
    """Wait where the policy says so and memory is short; then the call starts now. Raises RefusedError."""
    plan = decision.plan
    assert plan is not None
    # One stat(2) is all that it costs while there is room.
    if plan.admission is None or decision.mode != "enforce" or not files.exists(paths.gate):
        return None
    try:
        from agentrun import admission

        waited = admission.admit(paths, found, state, plan.admission)
    except RefusedError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever it is, the call starts, and with its limits
        text = str(error) or type(error).__name__
        log.warn(paths, "call does not wait for room", container=found.container_id, error=text)
        return None
    if waited is not None:
        state["waited"] = waited.describe(found.cgroup)
        state["start"] = time.time()
        state["oom_before"] = records.oom_counts(Cgroup(found.cgroup))
    return waited


def _live_call(
    paths: Paths, config: Config, found: Container, decision: Decision, state: dict[str, Any]
) -> str | None:
    """Record calls before this one, and make this one; returns its slot's name."""
    live = calls.open_calls(paths, found.root, found.container_id)
    if live is None:
        return None
    try:
        # agentrund knows better when and how a call ended; a backlog means that it is stuck.
        is_alive = calls.is_daemon_alive(paths)
        if len(live.slots()) >= calls.BACKLOG_LIMIT or not (is_alive or calls.is_daemon_near(paths)):
            live.harvest()
        if not is_alive and files.exists(paths.holding):
            _release(paths)
        return _open_call(config, found, live, decision, state)
    finally:
        live.close()


def _release(paths: Paths) -> None:
    """Let calls go on that a dead agentrund left frozen."""
    from agentrun import release

    release.release_all(paths)


def _become_killable() -> None:
    """Give up an exemption from OOM kills that the engine inherited and would hand down to the call.

    A call with oom_score_adj -1000 at its memory limit is never killed: it spins in the kernel for ever
    ("Out of memory and no killable processes", mm/oom_kill.c). With -998, which an exec by dockerd and crun
    has from the shim, a container out of memory loses its agent (0) instead of the call. Where the process
    document sets a value, the backend still applies that.
    """
    fd = posix.open("/proc/self/oom_score_adj", posix.O_RDWR | posix.O_CLOEXEC)
    try:
        if posix.read(fd, 16).startswith(b"-"):
            posix.pwrite(fd, b"0", 0)
    finally:
        posix.close(fd)


def _become_nice(paths: Paths, process: processdoc.Process, plan: Plan) -> None:
    """Have the call inherit its scheduling policy, which its process document names as well.

    crun sets that for the process which it cloned, and which may have forked the call by then
    (libcrun_join_process in libcrun/linux.c); runc 1.1 does not know `scheduler`.
    """
    wanted = processdoc.SCHEDULERS.get(plan.priority)
    if wanted is None or "scheduler" in process.document:
        return
    policy_name, nice = wanted
    try:
        posix.sched_setscheduler(0, getattr(posix, policy_name), posix.sched_param(0))
        posix.setpriority(posix.PRIO_PROCESS, 0, max(nice, posix.getpriority(posix.PRIO_PROCESS, 0)))
    except OSError as error:
        log.warn(paths, "scheduling policy not set", policy=policy_name, nice=nice, error=reason(error))


def _tell_truth(
    paths: Paths, config: Config, process: processdoc.Process, plan: Plan, limits: Limits
) -> None:
    """Rewrite the process document. The call's limits hold without it, so a failure is only noted."""
    if process.path is None:
        return
    wanted = config.policy.get("machine_truth", True)
    truth = processdoc.machine_truth(plan, limits.cpus, limits.memory) if wanted else {}
    document = processdoc.rewritten(process, plan, truth, config.policy.get("strip_intent", False))
    if document is None:
        return
    try:
        processdoc.replace(process.path, document)
    except (OSError, ValueError) as error:
        text = reason(error) if isinstance(error, OSError) else str(error)
        log.warn(paths, "process document not rewritten", path=process.path, error=text)


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


def _open_call(
    config: Config, found: Container, live: calls.Calls, decision: Decision, state: dict[str, Any]
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


def _new_state(
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
        "id": records.new_id(),
        "container": found.container_id,
        "root": found.root,
        "backend": found.kind,
        "exec_id": _exec_id(pid_file),
        "pid_file": _absolute(pid_file),
        "detached": "detach" in invocation.options,
        "oom_before": records.oom_counts(container),
        "calls": container.child(layout.CALLS).path,
        "command": records.describe_command(process.argv, unwrapped.program, stored, unwrapped.family),
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
    feedback = policy.feedback_of(decision.mode, decision.session.feedback, plan.feedback)
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


def _exec_id(pid_file: str | None) -> str | None:
    """The engine's id of the exec, which is in the path of the pid file it asks for.

    containerd and docker: `<task>/ID.pid` (shim process/exec.go); podman: `<bundle>/ID/exec_pid`
    (libpod container_exec.go, execPidPath). None where the path says nothing.
    """
    if pid_file is None:
        return None
    head, _, name = pid_file.rpartition("/")
    return head.rpartition("/")[2] or None if name == "exec_pid" else name.removesuffix(".pid")


def _absolute(path: str | None) -> str | None:
    return path if path is None or path.startswith("/") else f"{posix.getcwd()}/{path}"


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


def _make_cgroup(parent: Cgroup, session: calls.Calls, state: dict[str, Any]) -> str:
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
