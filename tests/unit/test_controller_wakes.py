"""When the controller looks, what it remembers, and what it leaves behind; the cgroups are plain files."""

from __future__ import annotations

import errno
import json
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agentrun import calls, mrelease, release
from agentrun.cgroup import Cgroup
from agentrun.controller.controller import Controller
from agentrun.controller.model import Action
from agentrun.errors import CgroupError
from agentrun.paths import Paths

MIB = 1 << 20
LIMIT = 600 * MIB
HIGH, LOW = [300, 100], [100, 100]


class Loop:
    """Time that passes when the test says so; nothing becomes ready by itself."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.live: dict[tuple[str, str], Any] = {}
        self.planned: list[tuple[float, Callable[[], None]]] = []
        self.watched: dict[int, Callable[[int], None]] = {}

    def later(self, seconds: float, action: Callable[[], None]) -> None:
        self.planned.append((self.now + seconds, action))

    def watch(self, fd: int, events: int, handler: Callable[[int], None]) -> None:
        assert fd not in self.watched
        self.watched[fd] = handler

    def unwatch(self, fd: int) -> None:
        del self.watched[fd]

    def run(self, seconds: float) -> None:
        """Let time pass."""
        end = self.now + seconds
        while due := [entry for entry in self.planned if entry[0] <= end]:
            first = min(due, key=lambda entry: entry[0])
            self.planned.remove(first)
            self.now = max(self.now, first[0])
            first[1]()
        self.now = end


class Host:
    """A pod of 600 MB with a container for each call, on plain files."""

    def __init__(self, root: Path) -> None:
        self.paths = Paths(str(root), str(root / "cgroup"))
        self.pod = root / "cgroup/pod"
        for folder in ("var/log", "var/lib", "runc"):
            (root / folder).mkdir(parents=True)
        self.pod.mkdir(parents=True)
        self.write(self.pod, {"memory.max": LIMIT, "memory.stat": "inactive_file 0\nactive_file 0"})
        self.use(0)
        self.loop = Loop()
        self.controller = Controller(self.loop, self.paths, clock=lambda: self.loop.now)

    def write(self, folder: Path, content: dict[str, object]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for name, value in content.items():
            (folder / name).write_text(f"{value}\n")

    def use(self, mib: int) -> None:
        self.write(self.pod, {"memory.current": mib * MIB})

    def call(
        self,
        name: str,
        rank: list[int],
        mib: int = 1,
        populated: int = 1,
        call_id: str = "",
        **more: object,
    ) -> Path:
        """A call in a container of that name, known to agentrund."""
        parent = self.pod / name / "agentrun-calls"
        session = calls.open_calls(self.paths, f"{self.paths.root}/runc", name)
        assert session
        state = {"id": call_id or name, "container": name, "calls": str(parent), "rank": rank, "start": 1.0}
        state |= more
        slot = session.take_slot(state)
        session.close()
        self.write(parent, {"memory.max": "max", "memory.current": 0})
        self.set(parent / slot, mib, populated)
        self.write(parent / slot, {"cgroup.freeze": 0, "memory.high": "max", "memory.events": "high 0"})
        self.write(parent / slot, {"cpu.weight": 100, "cpu.stat": "usage_usec 0"})
        live = SimpleNamespace(where=session.where, slot=slot, state=state, cgroup=Cgroup(str(parent / slot)))
        self.loop.live[session.where, slot] = live
        self.controller.changed()
        return parent / slot

    def set(self, call: Path, mib: int, populated: int = 1) -> None:
        self.write(call, {"memory.current": mib * MIB, "cgroup.events": f"populated {populated}\nfrozen 0"})

    def state(self, name: str) -> dict[str, Any]:
        path = next(Path(self.paths.run).glob(f"sessions/*/{name}/call-0"))
        return json.loads(path.read_text())


@pytest.fixture
def host(tmp_path: Path):
    made = Host(tmp_path)
    yield made
    made.controller.close()
    assert made.loop.watched == {}


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
    del host.loop.live[next(key for key, call in host.loop.live.items() if call.cgroup.path == str(high))]
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
    session = calls.open_calls(host.paths, f"{host.paths.root}/runc", "box")
    assert session
    session.free_slot("call-0")  # recorded
    session.close()
    host.loop.live.clear()
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

    def kill(_: Cgroup) -> None:
        said.append(live.state.get("killed_by"))
        if fails:
            raise CgroupError("write cgroup file", str(call), OSError(errno.ENODEV, "No such device"))

    monkeypatch.setattr(mrelease, "kill", kill)
    host.controller._act((Action("kill", str(call), why="memory is short"),))
    assert said == ["controller"]
    assert live.state.get("killed_by") == host.state("low").get("killed_by")
    assert live.state.get("killed_by") == (None if fails else "controller")


def test_next_call_in_a_slot_inherits_nothing(host):
    _, low = contend(host)
    key = next(key for key, call in host.loop.live.items() if call.state["id"] == "low")
    del host.loop.live[key]
    session = calls.open_where(host.paths, key[0])
    assert session
    session.free_slot("call-0")
    session.close()
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

    monkeypatch.setattr("agentrun.controller.controller.decide", fail)
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


def boost(host: Host) -> tuple[Path, Path]:
    """A call that is new beside a build, while CPUs are short."""
    build = host.call("box", LOW)
    host.write(build.parent, {"cpu.pressure": "some avg10=40.00 avg60=9.00 avg300=1.00 total=12345"})
    host.loop.run(1)
    quick = host.call("box", LOW, call_id="quick", start=time.time())
    host.loop.run(0.05)
    return build, quick


def weight_of(call: Path) -> int:
    return int((call / "cpu.weight").read_text())


def burn(call: Path, seconds: float) -> None:
    (call / "cpu.stat").write_text(f"usage_usec {int(seconds * 1e6)}\nuser_usec 1\n")


def notes_of(host: Host, slot: str) -> list[tuple[str, int]]:
    path = next(Path(host.paths.run).glob(f"sessions/*/box/{slot}"))
    return [(e["what"], e["weight"]) for e in json.loads(path.read_text()).get("adapted", [])]


def test_new_call_beside_a_build_is_boosted_until_its_budget_is_burned(host):
    build, quick = boost(host)
    assert (weight_of(build), weight_of(quick)) == (100, 400)
    assert release.is_marked(host.paths)
    burn(quick, 0.9)
    host.loop.run(1)
    assert weight_of(quick) == 400
    burn(quick, 1.1)
    host.loop.run(0.3)
    assert weight_of(quick) == 100
    assert notes_of(host, "call-1") == [("boost", 400), ("unboost", 100)]
    assert notes_of(host, "call-0") == []


def test_boost_ends_with_its_time_and_nobody_looks_any_more(host, monkeypatch):
    _, quick = boost(host)
    later = time.time() + 11
    monkeypatch.setattr(host.controller._booster, "_wall", lambda: later)
    host.loop.run(0.3)
    assert weight_of(quick) == 100
    host.loop.run(1)
    assert len(host.loop.planned) == 1  # the peek at memory


def test_boost_of_a_call_that_has_ended_needs_no_end(host):
    """Its record may wait for its exit status."""
    _, quick = boost(host)
    burn(quick, 5)
    host.set(quick, 0, populated=0)
    host.loop.run(1)
    assert notes_of(host, "call-1") == [("boost", 400)]


def test_what_somebody_else_made_of_the_weight_stays(host):
    _, quick = boost(host)
    (quick / "cpu.weight").write_text("1\n")  # its first process ended, and the rest was demoted
    burn(quick, 5)
    host.loop.run(0.5)
    assert weight_of(quick) == 1 and notes_of(host, "call-1") == [("boost", 400)]


def test_boost_needs_that_calls_wait_for_cpus_now(host):
    build = host.call("box", LOW)
    quiet = "some avg10=0.00 avg60=0.00 avg300=0.00 total={}"
    host.write(build.parent, {"cpu.pressure": quiet.format(0)})
    host.loop.run(1)
    quick = host.call("box", LOW, start=time.time())
    host.loop.run(0.5)
    assert weight_of(quick) == 100
    # The kernel's average is seconds behind; what is counted is not.
    host.write(build.parent, {"cpu.pressure": quiet.format(200_000)})
    host.loop.run(0.3)
    assert weight_of(quick) == 400


def test_boost_is_not_for_classes_that_do_not_want_it_nor_without_a_cpu_controller(host):
    build, _ = boost(host)
    unwilling = host.call("box", LOW, start=time.time(), care={"boost": False})
    without = host.call("box", LOW, start=time.time())
    (without / "cpu.weight").unlink()
    host.loop.run(0.5)
    assert weight_of(unwilling) == weight_of(build) == 100
    assert not (without / "cpu.weight").exists() and not Path(host.paths.log).exists()


def test_boosts_end_when_agentrund_stops_and_are_undone_after_a_crash(host):
    build, quick = boost(host)
    demoted = host.call("box", LOW, background={"action": "demote"})
    (demoted / "cpu.weight").write_text("1\n")
    planned = host.call("box", LOW, limits={"cpu_weight": 150})
    (planned / "cpu.weight").write_text("600\n")
    release.release_all(host.paths)  # what ExecStopPost and the next exec do
    assert [weight_of(call) for call in (build, quick, demoted, planned)] == [100, 100, 1, 150]
    (quick / "cpu.weight").write_text("400\n")
    host.controller.close()
    assert weight_of(quick) == 100
    host.loop.run(1)
    assert weight_of(quick) == 100


def test_next_call_in_a_boosted_slot_begins_anew(host):
    _, quick = boost(host)
    burn(quick, 2)
    host.loop.run(0.3)
    key = next(key for key, call in host.loop.live.items() if call.state["id"] == "quick")
    del host.loop.live[key]
    session = calls.open_where(host.paths, key[0])
    assert session
    session.free_slot("call-1")
    session.close()
    host.loop.run(3)  # what the last look said of the wait for CPUs is old
    again = host.call("box", LOW, call_id="again", start=time.time())
    host.loop.run(0.05)
    assert again == quick and weight_of(again) == 400
