"""The host's configuration and policy as the hot path reads them: one compiled JSON file.

`configfile` compiles `/etc/agentrun/config.toml` and `policyfile` compiles
`/etc/agentrun/policy.d/*.yaml`; here only the result is read, and compiled anew when a source changed. A
broken source never breaks a running node: what was compiled last stays in force, for configuration and
policy each by itself.
"""

from __future__ import annotations

import posix

from agentrun.base import fastjson, files, log
from agentrun.base.errors import AgentrunError, ConfigError
from agentrun.decision import match as policy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from agentrun.base.paths import Paths

FORMAT = 3
KEEP_DAYS = 30
OOM_HOLD_MS = 50
MAX_MB = 256
_LIMIT = 16 << 20


class Config:
    """What the operator decided. `backends` holds (kind, absolute path), the preferred one first.

    `enforcement` is `auto`, `bpf`, `cgroup` or `none`: what may be used beside the plain limits.
    `policy` is a compiled policy (see `policy`), `sources` identifies the files that all this was made from,
    `problems` says why one of them did not count. `records` says how long records are kept (`retention`),
    `oom_hold_ms` how long a call that is killed for memory waits for its feedback (`bpf.oomhold`), `parking`
    whether our CPU scheduler parks calls that are short of memory (`scx`).
    """

    __slots__ = (
        "backends",
        "enforcement",
        "fail_closed",
        "mode",
        "oom_hold_ms",
        "parking",
        "policy",
        "problems",
        "records",
        "sources",
    )

    @property
    def uses_bpf(self) -> bool:
        """Whether eBPF may be used where the kernel has it."""
        return self.enforcement in ("auto", "bpf")

    def __init__(
        self,
        backends: list[tuple[str, str]],
        mode: str = "enforce",
        fail_closed: bool = False,
        policy: dict[str, Any] | None = None,
        sources: list[Any] | None = None,
        problems: list[str] | None = None,
        enforcement: str = "auto",
        records: dict[str, Any] | None = None,
        oom_hold_ms: int = OOM_HOLD_MS,
        parking: bool = False,
    ) -> None:
        self.backends = backends
        self.mode = mode
        self.fail_closed = fail_closed
        self.policy = policy or builtin_policy()
        self.sources = sources
        self.problems = problems or []
        self.enforcement = enforcement
        self.records = records or {"keep_days": KEEP_DAYS, "max_mb": MAX_MB}
        self.oom_hold_ms = oom_hold_ms
        self.parking = parking

    def to_json(self) -> dict[str, Any]:
        """The compiled form; `from_json` is its inverse."""
        return {
            "format": FORMAT,
            "sources": self.sources,
            "problems": self.problems,
            "backends": self.backends,
            "mode": self.mode,
            "fail_closed": self.fail_closed,
            "enforcement": self.enforcement,
            "policy": self.policy,
            "records": self.records,
            "oom_hold_ms": self.oom_hold_ms,
            "parking": self.parking,
        }


builtin_policy = policy.builtin


def from_json(data: Any) -> Config:
    """Build a Config from its compiled form. Raises ValueError on anything else."""
    try:
        if data["format"] != FORMAT:
            raise ValueError(f"compiled configuration has format {data['format']!r}")
        compiled = data["policy"]
        if compiled["default_class"] not in compiled["classes"]:
            raise ValueError("compiled policy has no default class")
        return Config(
            [(str(kind), str(path)) for kind, path in data["backends"]],
            str(data["mode"]),
            bool(data["fail_closed"]),
            compiled,
            data["sources"],
            data["problems"],
            enforcement=str(data.get("enforcement", "auto")),
            records={key: data["records"][key] for key in ("keep_days", "max_mb")},
            oom_hold_ms=int(data.get("oom_hold_ms", OOM_HOLD_MS)),
            parking=bool(data.get("parking")),
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"compiled configuration is damaged: {error!r}") from error


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
