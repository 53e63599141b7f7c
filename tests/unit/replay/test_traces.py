"""Traces: what is read, what is refused and how it is said, records and synthetic ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrun.replay.schedule import Options, plan_session
from agentrun.replay.synthetic import PROFILES, describe, synthesize
from agentrun.replay.traces import TraceError, cpu_seconds, from_records, parse_trace, read_folder, read_trace

DATA = Path(__file__).parents[2] / "data/traces"


def document(**changes: object) -> dict[str, object]:
    made: dict[str, object] = {
        "name": "made",
        "samples": [[10.0, 1000, 50], [11.0, 3000, 50], [13.0, 2000, 25]],
        "cpu_inst_pct": [0, 100, 50],
        "tool_calls": [{"tool": "Bash", "start_s": 0.5, "end_s": 1.0, "command_head": "pytest"}],
    }
    return {**made, **changes}


def test_trace_is_read_as_it_stands():
    trace = parse_trace(document(), "x.json")
    assert [(s.t, s.memory, s.cpus) for s in trace.samples] == [(0, 1000, 0), (1, 3000, 1), (3, 2000, 0.5)]
    assert (trace.duration, trace.peak, trace.mean) == (3, 3000, 2000)
    assert cpu_seconds(trace) == 2.0
    assert [(c.start, c.end, c.command) for c in trace.calls] == [(0.5, 1.0, "pytest")]


def test_cpu_without_instantaneous_values_is_taken_out_of_the_mean_since_the_start():
    made = document(samples=[[0, 1, 80], [1, 1, 100], [2, 1, 50], [4, 1, 75]])
    del made["cpu_inst_pct"]
    assert [s.cpus for s in parse_trace(made, "x").samples] == [0, 1, 0, 1]


def test_calls_outside_the_trace_are_cut_and_those_of_the_agent_itself_left_out():
    rows = [
        {"tool": "Bash", "start_s": -5, "end_s": -1},
        {"tool": "Bash", "start_s": -1, "end_s": 0.5},
        {"tool": "Read", "start_s": 1, "end_s": 2},
        {"tool": "Bash", "start_s": 2, "end_s": None},
        {"tool": "Bash", "start_s": 9, "end_s": None},
    ]
    found = parse_trace(document(tool_calls=rows), "x").calls
    assert [(c.start, c.end) for c in found] == [(0.0, 0.5), (2.0, 3.0)]


MISTAKES = {
    "no object": ([], "not an object"),
    "no name": (document(name=3), "name: missing, or not a str"),
    "no samples": (document(samples="x"), "samples: missing, or not a list"),
    "one sample": (document(samples=[[0, 1, 1]], cpu_inst_pct=[1]), "samples: 1 of them"),
    "sample of four": (document(samples=[[0, 1, 1, 1], [1, 1, 1]], cpu_inst_pct=None), "samples[0]"),
    "text for a number": (
        document(samples=[[0, "1", 1], [1, 1, 1]], cpu_inst_pct=None),
        "'1' is not a number",
    ),
    "not finite": (document(samples=[[0, float("nan")], [1, 1]], cpu_inst_pct=None), "not a number"),
    "true for a number": (document(samples=[[0, True], [1, 1]], cpu_inst_pct=None), "not a number"),
    "negative": (document(samples=[[0, -1], [1, 1]], cpu_inst_pct=None), "samples[0]: negative"),
    "time goes back": (document(samples=[[1, 1], [1, 1]], cpu_inst_pct=None), "samples[1]: not later"),
    "cpu of other length": (document(cpu_inst_pct=[1]), "cpu_inst_pct"),
    "call without tool": (document(tool_calls=[{"start_s": 1}]), "tool_calls[0]"),
    "call without start": (document(tool_calls=[{"tool": "Bash"}]), "tool_calls[0]"),
    "call ends first": (
        document(tool_calls=[{"tool": "Bash", "start_s": 2, "end_s": 1}]),
        "tool_calls[0]: ends before",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistake_is_named_with_its_place(case):
    made, text = MISTAKES[case]
    with pytest.raises(TraceError) as error:
        parse_trace(made, "x.json")
    assert text in str(error.value) and "'x.json'" in str(error.value)


def test_file_that_is_no_json_or_not_there_is_named(tmp_path):
    (tmp_path / "bad.json").write_text("{")
    for name in ("bad.json", "none.json"):
        with pytest.raises(TraceError, match=name):
            read_trace(tmp_path / name)
    (tmp_path / "empty").mkdir()
    with pytest.raises(TraceError, match="empty"):
        read_folder(tmp_path / "empty")


def test_traces_in_the_tree_are_readable():
    assert [trace.name for trace in read_folder(DATA)] == ["tiny-flat", "tiny-spiky"]


def test_digest_changes_with_the_content_not_with_the_name():
    first = parse_trace(document(), "x")
    assert first.digest() == parse_trace(document(name="other"), "y").digest()
    assert first.digest() != parse_trace(document(cpu_inst_pct=[0, 100, 51]), "x").digest()


def record(
    container: str, start: float, end: float | None, peak: int = 50, cpu_us: int = 10**6
) -> dict[str, object]:
    return {
        "container": container,
        "start": start,
        "end": end,
        "memory_peak": peak,
        "cpu_usage_us": cpu_us,
        "command": {"name": "pytest"},
    }


def test_records_become_a_trace_for_each_container():
    rows = [
        record("a" * 64, 100, 104),
        record("b", 50, 51),
        record("a" * 64, 106, 107),
        record("b", 60, None),
    ]
    first, second = from_records(rows, base=1000)
    assert (first.name, second.name) == ("a" * 12, "b")
    assert [(c.start, c.end, c.command) for c in first.calls] == [(0.5, 4.5, "pytest"), (6.5, 7.5, "pytest")]
    assert first.peak == 1050 and first.samples[0].memory == 1000
    assert cpu_seconds(first) == pytest.approx(2.0)
    with pytest.raises(TraceError, match="none of a call"):
        from_records([record("a", 1, None)], 1000)


def test_records_of_short_calls_are_replayed_one_after_the_other_as_they_were():
    rows = [record("a", 100 + 0.2 * n, 100.1 + 0.2 * n, peak=50 << 20, cpu_us=90_000) for n in range(20)]
    rows += [record("a", 12 * 86_400.0, 12 * 86_400.2, peak=50 << 20)]  # days later
    (trace,) = from_records(rows, base=1000)
    plan = plan_session(trace, Options())
    assert [call.after for call in plan.calls] == [None, *range(20)]
    assert [call.duration for call in plan.calls[:20]] == pytest.approx([0.1] * 20)
    assert [call.peak >> 20 for call in plan.calls] == [50] * 21
    assert [sum(s.cpu for s in call.steps) for call in plan.calls] == pytest.approx([0.09] * 20 + [1.0])
    assert {step.memory for step in plan.agent} == {1000}


def test_window_of_records_is_as_long_as_it_says():
    (trace,) = from_records([record("a", 1, 2), record("a", 16, 116), record("a", 120, 121)], base=1000)
    for window, calls in (((0.0, 10.0), 1), ((10.0, 20.0), 1), ((40.0, 90.0), 0), ((10.0, 119.6), 2)):
        plan = plan_session(trace, Options(window=window))
        assert sum(step.duration for step in plan.agent) == pytest.approx(window[1] - window[0])
        assert len(plan.calls) == calls
    with pytest.raises(ValueError, match="under two samples"):
        plan_session(trace, Options(window=(500.0, 600.0)))


def test_records_of_calls_that_overlap_are_replayed_side_by_side():
    rows = [record("a", 10, 14), record("a", 11, 13), record("a", 14.5, 14.5)]
    (trace,) = from_records(rows, base=0)
    plan = plan_session(trace, Options())
    assert [call.after for call in plan.calls] == [None, None, 0]
    assert [call.duration for call in plan.calls] == pytest.approx([4, 2, 0.001])
    assert sum(s.cpu for call in plan.calls for s in call.steps) == pytest.approx(3.0)


@pytest.mark.parametrize("profile", PROFILES.values(), ids=lambda profile: profile.name)
@settings(max_examples=15)
@given(seed=st.integers(0, 1 << 32))
def test_synthetic_trace_keeps_what_its_profile_states(profile, seed):
    trace = synthesize(profile, seed)
    assert trace == synthesize(profile, seed)
    assert trace.duration == pytest.approx(profile.duration, abs=0.5)
    assert trace.peak <= profile.peak * 1.001 and len(trace.calls) >= profile.spikes
    assert all(0 <= call.start < call.end <= trace.duration for call in trace.calls)
    assert f"{profile.peak / 1e6:.0f} MB" in describe(profile)


def test_synthetic_trace_survives_being_written_as_a_file(tmp_path):
    trace = synthesize(PROFILES["like-starlette-1147"], 1)
    made = {
        "name": trace.name,
        "samples": [[s.t, s.memory] for s in trace.samples],
        "cpu_inst_pct": [s.cpus * 100 for s in trace.samples],
        "tool_calls": [
            {"tool": "Bash", "start_s": c.start, "end_s": c.end, "command_head": c.command}
            for c in trace.calls
        ],
    }
    (tmp_path / "t.json").write_text(json.dumps(made))
    again = read_trace(tmp_path / "t.json")
    assert [s.memory for s in again.samples] == [s.memory for s in trace.samples]
    assert again.calls == trace.calls
