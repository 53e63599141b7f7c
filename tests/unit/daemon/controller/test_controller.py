"""When the controller looks, what it remembers, and what it leaves behind."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
from controllerhost import HIGH, LOW, MIB, Host

from agentrun.base.errors import CgroupError
from agentrun.calls import release
from agentrun.cgroups.cgroup import Cgroup
from agentrun.daemon.controller.model import Action
from agentrun.kernel import killing


def freeze_of(call: Path) -> str:
    return (call / "cgroup.freeze").read_text()[0]


def contend(host: Host) -> tuple[Path, Path]:
    """HIGH grows while little is left: LOW is frozen."""
    high, low = host.call("high", HIGH), host.call("low", LOW)
    host.loop.run(0.1)
    for mib in (100, 150, 200, 230):
        host.set(high, mib)
        host.set(low, 230)
        host.use(mib + 231)
        host.loop.run(0.3)
    return high, low


def test_one_call_alone_plans_no_look(host):
    host.call("high", HIGH)
    host.loop.run(1)
    assert host.loop.planned == []


def test_calls_that_share_a_limit_are_peeked_at_a_few_times_a_second(host):
    host.call("high", HIGH)
    host.call("low", LOW)
    host.loop.run(10)
    looks = []
    for _ in range(8):
        assert len(host.loop.planned) == 1
        looks.append(host.loop.planned[0][0])
        host.loop.run(0.25)
    assert looks[-1] - looks[0] == pytest.approx(7 * 0.25, abs=0.3)


def test_call_that_comes_when_a_peek_is_overdue_is_not_missed(host):
    """agentrund was busy: the peek's time has passed, and it has not run yet."""
    host.call("high", HIGH)
    host.call("low", LOW)
    host.loop.run(10)
    host.loop.now += 0.3
    third = host.call("third", LOW)
    assert str(third) not in host.controller.memory.growth
    host.loop.run(0.01)
    assert str(third) in host.controller.memory.growth


def test_kernel_that_tells_of_pressure_is_heard_at_once(host, monkeypatch):
    host.call("high", HIGH)
    host.call("low", LOW)
    host.loop.run(0.1)
    looks = []
    monkeypatch.setattr(host.controller, "step", lambda: looks.append(host.loop.now))
    host.controller.pressed()
    host.loop.run(0.005)
    assert len(looks) == 1


def test_low_is_frozen_noted_and_thawed_when_high_is_gone(host):
    high, low = contend(host)
    assert (freeze_of(high), freeze_of(low)) == ("0", "1")
    assert release.is_marked(host.paths)
    entry = host.state("low")["adapted"][0]
    assert entry["what"] == "freeze" and "a call of higher priority grows" in entry["why"]
    assert "adapted" not in host.state("high")
    host.set(high, 0, populated=0)
    host.use(231)
    host.loop.run(1)
    assert freeze_of(low) == "0"
    assert [e["what"] for e in host.state("low")["adapted"]] == ["freeze", "thaw"]


def test_last_call_is_thawed_though_it_was_frozen_just_before_all_others_ended(host):
    high, low = host.call("high", HIGH), host.call("low", LOW)
    host.loop.run(1)
    for mib in range(100, 300, 10):
        host.set(high, mib)
        host.set(low, 230)
        host.use(mib + 231)
        host.loop.run(0.05)
        if freeze_of(low) == "1":
            break
    assert freeze_of(low) == "1"
    host.set(high, 0, populated=0)
    host.over(high)
    host.controller.changed()
    host.loop.run(1)
    assert freeze_of(low) == "0"


def test_close_lets_everything_run_as_planned(host):
    _, low = contend(host)
    (low / "memory.high").write_text(f"{5 * MIB}\n")
    host.controller.close()
    assert freeze_of(low) == "0" and (low / "memory.high").read_text().startswith("max")
    assert not release.is_marked(host.paths)
    host.controller.changed()
    host.loop.run(1)  # and nothing is done any more
    assert freeze_of(low) == "0"


def test_reserve_of_the_agent_stays_between_calls_and_goes_with_agentrund(host):
    """What a call leaves in a tmpfs may be above the bound: to set that again would be too late."""
    call = host.call("box", LOW)
    container, parent = call.parents[1], call.parent
    host.write(container, {"memory.max": 400 * MIB})
    host.write(container / "agentrun-agent", {"memory.min": 0, "memory.low": 100 * MIB})
    host.controller.changed()
    host.loop.run(2)
    assert int((parent / "memory.max").read_text()) == 300 * MIB
    host.over(call)
    host.controller.changed()
    host.loop.run(2)
    assert int((parent / "memory.max").read_text()) == 300 * MIB
    host.controller.close()  # or, after a crash, `agentrunctl thaw`
    assert (parent / "memory.max").read_text().startswith("max")  # a file here is not truncated


def test_call_that_cannot_be_released_keeps_nobody_else_frozen(host, monkeypatch):
    """The kernel takes no weight of a cgroup with `cpu.idle` (sched_group_set_shares, EINVAL)."""
    (_, low), idle = contend(host), host.call("idle", LOW)
    for call in (low, idle):
        host.write(call, {"cgroup.freeze": 1, "cpu.weight": 0})
    write = Cgroup.write

    def refuse(cgroup: Cgroup, name: str, value: str) -> None:
        if name == "cpu.weight":
            raise CgroupError("write cgroup file", cgroup.path, OSError(errno.EINVAL, "Invalid argument"))
        write(cgroup, name, value)

    monkeypatch.setattr(Cgroup, "write", refuse)
    host.controller.close()
    assert (freeze_of(low), freeze_of(idle)) == ("0", "0") and not release.is_marked(host.paths)
    log = Path(host.paths.log).read_text().splitlines()
    assert [json.loads(line)["msg"] for line in log] == ["call not released"] * 2


@pytest.mark.parametrize("fails", [False, True])
def test_call_says_who_killed_it_before_it_is_dead(host, monkeypatch, fails):
    call = host.call("low", LOW)
    (live,) = host.loop.live.values()
    host.loop.run(1)
    said: list[object] = []

    def kill(_: Cgroup, *, needed: bool) -> None:
        assert needed
        said.append(live.state.get("killed_by"))
        if fails:
            raise CgroupError("write cgroup file", str(call), OSError(errno.ENODEV, "No such device"))

    monkeypatch.setattr(killing, "kill", kill)
    host.controller._act((Action("kill", str(call), why="memory is short"),))
    assert said == ["controller"]
    assert live.state.get("killed_by") == host.state("low").get("killed_by")
    assert live.state.get("killed_by") == (None if fails else "controller")


def test_next_call_in_a_slot_inherits_nothing(host):
    _, low = contend(host)
    host.over(low)
    again = host.call("low", LOW, mib=1, call_id="again")
    assert again == low and freeze_of(low) == "0"
    host.use(232)
    host.loop.run(0.05)
    held = host.controller.memory.held[str(again)]
    assert held.frozen_at is None and held.changed_at == float("-inf")


def test_call_whose_process_comes_later_is_not_missed(host):
    host.call("high", HIGH)
    low = host.call("low", LOW, populated=0)
    host.loop.run(2)
    assert str(low) not in host.controller.memory.held
    host.set(low, 1)
    host.loop.run(0.3)
    assert str(low) in host.controller.memory.held


def test_failure_ends_the_adaptation_and_nothing_else(host, monkeypatch):
    _, low = contend(host)

    def fail(*_: object) -> None:
        raise RuntimeError("out of ideas")

    monkeypatch.setattr("agentrun.daemon.controller.controller.decide", fail)
    host.controller.changed()
    host.loop.run(0.1)
    assert freeze_of(low) == "0"
    assert "out of ideas" in Path(host.paths.log).read_text()


def admit(host: Host) -> None:
    """A policy that lets calls of the low tier wait before they start."""
    text = json.dumps({"policy": {"tiers": {"low": {"admission": {}}}}})
    Path(host.paths.compiled).parent.mkdir(parents=True, exist_ok=True)
    Path(host.paths.compiled).write_text(text)


def test_gate_is_closed_while_a_single_call_squeezes_its_pod_and_opened_after(host):
    admit(host)
    gate = Path(host.paths.gate)
    high = host.call("high", HIGH)
    host.loop.run(0.5)
    assert not gate.exists()
    for mib in (300, 380, 450):
        host.set(high, mib)
        host.use(mib)
        host.loop.run(0.3)
    shown = json.loads(gate.read_text())
    assert [(e["domain"], e["below"]) for e in shown["closed"]] == [(str(host.pod), HIGH)]
    assert host.loop.now < shown["until"] <= host.loop.now + 3
    host.loop.run(2)  # it grows no more
    assert not gate.exists()


def test_without_admission_in_the_policy_there_is_no_gate(host):
    high = host.call("high", HIGH)
    host.call("low", LOW)
    for mib in (300, 450, 580):
        host.set(high, mib)
        host.use(mib)
        host.loop.run(0.3)
    assert not Path(host.paths.gate).exists()


def test_gate_is_opened_when_agentrund_stops(host):
    admit(host)
    high = host.call("high", HIGH)
    host.set(high, 590)
    host.use(590)
    host.loop.run(0.5)
    assert Path(host.paths.gate).exists()
    host.controller.close()
    assert not Path(host.paths.gate).exists()
