"""Where things are: the repository, the cache, and locks on them."""

import fcntl
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from vmlib.errors import VmError
from vmlib.progress import heartbeat, say

TOOL_DIR = Path(__file__).resolve().parent.parent
GUEST_DIR = TOOL_DIR / "guest"
# sun_path holds 108 bytes, and ssh appends 17 of its own to the control path.
SOCKET_DIR_LIMIT = 80


def cache_dir() -> Path:
    """The cache's root, created when missing."""
    configured = os.environ.get("AGENTRUN_VM_CACHE")
    path = Path(configured).absolute() if configured else Path.home() / ".cache/agentrun-vm"
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as e:
        raise VmError(f"create cache {str(path)!r}: {e.strerror}") from e
    return path


def images_dir() -> Path:
    path = cache_dir() / "images"
    path.mkdir(exist_ok=True)
    return path


def instances_dir() -> Path:
    path = cache_dir() / "instances"
    path.mkdir(exist_ok=True)
    return path


def socket_dir(owner: Path) -> Path:
    """A directory for the sockets of a machine, short enough for sun_path."""
    if len(os.fsencode(owner)) <= SOCKET_DIR_LIMIT:
        return owner
    digest = hashlib.sha256(os.fsencode(owner)).hexdigest()[:16]
    path = Path(tempfile.gettempdir()) / f"agentrun-vm-{os.getuid()}-{digest}"
    path.mkdir(mode=0o700, exist_ok=True)
    if path.is_symlink() or path.stat().st_uid != os.getuid():
        raise VmError(f"use socket directory {str(path)!r}: owned by somebody else")
    return path


@contextmanager
def locked(path: Path, waiting_for: str = "", log: Path | None = None) -> Iterator[None]:
    """Hold an exclusive lock on a lock file; say so when it is held by another, whose log may be shown."""
    with path.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for {waiting_for or path.name}")
            with heartbeat(f"waiting for {waiting_for}", log) if log is not None else nullcontext():
                fcntl.flock(lock, fcntl.LOCK_EX)
        yield
