"""Open the calls of one container, or of all."""

from __future__ import annotations

import posix

from agentrun.base import files
from agentrun.base.errors import StateError
from agentrun.calls.names import SESSIONS, WAITING, escape_root
from agentrun.calls.slots import Calls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from agentrun.base.paths import Paths


def open_calls(paths: Paths, root: str, container_id: str, *, make: bool = True) -> Calls | None:
    """Open the calls of a container; None where it has none and `make` is off. Raises StateError."""
    return _open(paths, escape_root(root), container_id, make=make)


def _open(paths: Paths, escaped_root: str, container_id: str, *, make: bool) -> Calls | None:
    """Every directory on the way belongs to us alone and none is a symlink."""
    steps = [paths.run, f"{paths.run}/{SESSIONS}"]
    steps.append(f"{steps[-1]}/{escaped_root}")
    steps.append(f"{steps[-1]}/{container_id}")
    if not make and not files.exists(steps[-1]):
        return None
    fd = -1
    for step in steps:
        if fd >= 0:
            posix.close(fd)
        fd = files.open_private_directory(step, StateError)
    return Calls(paths, steps[-1], fd)


def open_where(paths: Paths, where: str) -> Calls | None:
    """Open the calls in a session's directory; None where it is gone. Raises StateError."""
    head, _, container_id = where.rpartition("/")
    return _open(paths, head.rpartition("/")[2], container_id, make=False)


def open_all(paths: Paths) -> Iterator[Calls]:
    """The calls of every container, one after the other, each closed when the next is asked for."""
    for root in _list(f"{paths.run}/{SESSIONS}"):
        for container_id in _list(f"{paths.run}/{SESSIONS}/{root}"):
            session = _open(paths, root, container_id, make=False)
            if session is not None:
                try:
                    yield session
                finally:
                    session.close()


def count_waiting_before(paths: Paths, name: str) -> int:
    """How many calls wait on this host that come before the one whose file has this name."""
    count = 0
    for root in _list(f"{paths.run}/{SESSIONS}"):
        for container_id in _list(f"{paths.run}/{SESSIONS}/{root}"):
            names = _list(f"{paths.run}/{SESSIONS}/{root}/{container_id}")
            count += sum(1 for other in names if other.startswith(WAITING) and other < name)
    return count


def _list(directory: str) -> list[str]:
    try:
        return sorted(posix.listdir(directory))
    except FileNotFoundError:
        return []
