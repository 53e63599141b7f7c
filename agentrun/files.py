"""Small file operations that never follow a planted symlink and never leave a half-written file."""

from __future__ import annotations

import os
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from agentrun.errors import SystemCallError

_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def read_fd(fd: int, limit: int) -> bytes:
    """Read at most `limit` bytes from `fd` until its end."""
    chunks = []
    left = limit
    while left > 0 and (chunk := os.read(fd, min(left, 1 << 20))):
        chunks.append(chunk)
        left -= len(chunk)
    return b"".join(chunks)


def read_regular(path: str, limit: int, *, dir_fd: int | None = None, follow: bool = False) -> bytes | None:
    """The content of a regular file, or None where it is something else or larger than `limit`.

    A pipe is never opened for reading data: what we took from it the backend could not read any more.
    Raises OSError where the file cannot be opened.
    """
    if follow and not stat.S_ISREG(os.stat(path, dir_fd=dir_fd).st_mode):
        return None
    fd = os.open(path, _READ | (0 if follow else os.O_NOFOLLOW), dir_fd=dir_fd)
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode) or info.st_size > limit:
            return None
        data = read_fd(fd, limit + 1)
    finally:
        os.close(fd)
    return data if len(data) <= limit else None


def append_line(path: str, line: str) -> None:
    """Append one line in a single write to a file that only root can read. Raises OSError."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    fd = os.open(path, flags, 0o600)
    try:
        os.write(fd, line.encode("utf-8", "backslashreplace") + b"\n")
    finally:
        os.close(fd)


def write_atomic(path: str, data: bytes, mode: int = 0o600) -> None:
    """Replace `path` as a whole: readers see the old content or the new one. Raises OSError."""
    temporary = f"{path}.{os.getpid()}.tmp"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    fd = os.open(temporary, flags, mode)
    try:
        try:
            if os.write(fd, data) != len(data):
                raise OSError(28, "short write")
        finally:
            os.close(fd)
        os.rename(temporary, path)
    except OSError:
        os.unlink(temporary)
        raise


def open_private_directory(path: str, error: type[SystemCallError]) -> int:
    """Open (making it if it is missing) a directory that belongs to us alone; returns its descriptor.

    Refuses a symlink, another owner and write access by group or others: whoever could plant files there
    would choose the cgroup that a call's process is measured in. Raises `error`.
    """
    try:
        try:
            fd = os.open(path, DIRECTORY)
        except FileNotFoundError:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            try:
                os.mkdir(path, 0o700)
            except FileExistsError:  # another exec made it first
                os.stat(path, follow_symlinks=False)
            fd = os.open(path, DIRECTORY)
        info = os.fstat(fd)
        if info.st_uid != os.geteuid() or info.st_mode & 0o022:
            os.close(fd)
            raise PermissionError(1, "owned or writable by others")
    except OSError as cause:
        raise error("open private directory", path, cause) from cause
    return fd
