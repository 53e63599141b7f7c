"""Whether agentrund runs."""

from __future__ import annotations

import fcntl
import posix

TYPE_CHECKING = False
if TYPE_CHECKING:
    from agentrun.base.paths import Paths


def is_daemon_alive(paths: Paths) -> bool:
    """Whether agentrund runs: it holds a lock for as long as it lives."""
    try:
        fd = posix.open(paths.daemon_lock, posix.O_RDONLY | posix.O_CLOEXEC | posix.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        posix.close(fd)
    return False
