"""The verbs that agentrun takes part in: `start`, `exec`, `delete`, and `ps` on crun.

Every flow ends in the backend's execve. What fails on our side is decided in one place, `run`: hand off
untouched with one record in our log (`fail = "open"`), or refuse as a runtime refuses (`fail = "closed"`).
"""

from __future__ import annotations

import posix

from agentrun.base import log, paths
from agentrun.base.errors import CgroupError, HandoffError, RefusedError, StateError, reason
from agentrun.calls.session import open_calls
from agentrun.cgroups import layout
from agentrun.cgroups.cgroup import Cgroup
from agentrun.decision import config, inforce, match
from agentrun.oci import argv, container, engine, errorlog, handoff
from agentrun.runtime import exec as execcall
from agentrun.runtime import startshare

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

# A container must stay deletable and listable whatever the operator's fail policy is.
_MAY_REFUSE = ("start", "exec")
_LISTED = 1 << 16  # processes, and cgroups that a container may have nested


class Host:
    """What one runtime command works with: paths, configuration, kinds of backend in order."""

    __slots__ = ("config", "kinds", "paths")

    def __init__(self, host: paths.Paths, configuration: config.Config, pinned: str) -> None:
        self.paths = host
        self.config = configuration
        configured = dict.fromkeys(kind for kind, _ in configuration.backends)
        self.kinds = (pinned,) if pinned in container.KINDS else tuple(configured) or container.KINDS

    def backend(self, kind: str) -> str:
        """The backend of a kind. Raises HandoffError where none is installed."""
        for configured, path in self.config.backends:
            if configured == kind:
                return path
        from agentrun.oci import backend  # a pinned kind that is not in the configuration

        path = backend.find_backend(kind) or ""
        if not path:
            raise HandoffError(f"find backend {kind!r}: not installed in {backend.SEARCH_PATH}")
        return path


def _find(host: Host, invocation: argv.Invocation) -> container.Container | None:
    if not container.is_valid_id(invocation.container_id):
        return None
    return container.find(
        invocation.container_id, invocation.last_global("root"), host.kinds, host.paths.cgroup_root
    )


def _owner(host: Host, arguments: Sequence[str]) -> str:
    """The kind of backend that made the container of a verb we leave alone, else the preferred one.

    The front decides this itself, except right after the configuration changed.
    """
    root, words = argv.possible_ids(arguments)
    for word in words if len(host.kinds) > 1 else ():
        if container.is_valid_id(word):
            found = container.find(word, root, host.kinds, host.paths.cgroup_root)
            if found is not None:
                return found.kind
    return host.kinds[0]


def _start(host: Host, found: container.Container) -> None:
    """Move init into its leaf: after `create`, when the shim has read its cgroup, and before it runs."""
    if not found.is_running():
        return
    policy = host.config.policy
    facts = engine.facts_of(found, host.paths.cgroup_root, host.paths.root)
    choice = match.select_session(policy, host.config.mode, facts)
    if choice.mode == "off":
        return
    container_cgroup = Cgroup(found.cgroup)
    missing = layout.ensure(container_cgroup, policy.get("agent"))
    if choice.mode == "enforce":
        tier = policy["tiers"].get(choice.tier, {})
        weight = tier.get("cpu", {}).get("weight")
        layout.share_cpu(container_cgroup, weight)
        if choice.tier is not None:
            _begin_session(host.paths, found, choice, weight, shows=bool(tier.get("network")))
    if missing:
        log.warn(
            host.paths,
            "controllers not available, their limits do not hold",
            container=found.container_id,
            controllers=missing,
        )


def _begin_session(
    host: paths.Paths,
    found: container.Container,
    choice: match.SessionChoice,
    weight: int | None,
    *,
    shows: bool,
) -> None:
    """Make the directory of a container before its first call, where something is to be in it.

    Or to be seen: agentrun-net sets the rate of a container when it appears.
    """
    start_weight, tier = startshare.lower(weight), str(choice.tier)
    is_annotated = choice.annotations.get("tier") == tier
    session = open_calls(host, found.root, found.container_id) if start_weight or shows else None
    try:
        if start_weight is None:
            startshare.forget(host, tier)
        elif session is not None:
            startshare.enter(session, tier if is_annotated else None, start_weight)
    except (CgroupError, StateError, OSError) as error:
        log.warn(
            host,
            "share of the CPUs that calls are started with not kept",
            container=found.container_id,
            error=str(error),
        )
    finally:
        if session is not None:
            session.close()


def _delete(host: Host, invocation: argv.Invocation, found: container.Container) -> None:
    """Record the calls while the kernel still knows them, and forget the container."""
    session = open_calls(host.paths, found.root, found.container_id, make=False)
    if session is None:
        return
    try:
        if "force" in invocation.options or not found.is_running():
            session.finish(Cgroup(found.cgroup))
        else:
            session.harvest()  # the backend will refuse, so nothing that lives may be touched
    finally:
        session.close()


def _crun_ps(invocation: argv.Invocation, found: container.Container) -> bool:
    """List the processes as crun does; crun before 1.27.1 reads only the container's top cgroup.

    With the nested layout that is empty, and so was `docker top` (crun 1492e83c).
    """
    form = invocation.last("format") or "table"
    cgroup = Cgroup(found.cgroup)
    if found.kind != "crun" or form not in ("json", "table") or not layout.is_ready(cgroup):
        return False
    pids = [str(pid) for pid in cgroup.pids_below(_LISTED)]
    if form == "table":
        text = "".join(f"{line}\n" for line in ["PID", *pids])
    else:
        text = "[\n" + ",\n".join(f"  {pid}" for pid in pids) + "\n]\n"
    posix.write(1, text.encode())
    return True


def _take_part(host: Host, invocation: argv.Invocation, found: container.Container) -> list[str]:
    """Do our part of a verb; returns what to insert after the verb."""
    if invocation.verb == "delete":
        _delete(host, invocation, found)
    elif host.config.mode == "off":
        return []
    elif invocation.verb == "start":
        _start(host, found)
    elif invocation.verb == "exec":
        return execcall.prepare(host.paths, host.config, invocation, found)
    return []


def _inserted(host: Host, invocation: argv.Invocation, found: container.Container) -> list[str]:
    """Our part, with the fail policy around it. Raises HandoffError where that is to refuse.

    Raises RefusedError where our part did not fail: the call is not to start now.
    """
    try:
        return _take_part(host, invocation, found)
    except RefusedError:
        raise
    except Exception as error:  # whatever it is, a container must not stay stuck because of us
        text = reason(error) if isinstance(error, OSError) else str(error) or type(error).__name__
        if not found.is_running():
            return []  # it ended under our hands: the backend says so in its own words
        if host.config.fail_closed and invocation.verb in _MAY_REFUSE:
            raise HandoffError(text) from error
        log.warn(
            host.paths,
            "handed off without taking part",
            verb=invocation.verb,
            container=found.container_id,
            error=text,
        )
        return []


def _is_ours(invocation: argv.Invocation, found: container.Container, cgroup_root: str) -> bool:
    """Whether the container is one we take part in: on cgroup v2.

    At `delete` its cgroup may be gone (systemd removes the scope with its last process), not our state.
    """
    return invocation.verb == "delete" or container.is_cgroup_v2(found.cgroup, cgroup_root)


def run(arguments: Sequence[str], pinned: str) -> NoReturn:
    """Carry out one runtime command: our part, then the backend. Raises HandoffError, RefusedError.

    `arguments` is the command line without the program name; `pinned` is the kind of backend that the
    program's name (`agentrun-crun`) or the container's state asks for, or an empty string.
    """
    host_paths = paths.host_paths()
    host = Host(host_paths, inforce.load(host_paths), pinned)
    invocation = argv.parse(arguments)
    found = _find(host, invocation) if invocation else None
    kind = found.kind if found else _owner(host, arguments)
    if invocation is None or found is None or not _is_ours(invocation, found, host_paths.cgroup_root):
        handoff.exec_backend(host.backend(kind), arguments)
    if invocation.verb == "ps" and _crun_ps(invocation, found):
        raise SystemExit(0)
    at = invocation.verb_at + 1
    inserted = _inserted(host, invocation, found)
    handoff.exec_backend(host.backend(kind), [*arguments[:at], *inserted, *arguments[at:]])


def main(arguments: Sequence[str], pinned: str) -> int:
    """Entry of the hot path; returns only when there is no backend or the policy is to refuse."""
    try:
        run(arguments, pinned)
    except (HandoffError, RefusedError) as error:
        invocation = argv.parse(arguments)
        errorlog.oci_error(invocation, str(error))
        return 255 if invocation is not None and invocation.verb == "exec" else 1
