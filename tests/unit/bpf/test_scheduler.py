"""When an ejected scheduler is loaded again, and what the kernel's words about it are."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from agentrun.base.errors import BpfError
from agentrun.bpf import elf, scheduler
from agentrun.bpf.scheduler import ExitKind, Memory

BPF = Path(__file__).parents[3] / "bpf"
STALL = ExitKind.ERROR_STALL


@pytest.mark.parametrize("kind", [None, ExitKind.NONE, ExitKind.UNREG, ExitKind.SYSRQ])
def test_never_loaded_or_taken_out_on_purpose_stays_out(kind):
    assert scheduler.decide(5.0, False, kind, Memory()) == (
        scheduler.Step.NOTHING,
        Memory(),
    )


def test_ejection_is_reported_once_and_waited_for():
    step, memory = scheduler.decide(10.0, False, STALL, Memory())
    assert (step, memory.rearm_at) == (scheduler.Step.REPORT, 11.0)
    assert scheduler.decide(10.9, False, STALL, memory) == (scheduler.Step.NOTHING, memory)
    assert scheduler.decide(11.0, False, STALL, memory)[0] is scheduler.Step.REARM


def test_each_ejection_doubles_the_wait_up_to_five_minutes():
    memory, now, waits = Memory(), 0.0, []
    for _ in range(12):
        _, memory = scheduler.decide(now, False, STALL, memory)
        assert memory.rearm_at is not None
        waits.append(memory.rearm_at - now)
        now = memory.rearm_at
        _, memory = scheduler.decide(now, False, STALL, memory)
        _, memory = scheduler.decide(now + 1, True, ExitKind.NONE, memory)
        now += 2
    assert waits[:4] == [1, 2, 4, 8]
    assert waits[-1] == 300


def test_failed_try_is_followed_by_another_later():
    memory = Memory(ejections=3, has_failed=True)
    step, memory = scheduler.decide(50.0, False, ExitKind.ERROR, memory)
    assert (step, memory.rearm_at) == (scheduler.Step.REPORT, 58.0)
    assert not scheduler.decide(60.0, True, ExitKind.NONE, memory)[1].has_failed


def test_calm_hour_forgets_ejections():
    memory = Memory(ejections=7, loaded_at=100.0)
    assert scheduler.decide(3699.0, True, 0, memory)[1].ejections == 7
    assert scheduler.decide(3700.0, True, 0, memory)[1].ejections == 0


def test_exit_is_read_as_the_program_writes_it():
    raw = (1026).to_bytes(8, "little") + (-1).to_bytes(8, "little", signed=True) + (5).to_bytes(8, "little")
    raw += b"runnable task stall".ljust(128, b"\0") + b"x[1] failed to run\0junk".ljust(256, b"\0")
    assert scheduler.parse_exit(raw) == scheduler.Exit(
        1026, -1, 5, "runnable task stall", "x[1] failed to run"
    )


@pytest.fixture(scope="module")
def scheduler_object() -> str:
    if not shutil.which("clang"):
        pytest.skip("clang is not installed")
    subprocess.run(["make", "-s", "-C", BPF], check=True, capture_output=True)
    return str(BPF / "build/scx.bpf.o")


def test_knobs_are_found_by_name_with_their_sizes(scheduler_object):
    written = elf.constants(scheduler_object, {"slice_ns": 3, "crowd": 2, "agent_boost": 0})
    assert sorted(written.values()) == sorted([(3).to_bytes(8, "little"), (2).to_bytes(4, "little"), b"\0"])


@pytest.mark.parametrize("knobs", [{"slice": 1}, {"crowd": -1}, {"agent_boost": 256}])
def test_unknown_knob_and_impossible_value_are_named(scheduler_object, knobs):
    with pytest.raises(BpfError, match=next(iter(knobs))):
        elf.constants(scheduler_object, knobs)


def test_file_that_is_no_object_is_named(tmp_path):
    (tmp_path / "x").write_bytes(b"#!/bin/sh\n" * 10)
    with pytest.raises(BpfError, match="not a 64-bit little-endian ELF file"):
        elf.constants(str(tmp_path / "x"), {"slice_ns": 1})
