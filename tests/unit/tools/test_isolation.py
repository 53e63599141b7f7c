"""The pure parts of `make bench-isolation`: mixes, roles, and what QUICK=1 demands."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from isolation_density import MOST, fits, most_that_fit, sessions_of
from isolation_mixes import MIXES, busiest, memory, origin, peak, plans, resolve, with_chance
from isolation_table import aims, is_done, ordering_problems, table

from agentrun.replay.run import RunResult, SessionResult
from agentrun.replay.schedule import SessionPlan
from agentrun.replay.traces import Sample, ToolCall, Trace, read_folder

TINY = read_folder(Path(__file__).parents[2] / "data/traces")


@pytest.mark.parametrize("traces", [TINY, []], ids=["folder of any traces", "no traces"])
@pytest.mark.parametrize("mix", MIXES.values(), ids=lambda mix: mix.name)
def test_every_mix_has_calls_in_every_tier_and_more_demand_than_memory_only_where_meant(mix, traces):
    made = plans(mix, traces)
    assert len({plan.name for plan in made}) == len(mix.sessions)
    assert {plan.tier for plan in made} == {"high", "low"}
    if not traces:
        assert all(plan.calls for plan in made)
        demand = sum(map(peak, made))
        assert (demand > memory(mix, made)) == (mix.name in ("a-1100", "b", "c"))


def test_role_is_played_by_the_named_trace_else_by_one_like_it_else_by_a_stand_in():
    def made(name: str, spike: float) -> Trace:
        return Trace(name, (Sample(0, 100, 0), Sample(1, spike, 0), Sample(2, 100, 0)), ())

    flat, spiky, named = made("flat", 101), made("spiky", 9000), made("x_pydicom-2065", 150)
    assert resolve("spiky-1", [flat, spiky]).name == "spiky"
    assert resolve("spiky-1", [flat, spiky, named]).name == "x_pydicom-2065"
    assert resolve("flat", [spiky, flat]).name == "flat"
    assert resolve("spiky-1", []).name.startswith("like-pydicom-2065")
    assert all("SYNTHETIC" in line for line in origin([]))
    assert sum("SYNTHETIC" in line for line in origin([flat])) == 1  # cpu-heavy has no recorded one


def test_busiest_window_lies_around_the_highest_moment_of_a_command():
    samples = tuple(Sample(float(t), 100.0, 0.0) for t in range(100))
    spike = {10: 900.0, 60: 500.0}  # at 10 no command runs
    samples = tuple(Sample(s.t, spike.get(int(s.t), s.memory), 0.0) for s in samples)
    begin, end = busiest(Trace("x", samples, (ToolCall(58, 62, "c"),)), 30)
    assert (begin, end) == (40, 70)


def test_chance_is_the_seeds_and_even_seeds_start_together():
    made = plans(MIXES["b"], [])
    assert with_chance(made, 3) == with_chance(made, 3) != with_chance(made, 5)
    assert {plan.start for plan in with_chance(made, 4)} == {0.0}
    assert len({plan.start for plan in with_chance(made, 5)}) == 3


def session(tier: str, done: float | None, ms: float) -> SessionResult:
    return SessionResult(tier, tier, 1.0, done, False, [], [ms])


def test_sessions_fit_when_all_are_done_unkilled_and_high_is_not_slowed_twofold():
    def run(done: float | None, kills: int, ms: float) -> RunResult:
        return RunResult([session("high", 1.0, ms), session("low", done, 1.0)], 1.0, kills, [])

    assert fits(run(1.0, 0, 20.0), alone_p95=10.0)
    assert not fits(run(None, 0, 10.0), 10.0)
    assert not fits(run(1.0, 1, 10.0), 10.0)
    assert not fits(run(1.0, 0, 20.1), 10.0)
    assert len(sessions_of(5, [], 0)) == 5 and sessions_of(5, [], 0)[0].tier == "high"


@pytest.mark.parametrize("room", [0, 1, 2, 7, 15, 16, 99])
def test_most_that_fit_is_found_in_few_runs(room):
    tried: list[int] = []

    def run(sessions: Sequence[SessionPlan], _total: int) -> RunResult:
        tried.append(len(sessions))
        return RunResult([session("high", 1.0, 10.0)], 1.0, int(len(sessions) > room), [])

    assert most_that_fit(run, [], 0, 10.0) == min(room, MOST)
    assert len(tried) <= 5


def row(
    arm: str, seed: int, kills: int = 0, low: float | None = 2.0, agent: bool = False
) -> dict[str, object]:
    return {
        "mix": "a-1100",
        "arm": arm,
        "seed": seed,
        "oom_kills": kills,
        "agent_killed": agent,
        "high_p95_ms": 3.0,
        "high_alone_p95_ms": 2.0,
        "high_done_s": 1.0,
        "low_done_s": [low],
    }


def test_quick_check_demands_that_agentrun_is_no_worse_than_bare_and_adaptive_loses_nothing():
    good = [row("bare", 0, 1, None), row("agentrun-cgroup", 0, 1, None), row("agentrun-adaptive", 0)]
    assert ordering_problems(good) == []
    assert ordering_problems([row("bare", 0), row("agentrun-cgroup", 0, 1, None)]) != []
    assert ordering_problems([row("bare", 0, 1, None), row("agentrun-adaptive", 0, 1)]) != []
    for arm in ("agentrun-adaptive", "agentrun-cgroup"):
        assert ordering_problems([row("bare", 0, 1, None), row(arm, 0, agent=True)]) != []
    assert ordering_problems([row("bare", 0)]) == ["no arm with agentrun was run"]


def test_table_gives_medians_ranges_and_what_never_finished():
    rows = [row("bare", 0, 2, None), row("bare", 1, 0, 4.0)]
    density = {"mix": "density", "arm": "bare", "seed": 0, "sessions": 4}
    text = table([*rows, density])
    assert "| a-1100 | bare | 2 | 1 | 2 | 0 | 0 | 1.50 (1.50 to 1.50) |" in text
    assert "4.00 (4.00 to 4.00) | 1 |" in text and "| bare | 4 |" in text
    assert [is_done(found) for found in rows] == [False, True]


def test_aims_are_judged_against_the_controls_that_lost_nothing():
    rows = [
        {**row("bare", 0, low=1.0), "high_p95_ms": 9.0},
        {**row("user-freezer", 0, low=4.0), "high_p95_ms": 4.0},
        {**row("high-low", 0, low=None), "high_p95_ms": 2.0},
        {**row("agentrun-cgroup", 0, low=3.0), "high_p95_ms": 2.5},
    ]
    assert aims(rows).splitlines()[2:] == [
        "| a-1100 | agentrun-cgroup | 1 of 1 | 1.25 | user-freezer | 2.00 | 3.00 |"
    ]
    alone = [rows[2], {**rows[3], "low_done_s": [None]}]
    assert aims(alone).splitlines()[2:] == ["| a-1100 | agentrun-cgroup | 0 of 1 | 1.25 | none | - | - |"]
