"""Small file operations that never follow a planted symlink and never leave a half-written file."""

from __future__ import annotations

import errno
import fcntl
import posix
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from agentrun.base.errors import SystemCallError

_READ = posix.O_RDONLY | posix.O_CLOEXEC | posix.O_NONBLOCK | posix.O_NOCTTY
DIRECTORY = posix.O_RDONLY | posix.O_DIRECTORY | posix.O_NOFOLLOW | posix.O_CLOEXEC


def read_fd(fd: int, limit: int) -> bytes:
    """Read at most `limit` bytes from `fd` until its end."""
    chunks = []
    left = limit
    while left > 0 and (chunk := posix.read(fd, min(left, 1 << 20))):
        chunks.append(chunk)
        left -= len(chunk)
    return b"".join(chunks)


def read_regular(path: str, limit: int, *, dir_fd: int | None = None, follow: bool = False) -> bytes | None:
    """The content of a regular file, or None where it is something else or larger than `limit`.

    A pipe is never opened for reading data: what we took from it the backend could not read any more.
    Raises OSError where the file cannot be opened.
    """
    if follow and not stat.S_ISREG(posix.stat(path, dir_fd=dir_fd).st_mode):
        return None
    fd = posix.open(path, _READ | (0 if follow else posix.O_NOFOLLOW), dir_fd=dir_fd)
    try:
        info = posix.fstat(fd)
        if not stat.S_ISREG(info.st_mode) or info.st_size > limit:
            return None
        data = read_fd(fd, limit + 1)
    finally:
        posix.close(fd)
    return data if len(data) <= limit else None


def open_locked(path: str) -> int:
    """Open a lock file and hold it alone; the descriptor is the lock. BlockingIOError where another has it.

    Raises OSError.
    """
    fd = posix.open(path, posix.O_RDWR | posix.O_CREAT | posix.O_CLOEXEC | posix.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        posix.close(fd)
        raise
    return fd


def exists(path: str) -> bool:
    """Whether there is anything at `path`, a dangling symlink included."""
    try:
        posix.stat(path, follow_symlinks=False)
    except OSError:
        return False
    return True


def append_line(path: str, line: str) -> None:
    """Append one line in a single write to a file that only root can read. Raises OSError."""
    flags = (
        posix.O_WRONLY
        | posix.O_APPEND
        | posix.O_CREAT
        | posix.O_CLOEXEC
        | posix.O_NOFOLLOW
        | posix.O_NONBLOCK
    )
    fd = posix.open(path, flags, 0o600)
    try:
        posix.write(fd, line.encode("utf-8", "backslashreplace") + b"\n")
    finally:
        posix.close(fd)


def write_atomic(path: str, data: bytes, like: posix.stat_result | None = None) -> None:
    """Replace `path` as a whole: readers see the old content or the new one. Raises OSError.

    The new file is root's alone, or has the owner and mode of `like`.
    """
    temporary = f"{path}.{posix.getpid()}.tmp"
    flags = posix.O_WRONLY | posix.O_CREAT | posix.O_EXCL | posix.O_CLOEXEC | posix.O_NOFOLLOW
    fd = posix.open(temporary, flags, 0o600)
    try:
        try:
            if posix.write(fd, data) != len(data):
                raise OSError(errno.ENOSPC, "short write")
            if like is not None:
                posix.fchown(fd, like.st_uid, like.st_gid)
                posix.fchmod(fd, stat.S_IMODE(like.st_mode))
        finally:
            posix.close(fd)
        posix.rename(temporary, path)
    except OSError:
        posix.unlink(temporary)
        raise


def _make_private(path: str) -> None:
    import os

    os.makedirs(os.path.dirname(path), exist_ok=True)
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        return  # another exec made it first; the caller checks what it is


def open_private_directory(path: str, error: type[SystemCallError]) -> int:
    """Open (making it if it is missing) a directory that belongs to us alone; returns its descriptor.

    Refuses a symlink, another owner and write access by group or others: whoever could plant files there
    would choose the cgroup that a call's process is measured in. Raises `error`.
    """
    try:
        try:
            fd = posix.open(path, DIRECTORY)
        except FileNotFoundError:
            _make_private(path)
            fd = posix.open(path, DIRECTORY)
        info = posix.fstat(fd)
        if info.st_uid != posix.geteuid() or info.st_mode & 0o022:
            posix.close(fd)
            raise PermissionError(errno.EPERM, "owned or writable by others")
    except OSError as cause:
        raise error("open private directory", path, cause) from cause
    return fd
