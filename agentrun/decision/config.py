"""The host's configuration and policy as the hot path knows them, and their compiled form."""

from __future__ import annotations

from agentrun.decision.match import builtin as builtin_policy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


FORMAT = 3
KEEP_DAYS = 30
OOM_HOLD_MS = 50
MAX_MB = 256


class Config:
    """What the operator decided. `backends` holds (kind, absolute path), the preferred one first.

    `enforcement` is `auto`, `bpf`, `cgroup` or `none`: what may be used beside the plain limits.
    `policy` is a compiled policy (see `match`), `sources` identifies the files that all this was made from,
    `problems` says why one of them did not count. `records` says how long records are kept (`retention`),
    `oom_hold_ms` how long a call that is killed for memory waits for its feedback (`bpf.oomhold`), `parking`
    whether our CPU scheduler parks calls that are short of memory (`bpf.scheduler`).
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
