"""The host's configuration as the hot path reads it: one small compiled JSON file.

`configfile` compiles `/etc/agentrun/config.toml`; here only the result is read, and compiled anew when the
source changed. A broken source never breaks a running node: the last good compile stays in force.
"""

from __future__ import annotations

import posix

from agentrun import fastjson, files, log
from agentrun.errors import AgentrunError, ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from agentrun.paths import Paths

FORMAT = 1
_LIMIT = 1 << 20


class Defaults:
    """The built-in class of a call. The policy language will put its own classes in this place.

    `memory_percent` is a share of the container's own memory limit; None leaves calls unlimited inside it.
    """

    __slots__ = ("memory_percent", "pids_max")

    def __init__(self, memory_percent: float | None = None, pids_max: int = 4096) -> None:
        self.memory_percent = memory_percent
        self.pids_max = pids_max


class Config:
    """What the operator decided. `backends` holds (kind, absolute path), the preferred one first."""

    __slots__ = ("backends", "defaults", "fail_closed", "mode", "problem", "source")

    def __init__(
        self,
        backends: list[tuple[str, str]],
        mode: str = "enforce",
        fail_closed: bool = False,
        defaults: Defaults | None = None,
        source: list[int] | None = None,
        problem: str | None = None,
    ) -> None:
        self.backends = backends
        self.mode = mode
        self.fail_closed = fail_closed
        self.defaults = defaults or Defaults()
        self.source = source
        self.problem = problem

    def to_json(self) -> dict[str, Any]:
        """The compiled form; `from_json` is its inverse."""
        return {
            "format": FORMAT,
            "source": self.source,
            "problem": self.problem,
            "backends": self.backends,
            "mode": self.mode,
            "fail_closed": self.fail_closed,
            "memory_percent": self.defaults.memory_percent,
            "pids_max": self.defaults.pids_max,
        }


def from_json(data: Any) -> Config:
    """Build a Config from its compiled form. Raises ValueError on anything else."""
    try:
        if data["format"] != FORMAT:
            raise ValueError(f"compiled configuration has format {data['format']!r}")
        return Config(
            [(str(kind), str(path)) for kind, path in data["backends"]],
            str(data["mode"]),
            bool(data["fail_closed"]),
            Defaults(data["memory_percent"], int(data["pids_max"])),
            data["source"],
            data["problem"],
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"compiled configuration is damaged: {error!r}") from error


def source_stamp(path: str) -> list[int] | None:
    """What identifies one version of the source file ([mtime in ns, size, inode]); None without one."""
    try:
        info = posix.stat(path)
    except OSError:
        return None
    return [info.st_mtime_ns, info.st_size, info.st_ino]


def _read_compiled(paths: Paths) -> Config | None:
    try:
        data = files.read_regular(paths.compiled, _LIMIT)
        return from_json(fastjson.loads(data)) if data else None
    except (OSError, ValueError):
        return None


def load(paths: Paths) -> Config:
    """The configuration in force, compiled anew first when its source changed. Never raises."""
    compiled = _read_compiled(paths)
    is_current = compiled is not None and compiled.source == source_stamp(paths.config)
    if compiled is not None and is_current and files.exists(paths.backends):
        return compiled
    from agentrun import configfile

    try:
        fresh = configfile.compile_file(paths)
    except ConfigError as error:
        fresh = compiled or configfile.builtin()
        fresh.source, fresh.problem = source_stamp(paths.config), str(error)
        log.warn(paths, "configuration refused, last good one stays in force", error=str(error))
    try:
        configfile.store(paths, fresh)
    except AgentrunError as error:
        log.warn(paths, "compiled configuration not stored", error=str(error))
    return fresh
