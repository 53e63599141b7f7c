"""Calls read in one system call: whose numbers count, and what happens where that does not work."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agentrun.base.errors import BpfError
from agentrun.base.paths import Paths
from agentrun.bpf import modules
from agentrun.bpf.snapshot import Seen
from agentrun.daemon.controller import atonce
from agentrun.daemon.controller.ids import Ids
from agentrun.daemon.controller.snapshot import Reader
from agentrun.decision import config, inforce

MIB = 1 << 20


class Snapshots:
    """The loaded program: it knows what a test says of each cgroup, by its id."""

    def __init__(self, host: Any) -> None:
        self.host = host
        self.is_closed = False

    def read(self, ids: list[int]) -> list[Seen] | None:
        if self.host.problem:
            raise BpfError(self.host.problem)
        self.host.asked.append(ids)
        return None if len(ids) > self.host.room else [self.host.seen.get(n, Seen(0, 0, False)) for n in ids]

    def close(self) -> None:
        self.is_closed = True


@pytest.fixture
def host(tmp_path, monkeypatch):
    """A pod with the calls `a` and `b`, whose files say 1 MiB, and the module."""
    for folder in ("var/log", "var/lib"):
        (tmp_path / folder).mkdir(parents=True)
    found = SimpleNamespace(version=("v", 1), problem=None, room=9, asked=[], seen={}, now=0.0, opened=[])
    found.paths = Paths(str(tmp_path), str(tmp_path / "cgroup"))
    found.pod = tmp_path / "cgroup/pod"

    def make() -> Snapshots:
        found.opened.append(Snapshots(found))
        return found.opened[-1]

    monkeypatch.setattr(modules, "identity", lambda _: found.version)
    monkeypatch.setattr(atonce, "Snapshots", make)
    found.ids = Ids()
    at_once = atonce.AtOnce(found.paths, found.ids, clock=lambda: found.now)
    found.reader = Reader(found.paths.cgroup_root, at_once=at_once)
    found.keys = [call(found.pod, name) for name in ("a", "b")]
    found.reader.update({key: {"id": key, "rank": [100, 100], "start": 1.0} for key in found.keys})
    return found


def call(pod: Path, name: str) -> str:
    folder = pod / name
    folder.mkdir(parents=True)
    for file, text in (
        ("memory.current", MIB),
        ("memory.events", "high 2"),
        ("cgroup.events", "populated 1"),
    ):
        (folder / file).write_text(f"{text}\n")
    return str(folder)


def number(key: str) -> int:
    return Path(key).stat().st_ino


def usages(host: Any) -> dict[str, tuple[int, int]]:
    return {call.key.rpartition("/")[2]: (call.usage, call.throttled) for call in host.reader.read(1.0).calls}


def test_numbers_are_the_programs_where_it_is_loaded(host):
    a, b = map(number, host.keys)
    host.seen = {a: Seen(7 * MIB, 3, True), b: Seen(0, 0, False)}
    assert usages(host) == {"a": (7 * MIB, 3)}, "nothing lives in b"
    assert host.asked == [[a, b]]


def test_without_it_the_files_are_read(host):
    host.version = None
    assert usages(host) == {"a": (MIB, 2), "b": (MIB, 2)} and host.opened == []


def test_more_calls_than_there_is_room_for_are_read_from_their_files(host):
    host.room = 1
    assert usages(host) == {"a": (MIB, 2), "b": (MIB, 2)}


def test_program_that_fails_is_let_go_and_said_once(host):
    host.problem = "no such program"
    for host.now in (0.0, 1.0, 6.0, 12.0):
        assert usages(host) == {"a": (MIB, 2), "b": (MIB, 2)}
    assert len(host.opened) == 3 and all(each.is_closed for each in host.opened), "tried every 5 s"
    assert (Path(host.paths.log)).read_text().count("no such program") == 1
    host.problem, host.now = None, 20.0
    host.seen = {number(key): Seen(5 * MIB, 0, True) for key in host.keys}
    assert usages(host) == {"a": (5 * MIB, 0), "b": (5 * MIB, 0)}


def test_next_cgroup_of_the_same_path_is_another(host):
    host.seen = {number(key): Seen(5 * MIB, 0, True) for key in host.keys}
    assert usages(host)["a"] == (5 * MIB, 0)
    (host.pod / "a").rename(host.pod / "old")
    assert call(host.pod, "a") == host.keys[0]
    host.ids.forget(host.keys[0])
    host.seen[number(host.keys[0])] = Seen(9 * MIB, 0, True)
    assert usages(host)["a"] == (9 * MIB, 0)


def test_without_ebpf_in_the_configuration_files_are_read(host, monkeypatch):
    monkeypatch.setattr(inforce, "load", lambda _: config.Config([], enforcement="cgroup"))
    assert usages(host)["a"] == (MIB, 2) and host.opened == []
