"""`exec`: give the call a cgroup of its own with its limits, before the backend starts it there."""

from __future__ import annotations

import errno
import posix
import time

from agentrun.base import agentrund, files, log
from agentrun.base.errors import RefusedError, StateError, reason
from agentrun.calls import slots
from agentrun.calls.opening import new_state, open_call
from agentrun.calls.session import open_calls
from agentrun.cgroups import around, layout, surroundings
from agentrun.cgroups.cgroup import Cgroup
from agentrun.decision.decide import Decision, decide
from agentrun.decision.truth import SCHEDULERS, machine_truth, rewritten
from agentrun.oci import engine, processdoc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from agentrun.base.limits import Limits
    from agentrun.base.paths import Paths
    from agentrun.decision.config import Config
    from agentrun.decision.plan import Plan
    from agentrun.oci.argv import Invocation
    from agentrun.oci.container import Container
    from agentrun.runtime import admission


def prepare(paths: Paths, config: Config, invocation: Invocation, found: Container) -> list[str]:
    """Make the call; returns the options that place the process in it, empty to leave it alone.

    Raises AgentrunError or OSError, and then nothing of the call is left behind.
    """
    if "cgroup" in invocation.options or not found.is_running():
        return []
    facts = engine.facts_of(found, paths.cgroup_root, paths.root)
    process = processdoc.read(invocation)
    limits = surroundings.session_limits(Cgroup(found.cgroup), paths.cgroup_root)
    decision = decide(config.policy, config.mode, facts, process, limits, surroundings.host_limits())
    if decision.plan is None:
        return []
    state = new_state(config, invocation, found, process, decision)
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
        from agentrun.runtime import admission

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
        state["oom_before"] = around.oom_counts(Cgroup(found.cgroup))
    return waited


def _live_call(
    paths: Paths, config: Config, found: Container, decision: Decision, state: dict[str, Any]
) -> str | None:
    """Record calls before this one, and make this one; returns its slot's name."""
    live = open_calls(paths, found.root, found.container_id)
    if live is None:
        return None
    try:
        # agentrund knows better when and how a call ended; one that is stuck must not leave us a backlog.
        is_alive = agentrund.is_daemon_alive(paths)
        has_backlog = len(live.slots()) >= slots.BACKLOG_LIMIT
        if (has_backlog and agentrund.is_daemon_stuck(paths)) or not (
            is_alive or agentrund.is_daemon_near(paths)
        ):
            live.harvest()
        if not is_alive and files.exists(paths.holding):
            _release(paths)
        return open_call(config, found, live, decision, state)
    finally:
        live.close()


def _release(paths: Paths) -> None:
    """Let calls go on that a dead agentrund left frozen."""
    from agentrun.calls import release

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
    wanted = SCHEDULERS.get(plan.priority)
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
    truth = machine_truth(plan, limits.cpus, limits.memory) if wanted else {}
    document = rewritten(process, plan, truth, config.policy.get("strip_intent", False))
    if document is None:
        return
    try:
        processdoc.replace(process.path, document)
    except (OSError, ValueError) as error:
        text = reason(error) if isinstance(error, OSError) else str(error)
        log.warn(paths, "process document not rewritten", path=process.path, error=text)
