"""Which container is traced, and what tells the probes its cgroups.

A cgroup's id is the inode of its directory; `bpf_get_current_ancestor_cgroup_id(level)` gives the id of the
cgroup that a task is in at one depth of the hierarchy, so calls that nest cgroups of their own still count.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

from agentrun.base.errors import TraceError
from agentrun.base.paths import Paths
from agentrun.calls import names
from agentrun.calls.session import open_where
from agentrun.cgroups import layout
from agentrun.cgroups.cgroup import Cgroup
from agentrun.oci import container
from agentrun.oci import engine as session

_CRUN_LEAF = "container"  # crun under systemd: `<unit>.scope/container`
# How the names of scopes begin, whose they are, and where that engine has its bundles.
_SCOPES = (("docker", "docker", ""), ("libpod", "podman", "/var/lib/containers/storage/overlay-containers"))


@dataclass(frozen=True, slots=True)
class Target:
    """A container: its id, its cgroup's path, id and depth, and the id of its `agentrun-calls`.

    `where` is the directory of its live calls' states; None before its first call.
    """

    container_id: str
    cgroup: Cgroup
    cgroup_id: int
    calls_id: int
    level: int
    where: str | None

    @property
    def calls(self) -> Cgroup:
        """The parent of its calls."""
        return self.cgroup.child(layout.CALLS)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A container that may be meant. `name` is its engine's, None where nobody knows it."""

    container_id: str
    cgroup: str
    name: str | None = None
    where: str | None = None


def find(paths: Paths, wanted: str) -> Target:
    """The running container whose id begins so, or which its engine calls so. Raises TraceError."""
    known = list(_sessions(paths))
    return _target(paths, choose(wanted, known) or choose(wanted, list(_in_tree(paths, wanted))), wanted)


def choose(wanted: str, candidates: list[Candidate]) -> Candidate | None:
    """The one that is meant; a whole id or name before the beginning of an id. Raises TraceError. Pure."""
    exact = [c for c in candidates if wanted in (c.container_id, c.name)]
    found = exact or [c for c in candidates if wanted and c.container_id.startswith(wanted)]
    if len(found) > 1:
        ids = ", ".join(sorted(c.container_id for c in found)[:5])
        raise TraceError(f"find container {wanted!r}: several begin so: {ids}")
    return found[0] if found else None


def level_of(cgroup: str, cgroup_root: str) -> int:
    """How many cgroups are between the hierarchy's root and this one, itself included. Pure."""
    return len(cgroup[len(cgroup_root) :].strip("/").split("/"))


def _target(paths: Paths, found: Candidate | None, wanted: str) -> Target:
    if found is None:
        raise TraceError(
            f"find container {wanted!r}: none that runs under agentrun has this name, or an id that begins so"
        )
    cgroup = Cgroup(found.cgroup)
    own, below = cgroup.kernel_id(), cgroup.child(layout.CALLS).kernel_id()
    if own is None or below is None:
        raise TraceError(
            f"find container {wanted!r}: it has no calls yet, no {layout.CALLS} in {cgroup.path!r}"
        )
    level = level_of(cgroup.path, paths.cgroup_root)
    return Target(found.container_id, cgroup, own, below, level, found.where)


def _names(directory: str) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except OSError:
        return []


def _sessions(paths: Paths) -> Iterator[Candidate]:
    """Containers that have had a call."""
    sessions = f"{paths.run}/{names.SESSIONS}"
    for root in _names(sessions):
        for container_id in filter(container.is_valid_id, _names(f"{sessions}/{root}")):
            where = f"{sessions}/{root}/{container_id}"
            found = container.find(
                container_id, names.unescape_root(root), container.KINDS, paths.cgroup_root
            )
            if found is not None and container.is_cgroup_v2(found.cgroup, paths.cgroup_root):
                name = session.facts_of(found, paths.cgroup_root, paths.root).name
                yield Candidate(container_id, found.cgroup, name, where)
            elif cgroup := _cgroup_of_a_call(paths, where):
                yield Candidate(container_id, cgroup, None, where)


def _cgroup_of_a_call(paths: Paths, where: str) -> str | None:
    """The container's cgroup as one of its live calls knows it (its backend's state is somewhere else)."""
    live = open_where(paths, where)
    if live is None:
        return None
    with contextlib.closing(live):
        found = (str(state["calls"]) for _, state in live.states() if "calls" in state)
        return next((path.removesuffix("/" + layout.CALLS) for path in found), None)


def _in_tree(paths: Paths, wanted: str) -> Iterator[Candidate]:
    """Containers by their cgroup's name, for those that have had no call yet. None inside another."""
    for directory, below, _ in os.walk(paths.cgroup_root):
        if layout.CALLS not in below:
            continue
        below.clear()
        ids = ids_of(directory)
        meant = next((one for one in ids if one.startswith(wanted)), ids[0])
        yield Candidate(meant, directory, _name_of(paths, directory, ids[0]))


def _name_of(paths: Paths, cgroup: str, container_id: str) -> str | None:
    """What docker or podman calls the container of a scope of theirs."""
    for mark, engine, bundles in _SCOPES:
        if f"/{mark}-{container_id}.scope" in cgroup:
            bundle = f"{bundles}/{container_id}"
            return session.SessionFacts(
                engine, container_id=container_id, bundle=bundle, prefix=paths.root
            ).name
    return None


def ids_of(cgroup: str) -> list[str]:
    """What the container of a cgroup may be called: `docker-ID.scope`, `libpod-ID.scope/container`. Pure."""
    parts = cgroup.rstrip("/").split("/")
    name = parts[-2] if parts[-1] == _CRUN_LEAF and len(parts) > 1 else parts[-1]
    words = name.removesuffix(".scope").split("-")
    return ["-".join(words[start:]) for start in range(len(words) - 1, -1, -1)]
