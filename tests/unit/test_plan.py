"""From an intent to limits: never above a ceiling, never below what a runtime needs."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agentrun.config import Defaults
from agentrun.intent import Intent
from agentrun.plan import CPU_FLOOR, MEMORY_FLOOR, PIDS_FLOOR, Session, make_plan

MIB, GIB = 1 << 20, 1 << 30
HOST = Session(16 * GIB, 8.0)


def asked(memory: int | None = None, cpu: float | None = None, pids: int | None = None) -> Intent:
    intent = Intent()
    intent.memory, intent.cpu, intent.pids = memory, cpu, pids
    return intent


def test_without_intent_only_the_class_counts():
    plan = make_plan(Defaults(None, 500), Session(GIB), HOST, asked())
    assert plan.limits() == {"memory": None, "cpu": None, "pids": 500}


def test_share_of_the_container_is_the_ceiling_and_the_default():
    plan = make_plan(Defaults(50.0), Session(GIB), HOST, asked())
    assert plan.memory == GIB // 2
    plan = make_plan(Defaults(50.0), Session(GIB), HOST, asked(memory=900 * MIB))
    assert plan.memory == GIB // 2


def test_intent_inside_the_ceilings_is_taken():
    plan = make_plan(Defaults(), Session(GIB, 4.0), HOST, asked(512 * MIB, 1.5, 99))
    assert plan.files() == [
        ("memory", "memory.oom.group", "1"),
        ("memory", "memory.max", str(512 * MIB)),
        ("pids", "pids.max", "99"),
        ("cpu", "cpu.max", "150000 100000"),
    ]


def test_each_cut_says_who_made_it():
    plan = make_plan(Defaults(None, 100), Session(GIB, 2.0), HOST, asked(4 * GIB, 64.0, 5000))
    assert plan.limits() == {"memory": GIB, "cpu": 2.0, "pids": 100}
    assert f"memory: cut to {GIB} by the session" in plan.reasons
    assert "pids: cut to 100 by the class" in plan.reasons


def test_tiny_wishes_are_raised_to_what_a_runtime_needs():
    plan = make_plan(Defaults(), Session(), HOST, asked(1, 0.001, 1))
    assert plan.limits() == {"memory": MEMORY_FLOOR, "cpu": CPU_FLOOR, "pids": PIDS_FLOOR}


amounts = st.none() | st.integers(1, 1 << 62)


@given(
    st.builds(asked, amounts, st.none() | st.floats(0.001, 1e6), amounts),
    st.builds(
        Session, st.none() | st.integers(MEMORY_FLOOR, 1 << 50), st.none() | st.floats(0.1, 1e4), amounts
    ),
    st.builds(Defaults, st.none() | st.floats(1, 100), st.integers(PIDS_FLOOR, 1 << 22)),
)
def test_no_intent_gets_above_a_ceiling(intent, session, defaults):
    plan = make_plan(defaults, session, HOST, intent)
    if plan.memory is not None:
        ceilings = [c for c in (session.memory, HOST.memory) if c is not None]
        if session.memory and defaults.memory_percent:
            ceilings.append(int(session.memory * defaults.memory_percent / 100))
        assert MEMORY_FLOOR <= plan.memory <= max(min(ceilings), MEMORY_FLOOR)
    if plan.cpus is not None:
        assert plan.cpus <= min(c for c in (session.cpus, HOST.cpus) if c is not None)
    assert plan.pids is not None
    ceiling = min(c for c in (session.pids, defaults.pids_max) if c is not None)
    assert PIDS_FLOOR <= plan.pids <= max(ceiling, PIDS_FLOOR)
