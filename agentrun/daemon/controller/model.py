"""What the controller sees, remembers and does: plain data between snapshot, decisions and apply.

Sizes are bytes, times are seconds of CLOCK_MONOTONIC, except `start` (seconds since the epoch, as in the
call's state). A call is named by the path of its cgroup, a domain by that of the cgroup whose limit it is;
the host itself is a domain as well.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

HOST = "host"
Rank = tuple[int, int]  # priority of the tier, then of the call: who is larger yields later
RANK_DEFAULT: Rank = (100, 100)


@dataclass(frozen=True, slots=True)
class Call:
    """A live call at this moment; only populated ones are in a snapshot.

    `soft` is the memory.high of its plan and `ceiling` its memory.max, None for none; `learned` is where one
    without `soft` begins, from what calls like it used. `throttled` counts
    how often it was over memory.high. `domains` are those whose limits it can hit.
    """

    key: str
    rank: Rank
    start: float
    usage: int
    domains: tuple[str, ...]
    soft: int | None = None
    ceiling: int | None = None
    throttled: int = 0
    adaptive: bool = False
    learned: int | None = None

    @property
    def precedence(self) -> tuple[int, int, float, str]:
        """Sorts those first who yield last: higher rank, then older."""
        return -self.rank[0], -self.rank[1], self.start, self.key


@dataclass(frozen=True, slots=True)
class Domain:
    """Something with a memory limit that calls share.

    `usage` leaves out file cache, which the kernel gives back before it kills. `swap` is how much of what is
    not in use could still be swapped out.
    """

    key: str
    limit: int
    usage: int
    swap: int = 0

    @property
    def headroom(self) -> int:
        """What is left."""
        return self.limit - self.usage


@dataclass(frozen=True, slots=True)
class Bound:
    """The limit around all calls of a container that keeps the agent's reserve: as it is, as it should be."""

    key: str
    now: int | None
    wanted: int | None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything at one moment. `admits`: the policy lets calls wait before they start (`gates`)."""

    now: float
    calls: tuple[Call, ...] = ()
    domains: tuple[Domain, ...] = ()
    bounds: tuple[Bound, ...] = ()
    admits: bool = False


@dataclass(frozen=True, slots=True)
class Growth:
    """How something grew: it counts as growing for a while after it passed `base` by a step."""

    base: int
    grew_at: float
    usage: int
    seen_at: float
    rate: float = 0.0  # bytes per second, smoothed


@dataclass(frozen=True, slots=True)
class Held:
    """What the controller did with a call. `guard` is the memory.high it set for the sake of others."""

    frozen_at: float | None = None
    changed_at: float = float("-inf")
    guard: int | None = None
    soft: int | None = None  # an adaptive or learned call's own memory.high as it is now
    throttled: int = 0
    softened_at: float = float("-inf")


@dataclass(frozen=True, slots=True)
class Gate:
    """Whether new calls wait before they start in a domain: those below a rank, or all (None)."""

    is_closed: bool = False
    changed_at: float = float("-inf")
    short_at: float = float("-inf")  # when there was a shortage last
    below: Rank | None = None
    why: str = ""


@dataclass(frozen=True, slots=True)
class Memory:
    """What decisions remember from one to the next."""

    growth: dict[str, Growth] = field(default_factory=dict)
    held: dict[str, Held] = field(default_factory=dict)
    emptied_at: dict[str, float] = field(default_factory=dict)  # by domain: the last reclaim or kill
    gates: dict[str, Gate] = field(default_factory=dict)  # by domain


What = Literal["freeze", "thaw", "limit", "reclaim", "kill", "bound", "boost", "unboost"]


@dataclass(frozen=True, slots=True)
class Action:
    """One thing to do to a call, or to the calls of a container (`bound`).

    `value` is the new memory.high (`limit`), memory.max (`bound`), None for none, or cpu.weight (`boost`,
    `unboost`), or the bytes to reclaim. `why` is for the call's record; empty for what needs no mention
    there. `was` is the cpu.weight without which somebody else has changed it, and it is left alone.
    """

    what: What
    key: str
    value: int | None = None
    why: str = ""
    was: int | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do, what to remember, and when to look again (None: only when something happens)."""

    actions: tuple[Action, ...]
    memory: Memory
    look_again_s: float | None
