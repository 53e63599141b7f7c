"""Short calls first: who begins with more CPU weight, for how long, and whom it never goes before."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrun.base.limits import WEIGHT_MAX
from agentrun.daemon.controller import boosts
from agentrun.daemon.controller.boosts import (
    AGE_MOST_S,
    BUDGET_S,
    FACTOR,
    OVER,
    Contender,
    Family,
    judge,
    most_of,
)

HIGH, LOW = (300, 100), (100, 100)
NEW = Contender("new", LOW, 100, used_s=0.0, age_s=0.1)
BUILD = Contender("build", LOW, 50, used_s=90.0, age_s=60.0)


def done(*calls: Contender, is_contended: bool = True, before: dict[str, int] | None = None):
    """What is done in one container, as (what, call, weight)."""
    judgement = judge([Family(calls, is_contended)], before or {})
    return [(action.what, action.key, action.value) for action in judgement.actions]


def test_new_call_beside_a_build_goes_first():
    assert done(NEW, BUILD) == [("boost", "new", 400)]


@pytest.mark.parametrize(
    "calls, is_contended",
    [
        ([NEW], True),  # nobody to go before
        ([NEW, BUILD], False),  # CPUs for all
        ([NEW, replace(NEW, key="other")], True),  # all are new: it would change nothing
        ([replace(NEW, may=False), BUILD], True),
        ([replace(NEW, used_s=BUDGET_S), BUILD], True),
        ([replace(NEW, age_s=AGE_MOST_S), BUILD], True),
        ([replace(NEW, weight=WEIGHT_MAX), BUILD], True),
        ([NEW, replace(BUILD, rank=HIGH)], True),  # that one has less weight by plan already
    ],
)
def test_no_boost_where_there_is_no_need_or_no_right(calls, is_contended):
    assert done(*calls, is_contended=is_contended) == []


def test_call_beside_one_of_a_higher_rank_gets_no_more_weight_than_that():
    assert done(NEW, replace(BUILD, rank=HIGH, weight=150)) == [("boost", "new", 150)]


@pytest.mark.parametrize(
    "changes, why",
    [
        ({"used_s": 1.25}, "1.2s of CPU time are over"),
        ({"age_s": 10.1}, "10.1s of its life are over"),
        ({}, ""),
    ],
)
def test_boost_ends_with_its_budget_whether_or_not_anybody_waits(changes, why):
    for is_contended in (True, False):
        judgement = judge([Family((replace(NEW, **changes), BUILD), is_contended)], {"new": 400})
        assert [(a.what, a.value, a.was, a.why) for a in judgement.actions] == (
            [("unboost", 100, 400, why)] if why else []
        )
        assert judgement.boosts == {"new": OVER if why else 400}
        assert judgement.look_again_s == (None if why else boosts.LOOK_S)


def test_boost_ends_when_a_call_of_higher_rank_comes_and_does_not_come_again():
    came = Contender("came", HIGH, 200, used_s=0.0, age_s=0.0)
    assert done(NEW, BUILD, came, before={"new": 400}) == [("unboost", "new", 100), ("boost", "came", 800)]
    assert done(NEW, BUILD, before={"new": OVER}) == []


def test_nothing_to_see_needs_no_second_look():
    for calls in ([NEW], [BUILD, replace(BUILD, key="other")]):
        assert judge([Family(tuple(calls), True)], {}).look_again_s is None
    assert judge([Family((NEW, BUILD), False)], {}).look_again_s == boosts.LOOK_S


# Anything may come, and these hold.

RANKS = st.sampled_from([(100, 50), LOW, (100, 200), (200, 100), HIGH])


@st.composite
def stories(draw) -> list[list[Family]]:
    """Looks in a row at two containers, whose calls come, go, get older and burn as they like."""
    facts = [
        (draw(RANKS), draw(st.integers(1, WEIGHT_MAX)), draw(st.booleans()))
        for _ in range(draw(st.integers(2, 6)))
    ]
    used, ages, looks = [0.0] * len(facts), [0.0] * len(facts), []
    for _ in range(draw(st.integers(1, 15))):
        elapsed = draw(st.sampled_from([0.004, 0.25, 1.0, 4.0]))
        calls: list[list[Contender]] = [[], []]
        for number, (rank, weight, may) in enumerate(facts):
            ages[number] += elapsed
            used[number] += elapsed * draw(st.sampled_from([0, 0.1, 1, 8]))
            if draw(st.integers(0, 4)):
                call = Contender(f"c{number}", rank, weight, used[number], ages[number], may)
                calls[number % 2].append(call)
        looks.append([Family(tuple(inside), draw(st.booleans())) for inside in calls])
    return looks


def play(story: list[list[Family]]):
    """Judge each look in turn: (families, what is done, the weights that all have then)."""
    before: dict[str, int] = {}
    for families in story:
        judgement = judge(families, before)
        before = judgement.boosts
        weights = {call.key: before.get(call.key) or call.weight for f in families for call in f.calls}
        yield families, judgement, weights


@settings(max_examples=200, deadline=None)
@given(stories())
def test_no_boosted_call_outweighs_one_of_a_higher_rank_that_it_did_not_by_plan(story):
    for families, _, weights in play(story):
        for family in families:
            for call in family.calls:
                assert call.weight <= weights[call.key] <= max(call.weight, min(call.weight * FACTOR, 10000))
                for other in family.calls:
                    if other.rank > call.rank and weights[call.key] > other.weight:
                        assert weights[call.key] == call.weight


@settings(max_examples=200, deadline=None)
@given(stories())
def test_each_call_changes_at_most_twice_and_no_boost_outlives_its_budget(story):
    story = [[Family(tuple(f.calls), f.is_contended) for f in families] for families in story]
    changes: dict[str, list[str]] = {}
    for families, judgement, weights in play(story):
        alive = {call.key: call for family in families for call in family.calls}
        changes = {key: what for key, what in changes.items() if key in alive}
        for action in judgement.actions:
            changes.setdefault(action.key, []).append(action.what)
        for key, call in alive.items():
            assert changes.get(key, []) in ([], ["boost"], ["boost", "unboost"])
            assert weights[key] == call.weight or call.is_fresh
        is_boosted = any(judgement.boosts.values())
        assert not is_boosted or judgement.look_again_s is not None  # somebody comes to end it


def shares(families: list[Family], weights: dict[str, int], containers: list[int]) -> dict[str, float]:
    """What part of a busy host each call gets: all calls of a container have 100 against its agent's 200."""
    crowds = [family for family in families if family.calls]
    whole = sum(weight for family, weight in zip(families, containers, strict=True) if family in crowds)
    return {
        call.key: weight / whole / 3 * weights[call.key] / sum(weights[other.key] for other in family.calls)
        for family, weight in zip(families, containers, strict=True)
        for call in family.calls
    }


@settings(max_examples=100, deadline=None)
@given(stories(), st.integers(1, 400), st.integers(1, 400))
def test_no_call_takes_from_another_container_and_none_falls_below_a_part_of_its_share(story, one, other):
    """So the order of tiers, which are a container's, stays what it is whoever is boosted."""
    for families, _, weights in play(story):
        plan = {call.key: call.weight for family in families for call in family.calls}
        planned = shares(families, plan, [one, other])
        now = shares(families, weights, [one, other])
        for family in families:
            keys = [call.key for call in family.calls]
            assert sum(now[k] for k in keys) == pytest.approx(sum(planned[k] for k in keys))
            for call in family.calls:
                assert now[call.key] >= planned[call.key] / FACTOR * (1 - 1e-9)
                above = [c for c in family.calls if c.rank > call.rank and c.weight >= call.weight]
                assert all(now[call.key] <= now[c.key] * (1 + 1e-9) for c in above)


ANY = st.builds(Contender, st.text(), RANKS, st.integers(1, WEIGHT_MAX), st.just(0.0), st.just(0.0))


@given(st.lists(ANY, min_size=1))
def test_a_lower_rank_never_gets_a_higher_weight(calls):
    call, siblings = calls[0], calls
    lowered = replace(call, rank=(call.rank[0] - 50, call.rank[1]))
    assert most_of(lowered, [lowered, *siblings[1:]]) <= most_of(call, siblings)
