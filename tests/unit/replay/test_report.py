"""Figures, the table and the page of a replay; the evaluation's own table."""

from __future__ import annotations

import io
import json
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from agentrun.replay.metrics import area, fairness, figures, percentile
from agentrun.replay.page import chart, page
from agentrun.replay.report import report, session_table, summary, thin
from agentrun.replay.run import CallResult, RunResult, SessionResult

HOSTILE = "<script>alert(1)</script>\x1b[2J"


def run_result() -> RunResult:
    ok = CallResult(HOSTILE, 2.0, 0.1, 2.5, "ok", [1.0, 2.0, 3.0, 100.0])
    killed = CallResult("pytest", 5.0, 0.3, 1.0, "killed", [4.0])
    high = SessionResult("high-0", "high", 10.0, 12.5, False, [ok], [0.5], [(0.0, 0), (2.0, 10**9)])
    low = SessionResult(HOSTILE, "low", 10.0, None, True, [killed], [], [(0.0, 10**8)])
    return RunResult([high, low], 13.0, 1, [(0.0, 0), (1.0, 10**9), (4.0, 10**9)])


def test_figures_of_a_run():
    found = figures(run_result())
    assert (found["sessions"], found["done"], found["oom_kills"], found["agents_killed"]) == (2, 1, 1, 1)
    assert found["calls"] == {"ok": 1, "killed": 1, "failed": 0, "lost": 0}
    assert found["exec_ms"] == 200.0
    assert found["gb_seconds"] == 3.5 and found["work_per_gb_s"] == pytest.approx(2.0 / 3.5, abs=1e-3)
    assert found["fairness"] == 0.5  # one of two got everything
    high = found["tiers"]["high"]
    assert (high["chunks"], high["p50_ms"], high["p95_ms"]) == (5, 2.0, 100.0)
    assert found["tiers"]["low"]["done_s"] == [None]
    json.dumps(found)


def test_figures_of_a_run_without_cgroups_and_calls():
    found = figures(RunResult([SessionResult("a", "normal", 1.0, 1.0)], 1.0, None, []))
    assert found["oom_kills"] is None and found["work_per_gb_s"] is None and found["exec_ms"] is None
    assert found["tiers"]["normal"]["p95_ms"] is None


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0, 100))
def test_percentile_is_a_value_that_so_many_do_not_exceed(values, percent):
    found = percentile(values, percent)
    assert found in values
    assert sum(value <= found for value in values) >= percent / 100 * len(values) - 1e-6


def test_percentile_of_nothing_is_none_and_of_hundred_the_nearest_rank():
    assert percentile([], 50) is None
    hundred = [float(n) for n in range(1, 101)]
    assert [percentile(hundred, p) for p in (0, 50, 95, 99, 100)] == [1, 50, 95, 99, 100]


@given(st.lists(st.floats(0, 100), min_size=1, max_size=20))
def test_fairness_lies_between_one_nth_and_one(shares):
    found = fairness(shares)
    assert found is None or 1 / len(shares) - 1e-9 <= found <= 1 + 1e-9


def test_area_is_that_of_trapezoids():
    assert area([(0.0, 0), (2.0, 10), (3.0, 10)]) == 20
    assert area([]) == 0


@given(st.lists(st.tuples(st.floats(0, 100), st.integers(0, 10**9)), max_size=2000))
def test_thin_curve_is_short_and_keeps_the_peak(curve):
    found = thin(curve, 50)
    assert len(found) <= 50
    assert max((used for _, used in found), default=0) == max((used for _, used in curve), default=0)


def test_page_is_well_formed_self_contained_and_escapes_names():
    found = report(run_result(), {"engine": "docker", "runtime": "agentrun", "memory": 2 * 10**9})
    text = page([found])
    assert "<script" not in text and "http" not in text and "src=" not in text
    tree = ElementTree.fromstring(text.partition("\n")[2].replace("\x1b", ""))
    lines = tree.findall(".//polyline")
    assert len(lines) == 3  # two sessions and all together
    assert tree.find(".//line[@stroke-dasharray]") is not None
    assert "killed" in "".join(tree.itertext())


def test_chart_stays_inside_its_box():
    text = chart([("a", [(0.0, 0), (5.0, 7 * 10**8), (10.0, 10**9)])], None)
    points = ElementTree.fromstring(text).findall("polyline")[0].attrib["points"].split()
    pairs = [tuple(map(float, point.split(","))) for point in points]
    assert all(0 <= x <= 860 and 0 <= y <= 300 for x, y in pairs)
    assert pairs[0][1] > pairs[1][1] > pairs[2][1]  # more is higher up
    assert "No memory curves" in chart([("a", [])], 10)


def test_table_shows_sessions_and_cannot_be_steered_by_names():
    found = report(run_result(), {})
    written = io.StringIO()
    Console(width=200, file=written).print(session_table(found["sessions"]))
    text = written.getvalue()
    assert "\x1b" not in text and "high-0" in text and "1/1" in text and "killed" in text
    assert summary(found["figures"]).startswith("1 of 2 sessions done in 13 s, OOM kills 1, agents killed 1")
