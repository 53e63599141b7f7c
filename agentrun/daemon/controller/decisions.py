"""From a snapshot to actions: who waits, who goes on, who is slowed down. Pure.

Promises (tested with arbitrary snapshots): the first call of a domain is never frozen or killed; a call is
frozen for the sake of others only when all after it in that domain are; nobody is frozen for longer than
`STARVE_S`; nobody changes more often than MIN_RUN_S and MIN_FROZEN_S allow; no memory.high is above what
the plan allows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from agentrun.base.limits import MEMORY_FLOOR
from agentrun.base.units import show_size
from agentrun.daemon.controller import gates, rules
from agentrun.daemon.controller.model import Action, Call, Decision, Domain, Growth, Held, Memory, Snapshot
from agentrun.daemon.controller.rules import Situation, Wish

STARVE_S = 10.0
WATCH = 0.5  # below this share of a limit nobody is in anybody's way
TICK_S = 0.01
SLOW_TICK_S = 0.1
CALM_S = 0.25
_SLACK_RATE = 0.05  # of the limit per second: growth that is always reckoned with
_UNKNOWN_RATE = 1 << 30
_LATE = 0.1  # of the reserve, which may be gone before the first one is frozen
_RATE_WEIGHT = 0.5
_SOFTEN_FACTOR = 1.25
_SOFTEN_S = 0.1
_HARDEN_S = 1.0


def decide(snapshot: Snapshot, before: Memory) -> Decision:
    """What to do now. Everything not in the snapshot is forgotten."""
    calls = {call.key: call for call in sorted(snapshot.calls, key=lambda call: call.precedence)}
    members = _members(snapshot.domains, calls.values())
    held = {key: before.held.get(key, Held(throttled=call.throttled)) for key, call in calls.items()}
    growth = _observe(snapshot, before.growth, members)
    situations = [
        Situation(
            domain, inside, held, growth, growth[f"{domain.key} others"], growth[domain.key], snapshot.now
        )
        for domain, inside in members
    ]
    wishes = {key: Wish() for key in calls}
    to_freeze: dict[str, Call] = {}
    for situation in situations:
        to_freeze |= {call.key: call for call in rules.judge(situation, wishes)}
    step = _Step(snapshot.now, calls, held, wishes)
    step.freeze(to_freeze.values())
    step.thaw()
    step.limit({situation.domain.key: situation for situation in situations})
    emptied = step.make_room(situations, before.emptied_at)
    for bound in snapshot.bounds:
        if bound.now != bound.wanted:
            step.actions.append(Action("bound", bound.key, bound.wanted))
    memory = Memory(growth, step.held, emptied, gates.judge(snapshot, growth, step.held, before.gates))
    look_again = _sooner(_look_again(situations, memory), gates.look_again(memory.gates))
    if any(action.what == "thaw" for action in step.actions) and look_again is not None:
        look_again = min(look_again, TICK_S)  # the next one waits for its turn
    return Decision(tuple(step.actions), memory, look_again)


def _members(domains: Iterable[Domain], calls: Iterable[Call]) -> list[tuple[Domain, list[Call]]]:
    """Domains in which calls share something, with their calls in order."""
    ordered = list(calls)
    found = [(domain, [call for call in ordered if domain.key in call.domains]) for domain in domains]
    return [(domain, inside) for domain, inside in found if len(inside) > 1]


def _observe(
    snapshot: Snapshot, before: Mapping[str, Growth], members: Iterable[tuple[Domain, list[Call]]]
) -> dict[str, Growth]:
    now = snapshot.now
    growth = {
        call.key: grown(before.get(call.key), call.usage, now, rules.CALL_STEP) for call in snapshot.calls
    }
    for domain, inside in members:
        others = domain.usage - sum(call.usage for call in inside)
        step, key = rules.others_step(domain.limit), f"{domain.key} others"
        # What was there before we looked says nothing; a call that is new is taken to grow.
        known = before.get(key) or Growth(others, float("-inf"), others, now)
        growth[key] = grown(known, others, now, step)
        growth[domain.key] = grown(before.get(domain.key), domain.usage, now, step)
    return growth


def grown(before: Growth | None, usage: int, now: float, step: int) -> Growth:
    """How something grew since the last look; what is new counts as growing."""
    if before is None:
        return Growth(usage, now, usage, now)
    elapsed = now - before.seen_at
    if elapsed <= 0:
        return before
    rate = before.rate + _RATE_WEIGHT * (max(0, usage - before.usage) / elapsed - before.rate)
    if usage >= before.base + step:
        return Growth(usage, now, usage, now, rate)
    return Growth(min(before.base, usage), before.grew_at, usage, now, rate)


class _Step:
    """One decision in the making: the actions, and what is then held."""

    def __init__(
        self, now: float, calls: Mapping[str, Call], held: Mapping[str, Held], wishes: Mapping[str, Wish]
    ) -> None:
        self.now = now
        self.calls = calls
        self.held = dict(held)
        self.wishes = wishes
        self.actions: list[Action] = []

    def _change(self, key: str, **changes: object) -> None:
        self.held[key] = replace(self.held[key], **changes)  # type: ignore[arg-type]

    def freeze(self, chosen: Iterable[Call]) -> None:
        """Freeze those that the domains chose, the last first; none that comes before one that starved."""
        starved = self._starved()
        for call in sorted(chosen, key=lambda call: call.precedence, reverse=True):
            if _is_before_any(call, starved):
                continue
            self._change(call.key, frozen_at=self.now, changed_at=self.now)
            self.actions.append(Action("freeze", call.key, why=str(self.wishes[call.key].hold)))

    def thaw(self) -> None:
        """Let go on, in order: those that may, one for each domain in a step, and those that waited long."""
        frozen = [call for call in self.calls.values() if self.held[call.key].frozen_at is not None]
        busy = {domain for call in frozen if self._is_new(call) for domain in call.domains}
        starved = self._starved()
        for call in frozen:
            if _is_before_any(call, starved):
                self._thaw(call, f"waited {self._waited(call):.1f}s")
            elif self._may_thaw(call) and busy.isdisjoint(call.domains):
                self._thaw(call, "there is room again")
                busy.update(call.domains)

    def _is_new(self, call: Call) -> bool:
        return self.held[call.key].frozen_at == self.now

    def _starved(self) -> list[Call]:
        return [call for call in self.calls.values() if self._waited(call) >= STARVE_S]

    def _waited(self, call: Call) -> float:
        frozen_at = self.held[call.key].frozen_at
        return 0.0 if frozen_at is None else self.now - frozen_at

    def _may_thaw(self, call: Call) -> bool:
        wish = self.wishes[call.key]
        return wish.may_thaw and wish.hold is None and rules.may_change(self.held[call.key], self.now)

    def _thaw(self, call: Call, why: str) -> None:
        if self._is_new(call):
            return
        self._change(call.key, frozen_at=None, changed_at=self.now)
        self.actions.append(Action("thaw", call.key, why=why))

    def limit(self, situations: Mapping[str, Situation]) -> None:
        """Set memory.high: a call's own soft limit, and what guards those above it."""
        for key, call in self.calls.items():
            held = self.held[key]
            guard = _guard(call, held, self.wishes[key].room)
            left = [situations[name] for name in call.domains if name in situations]
            soft, why = _soft(call, held, left, self.now)
            if (guard, soft) == (held.guard, held.soft) and call.throttled == held.throttled:
                continue
            softened = self.now if soft != held.soft else held.softened_at
            self._change(key, guard=guard, soft=soft, throttled=call.throttled, softened_at=softened)
            value = effective(call, self.held[key])
            why = why if soft != held.soft else ""  # a guard that moves needs no mention
            if value != effective(call, held):
                # Before a thaw: what goes on is guarded from its first instruction.
                self.actions.insert(0, Action("limit", key, value, why))

    def make_room(self, situations: Iterable[Situation], before: Mapping[str, float]) -> dict[str, float]:
        """Reclaim or kill where waiting is not enough; returns when that was, by domain."""
        emptied = {}
        for situation in situations:
            key = situation.domain.key
            emptied[key] = before.get(key, float("-inf"))
            if not rules.is_scarce(situation):
                continue
            found = rules.make_room(replace(situation, held=self.held), emptied[key])
            if found is None:
                continue
            call, how = found
            emptied[key] = self.now
            left = f"{show_size(max(0, situation.domain.headroom))} of {show_size(situation.domain.limit)}"
            why = f"{left} left ({key}), a call of higher priority needs it"
            if how == "kill":
                self.actions.append(Action("kill", call.key, why=why))
            else:
                self.actions.append(Action("reclaim", call.key, rules.RECLAIM_BYTES, why))
        return emptied


def _is_before_any(call: Call, others: Iterable[Call]) -> bool:
    """Whether a call is one of some, or comes before one of them in a domain of both."""
    return any(
        call.precedence <= other.precedence and not set(call.domains).isdisjoint(other.domains)
        for other in others
    )


def _guard(call: Call, held: Held, room: int | None) -> int | None:
    """The memory.high that bounds a call's growth until the next look; moved only when it is well off."""
    if room is None:
        return None
    left = None if held.guard is None else held.guard - call.usage
    if held.frozen_at is not None and held.guard is not None:
        return held.guard
    return held.guard if left is not None and room / 2 <= left <= room * 2.5 else call.usage + room


def _soft(call: Call, held: Held, situations: Iterable[Situation], now: float) -> tuple[int | None, str]:
    """An adaptive call's own memory.high: up while it is slowed down and there is room, back when not.

    So is that of a call which begins with a learned one. But what calls like it used is no reason to slow
    down one that nobody is above: HIGH at its learned start, in a domain that agents filled to 85 %, crawled
    on for ten seconds, and LOW waited for it.
    """
    base = call.learned if call.soft is None else call.soft if call.adaptive else None
    if base is None:
        return None, ""
    domains = list(situations)
    if call.soft is None and held.soft is None:
        return _begin(call, base, domains)
    current = held.soft or base
    rooms = [
        each.domain.headroom - (each.kept_from(call) if call.soft is None else each.reserve)
        for each in domains
    ]
    since = now - held.softened_at
    if min(rooms, default=1) <= 0 or (current > base and call.usage < base // 2):
        return (min(current, base), "there is no room any more") if since >= _HARDEN_S else (current, "")
    if call.throttled <= held.throttled or since < _SOFTEN_S:
        return current, ""
    most = [int(current * _SOFTEN_FACTOR), *(call.usage + int(room) for room in rooms)]
    if call.ceiling is not None:
        most.append(call.ceiling)
    wanted = max(current, min(most))
    return wanted, f"memory.high raised to {show_size(wanted)}: it was slowed down and there is room"


def _begin(call: Call, learned: int, situations: Iterable[Situation]) -> tuple[int | None, str]:
    """The memory.high that a call begins with: what is known, above its use.

    Where a call is above it, no more than what is left. None where its own limit comes first anyway.
    """
    wanted = max(learned, int(call.usage * _SOFTEN_FACTOR))
    left = min((each.domain.headroom for each in situations if each.kept_from(call)), default=wanted)
    begin = max(MEMORY_FLOOR, min(wanted, call.usage + max(0, left)))
    if call.ceiling is not None and begin >= call.ceiling:
        return None, ""
    return begin, f"memory.high begins at {show_size(begin)}, from what calls like it used"


def effective(call: Call, held: Held) -> int | None:
    """The memory.high of a call: the lowest that anything asks for."""
    return min((v for v in (held.guard, held.soft or call.soft) if v is not None), default=None)


def _sooner(*waits: float | None) -> float | None:
    return min((wait for wait in waits if wait is not None), default=None)


def _rate(situation: Situation) -> float:
    """How fast the domain may fill: as it did, or as a call does that nobody has seen grow yet."""
    growth = [situation.growth[call.key] for call in situation.calls]
    is_new = any(each.rate == 0 and each.grew_at == each.seen_at for each in growth)
    least = max(situation.domain.limit * _SLACK_RATE, _UNKNOWN_RATE if is_new else 0)
    return max(situation.total.rate, least)


def _gap(situation: Situation) -> float:
    """What may be taken before there is something to do, in bytes: somebody to freeze, or to kill.

    To be a little late for the freeze costs little of a reserve. Without that tolerance HIGH, at rest on
    the edge of it, was looked at a hundred times a second.
    """
    headroom, reserve = situation.domain.headroom, situation.reserve
    if not situation.running_below or headroom <= reserve:
        return headroom
    return max(headroom - reserve, reserve * _LATE)


def _look_again(situations: Iterable[Situation], memory: Memory) -> float | None:
    """When to look again without being woken: the sooner, the sooner something could happen.

    Who is frozen always has a next look, also where nobody shares anything with him any more.
    """
    is_held = any(held.frozen_at is not None for held in memory.held.values())
    wait = SLOW_TICK_S if is_held else None
    for situation in situations:
        growing = any(situation.grows(call) for call in situation.calls) or situation.is_growing(
            situation.others
        )
        own = CALM_S
        if growing:
            own = min(own, max(_gap(situation) / _rate(situation) / 4, TICK_S))
        wait = own if wait is None else min(wait, own)
    return wait
