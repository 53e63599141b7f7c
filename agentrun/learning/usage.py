"""What calls of a kind use, from their records: percentiles, and where the next one may begin. Pure.

A kind is an image and a family of commands (`pytest`, `npm install`); an image that nobody knew is one of its
own. The newest call counts most: one that is HALF_LIFE calls older counts half. So when a test suite grows,
its P95 follows after a few calls, and when it shrinks, the old size is gone from the P95 after some hundred
calls (2 ** (-n / 25) < 5 %) and from the P50 after 25. With fewer calls than `least` nothing is said.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from agentrun.base.limits import MEMORY_FLOOR
from agentrun.calls.verdict import KILLED

HALF_LIFE = 25  # calls
LEAST_CALLS = 20
MOST_CALLS = 500  # of a kind that are looked at
ROOM = 1.25  # times the P95: what 95 % of such calls stay below
STEP = 16 << 20
_MODES = ("observe", "enforce")


@dataclass(frozen=True, slots=True, order=True)
class Kind:
    """What calls have in common. `image` is empty where nobody knew it."""

    image: str
    family: str


@dataclass(frozen=True, slots=True)
class Sample:
    """One finished call: `peak` and `limit` in bytes, `cpu_us` in microseconds, None where unknown.

    `chosen` is (class, rule, policy) as the policy alone chose them, None where an intent did. `verdict` and
    `level` as in the record; `asked` says that an intent named its memory.
    """

    kind: Kind
    peak: int | None
    cpu_us: int | None
    limit: int | None
    verdict: str | None
    level: str | None
    asked: bool
    chosen: tuple[str, str | None, str] | None

    @property
    def is_measured(self) -> bool:
        """Whether it shows what such a call needs: one that was killed might have needed more."""
        return self.peak is not None and self.verdict not in KILLED


@dataclass(frozen=True, slots=True)
class Spread:
    """Percentiles of one quantity."""

    p50: int
    p95: int
    most: int


@dataclass(frozen=True, slots=True)
class Usage:
    """What calls of a kind used: how many count, their memory peaks (bytes) and CPU time (microseconds).

    `kills` counts those that were killed at their own memory limit, by that limit (bytes); `default_kills`
    are those of them that had not asked for a limit. `chosen` are the (class, rule) that the policy of the
    newest call chose for such calls.
    """

    kind: Kind
    calls: int
    memory: Spread
    cpu_us: Spread | None
    kills: dict[int, int] = field(default_factory=dict)
    default_kills: dict[int, int] = field(default_factory=dict)
    chosen: tuple[tuple[str, str | None], ...] = ()

    @property
    def high(self) -> int:
        """A memory.high that nearly all such calls stay below, in bytes."""
        return max(MEMORY_FLOOR, round_up(self.memory.p95 * ROOM))


def round_up(size: float) -> int:
    """Bytes, up to a whole STEP."""
    return -int(-size // STEP) * STEP


def percentile(newest_first: Sequence[int], share: float) -> int:
    """The value that a share (0 to 1) of the weight does not exceed; newer values weigh more.

    Raises ValueError without any value.
    """
    if not newest_first:
        raise ValueError("percentile of nothing")
    weighted = sorted((value, 0.5 ** (age / HALF_LIFE)) for age, value in enumerate(newest_first))
    wanted = share * sum(weight for _, weight in weighted)
    reached = 0.0
    for value, weight in weighted:
        reached += weight
        if reached >= wanted:
            return value
    return weighted[-1][0]


def spread(newest_first: Sequence[int]) -> Spread:
    """The percentiles of some values. Raises ValueError without any."""
    return Spread(percentile(newest_first, 0.5), percentile(newest_first, 0.95), max(newest_first))


def sample_of(row: Mapping[str, Any]) -> Sample | None:
    """What a record teaches, given its fields by name (`samples.FIELDS`); None where it teaches nothing."""
    family = row.get("family")
    if not isinstance(family, str) or not family or row.get("mode") not in _MODES:
        return None
    image, klass, rule = (_text(row.get(name)) for name in ("image", "class", "rule"))
    by_intent = row.get("asked_class") is not None or klass is None
    return Sample(
        Kind(image or "", family),
        _count(row.get("peak")),
        _count(row.get("cpu_us")),
        _count(row.get("limit")),
        _text(row.get("verdict")),
        _text(row.get("level")),
        row.get("asked_memory") is not None,
        None if by_intent else (str(klass), rule, str(row.get("policy"))),
    )


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _count(value: object) -> int | None:
    is_count = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1 << 62
    return int(value) if is_count else None  # type: ignore[call-overload]


def start_of(usage: Usage, limit: object) -> int | None:
    """The memory.high that a call begins with, in bytes; None where its own limit (or None) is no higher."""
    is_below = not isinstance(limit, (int, float)) or usage.high < limit
    return usage.high if is_below else None


def by_kind(newest_first: Iterable[Sample]) -> dict[Kind, list[Sample]]:
    """The samples of each kind, newest first, the latest MOST_CALLS of each."""
    found: dict[Kind, list[Sample]] = {}
    for sample in newest_first:
        samples = found.setdefault(sample.kind, [])
        if len(samples) < MOST_CALLS:
            samples.append(sample)
    return found


def usage_of(newest_first: Sequence[Sample], least: int = LEAST_CALLS) -> Usage | None:
    """What calls of one kind use; None where fewer than `least` were measured (and at least one)."""
    measured = [sample for sample in newest_first if sample.is_measured]
    peaks = [sample.peak for sample in measured if sample.peak is not None]
    if len(peaks) < max(least, 1):
        return None
    cpu = [sample.cpu_us for sample in measured if sample.cpu_us is not None]
    killed = [s for s in newest_first if s.verdict == "oom-killed" and s.level == "call" and s.limit]
    chosen = [sample.chosen for sample in newest_first if sample.chosen is not None]
    now = {(klass, rule) for klass, rule, policy in chosen if policy == chosen[0][2]}
    return Usage(
        newest_first[0].kind,
        len(peaks),
        spread(peaks),
        spread(cpu) if cpu else None,
        dict(Counter(s.limit for s in killed if s.limit)),
        dict(Counter(s.limit for s in killed if s.limit and not s.asked)),
        tuple(sorted(now, key=repr)),
    )


def usages(newest_first: Iterable[Sample], least: int = LEAST_CALLS) -> list[Usage]:
    """What calls of each kind use, as far as that is known, the most frequent first."""
    found = (usage_of(samples, least) for samples in by_kind(newest_first).values())
    return sorted((u for u in found if u is not None), key=lambda usage: (-usage.calls, usage.kind))
