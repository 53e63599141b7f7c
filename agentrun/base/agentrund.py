"""Whether agentrund runs, as its lock says; whether it is about to, and whether its loop turns."""

from __future__ import annotations

import fcntl
import posix
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from agentrun.base.paths import Paths

STALE_S = 20.0  # four times as long as from one writing of the status file to the next
_RESTART_S = 10.0  # agentrund notes every second that it is there; systemd starts it again after one


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


def is_daemon_near(paths: Paths) -> bool:
    """Whether agentrund records what ends now: it runs, or is being restarted and loses nothing meanwhile."""
    if is_daemon_alive(paths):
        return True
    try:
        seen = posix.stat(paths.daemon_lock, follow_symlinks=False).st_mtime
    except OSError:
        return False
    return abs(time.time() - seen) < _RESTART_S


def status_path(paths: Paths) -> str:
    """The file in which agentrund says every few seconds what is so (`daemon.status`)."""
    return f"{paths.run}/agentrund.json"


def is_daemon_stuck(paths: Paths) -> bool:
    """Whether agentrund has said nothing for so long that its loop does not turn."""
    try:
        said = posix.stat(status_path(paths), follow_symlinks=False).st_mtime
    except OSError:
        return True
    return abs(time.time() - said) > STALE_S


def note_daemon_is_near(lock: int, *, returns: bool) -> None:
    """By agentrund, on its lock: whether it `returns`, should it end, and that it lives now."""
    now = time.time() if returns else 0
    posix.utime(lock, (now, now))
