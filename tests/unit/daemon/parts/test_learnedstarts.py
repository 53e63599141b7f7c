"""Where a call's memory.high begins: only where it is wanted and known, and gone with agentrund."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hosts import host_with
from kinds import MIB, row, samples

from agentrun.base import journal
from agentrun.base.limits import Limits
from agentrun.base.paths import Paths
from agentrun.calls import release
from agentrun.cgroups.cgroup import Cgroup
from agentrun.daemon.call import Call
from agentrun.daemon.parts.learnedstarts import Starts
from agentrun.decision.intent import Intent, parse
from agentrun.decision.plan import Plan, make_plan
from agentrun.learning import usage as learning
from agentrun.store import ingest

POLICY = "version: 1\nclasses:\n  standard: {memory: {default: 512M, learned: true}}\n"
KNOWN = {usage.kind: usage for usage in learning.usages(samples(*[row()] * 20))}


@pytest.fixture
def host(tmp_path) -> Paths:
    return host_with(tmp_path, POLICY)


def part_of(paths: Paths) -> Starts:
    """The part of an agentrund that notes in a call's state."""

    def note(call: Call, **notes: object) -> None:
        call.state = {**call.state, **notes}

    after: list[Callable[[], None]] = []
    return Starts(SimpleNamespace(paths=paths, note=note, ingester=SimpleNamespace(after=after)))  # type: ignore[arg-type]


def learned(part: Starts, **state: Any) -> Any:
    """What is noted of a call of pytest in an image, with 512 MB."""
    full = {
        "id": "1",
        "rank": [100, 100],
        "image": "img",
        "command": {"family": "pytest"},
        "limits": {"memory": 512 * MIB},
        "care": {"learned": True},
        **state,
    }
    call = Call("/w", "call-0", full, Cgroup("/none"))
    part.began(call)
    return call.state.get("learned")


FOUND = {"memory_high": 128 * MIB, "calls": 20, "peak_p95": 100 * MIB}
CASES: dict[str, tuple[dict[str, Any], Any]] = {
    "wanted and known": ({}, FOUND),
    "no limit of its own": ({"limits": {"memory": None}}, FOUND),
    "not wanted": ({"care": {"feedback": "on"}}, None),
    "not adapted": ({"rank": None}, None),
    "mode observe": ({"rank": None, "limits": None}, None),
    "another image": ({"image": "other"}, None),
    "an unknown image": ({"image": None}, None),
    "another command": ({"command": {"family": "make"}}, None),
    "a command that is not stored": ({"command": None}, None),
    "its own limit comes first": ({"limits": {"memory": 128 * MIB}}, None),
    "found after a restart": ({"learned": {"memory_high": 7}}, {"memory_high": 7}),
}


@pytest.mark.parametrize("name", CASES)
def test_start_is_noted_where_it_is_wanted_and_known(host, name):
    part = part_of(host)
    part.known = KNOWN
    state, expected = CASES[name]
    assert learned(part, **state) == expected


def test_nothing_is_known_before_the_store_was_read(host):
    assert learned(part_of(host)) is None


def fill(paths: Paths, count: int) -> None:
    for number in range(count):
        record = {
            "id": f"{number:04}",
            "end": time.time(),
            "image": "img",
            "command": {"family": "pytest"},
            "mode": "enforce",
            "class": "standard",
            "memory_peak": 100 * MIB,
            "verdict": "ok",
        }
        journal.append(paths.records, json.dumps(record), 1 << 30)
    ingest.ingest(paths)


@pytest.mark.parametrize("count, expected", [(learning.LEAST_CALLS - 1, None), (learning.LEAST_CALLS, FOUND)])
def test_what_is_known_comes_from_the_store(host, count, expected):
    fill(host, count)
    part = part_of(host)
    part.daemon.ingester.after[0]()
    assert learned(part) == expected


def test_store_is_not_read_where_no_class_wants_it(host):
    fill(host, learning.LEAST_CALLS)
    Path(host.policy, "10-test.yaml").write_text("version: 1\nclasses: {standard: {}}\n")
    part = part_of(host)
    part.refresh()
    assert part.known == {}


def test_store_that_cannot_be_read_is_said_once(host):
    fill(host, learning.LEAST_CALLS)
    Path(host.store).write_bytes(b"no database" * 999)
    part = part_of(host)
    for _ in range(2):
        part._read_at = float("-inf")
        part.refresh()
    assert part.known == {} and Path(host.log).read_text().count("cannot be read") == 1


def test_call_that_is_released_has_no_learned_limit(tmp_path):
    """When agentrund is gone nobody would raise it."""
    (tmp_path / "memory.high").write_text(f"{128 * MIB}\n")
    (tmp_path / "cgroup.freeze").write_text("0\n")
    assert release.release(Cgroup(str(tmp_path)), {"limits": {"memory": 512 * MIB}, "learned": FOUND})
    assert (tmp_path / "memory.high").read_text().startswith("max")


def plan_of(memory: dict[str, Any], intent: Intent | None = None) -> Plan:
    policy = {"classes": {"c": {"memory": memory}}, "tiers": {}}
    return make_plan(policy, "c", None, Limits(), Limits(8 << 30), intent or Intent())


def test_plan_begins_with_what_is_learned_only_where_nothing_else_says_anything():
    assert plan_of({"learned": True}).learned
    assert not plan_of({}).learned
    assert not plan_of({"learned": True, "high": 64 * MIB}).learned
    assert not plan_of({"learned": True}, parse("memory=1g")).learned
    assert plan_of({"learned": True}, parse("cpu=1")).learned
    assert plan_of({"learned": True}).files() == plan_of({}).files()
