"""The cgroups above a call: which are its container's own, and what died for whose limit."""

from __future__ import annotations

from agentrun.cgroups import layout
from agentrun.cgroups.cgroup import Cgroup

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


def container_of(call: Cgroup) -> Cgroup:
    """The cgroup of the container that a call's cgroup is in."""
    return Cgroup(call.path.rpartition("/")[0].rpartition("/")[0])


def oom_counts(container: Cgroup) -> list[int]:
    """How often something had to die for the container's own limit, and for limits above it."""
    # agentrund may bound the calls as a whole below the container's limit, for the agent's sake.
    bounded = container.child(layout.CALLS).pairs("memory.events.local") or {}
    counts = [bounded.get("oom", 0), 0]
    for cgroup, is_session in _around(container):
        events = cgroup.pairs("memory.events.local")
        if events is None:
            break
        counts[0 if is_session else 1] += events.get("oom", 0)
    return counts


def levels(call: Cgroup) -> Iterator[tuple[Cgroup, str]]:
    """A call's cgroup and those above it, each with the level of a kill for its limit (docs/records.md)."""
    yield call, "call"
    yield Cgroup(call.path.rpartition("/")[0]), "session"
    for cgroup, is_session in _around(container_of(call)):
        yield cgroup, "session" if is_session else "above"


def _around(container: Cgroup) -> Iterator[tuple[Cgroup, bool]]:
    """A container's cgroup and those above it, each with whether its limits are the container's own.

    crun on systemd makes the container's cgroup below its scope and sets the limits on both.
    """
    at, is_session = container, True
    while at.path:
        yield at, is_session
        head, _, name = at.path.rpartition("/")
        is_session = is_session and name == "container" and head.endswith(".scope")
        at = Cgroup(head)
