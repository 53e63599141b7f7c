"""What one domain wants of the calls in it, by live numbers only: nobody tells what a call will need. Pure.

Calls have an order, `Call.precedence`: higher tiers and priorities before lower, older before newer. The
first never waits for another. What is left of the limit decides about the rest:

    headroom < reserve           calls of a lower rank wait while one above them grows
    headroom < reserve * PEER    so do equals, while an older one grows
    headroom > reserve * THAW    they go on

What grows in the time that we need to react counts as gone. File cache is no usage here: the kernel takes it
back before it kills anybody.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from agentrun.base.units import show_size
from agentrun.daemon.controller.model import Call, Domain, Growth, Held

RESERVE = 0.30  # of the limit, for the growth of those above
RESERVE_MOST = 8 << 30
PEER = 0.25
SCARCE = 0.6
THAW = 1.5
PEER_THAW = 0.6
QUIET_LEFT = 0.1  # with less than this share of the reserve nobody goes on just because all is quiet
QUIET_S = 1.0
CALL_STEP = 2 << 20  # less than this is no growth
OTHERS_STEP_SHARE = 0.005
GUARD_LEAST = 1 << 20
CRITICAL = 0.015  # of the limit; of a small one twice that, up to CRITICAL_SMALL
CRITICAL_SMALL = 32 << 20
REACTION_S = 0.03  # what grows in so long is as good as gone
SETTLE_S = 0.25  # a killed call's memory is not back at once
RECLAIM_EVERY_S = 0.02
RECLAIM_BYTES = 16 << 20
VICTIM_SHARE = 0.02  # of the limit: a call that holds less is not worth its life
SWAP_LEAST = 64 << 20


class Cause(NamedTuple):
    """What is short, and whether for the sake of calls of a higher rank."""

    domain: Domain
    above_grow: bool

    def __str__(self) -> str:
        whom = "a call of higher priority grows" if self.above_grow else "an older call grows"
        left, limit = show_size(max(0, self.domain.headroom)), show_size(self.domain.limit)
        return f"{left} of {limit} left ({self.domain.key}), {whom}"


@dataclass(slots=True)
class Wish:
    """What all domains together want of one call.

    `hold` is why it should wait (None: it need not), `room` by how much it may grow before the kernel
    slows it down (None: not watched, for nobody is above it).
    """

    hold: Cause | None = None
    may_thaw: bool = True
    room: int | None = None


@dataclass(frozen=True, slots=True)
class Situation:
    """One domain with its calls in order of precedence, and how they grow."""

    domain: Domain
    calls: Sequence[Call]
    held: Mapping[str, Held]
    growth: Mapping[str, Growth]
    others: Growth
    total: Growth
    now: float

    def is_growing(self, growth: Growth) -> bool:
        """Whether it grew a moment ago."""
        return self.now - growth.grew_at < QUIET_S

    def runs(self, call: Call) -> bool:
        """Whether the call is not frozen."""
        return self.held[call.key].frozen_at is None

    def grows(self, call: Call) -> bool:
        """Whether the call runs and grew a moment ago."""
        return self.runs(call) and self.is_growing(self.growth[call.key])

    @property
    def running_below(self) -> int:
        """How many calls of a lower rank than the first run, and could be made to wait."""
        return sum(1 for call in self.calls if call.rank != self.calls[0].rank and self.runs(call))

    @property
    def reserve(self) -> float:
        """What is kept for those above, in bytes."""
        return reserve_of(self.domain.limit)

    def kept_from(self, call: Call) -> float:
        """What of the headroom is not for this call, because somebody is above it; in bytes."""
        above = [other for other in self.calls if other.rank > call.rank]
        if not above:
            return 0.0
        return self.reserve * (1.0 if any(map(self.grows, above)) else QUIET_LEFT)


def reserve_of(limit: int) -> float:
    """What of a limit is kept for those above, in bytes."""
    return min(limit * RESERVE, RESERVE_MOST)


def critical_of(limit: int, rate: float) -> float:
    """With less than this left a call that has to die is killed: its memory is not back at once."""
    return max(limit * CRITICAL, min(limit * CRITICAL * 2, CRITICAL_SMALL), rate * REACTION_S)


def others_step(limit: int) -> int:
    """Growth of what is not a call (the agent, containers that are not ours) that counts."""
    return max(CALL_STEP, int(limit * OTHERS_STEP_SHARE))


def judge(situation: Situation, wishes: Mapping[str, Wish]) -> list[Call]:
    """Add this domain's wishes to those of others; returns whom it wants frozen now, the last first."""
    calls, reserve = situation.calls, situation.reserve
    headroom = situation.domain.headroom - situation.total.rate * REACTION_S
    others_grow = situation.is_growing(situation.others)
    sharers = max(situation.running_below, 1)
    room = max(int(max(headroom - reserve * SCARCE, headroom / 2) / (2 * sharers)), GUARD_LEAST)
    above_grow = equals_grow = False
    held: set[str] = set()
    for index, call in enumerate(calls):
        if index and call.rank != calls[index - 1].rank:
            above_grow, equals_grow = above_grow or equals_grow, False
        wish, has_above = wishes[call.key], call.rank != calls[0].rank
        if index and _must_wait(headroom, reserve, above_grow, equals_grow or others_grow):
            wish.hold = Cause(situation.domain, above_grow)
            held.add(call.key)
        if index:
            enough = headroom > reserve * (THAW if has_above else PEER_THAW)
            is_quiet = not (above_grow or equals_grow or others_grow)
            wish.may_thaw &= enough or (is_quiet and headroom > reserve * QUIET_LEFT)
        if has_above:
            wish.room = room if wish.room is None else min(wish.room, room)
        equals_grow = equals_grow or situation.grows(call)
    return _in_order(situation, held)


def _must_wait(headroom: float, reserve: float, above_grow: bool, equals_grow: bool) -> bool:
    return (above_grow and headroom < reserve) or ((above_grow or equals_grow) and headroom < reserve * PEER)


def _in_order(situation: Situation, held: set[str]) -> list[Call]:
    """Whom to freeze: from the last upwards, and nobody as long as one after him runs on."""
    chosen: list[Call] = []
    for call in reversed(situation.calls):
        if not situation.runs(call):
            continue
        if call.key not in held or not may_change(situation.held[call.key], situation.now):
            break
        chosen.append(call)
    return chosen


MIN_RUN_S = 0.5
MIN_FROZEN_S = 0.1


def may_change(held: Held, now: float) -> bool:
    """Whether a call was in its present state for long enough: this bounds the changes in a second."""
    return now - held.changed_at >= (MIN_RUN_S if held.frozen_at is None else MIN_FROZEN_S)


def is_scarce(situation: Situation) -> bool:
    """Whether waiting may not be enough."""
    return situation.domain.headroom < situation.reserve * SCARCE


def make_room(situation: Situation, emptied_at: float) -> tuple[Call, str] | None:
    """Where it is scarce and waiting is not enough: whom to take memory from, and how (`reclaim`, `kill`).

    Freezing frees nothing. With swap the frozen ones are swapped out; without, when one above is about to
    hit the limit, the fattest of the lowest rank dies before the kernel picks the fattest of all.
    """
    growing = [call.rank for call in situation.calls if situation.grows(call)]
    headroom, since = situation.domain.headroom, situation.now - emptied_at
    if not growing:
        return None
    lower = [call for call in situation.calls if call.rank < max(growing)]
    if situation.domain.swap >= SWAP_LEAST:
        victim = _fattest([call for call in lower if not situation.runs(call)], RECLAIM_BYTES)
        return (victim, "reclaim") if victim and since >= RECLAIM_EVERY_S else None
    if (
        headroom >= critical_of(situation.domain.limit, situation.total.rate)
        or since < SETTLE_S
        or any(_not_yet_frozen(situation, call) for call in lower)
    ):
        return None
    victim = _fattest(lower, situation.domain.limit * VICTIM_SHARE)
    return (victim, "kill") if victim else None


def _not_yet_frozen(situation: Situation, call: Call) -> bool:
    """Whether waiting could still be enough: it is about to be frozen, or was at this very look."""
    held = situation.held[call.key]
    return held.frozen_at == situation.now or (held.frozen_at is None and may_change(held, situation.now))


def _fattest(calls: Sequence[Call], least: float) -> Call | None:
    """Of the lowest rank that holds enough, the call that holds most."""
    enough = [call for call in calls if call.usage >= least]
    return min(enough, key=lambda call: (call.rank, -call.usage, call.key), default=None)
