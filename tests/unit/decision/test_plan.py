"""From an intent to limits: never above a ceiling, never below what a runtime needs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrun.base.limits import CPU_FLOOR, MEMORY_FLOOR, PIDS_FLOOR, Limits
from agentrun.decision.intent import Intent
from agentrun.decision.plan import choose_class, make_plan

MIB, GIB = 1 << 20, 1 << 30
HOST = Limits(16 * GIB, 8.0)


def asked(memory: int | None = None, cpu: float | None = None, pids: int | None = None, **others) -> Intent:
    intent = Intent()
    intent.memory, intent.cpu, intent.pids = memory, cpu, pids
    for name, value in others.items():
        setattr(intent, name, value)
    return intent


def policy(klass=None, tier=None):
    return {"classes": {"c": klass or {}}, "tiers": {"t": tier or {}}, "default_class": "c"}


def plan_for(klass=None, tier=None, session=None, intent=None):
    return make_plan(policy(klass, tier), "c", "t", session or Limits(), HOST, intent or asked())


def test_without_intent_only_the_class_counts():
    plan = plan_for({"pids": {"max": 500}}, session=Limits(GIB))
    assert plan.limits() == {"memory": None, "cpu": None, "pids": 500}


def test_no_intent_asks_for_more_processes_than_the_kernel_takes():
    """The kernel refuses more (kernel/cgroup/pids.c), and the call would have no limits at all."""
    assert plan_for(intent=asked(pids=5_000_000)).pids == 1 << 22


def test_default_holds_until_more_is_asked_up_to_max():
    klass = {"memory": {"default": GIB, "max": 4 * GIB}}
    assert plan_for(klass).memory == GIB
    assert plan_for(klass, intent=asked(2 * GIB)).memory == 2 * GIB
    assert plan_for(klass, intent=asked(9 * GIB)).memory == 4 * GIB


def test_shares_are_of_the_session_or_the_host():
    session = Limits(GIB, 4.0)
    assert plan_for({"memory": {"max": [50, "session"]}}, session=session).memory == GIB // 2
    assert (
        plan_for({"memory": {"max": [50, "session"]}}).memory == 8 * GIB
    )  # an unlimited session is the host
    assert plan_for({"memory": {"max": [5, "host"]}}, session=session).memory == 16 * GIB // 20
    assert plan_for({"cpu": {"max": [50, "session"]}}, session=session).cpus == 2.0


def test_high_is_a_share_of_what_was_granted():
    plan = plan_for({"memory": {"max": 4 * GIB, "high": [90, "max"]}}, intent=asked(GIB))
    assert plan.memory_high == GIB * 90 // 100
    assert plan_for({"memory": {"max": GIB, "high": 2 * GIB}}).memory_high == GIB


def test_intent_inside_the_ceilings_is_taken():
    plan = plan_for(session=Limits(GIB, 4.0), intent=asked(512 * MIB, 1.5, 99))
    assert plan.files() == [
        ("memory", "memory.oom.group", "1"),
        ("memory", "memory.max", str(512 * MIB)),
        ("pids", "pids.max", "99"),
        ("cpu", "cpu.max", "150000 100000"),
    ]


def test_each_cut_says_who_made_it():
    tier = {"memory": {"max": 2 * GIB}, "cpu": {"max": 3}, "time": {"hard": 60.0}}
    plan = plan_for({"pids": {"max": 100}}, tier, Limits(GIB, 2.0), asked(4 * GIB, 64.0, 5000, time=3600.0))
    assert plan.limits() == {"memory": GIB, "cpu": 2.0, "pids": 100, "time_hard": 60.0}
    assert plan.reasons == [
        "memory: 4G asked by the intent",
        "memory: cut to 2G by the tier",
        "memory: cut to 1G by the session",
        "cpu: 64 asked by the intent",
        "cpu: cut to 3 by the tier",
        "cpu: cut to 2 by the session",
        "pids: 5000 asked by the intent",
        "pids: cut to 100 by the class c",
        "time: 3600s asked by the intent",
        "time: cut to 60s by the tier",
    ]


def test_tiny_wishes_are_raised_to_what_a_runtime_needs():
    plan = plan_for(intent=asked(1, 0.001, 1))
    assert plan.limits() == {"memory": MEMORY_FLOOR, "cpu": CPU_FLOOR, "pids": PIDS_FLOOR}


def test_floor_never_lifts_a_call_above_its_session():
    assert plan_for({"memory": {"max": MIB}}, session=Limits(16 * MIB)).memory == 16 * MIB


def test_priority_moves_the_weights_and_an_intent_only_lowers_it():
    klass = {"cpu": {"weight": 80}, "io": {"weight": 10}, "priority": "normal"}
    plan = plan_for(klass, intent=asked(priority="low"))
    assert (plan.cpu_weight, plan.io_weight, plan.priority) == (40, 5, "low")
    intent = asked(priority="high")
    assert plan_for(klass, intent=intent).cpu_weight == 80
    assert intent.refused == [("priority=high", "class c has priority normal at most")]


def test_network_can_be_given_up_not_chosen():
    assert plan_for({"network": "lan"}, intent=asked(net="none")).net == "none"
    intent = asked(net="internet")
    assert plan_for({"network": "lan"}, intent=intent).net == "lan"
    assert intent.refused


@pytest.mark.parametrize(
    ("name", "tier", "expected"),
    [
        ("big", {}, "big"),
        ("big", {"classes": ["c"]}, "c"),
        ("locked", {}, "c"),
        ("nowhere", {}, "c"),
        (None, {}, "c"),
    ],
)
def test_intent_chooses_only_classes_that_are_open_to_it(name, tier, expected):
    compiled = {"classes": {"c": {}, "big": {}, "locked": {"selectable": False}}, "default_class": "c"}
    intent = asked(class_name=name)
    assert choose_class(compiled, None, tier, intent)[0] == expected
    assert bool(intent.refused) == (name is not None and expected != name)


amounts = st.none() | st.integers(1, 1 << 62)
sizes = (
    st.none()
    | st.integers(MEMORY_FLOOR, 1 << 50)
    | st.tuples(st.floats(1, 100), st.sampled_from(["session", "host"]))
)
cpus = st.none() | st.floats(0.1, 1e4) | st.tuples(st.floats(1, 100), st.sampled_from(["session", "host"]))


def table(**values):
    return {name: value for name, value in values.items() if value is not None}


classes = st.builds(
    lambda default, maximum, high, low, cpu, pids: {
        "memory": table(default=default, max=maximum, high=high, low=low),
        "cpu": table(max=cpu),
        "pids": table(max=pids),
    },
    *(sizes, sizes, sizes, sizes, cpus, st.none() | st.integers(PIDS_FLOOR, 1 << 22)),
)
tiers = st.builds(
    lambda memory, cpu, pids: {"memory": table(max=memory), "cpu": table(max=cpu), "pids": table(max=pids)},
    *(sizes, cpus, st.none() | st.integers(PIDS_FLOOR, 1 << 22)),
)
sessions = st.builds(
    Limits,
    st.none() | st.integers(MIB, 1 << 50),
    st.none() | st.floats(0.01, 1e4),
    st.none() | st.integers(1, 1 << 22),
)


def ceiling_of(value, session, host):
    if isinstance(value, tuple):
        whole = session if value[1] == "session" and session is not None else host
        return None if whole is None else whole * value[0] / 100
    return value


@given(st.builds(asked, amounts, st.none() | st.floats(0.001, 1e6), amounts), sessions, classes, tiers)
def test_no_intent_gets_above_a_ceiling(intent, session, klass, tier):
    plan = plan_for(klass, tier, session, intent)
    checks = (
        ("memory", plan.memory, session.memory, HOST.memory, MEMORY_FLOOR),
        ("cpu", plan.cpus, session.cpus, HOST.cpus, CPU_FLOOR),
        ("pids", plan.pids, session.pids, HOST.pids, PIDS_FLOOR),
    )
    for name, value, of_session, of_host, floor in checks:
        around = [c for c in (of_session, of_host) if c is not None]
        inner = [ceiling_of(part.get(name, {}).get("max"), of_session, of_host) for part in (klass, tier)]
        limits = [c for c in inner if c is not None]
        if value is None:
            assert not limits
            continue
        assert all(value <= c for c in around)
        assert all(value <= max(c, floor) for c in limits)
        assert value >= min([floor, *around]) - 1
    for part in (plan.memory_high, plan.memory_low, plan.memory_min):
        assert part is None or plan.memory is None or part <= plan.memory


def test_ceilings_are_the_most_that_an_intent_could_get():
    klass = {"memory": {"default": MIB * 64, "max": GIB}, "cpu": {"max": 2.0}, "time": {"hard": 60}}
    plan = plan_for(klass, session=Limits(512 * MIB, 4.0))
    assert plan.ceilings == {
        "memory": 512 * MIB,
        "cpu": 2.0,
        "pids": None,
        "time": 60,
        "session_memory": 512 * MIB,
    }
    best = plan_for(klass, session=Limits(512 * MIB, 4.0), intent=asked(1 << 62, 64.0, time=3600))
    assert (best.memory, best.cpus, best.time_hard) == (512 * MIB, 2.0, 60)


@given(
    asked_for=st.integers(1, 1 << 40),
    by_class=st.none() | st.integers(1, 1 << 40),
    by_tier=st.none() | st.integers(1, 1 << 40),
    of_session=st.none() | st.integers(1, 1 << 40),
)
def test_nothing_granted_exceeds_the_ceiling_but_for_the_floor(asked_for, by_class, by_tier, of_session):
    klass = {"memory": {} if by_class is None else {"max": by_class}}
    tier = {"memory": {} if by_tier is None else {"max": by_tier}}
    plan = plan_for(klass, tier, Limits(of_session), asked(asked_for))
    ceiling = plan.ceilings["memory"]
    assert plan.memory is not None and ceiling is not None
    assert plan.memory <= max(ceiling, MEMORY_FLOOR)


def test_kernels_order_of_victims_is_the_tiers():
    assert plan_for().oom_score_adj == 500
    assert plan_for(tier={"oom-score-adj": 0}).oom_score_adj == 0


def test_call_waits_only_where_its_tier_says_so_and_its_class_does_not_exempt_it():
    assert plan_for().admission is None
    defaults = plan_for(tier={"admission": {}})
    assert defaults.admission == {"wait": 10.0, "then": "start"}
    assert defaults.reasons[-1] == (
        "admission: waits up to 10s while memory is short, then starts all the same"
    )
    strict = {"admission": {"wait": 2.5, "then": "refuse"}}
    assert plan_for(tier=strict).admission == {"wait": 2.5, "then": "refuse"}
    assert plan_for({"may-wait": False}, tier=strict).admission is None
    assert plan_for(tier={"admission": {"wait": 999.0}}).admission == {"wait": 20.0, "then": "start"}
    without = {**policy(tier=strict), "adapt": "off"}
    assert make_plan(without, "c", "t", Limits(), HOST, asked()).admission is None
