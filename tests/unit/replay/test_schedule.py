"""Schedules: nothing of a trace is lost or invented, and chance only moves what it may move."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrun.replay.protocol import Report, worker_command
from agentrun.replay.schedule import MAX_STEPS, Options, Step, plan_session, stagger
from agentrun.replay.traces import Sample, ToolCall, Trace, cpu_seconds

amounts = st.floats(0, 1e9)


@st.composite
def traces(draw: st.DrawFn) -> Trace:
    count = draw(st.integers(2, 40))
    times = [0.0]
    for _ in range(count - 1):
        times.append(times[-1] + draw(st.floats(0.05, 2.0)))
    samples = tuple(Sample(t, draw(amounts), draw(st.floats(0, 8))) for t in times)
    calls = []
    for _ in range(draw(st.integers(0, 6))):
        start = draw(st.floats(0, times[-1] * 0.99))
        end = min(times[-1], start + draw(st.floats(0.001, 5.0)))
        if start < end:
            calls.append(ToolCall(start, end, "call"))
    return Trace("made", samples, tuple(sorted(calls, key=lambda call: (call.start, call.end))))


@given(traces(), st.floats(1, 10))
def test_cpu_time_is_divided_by_the_speed_and_none_is_lost(trace, speed):
    plan = plan_session(trace, Options(speed=speed))
    planned = sum(s.cpu for s in plan.agent) + sum(s.cpu for call in plan.calls for s in call.steps)
    assert planned == pytest.approx(cpu_seconds(trace) / speed, rel=1e-6, abs=1e-6)


@given(traces(), st.floats(0.01, 10))
def test_agent_and_calls_together_never_exceed_what_the_trace_shows(trace, scale):
    plan = plan_session(trace, Options(scale=scale))
    peak = trace.peak * scale
    assert all(0 <= step.memory <= peak for step in plan.agent)
    assert all(0 <= step.memory <= peak for call in plan.calls for step in call.steps)


@given(traces(), st.floats(1, 10))
def test_time_is_divided_by_the_speed(trace, speed):
    plan = plan_session(trace, Options(speed=speed))
    assert sum(step.duration for step in plan.agent) == pytest.approx(trace.duration / speed)
    for call, planned in zip(trace.calls, plan.calls, strict=True):
        assert planned.duration == pytest.approx((call.end - call.start) / speed, abs=1e-9)
        assert planned.gap >= 0


@given(traces())
def test_call_waits_for_the_one_that_ended_last_and_starts_when_the_trace_says(trace):
    plan = plan_session(trace, Options())
    ends: list[float] = []
    for call, planned in zip(trace.calls, plan.calls, strict=True):
        begin = planned.gap + (0.0 if planned.after is None else ends[planned.after])
        assert begin == pytest.approx(call.start, abs=1e-6)
        ends.append(begin + planned.duration)
    for number, planned in enumerate(plan.calls):
        assert planned.after is None or planned.after < number


@given(traces(), st.floats(0, 100), st.integers())
def test_chance_moves_starts_and_think_times_only(trace, seconds, seed):
    plan = plan_session(trace, Options())
    (moved,) = stagger([plan], seconds, seed)
    assert [moved] == stagger([plan], seconds, seed)
    assert 0 <= moved.start <= seconds
    assert moved.agent == plan.agent
    for before, after in zip(plan.calls, moved.calls, strict=True):
        assert (after.steps, after.after) == (before.steps, before.after)
        assert before.gap * 0.89 <= after.gap <= before.gap * 1.11 + 1e-12


@given(traces(), st.floats(0, 0.9), st.floats(0.2, 1))
def test_window_keeps_the_calls_that_start_in_it_as_they_are(trace, at, share):
    begin, end = trace.duration * at, trace.duration * min(1.0, at + share)
    try:
        plan = plan_session(trace, Options(window=(begin, end)))
    except ValueError:
        assert not any(begin <= a.t and b.t <= end for a, b in pairwise(trace.samples))
        return
    whole = plan_session(trace, Options())
    kept = [n for n, call in enumerate(trace.calls) if begin <= call.start < end]
    assert [call.steps for call in plan.calls] == [whole.calls[n].steps for n in kept]


def test_level_of_the_agent_stays_during_a_call_and_the_rise_is_the_calls():
    samples = tuple(Sample(float(t), m, 0.0) for t, m in enumerate((100, 100, 160, 180, 120, 120)))
    plan = plan_session(Trace("x", samples, (ToolCall(1.5, 2.5, "c"),)), Options(base=7))
    assert [step.memory for step in plan.agent] == [107, 107, 107, 127, 127]
    assert plan.calls[0].peak == 80  # 180 - 100, seen half a second after its end


def test_overlapping_calls_share_a_rise_and_do_not_wait_for_each_other():
    samples = tuple(Sample(float(t), m, 1.0) for t, m in enumerate((100, 100, 200, 200, 100)))
    calls = (ToolCall(1.2, 3.0, "a"), ToolCall(1.5, 3.0, "b"))
    plan = plan_session(Trace("x", samples, calls), Options())
    assert [call.peak for call in plan.calls] == [50, 50]
    assert [call.after for call in plan.calls] == [None, None]


def test_small_commands_are_left_to_the_agent():
    samples = tuple(Sample(float(t), m, 0.0) for t, m in enumerate((100, 105, 100, 300, 100, 100)))
    calls = (ToolCall(0.5, 0.9, "small"), ToolCall(2.5, 2.9, "large"))
    plan = plan_session(Trace("x", samples, calls), Options(least=50))
    assert [call.name for call in plan.calls] == ["large"]
    assert max(step.memory for step in plan.agent) == 105


def test_long_trace_still_fits_into_one_argument_and_keeps_its_peak():
    samples = tuple(Sample(t / 10, float(t % 977) * 1e6, 1.0) for t in range(20_000))
    plan = plan_session(Trace("x", samples, ()), Options())
    assert len(plan.agent) <= MAX_STEPS
    assert max(step.memory for step in plan.agent) == 976_000_000
    assert sum(step.cpu for step in plan.agent) == pytest.approx(1999.9)
    assert all(len(argument) < 128 << 10 for argument in worker_command("agent", plan.agent))


def test_report_takes_only_the_words_of_the_protocol():
    report = Report()
    for line in (
        b"done\n",
        b"start\n",
        b"step 1024 1500 2500\n",
        b"step x 1\n",
        b"step -1 9\n",
        b"\xff\xfe\n",
    ):
        report.feed(line)
    assert (report.started, report.done, report.held_kib) == (True, False, 1024)
    assert report.latencies_ms == [1.5, 2.5]
    report.feed(b"done\n")
    assert report.done


def test_report_of_a_hostile_worker_stays_bounded():
    report = Report()
    report.feed(b"start\n")
    for _ in range(5):
        report.feed(b"step 1 " + b"9" * 30 + b" 1" * 100_000 + b"\n")
    assert len(report.latencies_ms) <= 1 << 16


def test_plan_of_no_steps_is_one_that_ends_at_once():
    assert worker_command("call", ())[6] == "0,0,0"
    assert worker_command("call", (Step(1.5, 2048, 0.25),), 30)[5:] == ["call", "1500,2,250", "30"]
