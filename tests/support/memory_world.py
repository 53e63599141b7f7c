"""A made-up world of calls that grow, for tests of the controller's decisions: no kernel, no clock."""

from __future__ import annotations

from dataclasses import dataclass

from agentrun.daemon.controller import decisions
from agentrun.daemon.controller.decisions import decide
from agentrun.daemon.controller.model import Action, Call, Domain, Memory, Snapshot

MIB = 1 << 20
LIMIT = 600 * MIB
HIGH, LOW = (300, 100), (100, 100)


@dataclass
class Actor:
    """A call in a made-up world: it grows to `need` at `rate` bytes/s, holds that for `hold` s, and ends."""

    key: str
    rank: tuple[int, int]
    need: int
    rate: float
    start: float = 0.0
    hold: float = 0.5
    soft: int | None = None
    ceiling: int | None = None
    usage: float = 0.0
    frozen: bool = False
    high: int | None = None
    throttled: int = 0
    adaptive: bool = False
    learned: int | None = None
    ended_at: float | None = None
    full_at: float | None = None

    def live(self, now: float, seconds: float) -> None:
        """Run for a while, unless frozen; above memory.high the kernel lets it hardly grow."""
        if self.frozen or self.ended_at is not None or now < self.start:
            return
        wanted = min(self.need, self.usage + self.rate * seconds)
        limit = self.high if self.high is not None else wanted
        if wanted > limit:
            self.throttled += 1
            wanted = max(self.usage, min(wanted, limit + self.rate * seconds * 0.05))
        self.usage = wanted
        if self.usage >= self.need and self.full_at is None:
            self.full_at = now
        if self.full_at is not None and now - self.full_at >= self.hold:
            self.ended_at, self.usage = now, 0


class Churning(Actor):
    """One that takes and gives back all the time."""

    def live(self, now: float, seconds: float) -> None:
        self.usage = self.need if self.usage < self.need else self.need - 20 * MIB


class World:
    """One domain, its calls, and the controller, step by step."""

    def __init__(self, *actors: Actor, limit: int = LIMIT, others: int = 0, swap: int = 0) -> None:
        self.actors, self.limit, self.others, self.swap = actors, limit, others, swap
        self.now, self.memory, self.peak = 100.0, Memory(), 0.0
        self.done: list[tuple[float, Action]] = []
        for actor in actors:
            actor.start += self.now

    def snapshot(self) -> Snapshot:
        """The world as the controller sees it."""
        living = [a for a in self.actors if a.ended_at is None and self.now >= a.start]
        used = int(sum(a.usage for a in living)) + self.others
        self.peak = max(self.peak, used)
        calls = tuple(
            Call(
                a.key,
                a.rank,
                a.start,
                int(a.usage),
                ("d",),
                a.soft,
                a.ceiling,
                a.throttled,
                a.adaptive,
                a.learned,
            )
            for a in living
        )
        return Snapshot(self.now, calls, (Domain("d", self.limit, used, self.swap),))

    def step(self) -> float:
        """Decide and act; returns how long until the next look."""
        decision = decide(self.snapshot(), self.memory)
        self.memory = decision.memory
        by_key = {actor.key: actor for actor in self.actors}
        for action in decision.actions:
            self.done.append((self.now, action))
            actor = by_key[action.key]
            if action.what in ("freeze", "thaw"):
                actor.frozen = action.what == "freeze"
            elif action.what == "limit":
                actor.high = action.value
            elif action.what == "kill":
                actor.ended_at, actor.usage = self.now, 0
            elif action.what == "reclaim":
                taken = min(actor.usage, action.value or 0)
                actor.usage -= taken
                self.swap -= int(taken)
        return decision.look_again_s or decisions.CALM_S

    def run(self, seconds: float) -> None:
        """Let time pass."""
        end = self.now + seconds
        while self.now < end and any(actor.ended_at is None for actor in self.actors):
            wait = self.step()
            for actor in self.actors:
                actor.live(self.now, wait)
            self.now += wait

    def what(self, key: str) -> list[str]:
        """What was done to a call, limits left out."""
        return [action.what for _, action in self.done if action.key == key and action.what != "limit"]


def scene(high_mib: int = 280, low_mib: int = 265, rate: float = 60 * MIB) -> World:
    return World(
        Actor("high", HIGH, high_mib * MIB, rate),
        Actor("low1", LOW, low_mib * MIB, rate),
        Actor("low2", LOW, low_mib * MIB, rate, start=0.001),
    )
