"""What the kernel is told to watch, and what it tells."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from agentrun.base.errors import BpfError
from agentrun.base.paths import Paths
from agentrun.bpf import modules, types
from agentrun.bpf.mempressure import How, Limit, Member, entry, rank_number
from agentrun.daemon.controller import pressure
from agentrun.daemon.controller.ids import Ids
from agentrun.daemon.controller.model import HOST, Call, Domain, Snapshot
from agentrun.daemon.controller.pressure import limits_of
from agentrun.daemon.parts.kernelevents import KernelEvents
from agentrun.decision import config, inforce

MIB = 1 << 20
HIGH, LOW = (300, 100), (100, 100)


def test_tier_counts_before_the_calls_own_priority():
    ranks = [(100, 50), (100, 100), (101, 0), (300, 200), (10**9, 10**9)]
    assert sorted(ranks, key=rank_number) == ranks
    assert rank_number((10**9, 10**9)) < 1 << 32


def test_entry_says_who_is_watched_and_keeps_what_is_known_of_those_who_stay():
    before = entry(Limit(600, 180, 270, (Member(1, HIGH), Member(2, LOW))))
    before.members[0].grew_ns, before.members[1].marked_ns = 77, 88
    after = entry(Limit(900, 270, 405, (Member(3, LOW), Member(2, LOW, soft=9)), How.MARK), before)
    assert (after.limit_bytes, after.tight_bytes, after.ample_bytes, after.how, after.count) == (
        900, 270, 405, How.MARK, 2,
    )  # fmt: skip
    known = {each.id: (each.rank, each.soft_bytes, each.marked_ns) for each in after.members[:2]}
    assert known == {3: (rank_number(LOW), 0, 0), 2: (rank_number(LOW), 9, 88)}


def test_of_too_many_the_first_and_the_last_are_watched():
    ranks = [(100 + n, 100) for n in range(40)]
    members = tuple(Member(n + 1, rank) for n, rank in enumerate(ranks))
    made = entry(Limit(1, 1, 1, members))
    assert made.count == types.PRESSURE_MEMBERS
    watched = {each.id for each in made.members}
    assert watched == {*range(1, 9), *range(33, 41)}


def snapshot() -> Snapshot:
    calls = (
        Call("/pod/high", HIGH, 1.0, 0, ("/pod", HOST)),
        Call("/pod/low", LOW, 1.0, 0, ("/pod", HOST)),
        Call("/alone/call", LOW, 1.0, 0, ("/alone", HOST)),
    )
    domains = (Domain("/pod", 600 * MIB, 0), Domain("/alone", 600 * MIB, 0), Domain(HOST, 4096 * MIB, 0))
    return Snapshot(1.0, calls, domains)


def test_limits_that_calls_share_are_watched_and_no_others():
    ids = {"/pod": 10, "/pod/high": 11, "/pod/low": 12, "/alone": 20, "/alone/call": 21}
    (found,) = limits_of(snapshot(), ids, How.TELL).items()
    assert found == (
        10, Limit(600 * MIB, 180 * MIB, 270 * MIB, (Member(11, HIGH), Member(12, LOW)), How.TELL),
    )  # fmt: skip


@pytest.mark.parametrize("gone", ["/pod", "/pod/low"])
def test_what_is_gone_is_not_watched(gone):
    ids = {"/pod": 10, "/pod/high": 11, "/pod/low": 12}
    del ids[gone]
    assert limits_of(snapshot(), ids, How.TELL) == {}


def test_pressure_wakes_whoever_asked_for_it_once_a_batch():
    woken: list[str] = []
    events = KernelEvents(SimpleNamespace(), SimpleNamespace())  # type: ignore[arg-type]
    events.on_pressure.append(lambda: woken.append("controller"))
    pressure = SimpleNamespace(kind=types.Kind.PRESSURE)
    events.ring = SimpleNamespace(read=lambda *_: [pressure, pressure], is_busy=False)  # type: ignore[assignment]
    events._read()
    assert woken == ["controller"]


class Maps:
    """What the module's maps are told."""

    def __init__(self, problem: str | None = None) -> None:
        self.published: list[dict[int, Limit]] = []
        self.problem = problem
        self.is_closed = False

    def publish(self, limits: dict[int, Limit]) -> None:
        if self.problem:
            raise BpfError(self.problem)
        self.published.append(limits)

    def close(self) -> None:
        self.is_closed = True


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A host where the module can be loaded: [its identity, the maps that were opened]."""
    (tmp_path / "var/log").mkdir(parents=True)
    (tmp_path / "var/lib").mkdir(parents=True)
    found = SimpleNamespace(version=("v", 1), opened=[], now=0.0, problem=None)

    def open_maps() -> Maps:
        found.opened.append(Maps(found.problem))
        return found.opened[-1]

    monkeypatch.setattr(modules, "identity", lambda _: found.version)
    monkeypatch.setattr(pressure, "MemPressure", open_maps)
    found.paths = Paths(str(tmp_path))
    found.ids = Ids()
    found.pressure = pressure.Pressure(found.paths, found.ids, clock=lambda: found.now)
    return found


def shared(tmp_path) -> Snapshot:
    """Two calls below one limit, as directories."""
    pod = tmp_path / "pod"
    for name in ("high", "low"):
        (pod / name).mkdir(parents=True, exist_ok=True)
    calls = tuple(
        Call(str(pod / name), rank, 1.0, 0, (str(pod),)) for name, rank in (("high", HIGH), ("low", LOW))
    )
    return Snapshot(1.0, calls, (Domain(str(pod), 600 * MIB, 0),))


def test_module_that_is_loaded_anew_is_told_again(module, tmp_path):
    seen = shared(tmp_path)
    module.pressure.follow(seen)
    (first,) = module.opened
    pod = (tmp_path / "pod").stat().st_ino
    assert [list(limits) for limits in first.published] == [[pod]]
    module.version, module.now = ("v", 2), 0.5
    module.pressure.follow(seen)
    assert len(module.opened) == 1, "it looks once a second"
    module.now = 1.5
    module.pressure.follow(seen)
    assert first.is_closed and list(module.opened[1].published[-1]) == [pod]
    module.version, module.now = None, 3.0
    module.pressure.follow(seen)
    assert module.opened[1].is_closed and len(module.opened) == 2
    module.pressure.close()


def test_what_goes_wrong_is_said_once_and_tried_again(module, tmp_path):
    module.problem = "no room"
    for module.now in (0.0, 0.1, 2.0):
        module.pressure.follow(shared(tmp_path))
    assert (tmp_path / "var/log/agentrun.log").read_text().count("no room") == 1
    module.opened[0].problem = None
    module.pressure.follow(shared(tmp_path))
    assert len(module.opened[0].published) == 1


def test_next_cgroup_of_the_same_path_is_another_one(module, tmp_path):
    module.pressure.follow(shared(tmp_path))
    low = tmp_path / "pod/low"
    low.rename(tmp_path / "old")
    module.ids.forget(str(low))
    module.pressure.follow(shared(tmp_path))
    numbers = [
        {m.id for limit in told.values() for m in limit.members} for told in module.opened[0].published
    ]
    assert numbers[0] != numbers[1] and low.stat().st_ino in numbers[1]


def test_without_ebpf_in_the_configuration_nothing_is_watched(module, tmp_path, monkeypatch):
    monkeypatch.setattr(inforce, "load", lambda _: config.Config([], enforcement="cgroup"))
    module.pressure.follow(shared(tmp_path))
    assert module.opened == []
