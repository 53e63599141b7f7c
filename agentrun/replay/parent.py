"""The cgroup around all sessions: the memory that they share, what was used and what was killed in it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from agentrun.replay.engines import CGROUPS, ReplayError, run_tool


def read_number(path: Path, key: str = "") -> int | None:
    """A number in a cgroup file, or the value of a key in a flat keyed one; None where it cannot be read."""
    try:
        text = path.read_text(encoding="ascii")
    except OSError:
        return None
    if key:
        text = next((line.split()[1] for line in text.splitlines() if line.split()[:1] == [key]), "")
    return int(text) if text.strip().isdecimal() else None


def oom_kills(cgroup: Path) -> int:
    """Processes that were killed for memory below a cgroup so far."""
    return read_number(cgroup / "memory.events", "oom_kill") or 0


@contextlib.contextmanager
def parent_cgroup(uses_systemd: bool, memory: int | None) -> Iterator[tuple[str, Path]]:
    """A parent for sessions with `memory` bytes and no swap: (what engines call it, its directory)."""
    if not (CGROUPS / "cgroup.controllers").exists():
        raise ReplayError(f"make cgroup below {str(CGROUPS)!r}: not cgroup v2")
    maker = _slice(memory) if uses_systemd else _directory(memory)
    with maker as made:
        yield made


@contextlib.contextmanager
def _slice(memory: int | None) -> Iterator[tuple[str, Path]]:
    """A systemd slice, for engines whose cgroups systemd makes."""
    name = f"replay{os.getpid()}.slice"
    limit = "infinity" if memory is None else str(memory)
    try:
        run_tool(["systemctl", "set-property", "--runtime", name, f"MemoryMax={limit}", "MemorySwapMax=0"])
        run_tool(["systemctl", "start", name])
        yield name, CGROUPS / name
    finally:
        run_tool(["systemctl", "stop", name], check=False)
        run_tool(["systemctl", "revert", name], check=False)


@contextlib.contextmanager
def _directory(memory: int | None) -> Iterator[tuple[str, Path]]:
    """A cgroup made by hand, for runtimes called by hand."""
    name = f"replay-{os.getpid()}"
    path = CGROUPS / name
    try:
        path.mkdir()
        for controller in ("cpu", "memory", "pids"):
            (path / "cgroup.subtree_control").write_text(f"+{controller}")
        (path / "memory.max").write_text("max" if memory is None else str(memory))
        if (path / "memory.swap.max").exists():
            (path / "memory.swap.max").write_text("0")
    except OSError as error:
        raise ReplayError(f"make cgroup {str(path)!r}: {error}") from error
    try:
        yield name, path
    finally:
        for folder, _, _ in os.walk(path, topdown=False):
            with contextlib.suppress(OSError):  # a container that could not be removed says so itself
                os.rmdir(folder)
