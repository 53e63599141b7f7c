"""agentrun's CPU scheduler (bpf/scx.bpf.c) from the outside: is it in force, why not, and how it comes back.

The kernel may throw a sched_ext scheduler out at any time (a task waited too long, sysrq-S, a CPU went
offline). Everything then runs under EEVDF at once, with the same cpu.weight and cpu.max, which are written
anyway. What is left is a dead pin and the reason, in a pinned map; `decide` says when to try again.
"""

from __future__ import annotations

import enum
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from agentrun.base import files, log
from agentrun.base.errors import BpfError, StateError
from agentrun.base.paths import Paths
from agentrun.bpf import elf, modules, pins
from agentrun.decision import inforce

SYSFS = "/sys/kernel/sched_ext"
NAME = "agentrun"  # sched_ext_ops.name; the kernel appends the version to it in root/ops

MODULE = modules.MODULES["scx"]

_EXIT = struct.Struct("=QqQ128s256s")  # struct ar_scx_exit in bpf/scx/state.h
_EXIT_MAP = "ar_scx_exit"

# How long a scheduler has to last before its earlier ejections are forgotten, and the longest wait for
# another try. The first is after a second: most ejections are single accidents.
_CALM_S = 3600.0
_LONGEST_WAIT_S = 300.0


class ExitKind(enum.IntEnum):
    """enum scx_exit_kind, as far as it matters here."""

    NONE = 0
    UNREG = 64
    UNREG_BPF = 65
    UNREG_KERN = 66
    SYSRQ = 67
    ERROR = 1024
    ERROR_BPF = 1025
    ERROR_STALL = 1026


# Somebody took it out on purpose: it stays out until somebody loads it.
_DELIBERATE = frozenset({ExitKind.UNREG, ExitKind.SYSRQ})


@dataclass(frozen=True, slots=True)
class Exit:
    """Why the scheduler ended the last time. `kind` is NONE (0) while it runs; times in CLOCK_BOOTTIME ns."""

    kind: int
    code: int
    time_ns: int
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class State:
    """What the kernel runs: `enabled`, and the name of the scheduler (None: EEVDF)."""

    enabled: bool
    name: str | None

    @property
    def ours(self) -> bool:
        """Whether it is this scheduler."""
        return self.enabled and (self.name or "").startswith(NAME)


def is_supported() -> bool:
    """Whether this kernel has sched_ext."""
    return os.path.exists(f"{SYSFS}/state")


def _read(name: str) -> str | None:
    try:
        with open(f"{SYSFS}/{name}", encoding="utf-8") as file:
            return file.read().strip()
    except OSError:
        return None  # root/ is there only while a scheduler is


def state() -> State:
    """What schedules now."""
    enabled = _read("state") == "enabled"
    return State(enabled, _read("root/ops") if enabled else None)


def parse_exit(value: bytes) -> Exit:
    """Read struct ar_scx_exit."""
    kind, code, time_ns, reason, message = _EXIT.unpack(value)
    return Exit(kind, code, time_ns, *(_text(raw) for raw in (reason, message)))


def _text(raw: bytes) -> str:
    return raw.partition(b"\0")[0].decode("utf-8", "replace").strip()


def last_exit() -> Exit | None:
    """Why it ended the last time; None where it was never loaded. Raises BpfError for a foreign pin."""
    path = f"{pins.SHARED}/{_EXIT_MAP}"
    if not os.path.exists(path):
        return None
    opened = pins.open_map(path, _EXIT_MAP)
    try:
        value = opened.lookup(bytes(4))
    finally:
        opened.close()
    return None if value is None else parse_exit(value)


def load(paths: Paths, knobs: Mapping[str, int] | None = None) -> bool:
    """Bring the scheduler in force; False where it is already.

    `knobs` are constants of bpf/scx/knobs.h by name; None for those of the host's configuration. What the
    kernel threw out is removed first: its link still looks attached, and its pin is in the way. Raises
    BpfError, also while another scheduler is loaded.
    """
    Path(paths.scheduler_off).unlink(missing_ok=True)  # first: a load that is refused is tried again, too
    now = state()
    if now.enabled and not now.ours:
        raise BpfError(f"load scx: scheduler {now.name!r} is loaded, and the kernel takes one at a time")
    if knobs is None:
        knobs = _configured(paths)
    if not now.enabled:
        modules.unload(paths, MODULE)
    module = MODULE
    if knobs:
        file = modules.object_path(MODULE.name)
        if file is None:
            raise BpfError("load scx: its object is not installed (make -C bpf, make install)")
        module = replace(module, constants=elf.constants(file, knobs))
    return modules.load(paths, module)


def _configured(paths: Paths) -> dict[str, int]:
    """The knobs that config.toml asks for. Without the module that marks whom it parks, it only schedules."""
    if not inforce.load(paths).parking:
        return {}
    try:
        modules.load(paths, modules.MODULES["mempressure"])
    except BpfError as error:
        log.warn(paths, "calls will not be parked", error=str(error))
        return {}
    return {"parking": 1}


def unload(paths: Paths) -> bool:
    """Back to EEVDF, where agentrund leaves it; False where it was not loaded. Raises AgentrunError."""
    try:
        os.close(files.open_private_directory(paths.run, StateError))
        Path(paths.scheduler_off).touch(0o600)
    except OSError as error:
        raise StateError("say that the scheduler is off, make", paths.scheduler_off, error) from error
    finally:
        was_loaded = modules.unload(paths, MODULE)
    return was_loaded


class Step(enum.Enum):
    """What to do about the scheduler."""

    NOTHING = "nothing"
    REPORT = "report"  # it was ejected just now
    REARM = "rearm"


@dataclass(frozen=True, slots=True)
class Memory:
    """What is remembered between two looks. Times in seconds of one clock.

    `has_failed`: the last try to load it again removed the dead pins and then failed.
    """

    ejections: int = 0
    loaded_at: float = 0.0
    rearm_at: float | None = None
    has_failed: bool = False


def decide(now_s: float, is_running: bool, kind: int | None, memory: Memory) -> tuple[Step, Memory]:
    """What to do about a scheduler that was loaded and may be gone. Pure.

    `kind` is that of its last exit; None where it was never loaded. Each ejection doubles the wait, up to
    five minutes; an hour without one forgets them. Taken out on purpose, it stays out.
    """
    if is_running:
        calm = now_s - memory.loaded_at >= _CALM_S
        ejections = 0 if calm else memory.ejections
        return Step.NOTHING, replace(memory, rearm_at=None, ejections=ejections, has_failed=False)
    if kind is None or kind == ExitKind.NONE or kind in _DELIBERATE:
        return Step.NOTHING, replace(memory, rearm_at=None)
    if memory.rearm_at is None:
        wait_s = min(_LONGEST_WAIT_S, 2.0**memory.ejections)
        return Step.REPORT, replace(memory, rearm_at=now_s + wait_s, ejections=min(memory.ejections + 1, 16))
    if now_s < memory.rearm_at:
        return Step.NOTHING, memory
    return Step.REARM, replace(memory, rearm_at=None, loaded_at=now_s)


def look(paths: Paths, now_s: float, memory: Memory) -> tuple[Step, str | None, Memory]:
    """Look what became of the scheduler: what agentrund does every second. Changes nothing.

    Returns what to do, what happened in words (None: nothing new), and what to pass the next time. After
    REARM the caller loads it, and passes `failed(memory)` where that went wrong. Never raises BpfError.
    """
    try:
        ended = _ejection(paths, memory)
        is_running = ended is not None and state().ours
    except BpfError as error:
        return Step.NOTHING, f"keep scheduler: {error}", memory
    step, memory = decide(now_s, is_running, None if ended is None else ended.kind, memory)
    if step is not Step.REPORT or ended is None or memory.has_failed:
        return step, None, memory
    return step, f"scheduler ejected: {ended.reason}: {ended.message}; EEVDF takes over", memory


def failed(memory: Memory) -> Memory:
    """What to remember of a load that failed, perhaps after it removed the dead pins."""
    return replace(memory, has_failed=True)


def _ejection(paths: Paths, memory: Memory) -> Exit | None:
    """Its last exit while somebody wants it: its pins are there, or a failed try of ours removed them.

    `unload` after such a try finds no pins to remove: a file says that it was asked for.
    """
    if modules.loaded_version(MODULE) is not None:
        return last_exit()
    if memory.has_failed and not os.path.exists(paths.scheduler_off):
        return Exit(ExitKind.ERROR, 0, 0, "could not be loaded again", "another try follows")
    return None


def findings(paths: Paths) -> list[tuple[str, str]]:
    """For `agentrunctl doctor`: (level, text) pairs on who schedules and what that means."""
    if not is_supported():
        return [("note", "no sched_ext: EEVDF shares by cpu.weight")]
    now = state()
    if now.ours:
        return [("ok", f"{now.name}: shares by cgroup, agents first, cpu.max kept")]
    if now.enabled:
        return [("note", f"scheduler {now.name!r} is not ours; cpu.weight and cpu.max are up to it")]
    try:
        ended = last_exit()
    except BpfError as error:
        return [("problem", str(error))]
    is_off = os.path.exists(paths.scheduler_off)
    if ended is None or ended.kind in (ExitKind.NONE, ExitKind.UNREG) or is_off:
        return [("note", "there, not loaded: EEVDF shares by cpu.weight (agentrunctl bpf load scx)")]
    text = f"ejected ({ended.reason}: {ended.message}): EEVDF took over"
    if ended.kind in _DELIBERATE:
        return [("note", f"{text}, on purpose (agentrunctl bpf load scx)")]
    return [("problem", f"{text} until agentrund loads it again (or agentrunctl bpf load scx)")]
