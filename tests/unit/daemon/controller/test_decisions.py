"""Who waits when memory gets short: single rules, and whole stories in a made-up world."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from memory_world import HIGH, LIMIT, LOW, MIB, Actor, Churning, World, scene

from agentrun.daemon.controller import rules
from agentrun.daemon.controller.decisions import STARVE_S, decide
from agentrun.daemon.controller.model import Action, Bound, Call, Domain, Growth, Held, Memory, Snapshot


@pytest.mark.parametrize("rate", [10 * MIB, 60 * MIB, 250 * MIB, 600 * MIB])
def test_high_gets_through_where_the_demand_fits_once_low_waits(rate):
    world = scene(rate=rate)
    world.run(120)
    assert all(actor.ended_at for actor in world.actors)
    assert not [a for _, a in world.done if a.what == "kill"]
    assert world.peak < LIMIT
    assert "freeze" not in world.what("high")
    assert world.what("low2")[0] == "freeze"


def test_high_that_wants_more_than_low_leaves_costs_the_lowest_call():
    world = World(
        Actor("high", HIGH, 450 * MIB, 60 * MIB, start=3),
        Actor("mid", (200, 100), 100 * MIB, 400 * MIB, hold=1000),
        Actor("low", LOW, 300 * MIB, 400 * MIB, hold=1000),
    )
    world.run(20)
    assert world.what("low")[-1] == "kill" and "kill" not in world.what("mid") + world.what("high")
    assert world.actors[0].ended_at and world.peak < LIMIT


def test_swap_is_used_before_anybody_dies():
    world = World(
        Actor("high", HIGH, 450 * MIB, 60 * MIB, start=3),
        Actor("low", LOW, 300 * MIB, 400 * MIB, hold=1000),
        swap=1 << 30,
    )
    world.run(20)
    assert set(world.what("low")) >= {"reclaim"} and "kill" not in world.what("low")
    assert world.actors[0].ended_at and world.peak < LIMIT


def test_waiting_call_runs_now_and_then_beside_one_that_never_ends():
    world = World(
        Churning("high", HIGH, 320 * MIB, 600 * MIB, hold=1000),
        Actor("low", LOW, 250 * MIB, 10 * MIB),
    )
    world.run(330)
    thaws = [when for when, action in world.done if action.what == "thaw"]
    assert len(thaws) >= 5 and max(b - a for a, b in pairwise(thaws)) < STARVE_S + 1
    assert "kill" not in world.what("low") and world.actors[1].ended_at


def test_quiet_call_above_stops_nobody():
    world = World(Actor("high", HIGH, 400 * MIB, 400 * MIB, hold=60), Actor("low", LOW, 190 * MIB, 20 * MIB))
    world.run(30)
    assert world.actors[1].ended_at and not world.actors[0].ended_at


def test_equals_take_turns_only_when_there_is_nothing_left():
    world = World(
        Actor("old", LOW, 300 * MIB, 60 * MIB),
        Actor("new", LOW, 345 * MIB, 70 * MIB, start=0.01),
    )
    world.run(60)
    assert world.what("old") == [] and world.what("new") == ["freeze", "thaw"]
    assert all(actor.ended_at for actor in world.actors) and world.peak < LIMIT


def test_calls_that_fit_are_left_alone():
    world = World(Actor("high", HIGH, 200 * MIB, 60 * MIB), Actor("low", LOW, 200 * MIB, 60 * MIB))
    world.run(30)
    assert [a for _, a in world.done if a.what != "limit"] == []
    assert all(actor.ended_at for actor in world.actors)


def test_calls_of_one_rank_have_no_guard_and_the_guard_goes_with_the_last_above():
    world = World(Actor("one", LOW, 100 * MIB, 60 * MIB), Actor("two", LOW, 100 * MIB, 60 * MIB))
    world.run(10)
    assert world.done == []
    world = World(Actor("high", HIGH, 10 * MIB, 60 * MIB, hold=2), Actor("low", LOW, 20 * MIB, MIB, hold=9))
    world.run(1)
    assert world.actors[1].high
    world = World(Actor("high", HIGH, 10 * MIB, 60 * MIB, hold=2), *scene().actors[1:])
    world.run(30)
    assert world.actors[1].high is None


def test_adaptive_call_gets_more_up_to_its_ceiling_and_back_when_memory_is_short():
    world = World(
        Actor("a", LOW, 300 * MIB, 60 * MIB, soft=100 * MIB, high=100 * MIB, ceiling=200 * MIB,
              adaptive=True, hold=1000),
        Actor("b", LOW, 10 * MIB, MIB, hold=1000),
    )  # fmt: skip
    world.run(10)
    assert world.actors[0].high == 200 * MIB
    world.others = 350 * MIB
    world.run(3)
    assert world.actors[0].high == 100 * MIB


def limits_of(world: World, key: str) -> list[int | None]:
    return [action.value for _, action in world.done if action.what == "limit" and action.key == key]


def test_learned_call_begins_at_what_is_known_and_grows_like_an_adaptive_one():
    world = World(
        Actor("a", LOW, 300 * MIB, 60 * MIB, ceiling=200 * MIB, learned=100 * MIB, hold=1000),
        Actor("b", LOW, 10 * MIB, MIB, hold=1000),
    )
    world.run(0.1)
    assert world.actors[0].high == 100 * MIB
    assert "begins at 100M, from what calls like it used" in world.done[0][1].why
    world.run(10)
    assert world.actors[0].high == 200 * MIB


def test_learned_call_is_taken_back_while_a_call_above_it_grows_and_memory_is_short():
    world = World(
        Actor("a", LOW, 300 * MIB, 60 * MIB, ceiling=200 * MIB, learned=100 * MIB, hold=1000),
        Actor("c", HIGH, 350 * MIB, 35 * MIB, start=10, hold=1000),
    )
    world.run(9)
    assert world.actors[0].high == 200 * MIB
    world.run(10)
    assert world.actors[0].high == 100 * MIB


def test_learned_start_does_not_slow_down_a_call_that_nobody_is_above():
    """In a domain that is nearly full, and stays so: agents hold 85 % of it."""
    world = World(
        Actor("high", HIGH, 70 * MIB, 60 * MIB, ceiling=400 * MIB, learned=40 * MIB, hold=2),
        Actor("low", LOW, 10 * MIB, 10 * MIB, hold=1000),
        others=int(LIMIT * 0.85),
    )
    world.run(4)
    assert limits_of(world, "high")[0] == 40 * MIB
    assert world.actors[0].ended_at is not None


def test_guard_that_moves_is_not_noted_as_a_lack_of_room():
    low = Call("a", LOW, 0, 90 * MIB, ("d",), ceiling=350 * MIB, learned=100 * MIB)
    high = Call("c", HIGH, 0, 400 * MIB, ("d",))
    # Thawed a moment ago, so that it is not frozen at once; at its learned start for long.
    held = Held(changed_at=9.9, guard=80 * MIB, soft=100 * MIB, softened_at=0)
    snapshot = Snapshot(10.0, (low, high), (Domain("d", LIMIT, 550 * MIB),))
    (action,) = decide(snapshot, Memory(held={"a": held})).actions
    assert (action.what, action.key) == ("limit", "a") and action.value != 80 * MIB
    assert action.why == ""


def test_learned_call_alone_begins_there_too():
    """No limit is shared, and so nothing else is to be decided."""
    alone = Snapshot(1.0, (Call("a", LOW, 0, MIB, (), ceiling=200 * MIB, learned=100 * MIB),))
    first = decide(alone, Memory())
    assert [(action.what, action.value) for action in first.actions] == [("limit", 100 * MIB)]
    assert decide(replace(alone, now=2.0), first.memory).actions == ()
    slowed = Call("a", LOW, 0, 100 * MIB, (), ceiling=200 * MIB, learned=100 * MIB, throttled=1)
    assert [a.value for a in decide(Snapshot(3.0, (slowed,)), first.memory).actions] == [125 * MIB]


@pytest.mark.parametrize(
    "usage, ceiling, left, expected",
    [
        (1, 200, 600, 100),
        (90, 200, 600, 112.5),  # seen late: it is not slowed down by what it has
        (1, 100, 600, None),  # its own limit comes first
        (1, None, 600, 100),
        (10, 200, 50, 60),  # no more than what is left
        (10, 200, 0, 32),
    ],
)
def test_learned_start_keeps_within_limit_and_room(usage, ceiling, left, expected):
    call = Call("a", LOW, 0, usage * MIB, ("d",), ceiling=ceiling and ceiling * MIB, learned=100 * MIB)
    other = Call("b", HIGH, 0, 0, ("d",))
    decision = decide(Snapshot(1.0, (call, other), (Domain("d", LIMIT, LIMIT - left * MIB),)), Memory())
    assert decision.memory.held["a"].soft == (expected and int(expected * MIB))


def test_learned_start_does_not_touch_a_soft_limit_of_the_plan():
    world = World(
        Actor("a", LOW, 300 * MIB, 60 * MIB, soft=100 * MIB, high=100 * MIB, learned=50 * MIB),
        Actor("b", LOW, 10 * MIB, MIB, hold=1000),
    )
    world.run(10)
    assert limits_of(world, "a") == []


def test_call_that_is_not_adaptive_keeps_its_soft_limit():
    world = World(
        Actor("a", LOW, 300 * MIB, 60 * MIB, soft=100 * MIB, high=100 * MIB),
        Actor("b", LOW, 10 * MIB, MIB, hold=1000),
    )
    world.run(10)
    assert world.actors[0].high == 100 * MIB


def test_bound_follows_the_container():
    snapshot = Snapshot(1.0, bounds=(Bound("c", None, 5), Bound("d", 5, 5), Bound("e", 5, None)))
    assert decide(snapshot, Memory()).actions == (Action("bound", "c", 5), Action("bound", "e", None))


def test_nothing_shared_needs_no_second_look():
    alone = Snapshot(1.0, (Call("a", LOW, 0, LIMIT, ("d",)),), (Domain("d", LIMIT, LIMIT),))
    decision = decide(alone, Memory())
    assert (decision.actions, decision.look_again_s) == ((), None)


@pytest.mark.parametrize("rate", [10 * MIB, 60 * MIB, 250 * MIB, 600 * MIB])
def test_guards_follow_a_call_by_few_writes(rate):
    world = scene(rate=rate)
    world.run(120)
    for actor in world.actors:
        times = [when for when, action in world.done if action.what == "limit" and action.key == actor.key]
        most = max((sum(at <= t < at + 1 for t in times) for at in times), default=0)
        assert most <= 5, (actor.key, most)


@pytest.mark.parametrize(
    ("limit", "rate", "left"),
    [
        (100 * MIB, 0, 3 * MIB),
        (1600 * MIB, 0, 32 * MIB),
        (6400 * MIB, 0, 96 * MIB),
        (100 * MIB, 1000 * MIB, 30 * MIB),
    ],
)
def test_a_small_limit_keeps_more_for_the_time_that_a_killed_call_takes_to_go(limit, rate, left):
    assert rules.critical_of(limit, rate) == pytest.approx(left)


@pytest.mark.parametrize(
    ("left", "low_runs"),
    [
        (rules.RESERVE + 0.2, True),
        (rules.RESERVE + 0.001, True),
        (rules.RESERVE + 0.001, False),
        (0.01, True),
        (0.01, False),
    ],
)
def test_looks_are_as_frequent_as_there_is_something_to_do(left, low_runs):
    """HIGH grew, and has rested since: only where memory is nearly gone is there a hurry."""
    held, used = Held(frozen_at=None if low_runs else 9.0, changed_at=9.0), int(LIMIT * (1 - left))
    memory = Memory(
        {
            "high": Growth(100 * MIB, 9.5, 100 * MIB, 9.99),
            "low": Growth(100 * MIB, 5.0, 100 * MIB, 9.99),
            "pod": Growth(used, 9.5, used, 9.99),
        },
        {"low": held, "high": Held(changed_at=0.0)},
    )
    calls = (Call("high", HIGH, 1.0, 100 * MIB, ("pod",)), Call("low", LOW, 2.0, 100 * MIB, ("pod",)))
    snapshot = Snapshot(10.0, calls, (Domain("pod", LIMIT, used, 0),))
    wait = decide(snapshot, memory).look_again_s
    assert wait is not None
    assert (wait >= 0.1) == (left > rules.RESERVE), wait
