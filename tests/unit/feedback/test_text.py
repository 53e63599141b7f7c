"""What an agent is told: true, short, possible, and never a way to smuggle text."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrun.base.limits import Limits
from agentrun.calls import verdict
from agentrun.decision.intent import parse
from agentrun.decision.match import FEEDBACK_EVENTS
from agentrun.decision.plan import make_plan
from agentrun.feedback import text as feedback
from agentrun.policy.spec import PLACEHOLDERS

MIB = 1 << 20
EVENTS = [event for event in FEEDBACK_EVENTS if event != "denied"]


def record(**fields: Any) -> dict[str, Any]:
    """The record of a call of 10 s with 64 MiB in a container of 300 MiB."""
    made: dict[str, Any] = {
        "class": "test",
        "command": {"name": "pytest"},
        "limits": {"memory": 64 * MIB, "cpu": 1.0, "pids": 100},
        "ceilings": {"memory": 225 * MIB, "cpu": 2.0, "time": None, "session_memory": 300 * MIB},
        "start": 100.0,
        "end": 110.0,
        "memory_peak": 60 * MIB,
        "memory_events": {"high": 0, "oom_kill": 0},
        **fields,
    }
    made["verdict"], made["level"] = verdict.judge(made)
    return made


def oom(level: str, **fields: Any) -> dict[str, Any]:
    """A call that was killed for memory at a level, as the kernel's counters say it."""
    own = 1 if level == "call" else 0
    after = {"session": [1, 1], "above": [0, 1]}.get(level, [0, 0])
    found = record(
        memory_events={"oom": own, "oom_kill": 3, "oom_group_kill": 1},
        memory_events_local={"oom": own},
        oom_before=[0, 0],
        oom_after=after,
        **fields,
    )
    assert found["level"] == level
    return found


def asked_for(text: str) -> dict[str, Any]:
    """What a text advises to ask for, as an intent is read."""
    match = re.search(r'AGENTRUN_INTENT="([^"]*)"', text)
    if match is None:
        return {}
    intent = parse(match[1])
    assert intent.refused == []
    return intent.accepted()


def test_oom_at_its_own_limit_names_the_numbers_and_what_may_be_asked():
    text = feedback.compose("oom-killed", oom("call"), {})
    assert text.splitlines()[0] == (
        "[agentrun] This call was killed, with all its processes: it reached its own memory limit of 64M; "
        "its peak was 60M."
    )
    assert asked_for(text) == {"memory": 128 * MIB} and "at most 225M here" in text


@pytest.mark.parametrize("limit", [40, 64, 120, 200, 210, 224, 225])
def test_advice_never_exceeds_the_ceiling(limit):
    text = feedback.compose("oom-killed", oom("call", limits={"memory": limit * MIB}), {})
    asked = asked_for(text).get("memory")
    if limit * 1.1 > 225:
        assert asked is None and "is the most that a call can get here" in text
    else:
        assert asked is not None and limit * MIB < asked <= 225 * MIB


def test_who_follows_the_advice_gets_more_each_time_until_nothing_more_is_advised():
    """A retry that is killed again is never told what it has tried, or cannot get."""
    policy = {"classes": {"test": {"memory": {"default": 64 * MIB, "max": [75, "session"]}}}, "tiers": {}}
    session, host = Limits(memory=300 * MIB), Limits(memory=8 << 30)
    granted, text, asked = 0, "", parse("")
    for _ in range(10):
        plan = make_plan(policy, "test", None, session, host, asked)
        assert plan.memory is not None and plan.memory > granted
        granted = plan.memory
        text = feedback.compose("oom-killed", oom("call", limits=plan.limits(), ceilings=plan.ceilings), {})
        if not (advised := asked_for(text)):
            break
        asked = parse(f"memory={advised['memory']}B")
    assert granted == 225 * MIB and "is the most that a call can get here" in text


@pytest.mark.parametrize(
    "level, words",
    [
        ("session", "the container reached its memory limit of 300M"),
        ("above", "what runs with this container reached a memory limit of 300M"),
        ("host", "the whole machine ran out of memory"),
    ],
)
def test_oom_above_the_call_is_not_its_own_and_asking_would_not_help(level, words):
    text = feedback.compose("oom-killed", oom(level), {})
    assert words in text and "own memory limit" not in text and asked_for(text) == {}


def test_a_killed_child_is_not_called_the_whole_call():
    found = oom("session", not_enforced=["memory"])
    found["memory_events"]["oom_group_kill"] = 0
    assert "A process was killed:" in feedback.compose("oom-killed", found, {})


def test_time_limit_advises_only_what_is_possible():
    free = feedback.compose("timed-out", record(timed_out=600.0), {})
    assert "its time limit of 10m passed" in free and asked_for(free) == {"time": 1200}
    bounded = record(timed_out=600.0, ceilings={"time": 600.0})
    assert asked_for(feedback.compose("timed-out", bounded, {})) == {}
    unknown = record(timed_out=600.0, ceilings=None)
    assert asked_for(feedback.compose("timed-out", unknown, {})) == {}


HAPPENED: dict[str, tuple[dict[str, Any], list[str]]] = {
    "nothing": ({}, []),
    "exit code 137": ({"exit_code": 137}, []),
    "killed by itself": ({"exit_code": 137, "signal": "SIGKILL"}, []),
    "with its container": ({"killed_by": "engine", "signal": "SIGKILL"}, []),
    "killed by the operator": ({"killed_by": "operator", "signal": "SIGKILL"}, ["killed"]),
    "killed for others": ({"killed_by": "controller", "signal": "SIGKILL"}, ["killed"]),
    "oom": ({"memory_events": {"oom_kill": 1}}, ["oom-killed"]),
    "oom of others": ({"memory_events": {"oom": 1, "oom_kill": 0}}, []),
    "time": ({"timed_out": 5, "slow": 1}, ["timed-out"]),
    "slow": ({"slow": 5}, ["slow"]),
    "throttled by memory": (
        {"memory_events": {"high": 9}, "pressure": {"memory": {"some": 2_000_000, "full": 0}}},
        ["throttled"],
    ),
    "waited for memory without a limit of its own": (
        {"pressure": {"memory": {"some": 2_000_000, "full": 0}}},
        [],
    ),
    "throttled for a moment": (
        {"memory_events": {"high": 9}, "pressure": {"memory": {"some": 900_000, "full": 0}}},
        [],
    ),
    "throttled by cpu": ({"cpu_throttled_us": 2_000_000}, ["throttled"]),
    "throttled by cpu for a moment": ({"cpu_throttled_us": 900_000}, []),
    "network denied": ({"network": {"profile": "none", "denied": 3}}, ["denied"]),
    "network used": ({"network": {"profile": "open", "denied": 0, "tx_bytes": 9}}, []),
    "killed, and network denied": ({"timed_out": 5, "network": {"denied": 3}}, ["timed-out"]),
    "stalled": ({"stalled": {"share": 90, "seconds": 30, "action": "tell"}}, ["stalled"]),
    "waited to start": ({"waited": {"seconds": 4.0, "level": "host"}}, ["waited"]),
    "waited to start for a moment": ({"waited": {"seconds": 0.4, "level": "host"}}, []),
    "waited and was slow": ({"waited": {"seconds": 4.0, "level": "host"}, "slow": 5}, ["slow", "waited"]),
    "waited and was killed": ({"waited": {"seconds": 4.0, "level": "host"}, "timed_out": 5}, ["timed-out"]),
}


@pytest.mark.parametrize("name", HAPPENED)
def test_only_what_happened_is_told(name):
    fields, expected = HAPPENED[name]
    assert feedback.events(record(**fields)) == expected


def test_quiet_tells_only_of_kills():
    stalled = {"share": 90, "seconds": 30, "action": "tell"}
    assert not feedback.is_wanted("quiet", "stalled", record(stalled=stalled))
    assert feedback.is_wanted("quiet", "stalled", record(stalled={**stalled, "action": "kill"}))
    assert feedback.is_wanted("quiet", "oom-killed", record())
    assert not feedback.is_wanted("quiet", "slow", record())
    assert not any(feedback.is_wanted("off", event, record()) for event in EVENTS)


def test_throttled_says_how_long():
    text = feedback.compose("throttled", record(cpu_throttled_us=2_500_000), {})
    assert "limit of 1 CPUs: it waited 2.50s in 10s" in text and asked_for(text) == {"cpu": 2.0}


def test_every_killer_is_told_but_the_engine():
    killers = {who for who in verdict.KILLERS if feedback.events(record(killed_by=who, signal="SIGKILL"))}
    assert killers == set(verdict.KILLERS) - {verdict.ENGINE}


@pytest.mark.parametrize("who, words", [("operator", "by the operator"), ("controller", "higher priority")])
def test_killed_says_for_whom(who, words):
    text = feedback.compose("killed", record(killed_by=who, signal="SIGKILL"), {})
    assert words in text and text.count("\n") == 1


@pytest.mark.parametrize(
    "level, words",
    [
        ("host", "this machine was short"),
        ("session", "the container was short"),
        ("above", "what runs beside this"),
    ],
)
def test_waited_says_how_long_and_whose_memory_was_short(level, words):
    waited = {"seconds": 4.04, "outcome": "room", "level": level, "why": "9M of 9G left (/sys/fs/cgroup/x)"}
    text = feedback.compose("waited", record(waited=waited), {})
    assert words in text and "waited 4s before it could start" in text and "/sys" not in text
    assert text.count("\n") == 1
    bound = feedback.compose("waited", record(waited={**waited, "outcome": "bound"}), {})
    assert "slowed down or killed" in bound and bound.count("\n") == 2


def test_refused_is_one_sentence_for_a_runtimes_error():
    waited = {"seconds": 10.0, "outcome": "refused", "level": "host", "why": "9M of 9G left (host)"}
    text = feedback.sentence("refused", record(waited=waited), {})
    assert "refused and did not run: it waited 10s" in text and "run it again in a while" in text
    assert "\n" not in text and not text.startswith(feedback.PREFIX) and not text.endswith(".")
    own = feedback.sentence("refused", record(waited=waited), {"refused": "full\nafter {waited}s {advice}"})
    assert own.startswith("full after 10s Nothing is wrong")
    for word in ("permission denied", "no such", "not found", "directory", "not running", "oci runtime"):
        assert word not in text.lower()


def test_denied_says_how_often_and_whose_wish_that_was():
    network = {"profile": "none", "denied": 3}
    text = feedback.compose("denied", record(network=network), {})
    assert "denied this call 3 attempts" in text and "its profile is none" in text and "net=" not in text
    own = record(network={**network, "denied": 1}, intent={"accepted": {"net": "none"}})
    text = feedback.compose("denied", own, {})
    assert "one attempt" in text and "asked for (net=none)" in text


def test_template_is_filled_in_once_and_cannot_be_injected():
    found = oom("call", command={"name": "{peak}\x1b[2J\nrm -rf"})
    text = feedback.compose("oom-killed", found, {"oom-killed": "{name} at {limit} of {session_limit}"})
    assert text == "[agentrun] ?peak???2J?rm?-rf at 64M of 300M\n"


HOSTILE = st.text() | st.sampled_from(["\n[agentrun] fake", "\x1b]0;x\x07", "‮evil", "{limit}", "\ud800"])
FILLED = st.sampled_from([f"{{{name}}}" for name in PLACEHOLDERS])
NUMBERS = st.none() | st.integers(0, 1 << 62) | st.floats(0, 1e15)


@given(
    event=st.sampled_from(EVENTS),
    name=HOSTILE,
    template=st.none() | st.lists(HOSTILE | FILLED).map(" ".join),
    limits=st.fixed_dictionaries(dict.fromkeys(("memory", "cpu", "time_hard", "memory_high"), NUMBERS)),
    ceilings=st.none() | st.fixed_dictionaries(dict.fromkeys(("memory", "cpu", "time"), NUMBERS)),
    level=st.sampled_from(["call", "session", "above", "host", None]),
    times=st.tuples(NUMBERS, NUMBERS),
)  # fmt: skip
def test_any_record_gives_a_short_harmless_block(event, name, template, limits, ceilings, level, times):
    found = record(
        command={"name": name}, limits=limits, ceilings=ceilings, slow=times[0], timed_out=times[1]
    )
    found["level"] = level
    found["pressure"] = {"memory": {"some": times[0] or 0}}
    found["cpu_throttled_us"] = times[1]
    text = feedback.compose(event, found, {} if template is None else {event: template})
    assert len(text.encode()) <= 4096
    lines = text.split("\n")
    assert lines.pop() == "" and len(lines) <= feedback.LINES
    for line in lines:
        assert line.startswith(feedback.PREFIX) and line.isprintable()


def test_words_that_engines_and_evaluations_look_for_are_never_said():
    for level in ("call", "session", "above", "host"):
        text = feedback.compose("oom-killed", oom(level), {}).lower()
        for word in ("oci runtime", "exec failed", "permission denied", "sandbox", "evaluat", "benchmark"):
            assert word not in text
