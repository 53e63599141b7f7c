"""What is called what."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from agentrun.calls import verdict
from agentrun.calls.verdict import describe_status, flags, judge

OOM = {"memory_events": {"oom_kill": 1}}
NOT_OWN = {"memory_events_local": {"oom": 0}}
CASES: list[tuple[dict[str, Any], tuple[str | None, str | None]]] = [
    ({"exit_code": 0}, ("ok", None)),
    ({"exit_code": 1}, ("failed", None)),
    ({"exit_code": 137}, ("failed", None)),
    ({"exit_code": 137, "signal": "SIGKILL"}, ("killed", None)),
    ({"exit_code": 137, "signal": "SIGKILL", "killed_by": "operator"}, ("killed", "operator")),
    ({"exit_code": 137, "signal": "SIGKILL", "timed_out": 5}, ("timed-out", "call")),
    ({"timed_out": 5}, ("timed-out", "call")),
    ({"exit_code": 137, "signal": "SIGKILL", "stalled": {"action": "kill"}}, ("stalled", "call")),
    ({"exit_code": 0, "stalled": {"action": "tell"}}, ("ok", None)),
    ({**OOM, "memory_events_local": {"oom": 1}, "exit_code": 0}, ("oom-killed", "call")),
    ({**OOM, **NOT_OWN, "oom_before": [0, 0], "oom_after": [1, 0]}, ("oom-killed", "session")),
    ({**OOM, **NOT_OWN, "oom_before": [1, 0], "oom_after": [1, 1]}, ("oom-killed", "above")),
    ({**OOM, **NOT_OWN, "oom_before": [1, 0], "oom_after": [1, 0]}, ("oom-killed", "host")),
    ({**OOM, **NOT_OWN}, ("oom-killed", "above")),
    ({**OOM, "memory_events_local": {"oom": 1}, "oom": {"level": "session"}}, ("oom-killed", "session")),
    ({**OOM, "memory_events_local": {"oom": 1}, "oom": {"level": None}}, ("oom-killed", "call")),
    ({"memory_events": None, "oom": {"level": "host"}, "exit_code": 137}, ("oom-killed", "host")),
    ({"memory_events": {"oom_kill": 0}, "oom": {"level": "host"}, "exit_code": 0}, ("ok", None)),
    ({"memory_events": {"oom_kill": 0, "high": 9}, "exit_code": 137, "signal": "SIGKILL"}, ("killed", None)),
    ({"waited": {"outcome": "refused", "level": "host"}}, ("refused", "host")),
    ({"waited": {"outcome": "bound", "level": "host"}, "exit_code": 0}, ("ok", None)),
    ({"exit_code": None}, (None, None)),
    ({}, (None, None)),
]


@pytest.mark.parametrize(("record", "expected"), CASES, ids=range(len(CASES)))
def test_verdict_follows_the_evidence(record, expected):
    assert judge(record) == expected


def test_every_verdict_and_level_that_is_judged_is_listed():
    ends = [judge(record) for record, _ in CASES]
    assert {end for end, _ in ends} == {*verdict.VERDICTS, None}
    assert {level for _, level in ends} - {None} <= set(verdict.LEVELS)
    assert {*verdict.KILLED, *verdict.BY_LIMITS} < set(verdict.VERDICTS)


@pytest.mark.parametrize("killer", verdict.KILLERS)
def test_only_a_kill_without_a_killer_of_ours_is_the_agents_doing(killer):
    expected = "operator" if killer == verdict.OPERATOR else "infrastructure"
    assert verdict.blame({"verdict": "killed", "level": killer}) == expected
    assert verdict.blame({"verdict": "killed", "level": None}) == "agent"


@pytest.mark.parametrize(
    ("status", "code", "name"),
    [
        (0, 0, None),
        (7 << 8, 7, None),
        (255 << 8, 255, None),
        (9, 137, "SIGKILL"),
        (15, 143, "SIGTERM"),
        (139, 139, "SIGSEGV"),
    ],
)
def test_wait_status_is_read_as_engines_report_it(status, code, name):
    assert describe_status(status) == {"exit_code": code, "signal": name}


def test_unknown_status_stays_unknown():
    assert describe_status(None) == {"exit_code": None, "signal": None}
    assert describe_status(signal.SIGRTMIN + 3)["signal"]


def test_flags_say_what_slowed_it_down():
    assert flags({"cpu_throttled_us": 5, "memory_events": {"high": 1}, "slow": 2.0}) == [
        "cpu-throttled",
        "memory-throttled",
        "slow",
    ]
    assert flags({"cpu_throttled_us": 0, "memory_events": None}) == []
    assert flags({"stalled": {"share": 90}, "background": {"action": "keep"}}) == ["stalled", "background"]


def test_all_flags_are_listed_in_their_order():
    every = {"cpu_throttled_us": 5, "memory_events": {"high": 1}, "slow": 2.0, "stalled": {"share": 90}}
    assert tuple(flags({**every, "background": {"at": 1}, "waited": {"seconds": 1}})) == verdict.FLAGS
