"""Short calls first: a call begins with more CPU weight, and loses it when it has burned its budget. Pure.

`git status` beside a build should feel instant, and nobody says beforehand which of the two a call is. So
each begins as a short one, as in any multilevel feedback queue: beside a call of its container that has run
for longer, and while they wait for CPUs, its cpu.weight is FACTOR times that of its plan, for BUDGET_S of CPU
time and AGE_MOST_S at most. Once over, it does not come again.

What it can cost others: weights count among siblings only, so the share of the container, and with it of
its tier, stays what it was. In it, a call that yields gets at least 1 / FACTOR of what it would have had.

Promises (tested with arbitrary stories): a boosted call outweighs no call of a higher rank that it did not
outweigh by plan; no weight is ever below the plan's; a call changes at most twice in its life.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from agentrun.base.limits import WEIGHT_MAX
from agentrun.daemon.controller.model import Action, Rank

FACTOR = 4
BUDGET_S = 1.0
AGE_MOST_S = 10.0
LOOK_S = 0.25
CONTENDED = 1.0  # percent of the time in which a call waited for a CPU
OVER = 0


@dataclass(frozen=True, slots=True)
class Contender:
    """A call among those of its container.

    `weight` is the cpu.weight of its plan, `used_s` its CPU time so far, `age_s` the time since its start,
    and `may` what its class says.
    """

    key: str
    rank: Rank
    weight: int
    used_s: float
    age_s: float
    may: bool = True

    @property
    def is_fresh(self) -> bool:
        """Whether it may still turn out to be short."""
        return self.may and self.used_s < BUDGET_S and self.age_s < AGE_MOST_S


@dataclass(frozen=True, slots=True)
class Family:
    """The live calls of one container, and whether they wait for CPUs."""

    calls: tuple[Contender, ...]
    is_contended: bool


@dataclass(frozen=True, slots=True)
class Judgement:
    """What to do, the boosts from now on (by call; OVER: had its own), and when to look again."""

    actions: tuple[Action, ...]
    boosts: dict[str, int]
    look_again_s: float | None


def judge(families: Iterable[Family], before: Mapping[str, int]) -> Judgement:
    """Who is boosted from now on. Everything not in the families is forgotten."""
    actions: list[Action] = []
    boosts: dict[str, int] = {}
    is_open = False
    for family in families:
        is_crowded = any(not call.is_fresh for call in family.calls)
        for call in family.calls:
            boost, most = before.get(call.key), most_of(call, family.calls)
            if boost is None and call.is_fresh:
                if is_crowded and family.is_contended and most > call.weight:
                    boost = most
                    actions.append(_boost(call, most))
                is_open |= len(family.calls) > 1
            elif boost and (why := _is_over(call, boost, most)):
                actions.append(Action("unboost", call.key, call.weight, why, was=boost))
                boost = OVER
            is_open |= bool(boost)
            if boost is not None:
                boosts[call.key] = boost
    return Judgement(tuple(actions), boosts, LOOK_S if is_open else None)


def most_of(call: Contender, siblings: Iterable[Contender]) -> int:
    """The most that its weight may be: no more than that of any call of a higher rank, but for its plan's."""
    above = [other.weight for other in siblings if other.rank > call.rank]
    return max(call.weight, min([call.weight * FACTOR, WEIGHT_MAX, *above]))


def _boost(call: Contender, weight: int) -> Action:
    why = f"it is new beside calls that have run for longer, and they wait for CPUs: cpu.weight {weight}"
    return Action("boost", call.key, weight, why, was=call.weight)


def _is_over(call: Contender, boost: int, most: int) -> str:
    """Why a boost ends; empty where it goes on."""
    if boost > most:
        return "a call of higher priority came"
    if call.is_fresh:
        return ""
    if call.used_s >= BUDGET_S:
        return f"{call.used_s:.1f}s of CPU time are over"
    return f"{call.age_s:.1f}s of its life are over"
