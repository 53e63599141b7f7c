"""What calls of a kind use: cold start, drift, and what a record teaches."""

from __future__ import annotations

import json
import os
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kinds import MIB, row, samples

from agentrun.base import journal
from agentrun.base.limits import MEMORY_FLOOR
from agentrun.base.paths import Paths
from agentrun.decision import inforce, match
from agentrun.decision.unwrap import unwrap
from agentrun.learning import samples as learned
from agentrun.learning import usage as learning
from agentrun.learning.usage import HALF_LIFE, LEAST_CALLS, MOST_CALLS, Kind, percentile, usage_of, usages
from agentrun.store import ingest

SIZES = st.integers(0, 1 << 40)
MANY = st.lists(SIZES, min_size=1, max_size=40)
SHARES = st.floats(0, 1)


def usage(*rows: dict[str, Any], least: int = 1) -> learning.Usage:
    found = usage_of(samples(*rows), least)
    assert found is not None
    return found


@given(MANY, SHARES)
def test_percentile_is_one_of_the_values(values, share):
    assert percentile(values, share) in values


@given(MANY, SHARES, SHARES)
def test_larger_share_is_no_smaller_value(values, one, other):
    low, high = sorted((one, other))
    assert percentile(values, low) <= percentile(values, high) <= max(values)
    assert percentile(values, 1) == max(values)


@given(MANY, SIZES, SHARES)
def test_larger_value_never_makes_a_percentile_smaller(values, more, share):
    raised = [values[0] + more, *values[1:]]
    assert percentile(raised, share) >= percentile(values, share)


@given(st.lists(SIZES, min_size=1, max_size=20), st.integers(1, 20), SIZES)
def test_old_calls_are_forgotten(old, times, now):
    """2 ** (-n / HALF_LIFE) < 5 % after 4.33 half lives: then nothing older is above the P95, or below it."""
    enough = int(4.33 * HALF_LIFE) + 1
    assert percentile([now] * enough + old * times, 0.95) == now
    assert percentile([now] * (HALF_LIFE + 1) + old * times, 0.5) == now


@given(st.integers(LEAST_CALLS, MOST_CALLS), SIZES, st.integers(1, 1 << 40))
def test_growth_is_followed_within_two_calls(count, before, more):
    """P95 after two larger calls, whatever came before."""
    assert percentile([before + more] * 2 + [before] * count, 0.95) == before + more


def test_shrinking_is_followed_after_a_hundred_calls():
    large, small = [800 * MIB] * 300, 100 * MIB
    assert percentile([small] * 20 + large, 0.95) == 800 * MIB
    assert percentile([small] * 26 + large, 0.5) == small
    assert percentile([small] * 110 + large, 0.95) == small


def test_percentile_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="nothing"):
        percentile([], 0.5)


@given(st.integers(0, 60), st.integers(0, 60))
def test_nothing_is_said_of_too_few_calls(count, least):
    found = usage_of(samples(*[row()] * count), least)
    assert (found is None) == (count < max(least, 1))


NO_LESSON: dict[str, dict[str, Any]] = {
    "killed for memory": {"verdict": "oom-killed", "level": "session"},
    "out of time": {"verdict": "timed-out"},
    "stalled": {"verdict": "stalled"},
    "killed": {"verdict": "killed"},
    "not measured": {"peak": None},
    "no family": {"family": None},
    "a family that is no text": {"family": 7},
    "a mode of no kind": {"mode": None},
    "a peak that is no number": {"peak": "1"},
    "a peak beyond all bounds": {"peak": 1 << 70},
}


@pytest.mark.parametrize("name", NO_LESSON)
def test_what_does_not_show_a_need_does_not_count(name):
    assert usage_of(samples(*[row(**NO_LESSON[name])] * 30), 1) is None
    assert usage(*[row(**NO_LESSON[name])] * 30, row()).calls == 1


def test_failed_calls_and_those_of_mode_observe_count():
    assert usage(row(verdict="failed"), row(mode="observe", limit=None), row(verdict=None)).calls == 3


def test_kinds_are_apart_and_an_unknown_image_is_one():
    rows = [row(), row(image="other"), row(image=None), row(image=None), row(family="git")]
    assert {(u.kind, u.calls) for u in usages(samples(*rows), 1)} == {
        (Kind("img", "pytest"), 1),
        (Kind("other", "pytest"), 1),
        (Kind("", "pytest"), 2),
        (Kind("img", "git"), 1),
    }


def test_kills_are_counted_by_their_limit():
    own = row(verdict="oom-killed", level="call", limit=64 * MIB)
    found = usage(row(), own, own, {**own, "asked_memory": 64 * MIB}, {**own, "level": "session"})
    assert (found.kills, found.default_kills) == ({64 * MIB: 3}, {64 * MIB: 2})


def test_class_is_what_the_newest_policy_chose():
    rows = [
        row(),
        row(asked_class="heavy", **{"class": "heavy"}),
        row(rule=None),
        row(policy="old", rule="old"),
    ]
    assert usage(*rows).chosen == (("test", "tests"), ("test", None))


@given(MANY)
def test_high_leaves_room_above_what_nearly_all_use(peaks):
    found = usage(*[row(peak=peak) for peak in peaks])
    assert found.high >= max(MEMORY_FLOOR, found.memory.p95) and found.high % learning.STEP == 0


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


@given(st.lists(st.fixed_dictionaries({}, optional=dict.fromkeys(learned.FIELDS, JSON)), max_size=5))
def test_no_record_is_too_odd(rows):
    usages(samples(*[{**row(), **each} for each in rows]), 1)


FAMILIES = {
    "pytest -q": "pytest",
    "timeout 5 bash -lc 'cd /x && npm --silent install left-pad'": "npm install",
    "npm run-secret-token": "npm",
    "npm --prefix sub install": "npm",
    "git -C x status": "git",
    "git clone https://user:secret@host/x": "git clone",
    "python -m pip install x": "pip install",
    "/usr/bin/cargo +nightly build": "cargo",
    "uv run pytest": "pytest",
    "uv sync": "uv sync",
}


@pytest.mark.parametrize("text", FAMILIES)
def test_family_is_the_program_and_a_known_word(text):
    assert unwrap(["sh", "-c", text]).family == FAMILIES[text]


WORDS = st.sampled_from(
    ["npm", "git", "pip", "/bin/go", "install", "build", "clone", "-q", "--x", "secret", ""]
)


@given(st.lists(WORDS, min_size=1, max_size=5))
def test_rule_of_a_family_matches_its_calls(words):
    command = unwrap(list(words))
    family = command.family.split()
    if family:
        assert match.command_matches(family, command.words, command.program)
        assert "secret" not in family or command.program == "secret"


def test_store_gives_the_latest_first(tmp_path):
    for folder in ("var/log", "run"):
        (tmp_path / folder).mkdir(parents=True)
    paths = Paths(str(tmp_path))
    os.makedirs(paths.state, 0o700)
    inforce.load(paths)
    assert learned.samples(paths, 0) == []
    now = time.time()
    for number in range(3):
        record = {
            "id": f"0{number}",
            "end": now + number,
            "image": "img\udcff",
            "command": {"family": "npm install"},
            "mode": "enforce",
            "class": "test",
            "memory_peak": number,
            "limits": {"memory": 64 * MIB},
            "intent": {"accepted": {"memory": 1}},
            "verdict": "ok",
        }
        journal.append(paths.records, json.dumps(record), 1 << 30)
    ingest.ingest(paths)
    found = learned.samples(paths, now + 1)
    assert [(s.peak, s.limit, s.asked, s.cpu_us) for s in found] == [
        (2, 64 * MIB, True, None),
        (1, 64 * MIB, True, None),
    ]
    assert found[0].kind == Kind("img\udcff", "npm install")
