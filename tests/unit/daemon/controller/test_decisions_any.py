"""What holds for any snapshots at all: who is frozen or killed, how often, for how long, in which order."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_world import LOW, MIB, Actor, World
from snapshots import RANKS, acted, is_frozen, play, stories

from agentrun.daemon.controller import rules
from agentrun.daemon.controller.decisions import STARVE_S, decide, effective
from agentrun.daemon.controller.model import Call, Domain, Memory, Snapshot


def test_nobody_is_frozen_in_the_step_that_lets_a_starved_one_after_him_go():
    story = []
    for now, sizes in ((1.0, (500, 500, 500)), (10.4, (50, 200, 300)), (11.0, (400, 400, 500))):
        calls = tuple(Call(key, LOW, i, sizes[i] * MIB, ("host",)) for i, key in enumerate("abc"))
        story.append(Snapshot(now, calls, (Domain("host", 1000 * MIB, sum(sizes) * MIB),)))
    for _, _, decision in play(story):
        assert is_frozen(decision.memory, "c") or not is_frozen(decision.memory, "b"), decision.actions
    assert [action.key for action in decision.actions if action.what == "thaw"] == ["c"]


@settings(max_examples=100, deadline=None)
@given(stories())
def test_nobody_is_frozen_while_one_after_him_runs_and_the_first_never(story):
    for snapshot, _, decision in play(story):
        for action, call in acted(snapshot, decision):
            if action.what != "freeze":
                continue
            for domain in call.domains:
                inside = sorted(
                    (c for c in snapshot.calls if domain in c.domains), key=lambda c: c.precedence
                )
                later = inside[inside.index(call) + 1 :]
                if inside[0] is not call and all(is_frozen(decision.memory, c.key) for c in later):
                    break
            else:
                pytest.fail(f"{call} frozen although another should be first")


@settings(max_examples=100, deadline=None)
@given(stories())
def test_changes_are_bounded_and_nobody_starves(story):
    changed: dict[str, float] = {}
    for snapshot, before, decision in play(story):
        alive = {call.key for call in snapshot.calls}
        changed = {key: when for key, when in changed.items() if key in alive}
        for action in decision.actions:
            if action.what in ("freeze", "thaw"):
                least = rules.MIN_RUN_S if action.what == "freeze" else rules.MIN_FROZEN_S
                since = snapshot.now - changed.get(action.key, float("-inf"))
                starved = any(
                    snapshot.now - held.frozen_at >= STARVE_S
                    for held in before.held.values()
                    if held.frozen_at is not None
                )
                assert since >= least - 1e-9 or (starved and action.what == "thaw")
                changed[action.key] = snapshot.now
        for key in alive:
            frozen_at = decision.memory.held[key].frozen_at
            assert frozen_at is None or snapshot.now - frozen_at < STARVE_S


@settings(max_examples=100, deadline=None)
@given(stories())
def test_somebody_looks_again_as_long_as_anybody_is_frozen(story):
    for snapshot, _, decision in play(story):
        for call in snapshot.calls:  # all others end, and nothing else ever wakes us
            alone = decide(replace(snapshot, calls=(call,), domains=()), decision.memory)
            assert not is_frozen(alone.memory, call.key) or alone.look_again_s is not None


@settings(max_examples=100, deadline=None)
@given(stories())
def test_no_limit_is_above_the_plan_and_none_dies_for_an_equal(story):
    for snapshot, before, decision in play(story):
        for action, call in acted(snapshot, decision):
            if action.what == "limit" and call.soft is not None:
                assert action.value is not None and call.ceiling is not None
                assert action.value <= (max(call.ceiling, call.soft) if call.adaptive else call.soft)
            if action.what in ("kill", "reclaim"):
                assert any(c.rank > call.rank and set(c.domains) & set(call.domains) for c in snapshot.calls)
        for call in snapshot.calls:
            held = decision.memory.held[call.key]
            if not call.adaptive and call.soft is not None:
                value = effective(call, held)
                assert value is not None and value <= call.soft
            if call.soft is None and held.soft is not None and before.held.get(call.key, held).soft is None:
                assert call.ceiling is not None and held.soft < call.ceiling


@settings(max_examples=100, deadline=None)
@given(stories(), st.data())
def test_a_lower_tier_never_fares_better(story, data):
    snapshot = story[0]
    if len(snapshot.calls) < 2:
        return
    index = data.draw(st.integers(0, len(snapshot.calls) - 1))
    call = snapshot.calls[index]
    lowered = replace(call, rank=(call.rank[0] - 50, call.rank[1]))
    changed = (*snapshot.calls[:index], lowered, *snapshot.calls[index + 1 :])
    before = decide(snapshot, Memory())
    after = decide(replace(snapshot, calls=changed), Memory())
    if is_frozen(before.memory, call.key):
        assert is_frozen(after.memory, call.key)


@settings(max_examples=15, deadline=None)
@given(
    st.lists(
        st.tuples(RANKS, st.integers(20, 280), st.integers(5, 300), st.floats(0, 5)), min_size=2, max_size=6
    )
)
def test_any_mix_settles_and_the_first_always_ends(mix):
    actors = [
        Actor(f"c{number}", rank, need * MIB, rate * MIB, start)
        for number, (rank, need, rate, start) in enumerate(mix)
    ]
    world = World(*actors)
    world.run(330)
    assert all(actor.ended_at for actor in actors)


@settings(max_examples=200, deadline=None)
@given(stories(), st.data())
def test_a_lower_tier_never_fares_better_whatever_went_before(story, data):
    """From any state that can be reached: who would be frozen as he is would be with a lower rank as well."""
    *_, (snapshot, before, decision) = play(story)
    if len(snapshot.calls) < 2:
        return
    index = data.draw(st.integers(0, len(snapshot.calls) - 1))
    call = snapshot.calls[index]
    lowered = replace(call, rank=(call.rank[0] - 50, call.rank[1]))
    changed = (*snapshot.calls[:index], lowered, *snapshot.calls[index + 1 :])
    after = decide(replace(snapshot, calls=changed), before)
    if is_frozen(decision.memory, call.key):
        assert is_frozen(after.memory, call.key)
