"""The configuration and policy in force: one compiled JSON file, made anew when a source changed.

`policy.hostconfig` compiles `/etc/agentrun/config.toml` and `/etc/agentrun/policy.d/*.yaml`; here only the
result is read. A broken source never breaks a running node: what was compiled last stays in force, for
configuration and policy each by itself.
"""

from __future__ import annotations

import posix

from agentrun.base import fastjson, files, log
from agentrun.base.errors import AgentrunError, ConfigError
from agentrun.decision.config import Config, from_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from agentrun.base.paths import Paths

_LIMIT = 16 << 20


def _stamp(path: str) -> list[int] | None:
    """What identifies one version of a file ([mtime in ns, size, inode]); None without one."""
    try:
        info = posix.stat(path)
    except OSError:
        return None
    return [info.st_mtime_ns, info.st_size, info.st_ino]


def policy_names(paths: Paths) -> list[str]:
    """The policy files, in the order in which they count."""
    try:
        names = posix.listdir(paths.policy)
    except OSError:
        return []
    return sorted(n for n in names if n.endswith((".yaml", ".yml")) and not n.startswith("."))


def current_sources(paths: Paths) -> list[Any]:
    """What identifies the sources as they are now."""
    policies = [[name, _stamp(f"{paths.policy}/{name}")] for name in policy_names(paths)]
    return [_stamp(paths.config), policies]


def _read_compiled(paths: Paths) -> Config | None:
    try:
        data = files.read_regular(paths.compiled, _LIMIT)
        return from_json(fastjson.loads(data)) if data else None
    except (OSError, ValueError):
        return None


def load(paths: Paths) -> Config:
    """The configuration in force, compiled anew first when a source changed. Never raises."""
    compiled, sources = _read_compiled(paths), current_sources(paths)
    if compiled is not None and compiled.sources == sources and files.exists(paths.backends):
        return compiled
    lock = _lock(paths)
    if lock is None and compiled is not None:
        return compiled  # another exec compiles at this moment
    try:
        fresh = _compile(paths, compiled, sources)
        _store(paths, fresh)
    finally:
        if lock is not None:
            posix.close(lock)
    return fresh


def _lock(paths: Paths) -> int | None:
    try:
        return files.open_locked(paths.state + "/compile.lock")
    except OSError:
        return None


def _compile(paths: Paths, last: Config | None, sources: list[Any]) -> Config:
    from agentrun.policy import hostconfig

    problems = []
    try:
        fresh = hostconfig.compile_file(paths)
    except ConfigError as error:
        fresh = last or hostconfig.builtin()
        problems.append(str(error))
        log.warn(paths, "configuration refused, last good one stays in force", error=str(error))
    try:
        fresh.policy = hostconfig.compile_policy(paths) or fresh.policy
    except ConfigError as error:
        fresh.policy = last.policy if last else fresh.policy
        problems.append(str(error))
        log.warn(paths, "policy refused, last good one stays in force", error=str(error))
    fresh.sources, fresh.problems = sources, problems
    return fresh


def _store(paths: Paths, fresh: Config) -> None:
    from agentrun.policy import hostconfig

    try:
        hostconfig.store(paths, fresh)
    except AgentrunError as error:
        log.warn(paths, "compiled configuration not stored", error=str(error))
