"""Snapshots in a row for the controller to decide about: of chance, recorded, and recorded but changed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from hypothesis import strategies as st
from memory_world import MIB

from agentrun.daemon.controller.decisions import decide
from agentrun.daemon.controller.model import Action, Bound, Call, Decision, Domain, Held, Memory, Snapshot

RANKS = st.sampled_from([(100, 50), (100, 100), (100, 200), (200, 100), (300, 100)])
DOMAINS = ("pod", "host")
SWAP = st.sampled_from([0, 1 << 30])


def used(calls: tuple[Call, ...], domain: str) -> int:
    return sum(call.usage for call in calls if domain in call.domains)


@st.composite
def stories(draw) -> list[Snapshot]:
    """Snapshots in a row: calls come, go, grow and shrink as they like, in two nested domains."""
    names = [f"c{number}" for number in range(draw(st.integers(2, 5)))]
    facts = {name: (draw(RANKS), float(draw(st.integers(0, 3))), draw(st.booleans())) for name in names}
    limit = {"pod": 600 * MIB, "host": 1000 * MIB}
    now, found = 0.0, []
    for _ in range(draw(st.integers(1, 30))):
        now += draw(st.sampled_from([0.004, 0.01, 0.1, 0.25, 1.0]))
        sizes = draw(st.lists(st.integers(0, 400), min_size=len(names), max_size=len(names)))
        calls = tuple(
            Call(
                name,
                facts[name][0],
                facts[name][1],
                size * MIB,
                DOMAINS if facts[name][2] else ("host",),
                soft=draw(st.sampled_from([None, 50 * MIB, 300 * MIB])),
                ceiling=400 * MIB,
                throttled=draw(st.integers(0, 3)),
                adaptive=draw(st.booleans()),
                learned=draw(st.sampled_from([None, 40 * MIB, 350 * MIB])),
            )
            for name, size in zip(names, sizes, strict=True)
            if size
        )
        domains = tuple(
            Domain(key, limit[key], used(calls, key) + draw(st.integers(0, 99)) * MIB, draw(SWAP))
            for key in DOMAINS
        )
        found.append(Snapshot(now, calls, domains))
    return found


def play(story: list[Snapshot]) -> Iterator[tuple[Snapshot, Memory, Decision]]:
    """Decide about each snapshot in turn: (snapshot, memory before, decision)."""
    memory = Memory()
    for snapshot in story:
        decision = decide(snapshot, memory)
        yield snapshot, memory, decision
        memory = decision.memory


def acted(snapshot: Snapshot, decision: Decision) -> Iterator[tuple[Action, Call]]:
    """What is done, each with the call that it is done to."""
    by_key = {call.key: call for call in snapshot.calls}
    for action in decision.actions:
        yield action, by_key[action.key]


def is_frozen(memory: Memory, key: str) -> bool:
    return memory.held.get(key, Held()).frozen_at is not None


RECORDINGS = sorted((Path(__file__).parents[1] / "data/snapshots").glob("*.jsonl"))


def read_snapshot(line: str) -> Snapshot:
    """A snapshot as `tests/bench/recording_daemon.py` writes them."""
    raw = json.loads(line)
    calls = tuple(
        Call(**{**call, "rank": tuple(call["rank"]), "domains": tuple(call["domains"])})
        for call in raw["calls"]
    )
    bounds = tuple(Bound(**bound) for bound in raw["bounds"])
    return Snapshot(raw["now"], calls, tuple(Domain(**domain) for domain in raw["domains"]), bounds)


# What was recorded, and what might have been: the same calls larger or smaller, in other tiers, faster, seen
# less often, and beside others that take memory and give it back.


def recorded() -> list[Snapshot]:
    return [read_snapshot(line) for path in RECORDINGS for line in path.read_text().splitlines()]


OTHERS = st.sampled_from([0, 0, 0, 100, 300, 500])


@st.composite
def variants(draw) -> list[Snapshot]:
    """A recorded run, changed."""
    ranks = {name: draw(RANKS) for name in ("high", "low1", "low2")}
    scale, keep = draw(st.floats(0.5, 1.5)), draw(st.sampled_from([1, 2, 5]))
    haste, others = draw(st.sampled_from([1.0, 0.3, 0.05])), draw(st.lists(OTHERS, min_size=60, max_size=60))
    return [
        replace(
            snapshot,
            now=snapshot.now * haste,
            calls=tuple(
                replace(call, rank=ranks[call.key.split("/")[-3]], usage=int(call.usage * scale))
                for call in snapshot.calls
            ),
            domains=tuple(
                replace(d, usage=min(d.limit, int(d.usage * scale) + more * MIB)) for d in snapshot.domains
            ),
        )
        for snapshot, more in zip(recorded()[::keep], others, strict=False)
    ]
