"""agentrun's CPU scheduler on a real kernel. Every figure has its control, EEVDF, in the same run.

Times in the VM are emulated: what is compared is a ratio within one test, the median of interleaved rounds.
Figures are printed; `-s` shows them. Loads and unloads schedulers often: run the VM with --tcg-thread single.
Those marked `counted` are of milliseconds and of a few percent, which only a guest's clock that counts
instructions can tell: --smp 1 --tcg-thread counted (with one CPU; see tests/vm/README.md).
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cpuload
import pytest
from runtimes import LOG, require, run, wait_for

from agentrun.base.paths import Paths
from agentrun.bpf import modules, pins
from agentrun.bpf import scheduler as scx

PATHS = Paths()
WINDOW_S = 6.0
KHUGEPAGED = Path("/sys/kernel/mm/transparent_hugepage/khugepaged/defrag")
CYCLES = int(os.environ.get("AGENTRUN_SCX_CYCLES", "20"))

pytestmark = pytest.mark.needs("bpf", "scx")


def missing() -> str | None:
    if not scx.is_supported():
        return "no sched_ext"
    return None if modules.object_path("scx") else "bpf/build/scx.bpf.o is not built"


@pytest.fixture(autouse=True)
def eevdf() -> Iterator[None]:
    """Before and after each test nothing of ours schedules."""
    require(missing())
    # khugepaged is nice 19: preempted in an RCU reader under full load it holds up every load for minutes
    KHUGEPAGED.write_text("0")
    take_out()
    yield
    take_out()


def take_out() -> None:
    """Back to EEVDF. The kernel gets to it a little after the link is gone, where CPUs are busy."""
    scx.unload(PATHS)
    wait_for(lambda: not scx.state().enabled, "EEVDF")


@contextlib.contextmanager
def scheduler(**knobs: int) -> Iterator[None]:
    """Ours, for as long as this lasts; it must not have been ejected at the end."""
    assert scx.load(PATHS, knobs)
    try:
        yield
        assert scx.state().ours, scx.last_exit()
    finally:
        take_out()


def compare(measure: Callable[[], float], rounds: int = 3) -> tuple[float, float]:
    """Medians of a measurement under EEVDF and under ours, interleaved."""
    before, ours = [], []
    for _ in range(rounds):
        before.append(measure())
        with scheduler():
            ours.append(measure())
    return statistics.median(before), statistics.median(ours)


def exit_kind() -> int:
    """How it ended, once it has."""
    ended = wait_for(lambda: (last := scx.last_exit()) and last.kind and last, "the scheduler's end", 90)
    wait_for(lambda: not scx.state().enabled, "EEVDF")
    return int(ended.kind)


def report(what: str, before: float, ours: float) -> None:
    print(f"\nFIGURE {what}: EEVDF {before:.2f}, agentrun {ours:.2f}, ratio {ours / before:.2f}")


def test_load_takes_every_task_over_and_unload_gives_them_back():
    assert scx.load(PATHS)
    assert scx.state().ours
    assert not scx.load(PATHS)
    assert (scx.last_exit() or pytest.fail("no exit map")).kind == scx.ExitKind.NONE
    assert Path("/proc/self/sched").exists()
    assert run("sh", "-c", "for i in 1 2 3; do /bin/true; done; echo fine").stdout == "fine\n"
    assert scx.unload(PATHS)
    assert not scx.state().enabled


@pytest.mark.figures
@pytest.mark.parametrize(("numbers", "cpus"), [((1, 1), [1]), ((1, 3), [1]), ((2, 2), []), ((4, 4), [])])
def test_share_follows_weight_however_many_tasks_a_call_has(numbers, cpus):
    with cpuload.tree("scx-share", {"a": 300, "b": 100}) as groups:

        def measure() -> float:
            return cpuload.share(groups["a"], groups["b"], numbers, WINDOW_S, cpus)

        before, ours = compare(measure, rounds=1)
    report(f"share at 300:100, {numbers[0]} against {numbers[1]} tasks", before, ours)
    assert ours == pytest.approx(3.0, rel=0.10)


@pytest.mark.figures
def test_share_of_nested_groups_is_that_of_their_parents():
    with (
        cpuload.tree("scx-outer", {"a": 100, "b": 100}) as groups,
        scheduler(),
    ):
        inner = []
        (groups["a"] / "cgroup.subtree_control").write_text("+cpu")
        for name in ("x", "y", "z"):
            inner.append(groups["a"] / name)
            inner[-1].mkdir()
        with cpuload.burners([*((each, 1) for each in inner), (groups["b"], 1)], [1]):
            used = cpuload.used_s([groups["a"], groups["b"]], WINDOW_S)
        for each in inner:
            cpuload.remove(each)
    assert used[0] / used[1] == pytest.approx(1.0, rel=0.15)


@pytest.mark.figures
def test_weight_changed_while_it_runs_takes_effect():
    with (
        cpuload.tree("scx-weight", {"a": 100, "b": 100}) as groups,
        scheduler(),
        cpuload.burners([(groups["a"], 1), (groups["b"], 1)], [1]),
    ):
        (groups["a"] / "cpu.weight").write_text("400")
        time.sleep(1)
        used = cpuload.used_s([groups["a"], groups["b"]], WINDOW_S)
    assert used[0] / used[1] == pytest.approx(4.0, rel=0.15)


@pytest.mark.figures
@pytest.mark.counted
def test_agent_wakes_at_least_twice_as_fast_under_load():
    with cpuload.tree("scx-wake", {"agentrun-agent": 100, "calls": 100}) as groups:

        def measure(*first: str) -> float:
            command = [*first, sys.executable, "-I", "-S", "-c", cpuload.SLEEPER, "300", "0.02"]
            with cpuload.burners([(groups["calls"], 8)]):
                process = cpuload.spawn(groups["agentrun-agent"], command)
                late = list(map(int, cpuload.output(process).split()))
            return cpuload.percentile(late, 99) / 1000

        # What the machine itself is late: nothing that is runnable comes before a real-time task.
        floor = statistics.median(measure("chrt", "-f", "50") for _ in range(3))
        before, ours = compare(measure, rounds=5)
    report("agent's wake-up latency P99 under 8 burners, ms", before, ours)
    print(f"FIGURE the same of a real-time task: {floor:.2f}")
    assert ours <= before / 2


@pytest.mark.figures
@pytest.mark.counted
@pytest.mark.parametrize(
    ("what", "code", "amount"),
    [("a CPU burn", cpuload.COUNT, 3_000_000), ("a fork and exec storm", cpuload.SPAWN, 1500)],
    ids=["burn", "storm"],
)
def test_throughput_without_contention_is_that_of_eevdf(what, code, amount):
    with cpuload.tree("scx-alone", {"a": 100}) as groups:

        def measure() -> float:
            return float(cpuload.output(cpuload.start(groups["a"], code, amount)))

        before, ours = compare(measure, rounds=5)
    report(f"{what} alone, s", before, ours)
    assert ours <= before * 1.03


@pytest.mark.figures
@pytest.mark.parametrize("cpus", [[0], [1], [0, 1]])
def test_pinned_tasks_get_their_share_beside_those_that_are_not(cpus):
    with (
        cpuload.tree("scx-pin", {"pinned": 100, "free": 100}) as groups,
        scheduler(),
        cpuload.burners([(groups["free"], 4)]),
        cpuload.burners([(groups["pinned"], 2)], cpus),
    ):
        used = cpuload.used_s([groups["pinned"], groups["free"]], WINDOW_S)
    assert used[0] / used[1] == pytest.approx(1.0, rel=0.2)


@pytest.mark.figures
def test_cpu_max_holds_for_one_and_for_many_tasks():
    for tasks in (1, 4):
        with cpuload.tree("scx-max", {"a": 100}) as groups, scheduler():
            (groups["a"] / "cpu.max").write_text("50000 100000")
            with cpuload.burners([(groups["a"], tasks)]):
                used = cpuload.used_s([groups["a"]], WINDOW_S)
        assert used[0] / WINDOW_S == pytest.approx(0.5, rel=0.15)


@pytest.mark.figures
def test_cpu_max_of_a_parent_holds_for_all_below_and_can_be_lifted():
    with cpuload.tree("scx-max", {"a": 100, "b": 100}) as groups, scheduler():
        (groups["a"].parent / "cpu.max").write_text("40000 100000")
        with cpuload.burners([(groups["a"], 1), (groups["b"], 1)]):
            used = cpuload.used_s(list(groups.values()), WINDOW_S)
            (groups["a"].parent / "cpu.max").write_text("max 100000")
            time.sleep(1)
            lifted = cpuload.used_s(list(groups.values()), WINDOW_S / 2)
    assert sum(used) / WINDOW_S == pytest.approx(0.4, rel=0.15)
    assert sum(lifted) / (WINDOW_S / 2) > 1.5


@pytest.mark.parametrize(("limit", "tasks"), [("1000 100000", 24), ("1000 1000000", 12)])
def test_tiny_cpu_max_with_many_tasks_does_not_eject_the_scheduler(limit, tasks):
    """A slice of one task costs the budget of up to 50 periods; the watchdog strikes after 30 to 45 s."""
    with (
        cpuload.tree("scx-tiny", {"a": 1}) as groups,
        scheduler(),
        cpuload.burners([(groups["a"], tasks)]) as pids,
    ):
        (groups["a"] / "cpu.max").write_text(limit)

        def ran_s() -> list[float]:
            return [float(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9 for pid in pids]

        before = ran_s()
        for _ in range(3):
            time.sleep(20)
            now = ran_s()
            assert all(late > early for late, early in zip(now, before, strict=True)), (before, now)
            before = now


def test_stalled_scheduler_is_ejected_reported_and_loaded_again():
    with cpuload.tree("scx-stall", {"lost": 100}) as groups:
        assert scx.load(PATHS, {"broken_group_id": groups["lost"].stat().st_ino})
        victim = cpuload.start(groups["lost"], cpuload.COUNT, 1000)
        assert exit_kind() == scx.ExitKind.ERROR_STALL
        assert float(cpuload.output(victim)) >= 0  # EEVDF ran it
    ended = scx.last_exit()
    assert ended is not None
    assert "failed to run" in ended.message
    assert scx.findings(PATHS)[0][0] == "problem"
    step, said, memory = scx.look(PATHS, 100.0, scx.Memory())
    assert step is scx.Step.REPORT and said is not None and "ejected" in said
    assert scx.look(PATHS, 100.5, memory) == (scx.Step.NOTHING, None, memory)
    assert scx.look(PATHS, 101.5, memory)[:2] == (scx.Step.REARM, None)
    assert scx.load(PATHS)  # over the dead pins
    assert scx.state().ours


def test_sysrq_takes_it_out_and_it_stays_out():
    assert scx.load(PATHS)
    Path("/proc/sysrq-trigger").write_text("S")
    assert exit_kind() == scx.ExitKind.SYSRQ
    assert scx.look(PATHS, 0.0, scx.Memory()) == (scx.Step.NOTHING, None, scx.Memory())
    assert scx.load(PATHS)  # by hand, over the dead pin


def test_removed_pin_gives_everything_back_at_once():
    assert scx.load(PATHS)
    (link,) = Path(pins.ROOT, "scx").glob("*/link_*")
    link.unlink()
    assert exit_kind() == scx.ExitKind.UNREG
    assert scx.load(PATHS)


def test_load_and_unload_cycles_leave_nothing():
    with cpuload.tree("scx-cycle", {"a": 100}) as groups, cpuload.burners([(groups["a"], 1)]):
        for _ in range(CYCLES):
            assert scx.load(PATHS)
            assert scx.unload(PATHS)
    assert not scx.state().enabled
    assert not Path(pins.ROOT, "scx").exists()


def test_storm_of_short_lived_cgroups_passes():
    with cpuload.tree("scx-storm", {"calls": 100, "agentrun-agent": 100}) as groups, scheduler():
        (groups["calls"] / "cgroup.subtree_control").write_text("+cpu")
        with cpuload.burners([(groups["agentrun-agent"], 1)]):
            for _ in range(10):
                calls = [groups["calls"] / f"call-{number}" for number in range(20)]
                for call in calls:
                    call.mkdir()
                processes = [cpuload.start(call, "sum(range(20000))") for call in calls]
                for process in processes:
                    cpuload.output(process)
                for call in calls:
                    cpuload.remove(call)


def test_container_runs_under_it():
    with scheduler():
        done = run("docker", "run", "--rm", "--cpus=1", "agentrun-test/busybox", "sh", "-c", "echo $((6*7))")
    assert done.stdout == "42\n"


def test_agentrund_has_an_ejected_scheduler_loaded_again():
    """A CPU that goes offline ends every scheduler that does not say what to do then."""
    second = Path("/sys/devices/system/cpu/cpu1/online")
    LOG.unlink(missing_ok=True)
    run("systemctl", "daemon-reload")
    run("systemctl", "start", "agentrun-scx", "agentrund")
    try:
        assert scx.state().ours
        time.sleep(3)
        second.write_text("0")
        wait_for(lambda: LOG.exists() and "scheduler ejected" in LOG.read_text(), "agentrund to notice")
        wait_for(lambda: "scheduler loaded again" in LOG.read_text(), "the load", 300)
        assert scx.state().ours
        assert LOG.read_text().count("scheduler ejected") == 1

        def shown() -> dict[str, str]:
            found = json.loads(run("agentrunctl", "doctor", "--json", check=False).stdout)
            return {f["what"]: f["text"] for f in found}

        wait_for(lambda: "ejected 1 times" in shown().get("agentrund: scheduler", ""), "doctor")
        assert "shares by cgroup" in shown()["CPU scheduler"]
        run("agentrunctl", "bpf", "unload", "scx")  # on purpose
        time.sleep(5)
        assert not scx.state().enabled
    finally:
        second.write_text("1")
        run("systemctl", "stop", "agentrund", "agentrun-scx")
        LOG.unlink(missing_ok=True)
