"""`exec`: give the call a cgroup of its own with its limits, before the backend starts it there."""

from __future__ import annotations

import posix
import time

from agentrun import calls, fastjson, files, intent, layout, plan, records
from agentrun.cgroup import Cgroup

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from agentrun.argv import Invocation
    from agentrun.config import Config
    from agentrun.container import Container
    from agentrun.paths import Paths

_PROCESS_LIMIT = 16 << 20


def prepare(paths: Paths, config: Config, invocation: Invocation, found: Container) -> list[str]:
    """Make the call; returns the options that place the process in it, empty to leave it alone.

    Raises AgentrunError or OSError, and then nothing of the call is left behind.
    """
    if "cgroup" in invocation.options or not found.is_running():
        return []
    session = calls.open_calls(paths, found.root, found.container_id)
    if session is None:
        return []
    try:
        session.harvest()
        name = _open_call(config, invocation, found, session)
    finally:
        session.close()
    if config.mode == "enforce":
        _become_killable()
    return ["--cgroup", f"{layout.CALLS}/{name}"]


def _become_killable() -> None:
    """Give up an exemption from OOM kills that the engine inherited and would hand down to the call.

    A call with oom_score_adj -1000 at its memory limit is never killed: it spins in the kernel for ever
    ("Out of memory and no killable processes", mm/oom_kill.c). Where the process document sets a value,
    the backend still applies that.
    """
    fd = posix.open("/proc/self/oom_score_adj", posix.O_RDWR | posix.O_CLOEXEC)
    try:
        if posix.read(fd, 16).strip() == b"-1000":
            posix.pwrite(fd, b"0", 0)
    finally:
        posix.close(fd)


def read_process(invocation: Invocation) -> tuple[list[Any], list[Any]]:
    """Environment and arguments of the exec, from its process document or its options.

    Only a regular file is looked at: a document that comes through a pipe is the backend's to read.
    """
    path = invocation.last("process")
    if path is None:
        return list(invocation.options.get("env", [])), list(invocation.command)
    try:
        data = files.read_regular(path, _PROCESS_LIMIT, follow=True)
        document = fastjson.loads(data) if data else {}
        return list(document.get("env") or []), list(document.get("args") or [])
    except (OSError, ValueError, AttributeError, TypeError):
        return [], []  # the backend reports what is wrong with its own input


def _cpus(cpu_max: str | None) -> float | None:
    """CPUs allowed by the content of `cpu.max` (`QUOTA PERIOD` in microseconds, or `max PERIOD`)."""
    fields = (cpu_max or "").split()
    return int(fields[0]) / int(fields[1]) if len(fields) == 2 and fields[0].isdigit() else None


def _decide(config: Config, container: Cgroup, asked: intent.Intent) -> plan.Plan:
    session = plan.Session(
        container.number("memory.max"),
        _cpus(container.read("cpu.max")),
        container.number("pids.max"),
    )
    memory = posix.sysconf("SC_PHYS_PAGES") * posix.sysconf("SC_PAGE_SIZE")
    host = plan.Session(memory, float(posix.cpu_count() or 1))
    return plan.make_plan(config.defaults, session, host, asked)


def _enabled_controllers(container: Cgroup) -> set[str]:
    """Controllers that calls of this container have, the layout made first where it is not there yet.

    Not there: a container that `run` started, or one from before agentrun was configured.
    """
    calls_cgroup = container.child(layout.CALLS)
    enabled = set((calls_cgroup.read("cgroup.subtree_control") or "").split())
    available = set((container.read("cgroup.controllers") or "").split())
    if calls_cgroup.exists() and available.intersection(layout.CONTROLLERS) <= enabled:
        return enabled
    layout.ensure(container)
    return set((calls_cgroup.read("cgroup.subtree_control") or "").split())


def _open_call(config: Config, invocation: Invocation, found: Container, session: calls.Calls) -> str:
    """Take a slot, make the call's cgroup and write its limits; returns the slot's name."""
    container = Cgroup(found.cgroup)
    enabled = _enabled_controllers(container)
    environment, command = read_process(invocation)
    asked = intent.parse_environment(environment)
    decided = _decide(config, container, asked)
    planned = decided.files() if config.mode == "enforce" else []
    pid_file = invocation.last("pid-file")
    state: dict[str, Any] = {
        "id": records.new_id(),
        "container": found.container_id,
        "root": found.root,
        "backend": found.kind,
        "exec_id": pid_file.rpartition("/")[2].removesuffix(".pid") if pid_file else None,
        "calls": container.child(layout.CALLS).path,
        "command": records.describe_command(command),
        "mode": config.mode,
        "intent": {"raw": asked.raw, "accepted": asked.accepted(), "refused": asked.refused},
        "limits": decided.limits() if config.mode == "enforce" else None,
        "reasons": decided.reasons,
        "not_enforced": sorted({c for c, _, _ in planned if c not in enabled}),
        "start": time.time(),
    }
    name = _make_cgroup(container.child(layout.CALLS), session, state)
    try:
        for controller, file, value in planned:
            if controller in enabled:
                container.child(layout.CALLS).child(name).write(file, value)
    except Exception:
        container.child(layout.CALLS).child(name).remove()
        session.free_slot(name)
        raise
    return name


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
