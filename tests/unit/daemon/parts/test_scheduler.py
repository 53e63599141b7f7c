"""What agentrund does about an ejected scheduler. The kernel's part is played; the load is a process."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from agentrun.base.paths import Paths
from agentrun.bpf import modules, scheduler
from agentrun.bpf.scheduler import ExitKind
from agentrun.daemon.parts import scheduler as schedulerkeeper
from agentrun.daemon.parts.scheduler import SchedulerKeeper
from agentrun.service.loop import Loop

EJECTED = scheduler.Exit(ExitKind.ERROR_STALL, 0, 1, "runnable task stall", "sh failed to run")


class Kernel:
    """What agentrund sees of the scheduler."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ended: scheduler.Exit | None = EJECTED
        self.marker = folder / "loaded"
        monkeypatch.setattr(modules, "loaded_version", lambda _: "v1")
        monkeypatch.setattr(scheduler, "last_exit", lambda: self.ended)
        monkeypatch.setattr(scheduler, "state", lambda: scheduler.State(self.marker.exists(), "agentrun"))
        self.load_by(monkeypatch, f"touch {self.marker}")

    def load_by(self, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
        monkeypatch.setattr(schedulerkeeper, "load_command", lambda: ["sh", "-c", script])


@pytest.fixture
def kernel(tmp_path, monkeypatch) -> Kernel:
    monkeypatch.setattr(schedulerkeeper, "_LOOK_S", 0.05)
    return Kernel(tmp_path, monkeypatch)


@pytest.fixture
def paths(tmp_path) -> Paths:
    for folder in ("etc/agentrun", "var/log", "run"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "etc/agentrun/config.toml").write_text('version = 1\nbackends = ["/bin/true"]\n')
    return Paths(str(tmp_path))


def turn_until(loop: Loop, condition: Callable[[], object], timeout_s: float = 10) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        loop.turn()


def log_of(paths: Paths) -> str:
    return Path(paths.log).read_text() if os.path.exists(paths.log) else ""


def test_ejection_is_said_once_and_the_scheduler_is_loaded_again(kernel, paths):
    loop = Loop()
    keeper = SchedulerKeeper(loop, paths)
    keeper.start()
    assert keeper.status()["ejections"] == 1 and 0 < keeper.status()["next_s"] <= 1
    turn_until(loop, lambda: "loaded again" in log_of(paths))
    end = time.monotonic() + 0.3
    turn_until(loop, lambda: time.monotonic() > end)
    assert log_of(paths).count("scheduler ejected: runnable task stall: sh failed to run") == 1
    assert log_of(paths).count("loaded again") == 1
    assert keeper.status()["next_s"] is None


def test_load_that_fails_is_said_and_tried_again_later(kernel, paths, monkeypatch):
    kernel.load_by(monkeypatch, "echo no room >&2; exit 3")
    loop = Loop()
    keeper = SchedulerKeeper(loop, paths)
    keeper.start()
    turn_until(loop, lambda: "not loaded again: no room" in log_of(paths))
    turn_until(loop, lambda: keeper.status()["next_s"] is not None)
    assert keeper.status()["next_s"] > 1  # longer than the first time
    kernel.load_by(monkeypatch, f"touch {kernel.marker}")
    turn_until(loop, lambda: "scheduler loaded again" in log_of(paths))
    assert keeper.status()["ejections"] == 1


def test_scheduler_that_was_unloaded_after_a_load_that_failed_stays_out(kernel, paths, monkeypatch):
    kernel.load_by(monkeypatch, "echo no room >&2; exit 3")
    loop = Loop()
    keeper = SchedulerKeeper(loop, paths)
    keeper.start()
    turn_until(loop, lambda: "not loaded again: no room" in log_of(paths))
    monkeypatch.setattr(modules, "loaded_version", lambda _: None)  # that load removed the dead pins
    turn_until(loop, lambda: keeper.status()["next_s"] is not None)
    monkeypatch.setattr(modules, "unload", lambda *_: False)
    assert not scheduler.unload(paths)
    turn_until(loop, lambda: keeper.status()["next_s"] is None)
    kernel.load_by(monkeypatch, f"touch {kernel.marker}")
    end = time.monotonic() + 3
    turn_until(loop, lambda: time.monotonic() > end)
    assert not kernel.marker.exists()


def test_loop_turns_while_the_scheduler_is_loaded(kernel, paths, monkeypatch):
    kernel.load_by(monkeypatch, "sleep 1000")
    loop = Loop()
    keeper = SchedulerKeeper(loop, paths)
    keeper.start()
    turn_until(loop, lambda: keeper._loading is not None)
    turns = [0]

    def tick() -> None:
        turns[0] += 1
        loop.later(0.02, tick)

    tick()
    turn_until(loop, lambda: turns[0] > 10, timeout_s=5)
    keeper.close()


@pytest.mark.parametrize("enforcement", ["cgroup", "none"])
def test_nothing_is_loaded_where_the_configuration_wants_no_ebpf(kernel, paths, enforcement):
    file = Path(paths.config)
    file.write_text(file.read_text() + f'enforcement = "{enforcement}"\n')
    loop = Loop()
    keeper = SchedulerKeeper(loop, paths)
    keeper.start()
    turn_until(loop, lambda: (keeper.status()["next_s"] or 0) > 100)
    assert not kernel.marker.exists() and log_of(paths).count("ejected") == 1


@pytest.mark.parametrize("kind", [ExitKind.NONE, ExitKind.UNREG, ExitKind.SYSRQ])
def test_what_runs_or_was_taken_out_on_purpose_is_left_alone(kernel, paths, kind):
    kernel.ended = scheduler.Exit(kind, 0, 0, "", "")
    keeper = SchedulerKeeper(Loop(), paths)
    keeper.start()
    assert keeper.status() == {"ejections": 0, "last": None, "next_s": None}
    assert log_of(paths) == ""
