"""The journal: a file that every process here appends to, one JSON object a line, and agentrund reads.

Whoever appends holds a shared lock on the file that the path names at that moment; whoever renames it holds
the exclusive one. So a file that was renamed has no writer left, and no line goes to a file that was thrown
away. Nobody ever waits for a lock: its holder may be stopped, and a tool call must not hang on that.

What a crash or a full disk cut off stays a line of its own: the next writer ends it first.
"""

from __future__ import annotations

import errno
import fcntl
import posix
import stat
import time

_FLAGS = posix.O_RDWR | posix.O_APPEND | posix.O_CLOEXEC | posix.O_NOFOLLOW | posix.O_NONBLOCK
_TRIES = 20
_RETRY_S = 0.0005


def append(path: str, line: str, limit: int) -> None:
    """Append one line (without its end) to a file that only root can read. Raises OSError.

    A file larger than `limit` bytes becomes `path.1` first, and what was there is thrown away.
    """
    rotate(path, limit)
    data = line.encode("utf-8", "backslashreplace") + b"\n"
    for left in reversed(range(_TRIES)):
        fd = posix.open(path, _FLAGS | posix.O_CREAT, 0o600)
        try:
            # The last try does without the lock: a line in a file that is just being renamed is read there.
            if _hold(fd, path, fcntl.LOCK_SH) or left == 0:
                _write(fd, data)
                return
        finally:
            posix.close(fd)
        time.sleep(_RETRY_S)


def rotate(path: str, limit: int) -> bool:
    """Rename a file larger than `limit` bytes to `path.1`, unless somebody is appending to it right now.

    Says whether it did. Raises OSError.
    """
    try:
        if posix.stat(path, follow_symlinks=False).st_size <= limit:
            return False
        fd = posix.open(path, _FLAGS)
    except FileNotFoundError:
        return False
    try:
        # Two may find it too large; the second would throw away what the first has just renamed.
        if not _hold(fd, path, fcntl.LOCK_EX):
            return False
        posix.rename(path, path + ".1")
        return True
    finally:
        posix.close(fd)


def _hold(fd: int, path: str, how: int) -> bool:
    """Whether the lock was free and `path` still names the file that it is on."""
    try:
        fcntl.flock(fd, how | fcntl.LOCK_NB)
        named = posix.stat(path, follow_symlinks=False)
    except (BlockingIOError, FileNotFoundError):
        return False
    here = posix.fstat(fd)
    return (named.st_dev, named.st_ino) == (here.st_dev, here.st_ino)


def _write(fd: int, data: bytes) -> None:
    info = posix.fstat(fd)
    if not stat.S_ISREG(info.st_mode):
        raise OSError(errno.EINVAL, "not a regular file")
    if info.st_size and posix.pread(fd, 1, info.st_size - 1) != b"\n":
        data = b"\n" + data
    if posix.write(fd, data) != len(data):
        raise OSError(errno.ENOSPC, posix.strerror(errno.ENOSPC))
