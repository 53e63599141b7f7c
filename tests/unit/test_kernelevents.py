"""Whose limit an OOM kill was for, by the id of a cgroup."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest

from agentrun.bpf import types
from agentrun.cgroup import Cgroup
from agentrun.kernelevents import level_of
from agentrun.live import Call
from agentrun.records import levels


def made(root: Path, container: str) -> Call:
    """A call of a container, in directories that play cgroups."""
    path = root / container / "agentrun-calls/call-0"
    path.mkdir(parents=True)
    return Call("w", "call-0", {}, Cgroup(str(path)))


@pytest.mark.parametrize(
    ("below", "level"),
    [
        ("pod/box/agentrun-calls/call-0", "call"),
        ("pod/box/agentrun-calls", "session"),
        ("pod/box", "session"),
        ("pod", "above"),
        (".", "above"),
    ],
)
def test_limit_is_found_from_the_call_upwards(tmp_path, below, level):
    call = made(tmp_path, "pod/box")
    limit = tmp_path / below
    assert level_of(os.stat(limit).st_ino, call, str(tmp_path)) == (level, str(limit))


def test_scope_around_cruns_container_is_the_containers_own(tmp_path):
    call = made(tmp_path, "pod/crun-1.scope/container")
    for below, level in (
        ("pod/crun-1.scope/container", "session"),
        ("pod/crun-1.scope", "session"),
        ("pod", "above"),
    ):
        assert level_of(os.stat(tmp_path / below).st_ino, call, str(tmp_path))[0] == level


def test_no_cgroup_is_the_machine_and_what_is_not_around_the_call_stays_unknown(tmp_path):
    call = made(tmp_path, "pod/box")
    (tmp_path / "pod/other").mkdir()
    assert level_of(types.LIMIT_HOST, call, str(tmp_path)) == ("host", None)
    assert level_of(types.LIMIT_UNKNOWN, call, str(tmp_path)) == (None, None)
    assert level_of(os.stat(tmp_path / "pod/other").st_ino, call, str(tmp_path)) == (None, None)
    assert level_of(os.stat(tmp_path.parent).st_ino, call, str(tmp_path)) == (None, None)


def test_levels_end_with_the_path():
    found = list(itertools.islice(levels(Cgroup("/a/agentrun-calls/call-0")), 10))
    assert [level for _, level in found] == ["call", "session", "session"]
