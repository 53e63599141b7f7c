"""Undo what agentrund's controller did to calls: nothing stays frozen, slow or boosted when it is gone.

A file under /run says that it holds something. agentrund releases everything when it starts and when it
stops, `agentrunctl thaw` (ExecStopPost of its unit) after a crash, and any exec that finds it dead.
"""

from __future__ import annotations

import posix

from agentrun.base import files, log
from agentrun.base.errors import CgroupError
from agentrun.base.limits import WEIGHT_DEFAULT
from agentrun.calls.session import open_all
from agentrun.cgroups.cgroup import Cgroup

_PAGE = posix.sysconf("SC_PAGE_SIZE")

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from agentrun.base.paths import Paths


def mark(paths: Paths) -> None:
    """Say that calls are about to be held. Raises OSError."""
    flags = posix.O_WRONLY | posix.O_CREAT | posix.O_CLOEXEC | posix.O_NOFOLLOW
    posix.close(posix.open(paths.holding, flags, 0o600))


def unmark(paths: Paths) -> None:
    """Say that no call is held any more, nor kept from starting."""
    for path in (paths.gate, paths.holding):
        try:
            posix.unlink(path)
        except FileNotFoundError:
            continue


def is_marked(paths: Paths) -> bool:
    """Whether calls may be held by an agentrund that lives or died."""
    return files.exists(paths.holding)


def release(call: Cgroup, state: Mapping[str, Any]) -> bool:
    """Let one call run as planned; whether anything had to be changed. A call that is gone is no error.

    Raises CgroupError, when all else is done: what cannot be written (the weight of a call with `cpu.idle`,
    say) leaves no call frozen.
    """
    limits = state.get("limits") or {}
    planned = limits.get("memory_high")
    high = "max" if planned is None else str(planned // _PAGE * _PAGE)  # as the kernel shows it
    wanted = [("cgroup.freeze", "0"), ("memory.high", high)]
    if not _is_demoted(state):
        wanted.append(("cpu.weight", str(limits.get("cpu_weight") or WEIGHT_DEFAULT)))
    changed, failed = False, None
    for name, value in wanted:
        now = call.read(name)
        if now is None or now == value:
            continue
        try:
            call.write(name, value)
            changed = True
        except CgroupError as error:
            failed = failed or error
    if failed is not None and call.exists():
        raise failed
    return changed


def _is_demoted(state: Mapping[str, Any]) -> bool:
    """Whether it is only what a call left behind, with the least share on purpose."""
    background = state.get("background")
    return isinstance(background, dict) and background.get("action") == "demote"


def release_all(paths: Paths) -> list[str]:
    """Release every live call that takes part; returns the ids of those held. Raises AgentrunError.

    What cannot be done to one call is logged, and keeps nobody else from going on.
    """
    released = []
    parents = set()
    for session in open_all(paths):
        bounded = session.bound()
        if bounded is not None:
            parents.add(bounded)
        for slot, state in session.states():
            parents.add(str(state.get("calls")))
            if not state.get("rank"):
                continue
            try:
                if release(Cgroup(str(state.get("calls"))).child(slot), state):
                    released.append(str(state.get("id")))
            except CgroupError as error:
                log.warn(paths, "call not released", call=state.get("id"), error=str(error))
    for parent in map(Cgroup, parents):
        _lift_bound(paths, parent)
    unmark(paths)
    return released


def _lift_bound(paths: Paths, parent: Cgroup) -> None:
    """Give a container's calls what its agent had in reserve: only a live agentrund keeps that up to date."""
    if parent.number("memory.max") is None:
        return
    try:
        parent.write("memory.max", "max")
    except CgroupError as error:
        if parent.exists():
            log.warn(paths, "calls stay bounded", cgroup=parent.path, error=str(error))
