"""Find the backends (runc, crun) of a host."""

from __future__ import annotations

import posix
import stat

# Engines call a runtime with any PATH or none (podman kill/delete), so names are looked up here.
SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def kind_of(path: str) -> str:
    """Whose state format and quirks a backend has: `crun` or `runc` (and all that wrap or copy it)."""
    return "crun" if "crun" in path.rpartition("/")[2] else "runc"


def find_backend(name: str) -> str | None:
    """The absolute path of an installed backend, or None."""
    candidates = [name] if name.startswith("/") else [f"{folder}/{name}" for folder in SEARCH_PATH.split(":")]
    return next((candidate for candidate in candidates if _is_program(candidate)), None)


def _is_program(path: str) -> bool:
    try:
        return stat.S_ISREG(posix.stat(path).st_mode) and posix.access(path, posix.X_OK)
    except (OSError, ValueError):  # not there; no path at all
        return False
