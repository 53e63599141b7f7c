"""One look at a tree of cgroups: who takes part, which limits are around them, what counts as used."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentrun.daemon.controller.model import HOST, Bound
from agentrun.daemon.controller.snapshot import Reader

MIB = 1 << 20
MEMINFO = "MemTotal: 1048576 kB\nMemAvailable: 524288 kB\nSwapTotal: 2048 kB\nSwapFree: 2048 kB\n"


def write(folder: Path, **content: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in content.items():
        (folder / name.replace("_", ".", 1)).write_text(f"{value}\n")


def make_call(path: Path, usage: int = MIB, populated: int = 1) -> str:
    write(path, memory_current=usage, memory_events="low 0\nhigh 7\nmax 0")
    (path / "cgroup.events").write_text(f"populated {populated}\nfrozen 0\n")
    return str(path)


def state(rank: object = (200, 100), **limits: object) -> dict[str, object]:
    rank = list(rank) if isinstance(rank, tuple) else rank
    return {"id": "x", "rank": rank, "start": 5.0, "limits": limits}


@pytest.fixture
def tree(tmp_path):
    """A pod of 600 MB with two containers, one of them limited; the second line of fire is the host."""
    root = tmp_path / "cgroup"
    pod = root / "pod.slice"
    write(pod, memory_max=600 * MIB, memory_current=500 * MIB)
    (pod / "memory.stat").write_text(f"anon 1\ninactive_file {40 * MIB}\nactive_file {60 * MIB}\nshmem 9\n")
    (pod / "memory.swap.max").write_text("1048576\n")
    (pod / "memory.swap.current").write_text("0\n")
    write(pod / "a", memory_max=200 * MIB)
    write(pod / "b", memory_max="max")
    for name in ("a", "b"):
        write(pod / name / "agentrun-calls", memory_max="max")
        (pod / name / "agentrun-agent").mkdir()
    write(tmp_path / "proc")
    (tmp_path / "proc/meminfo").write_text(MEMINFO)
    reader = Reader(str(root), str(tmp_path / "proc"))
    yield pod, reader
    reader.close()
    for files in reader.unused.values():
        files.close()


def test_call_knows_every_limit_above_it(tree):
    pod, reader = tree
    a = make_call(pod / "a/agentrun-calls/call-0", usage=7 * MIB)
    b = make_call(pod / "b/agentrun-calls/call-0")
    new, gone = reader.update({a: state(memory=9, memory_high=5), b: state((100, 50))})
    assert (len(new), gone) == (2, [])
    snapshot = reader.read(1.0)
    first, second = snapshot.calls
    assert first.domains == (str(pod / "a"), str(pod), HOST) and second.domains == (str(pod), HOST)
    assert (first.usage, first.soft, first.ceiling, first.throttled, first.rank) == (
        7 * MIB,
        5,
        9,
        7,
        (200, 100),
    )
    assert [domain.key for domain in snapshot.domains] == [str(pod), HOST]
    assert not snapshot.admits
    admitting = reader.read(1.0, admits=True)
    assert {domain.key for domain in admitting.domains} == {str(pod / "a"), str(pod), HOST}
    assert admitting.admits


def test_learned_start_is_of_a_call_without_a_soft_limit(tree):
    pod, reader = tree
    learned = {"learned": {"memory_high": 5, "calls": 20, "peak_p95": 4}}
    keys = [make_call(pod / f"a/agentrun-calls/call-{n}") for n in range(3)]
    reader.update({keys[0]: state() | learned, keys[1]: state(memory_high=7) | learned, keys[2]: state()})
    assert [(c.soft, c.learned) for c in reader.read(1.0).calls] == [(None, 5), (7, None), (None, None)]


def test_file_cache_is_not_used_memory(tree):
    pod, reader = tree
    calls = {make_call(pod / f"b/agentrun-calls/call-{n}"): state() for n in range(2)}
    reader.update(calls)
    domain, host = reader.read(1.0).domains
    assert (domain.limit, domain.usage, domain.swap) == (600 * MIB, 400 * MIB, 1 << 20)
    assert (host.limit, host.usage, host.swap) == (1 << 30, 1 << 29, 2 << 20)
    assert reader.peek(str(pod)) == 500 * MIB and reader.peek(HOST) == 1 << 29


def test_calls_that_ended_or_do_not_take_part_are_left_out(tree):
    pod, reader = tree
    ended = make_call(pod / "a/agentrun-calls/call-0", populated=0)
    stranger = make_call(pod / "b/agentrun-calls/call-1")
    odd = make_call(pod / "b/agentrun-calls/call-2")
    missing = str(pod / "b/agentrun-calls/call-3")
    reader.update({ended: state(), stranger: state(None), odd: state(["x", 1]), missing: state()})
    assert reader.read(1.0).calls == () and set(reader.members) == {ended, missing}


def test_slot_that_is_used_again_is_another_call(tree):
    pod, reader = tree
    key = make_call(pod / "b/agentrun-calls/call-0")
    reader.update({key: state()})
    new, gone = reader.update({key: {**state(), "id": "y"}})
    assert [member.id for member in new] == ["y"] and [member.id for member in gone] == ["x"]
    gone[0].files.close()
    new, gone = reader.update({})
    assert (new, [member.id for member in gone]) == ([], ["y"])
    gone[0].files.close()
    assert set(reader.unused) == {str(pod), str(pod / "b"), str(pod / "b/agentrun-calls")}


def test_limits_are_those_of_the_container_that_is_there_now(tree):
    pod, reader = tree
    call = make_call(pod / "a/agentrun-calls/call-0")
    other = make_call(pod / "a/agentrun-calls/call-1")
    reader.update({call: state(), other: state()})
    assert {d.key: d.limit for d in reader.read(1).domains}[str(pod / "a")] == 200 * MIB
    (pod / "a").rename(pod / "gone")  # restarted, between two looks
    write(pod / "a", memory_max=900 * MIB)
    write(pod / "a/agentrun-calls", memory_max="max")
    for path in (call, other):
        make_call(Path(path))
    new, gone = reader.update({call: {**state(), "id": "y"}, other: {**state(), "id": "z"}})
    for member in gone:
        member.files.close()
    assert len(new) == len(gone) == 2 and set(reader.unused) == {
        str(pod / "a"),
        str(pod / "a/agentrun-calls"),
    }
    for files in reader.unused.values():
        files.close()
    assert {d.key: d.limit for d in reader.read(2).domains}[str(pod / "a")] == 900 * MIB


def test_calls_are_bounded_by_what_the_agent_keeps(tree):
    pod, reader = tree
    key = make_call(pod / "a/agentrun-calls/call-0")
    other = make_call(pod / "b/agentrun-calls/call-0")
    write(pod / "a/agentrun-agent", memory_min=0, memory_low=50 * MIB)
    write(pod / "b/agentrun-agent", memory_min=MIB, memory_low=0)
    reader.update({key: state(), other: state()})
    bounds = {bound.key: bound for bound in reader.read(1.0).bounds}
    parent = str(pod / "a/agentrun-calls")
    assert bounds[parent] == Bound(parent, None, 150 * MIB)
    assert bounds[str(pod / "b/agentrun-calls")].wanted is None  # its container has no limit
    assert reader.read(1.5).bounds == () and reader.read(2.1).bounds != ()
    (pod / "a/memory.max").write_text(f"{90 * MIB}\n")
    assert {b.key: b.wanted for b in reader.read(9.0).bounds}[parent] is None  # half would be the agent's
