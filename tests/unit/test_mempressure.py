"""What the kernel is told to watch, and what it tells."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from agentrun.bpf import types
from agentrun.bpf.mempressure import How, Limit, Member, entry, rank_number
from agentrun.controller.model import HOST, Call, Domain, Snapshot
from agentrun.controller.pressure import limits_of
from agentrun.kernelevents import KernelEvents

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
