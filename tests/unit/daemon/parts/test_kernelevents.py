"""Whose limit an OOM kill was for, by the id of a cgroup."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agentrun.base.errors import BpfError
from agentrun.base.paths import Paths
from agentrun.bpf import oomhold, ringbuf, types
from agentrun.cgroups.around import levels
from agentrun.cgroups.cgroup import Cgroup
from agentrun.daemon.call import Call
from agentrun.daemon.parts.kernelevents import KernelEvents, level_of
from agentrun.decision import config, inforce


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


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    """What is pinned, and whether it may be used; `look` is what agentrund does once a second."""
    (tmp_path / "var/log").mkdir(parents=True)
    found = SimpleNamespace(pin=None, ring=None, hold=None, enforcement="auto", log=tmp_path / "var/log")
    watched: dict[int, object] = {}
    daemon = SimpleNamespace(
        paths=Paths(str(tmp_path)),
        watch=lambda fd, _, handler: watched.update({fd: handler}),
        unwatch=watched.pop,
    )

    def opened(what: str) -> Any:
        if isinstance(getattr(found, what), Exception):
            raise getattr(found, what)
        return getattr(found, what)

    monkeypatch.setattr(inforce, "load", lambda _: config.Config([], enforcement=found.enforcement))
    monkeypatch.setattr(ringbuf, "pin_identity", lambda: found.pin)
    monkeypatch.setattr(ringbuf, "open_ring", lambda: opened("ring"))
    monkeypatch.setattr(oomhold, "open_hold", lambda: opened("hold"))
    found.events = KernelEvents(daemon, SimpleNamespace())  # type: ignore[arg-type]
    found.look = found.events._look
    found.open = lambda: SimpleNamespace(fileno=lambda: 7, close=lambda: None)
    return found


def test_module_that_comes_later_is_taken_though_the_ring_is_the_same(kernel):
    kernel.pin, kernel.ring = (1, 1), kernel.open()
    kernel.look()
    assert kernel.events.ring is kernel.ring and kernel.events.hold is None
    kernel.hold = kernel.open()  # `events` beside the module that made the ring
    kernel.look()
    assert kernel.events.hold is kernel.hold


def test_ring_is_read_once_the_configuration_allows_it(kernel):
    kernel.pin, kernel.ring, kernel.enforcement = (1, 1), kernel.open(), "cgroup"
    kernel.look()
    assert kernel.events.status() == {"is_read": False, "kills": 0, "problem": None}
    kernel.enforcement = "auto"
    kernel.look()
    assert kernel.events.status()["is_read"]
    kernel.enforcement = "cgroup"
    kernel.look()
    assert not kernel.events.status()["is_read"]


def test_ring_that_could_not_be_opened_is_tried_again_and_said_once(kernel):
    kernel.pin, kernel.ring = (1, 1), BpfError("out of memory")
    kernel.look()
    kernel.look()
    assert kernel.events.status() == {"is_read": False, "kills": 0, "problem": "out of memory"}
    assert len((kernel.log / "agentrun.log").read_text().splitlines()) == 1
    kernel.ring = kernel.open()
    kernel.look()
    assert kernel.events.status() == {"is_read": True, "kills": 0, "problem": None}


def test_levels_end_with_the_path():
    found = list(itertools.islice(levels(Cgroup("/a/agentrun-calls/call-0")), 10))
    assert [level for _, level in found] == ["call", "session", "session"]
