"""Gates: when new calls wait before they start, whom that means, and for how long at most."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrun.base.limits import ADMISSION_WAIT_MOST
from agentrun.base.paths import Paths
from agentrun.daemon.controller import gates
from agentrun.daemon.controller.decisions import decide
from agentrun.daemon.controller.gatefile import REFRESH_S, VALID_S, GateFile, admits
from agentrun.daemon.controller.gates import CLEAR_S, CLOSED_MOST_S, OPEN_LEAST_S, Shortage, move, shortage
from agentrun.daemon.controller.model import Call, Domain, Gate, Growth, Held, Memory, Snapshot
from agentrun.runtime import admission
from agentrun.service.policywatch import InForce

MIB = 1 << 20
LIMIT = 600 * MIB
HIGH, MIDDLE, LOW = (300, 100), (200, 100), (100, 100)
STILL = Growth(0, float("-inf"), 0, 10.0)
GROWS = Growth(0, 10.0, 0, 10.0, rate=20.0 * MIB)


def found(
    used: int, *calls: tuple[tuple[int, int], Growth, bool], is_closed: bool = False
) -> Shortage | None:
    """The shortage of a domain of 600 MB; calls are (rank, growth, frozen)."""
    inside = [Call(str(n), rank, 0.0, 0, ("d",)) for n, (rank, _, _) in enumerate(calls)]
    growth = {str(n): grown for n, (_, grown, _) in enumerate(calls)}
    held = {str(n): Held(frozen_at=9.0 if frozen else None) for n, (_, _, frozen) in enumerate(calls)}
    return shortage(Domain("d", LIMIT, used * MIB), inside, growth, held, 10.0, is_closed=is_closed)


def below(shortage_: Shortage | None) -> object:
    """Below which rank it is closed; `open` where it is not."""
    return "open" if shortage_ is None else shortage_.below


def test_closed_below_the_highest_that_grows_where_little_is_left():
    calls = [(HIGH, STILL, False), (MIDDLE, GROWS, False), (LOW, GROWS, False)]
    assert below(found(430, *calls)) == MIDDLE  # 170 of 600 left: less than 30 %
    assert below(found(400, *calls)) == "open"
    assert below(found(430, *[(rank, STILL, False) for rank, _, _ in calls])) == "open"


def test_closed_below_the_first_while_anybody_is_frozen():
    assert below(found(100, (HIGH, STILL, False), (LOW, STILL, True))) == HIGH


def test_closed_for_all_that_may_wait_where_hardly_anything_is_left():
    assert below(found(560, (LOW, STILL, False))) is None
    assert below(found(550, (LOW, STILL, False))) == "open"


def test_new_call_alone_closes_nothing():
    assert below(found(430, (HIGH, replace(GROWS, rate=0.0), False))) == "open"


def test_closed_gate_opens_only_with_clearly_more_left():
    grows = (HIGH, GROWS, False)
    assert [below(found(400, grows, is_closed=closed)) for closed in (False, True)] == ["open", HIGH]
    assert below(found(320, grows, is_closed=True)) == "open"


SHORT = Shortage(HIGH, "short")


def test_gate_closes_at_once_and_opens_when_it_was_clear_for_a_while():
    gate = move(Gate(), SHORT, 100.0)
    assert gate.is_closed and gate.below == HIGH
    assert move(gate, None, 100.0 + CLEAR_S / 2).is_closed
    opened = move(gate, None, 100.0 + CLEAR_S)
    assert not opened.is_closed
    assert not move(opened, SHORT, 100.0 + CLEAR_S + OPEN_LEAST_S / 2).is_closed
    assert move(opened, SHORT, 100.0 + CLEAR_S + OPEN_LEAST_S).is_closed


def test_closed_gate_only_ever_closes_for_more():
    gate = move(Gate(), Shortage(MIDDLE, ""), 100.0)
    gate = move(gate, Shortage(LOW, ""), 100.1)
    assert gate.below == MIDDLE
    gate = move(gate, Shortage(None, ""), 100.2)
    assert move(gate, Shortage(HIGH, ""), 100.3).below is None


def test_who_may_be_refused_is_refused_before_the_gate_opens_for_the_sake_of_it():
    assert ADMISSION_WAIT_MOST < CLOSED_MOST_S


RANKS = st.sampled_from([LOW, MIDDLE, HIGH, (100, 50)])
LOOKS = st.lists(
    st.tuples(
        st.sampled_from([0.004, 0.1, 0.25, 1.0]),
        st.none() | st.builds(Shortage, st.none() | RANKS, st.just("")),
    ),
    min_size=1,
    max_size=400,
)


@settings(max_examples=200, deadline=None)
@given(LOOKS)
def test_no_gate_is_closed_for_longer_than_its_bound_nor_flaps(looks):
    now, gate, changes = 0.0, Gate(), []
    for elapsed, short in looks:
        now += elapsed
        after = move(gate, short, now)
        if after.is_closed != gate.is_closed:
            changes.append((now, after.is_closed))
        gate = after
        assert not gate.is_closed or now - gate.changed_at < CLOSED_MOST_S
        assert gate.is_closed or short is None or now - gate.changed_at < OPEN_LEAST_S
    for (before, was_closed), (at, _) in zip(changes, changes[1:], strict=False):
        assert at - before >= (CLEAR_S if was_closed else OPEN_LEAST_S) - 1e-9


@st.composite
def stories(draw) -> list[Snapshot]:
    """Snapshots in a row of calls that come, go, grow and shrink as they like, in two nested domains."""
    ranks = draw(st.lists(RANKS, min_size=1, max_size=4))
    now, snapshots = 0.0, []
    for _ in range(draw(st.integers(1, 40))):
        now += draw(st.sampled_from([0.01, 0.1, 0.25, 1.0]))
        sizes = draw(st.lists(st.integers(0, 300), min_size=len(ranks), max_size=len(ranks)))
        calls = tuple(
            Call(f"c{n}", rank, float(n), size * MIB, ("pod", "host") if n % 2 else ("host",))
            for n, (rank, size) in enumerate(zip(ranks, sizes, strict=True))
            if size
        )
        domains = tuple(
            Domain(key, limit * MIB, sum(call.usage for call in calls if key in call.domains))
            for key, limit in (("pod", 500), ("host", 900))
        )
        snapshots.append(Snapshot(now, calls, domains, admits=True))
    return snapshots


@settings(max_examples=100, deadline=None)
@given(stories())
def test_calm_domains_are_open_and_the_first_waits_only_where_hardly_anything_is_left(story):
    memory = Memory()
    clear_since: dict[str, float] = {}
    scarce: dict[str, list[list[tuple[int, int]]]] = {}
    for snapshot in story:
        decision = decide(snapshot, memory)
        memory = decision.memory
        for domain in snapshot.domains:
            inside = [call for call in snapshot.calls if domain.key in call.domains]
            gate = memory.gates[domain.key]
            if domain.headroom < domain.limit * 0.9 or any(memory.held[c.key].frozen_at for c in inside):
                clear_since[domain.key] = snapshot.now
            elif snapshot.now - clear_since.get(domain.key, float("-inf")) >= CLEAR_S:
                assert not gate.is_closed or gate.changed_at == snapshot.now
            if not gate.is_closed:
                scarce[domain.key] = []
                continue
            scarce.setdefault(domain.key, []).append([call.rank for call in inside])
            seen = [rank for ranks in scarce[domain.key] for rank in ranks]
            assert gate.below is None or gate.below in seen  # only ever for the sake of one that is there
        assert decision.look_again_s is not None


@settings(max_examples=30, deadline=None)
@given(stories())
def test_gates_change_nothing_of_what_happens_to_calls(story):
    with_gates, without = Memory(), Memory()
    for snapshot in story:
        one, other = decide(snapshot, with_gates), decide(replace(snapshot, admits=False), without)
        assert one.actions == other.actions and other.memory.gates == {}
        with_gates, without = one.memory, other.memory


def test_gate_of_a_domain_that_nobody_lives_in_opens():
    closed = {"d": Gate(True, 1.0, 1.0, HIGH, "")}
    empty = Snapshot(1.2, admits=True)
    assert gates.judge(empty, {}, {}, closed)["d"].is_closed
    opened = gates.judge(replace(empty, now=2.0), {}, {}, closed)
    assert not opened["d"].is_closed  # and it is remembered for a while: no flapping by calls that are short
    assert gates.judge(replace(empty, now=4.0), {}, {}, opened) == {}


# The file.


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    Path(tmp_path / "run/agentrun").mkdir(parents=True, mode=0o700)
    Path(tmp_path / "var/lib/agentrun").mkdir(parents=True)
    (tmp_path / "var/log").mkdir()
    return Paths(str(tmp_path))


CLOSED = {"/c/pod": Gate(True, 1.0, 1.0, HIGH, "why"), "/c/other": Gate(changed_at=1.0)}


def test_file_is_there_only_while_a_gate_is_closed_and_is_what_execs_read(paths):
    file = GateFile(paths)
    file.publish({}, 100.0)
    assert not Path(paths.gate).exists()
    file.publish(CLOSED, 100.0)
    gate = json.loads(Path(paths.gate).read_text())
    assert Path(paths.gate).stat().st_mode & 0o777 == 0o600
    inside, outside = "/c/pod/docker-1.scope", "/c/pod2/docker-1.scope"
    closed = admission.closed(gate, inside, [100, 100], 100.1)
    assert closed is not None and (closed.domain, closed.why) == ("/c/pod", "why")
    assert admission.closed(gate, inside, [300, 100], 100.1) is None
    assert admission.closed(gate, outside, [100, 100], 100.1) is None
    assert admission.closed(gate, inside, [100, 100], 100.0 + VALID_S) is None
    file.publish({"/c/pod": Gate()}, 100.2)
    assert not Path(paths.gate).exists()


def test_file_is_written_anew_only_now_and_then(paths):
    file = GateFile(paths)
    file.publish(CLOSED, 100.0)
    first = Path(paths.gate).stat().st_ino, Path(paths.gate).stat().st_mtime_ns
    file.publish({**CLOSED, "/c/pod": replace(CLOSED["/c/pod"], why="less")}, 100.0 + REFRESH_S / 2)
    assert (Path(paths.gate).stat().st_ino, Path(paths.gate).stat().st_mtime_ns) == first
    file.publish(CLOSED, 100.0 + REFRESH_S)
    assert json.loads(Path(paths.gate).read_text())["until"] == 100.0 + REFRESH_S + VALID_S


def test_what_an_earlier_agentrund_left_is_removed(paths):
    Path(paths.gate).touch()
    GateFile(paths)
    assert not Path(paths.gate).exists()


def test_file_that_cannot_be_written_leaves_the_gate_open(paths):
    file = GateFile(paths)
    Path(paths.run).rename(paths.run + ".gone")
    file.publish(CLOSED, 100.0)
    assert "gate not written" in Path(paths.log).read_text()


@pytest.mark.parametrize(
    "domain, cgroup, level",
    [
        ("host", "/c/a", "host"),
        ("/c/a", "/c/a", "session"),
        ("/c/a/agentrun-calls", "/c/a", "session"),
        ("/c/x.scope", "/c/x.scope/container", "session"),
        ("/c", "/c/a", "above"),
        ("/c/x.slice", "/c/x.slice/container", "above"),
    ],
)
def test_level_says_whose_memory_is_short(domain, cgroup, level):
    assert admission.level_of(domain, cgroup) == level


def test_policy_is_read_anew_when_it_was_compiled_anew(paths):
    policy, compiled = InForce(paths, admits, False), Path(paths.compiled)
    assert not policy.says()
    for tiers, expected in (({"low": {"admission": {}}}, True), ({"low": {"priority": 1}}, False)):
        new = compiled.with_suffix(".new")
        new.write_text(json.dumps({"policy": {"tiers": tiers}}))
        new.rename(compiled)
        assert policy.says() is expected
    compiled.write_text("{")
    assert not policy.says()
