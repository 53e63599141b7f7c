"""What agents declare, and what they might try."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrun.base.units import parse_size
from agentrun.decision import intent as intents

MIB, GIB = 1 << 20, 1 << 30


def parse_environment(entries):
    return intents.gather(None, entries, [])


SIZES = {
    "512m": 512 * MIB,
    "512M": 512 * MIB,
    "2g": 2 * GIB,
    "2GB": 2 * GIB,
    "2GiB": 2 * GIB,
    "1.5gib": GIB + 512 * MIB,
    "64kb": 64 << 10,
    "1t": 1 << 40,
    "4096b": 4096,
    "08g": 8 * GIB,
}


@pytest.mark.parametrize("text", SIZES)
def test_size_is_read(text):
    assert parse_size(text) == SIZES[text]


BAD_SIZES = [
    "",
    "g",
    "2",
    "-1g",
    "+1g",
    "1e9m",
    "1_0m",
    "0m",
    "0x10m",
    "2 g",
    "2gg",
    ".5g",
    "1.g",
    "٣g",
    "inf",
    "nan",
]


@pytest.mark.parametrize("text", BAD_SIZES)
def test_malformed_size_is_refused(text):
    assert parse_size(text) is None


ACCEPTED = {
    "AGENTRUN_INTENT=client=4711,class=test": {"client": 4711, "class": "test"},
    "AGENTRUN_INTENT=memory=2g,cpu=1.5,pids=100": {"memory": 2 * GIB, "cpu": 1.5, "pids": 100},
    "AGENTRUN_INTENT= Memory = 512m , CPU=2 ": {"memory": 512 * MIB, "cpu": 2.0},
    "AGENTRUN_INTENT=mem=64m": {"memory": 64 * MIB},
    "AGENT_RESOURCE_HINT=memory:low": {"memory": 256 * MIB},
    "AGENT_RESOURCE_HINT=memory:medium": {"memory": GIB},
    "AGENT_RESOURCE_HINT=memory:high": {"memory": 1 << 62},
    "AGENT_RESOURCE_HINT=memory:2g,cpu:1": {"memory": 2 * GIB, "cpu": 1.0},
    "AGENT_RESOURCE_HINT=2g": {"memory": 2 * GIB},
    "AGENT_RESOURCE_HINT=high": {"memory": 1 << 62},
    "AGENT_RESOURCE_HINT=memory:512M": {"memory": 512 * MIB},
    "AGENT_RESOURCE_HINT=memory=1g": {"memory": GIB},
    "AGENTRUN_INTENT=memory:1g;cpu:2": {"memory": GIB, "cpu": 2.0},
    "AGENTRUN_INTENT=time=10m,net=none,priority=low,class=test": {
        "time": 600.0,
        "net": "none",
        "priority": "low",
        "class": "test",
    },
    'AGENTRUN_INTENT={"memory": "2g", "cpu": 1.5, "pids": 64, "class": "test"}': {
        "memory": 2 * GIB,
        "cpu": 1.5,
        "pids": 64,
        "class": "test",
    },
    'AGENTRUN_INTENT={"timeout": "1h30m"}': {"time": 5400.0},
    "AGENTRUN_INTENT={}": {},
}


@pytest.mark.parametrize("entry", ACCEPTED)
def test_intent_is_accepted(entry):
    intent = parse_environment([entry])
    assert (intent.accepted(), intent.refused) == (ACCEPTED[entry], [])


# The last five are what AgentCgroup's shell arithmetic executed or turned into no limit at all.
REFUSED = [
    "client=0",
    "client=self",
    "client=99999999",
    "memory=$(reboot)",
    "memory=`id`",
    "memory=-1",
    "memory=1e99",
    "memory=99999999999999999999g",
    "memory=2",
    "memory=",
    "memory",
    "=2g",
    "cpu=0",
    "cpu=-1",
    "pids=1.5",
    "pids=many",
    "colour=red",
    "time=10",
    "time=1x",
    "priority=urgent",
    "class=../../etc",
    "net=a b",
    "memory=a[$(touch x)]g",
    "memory=abcg",
    "memory=BIG",
    "memory=g",
    "memory=2g\n",
]


@pytest.mark.parametrize("part", REFUSED[:-1], ids=range(len(REFUSED) - 1))
def test_refused_part_is_named_and_the_rest_counts(part):
    intent = parse_environment([f"AGENTRUN_INTENT={part},pids=50"])
    assert intent.accepted() == {"pids": 50}
    assert [name for name, _ in intent.refused] == [part]


def test_newline_at_the_end_is_trimmed():
    assert parse_environment(["AGENTRUN_INTENT=memory=2g\n"]).memory == 2 * GIB


def test_own_variable_wins_over_the_hint():
    intent = parse_environment(["AGENT_RESOURCE_HINT=memory:low", "AGENTRUN_INTENT=memory=1g"])
    assert intent.memory == GIB


def test_last_one_of_a_variable_wins():
    assert parse_environment(["AGENTRUN_INTENT=pids=20", "AGENTRUN_INTENT=pids=30"]).pids == 30


def test_environment_without_intent_asks_for_nothing():
    intent = parse_environment(["PATH=/bin", "AGENTRUN_INTENTS=memory=1g", 5, None, ["x"], "novalue"])
    assert (intent.accepted(), intent.raw, intent.refused) == ({}, None, [])


def test_megabyte_is_refused_whole_and_at_once():
    began = time.perf_counter()
    intent = parse_environment(["AGENTRUN_INTENT=" + "memory=1g," * 100_000])
    assert time.perf_counter() - began < 0.1
    assert intent.accepted() == {} and len(intent.refused) == 1
    assert len(intent.raw or "") <= 256 and len(intent.refused[0][0]) <= 64


@given(
    st.text(max_size=200)
    | st.lists(st.sampled_from(["memory=", "2", "g", ",", "$(", "\0", "e9", "-"])).map("".join)
)
def test_any_text_gives_values_in_their_domain(text):
    for variable in ("AGENTRUN_INTENT", "AGENT_RESOURCE_HINT"):
        intent = parse_environment([f"{variable}={text}"])
        for name, value in intent.accepted().items():
            if isinstance(value, str):
                assert intents.is_name(value), name
            else:
                assert value > 0, name
        assert len(intent.refused) <= 16
        assert all(len(part) <= 64 for part, _ in intent.refused)


def test_client_is_the_callers_to_name_and_not_the_agents():
    intent = intents.gather(
        None, ["AGENTRUN_INTENT=client=7,memory=1g"], ["AGENTRUN_INTENT=client=1,memory=2g"]
    )
    assert (intent.client, intent.memory) == (7, 2 * GIB)
    assert intent.refused == [("client=1", "only from the environment of the exec")]


def test_channels_nearer_to_the_command_win_part_by_part():
    intent = intents.gather(
        "memory=1g,cpu=1,pids=10",
        ["AGENTRUN_INTENT=memory=2g,cpu=2", "AGENT_RESOURCE_HINT=memory:low"],
        ["AGENT_RESOURCE_HINT=memory:3g"],
    )
    assert intent.accepted() == {"memory": 3 * GIB, "cpu": 2.0, "pids": 10}


@pytest.mark.parametrize(
    "text", ["[1]", '{"memory": [1]}', '{"cpu": true}', '{"a"', "{" * 3000, '{"memory": null}']
)
def test_json_that_is_not_an_intent_is_refused(text):
    intent = intents.parse(text if text.startswith("{") else "{" + text)
    assert intent.accepted() == {} and intent.refused
