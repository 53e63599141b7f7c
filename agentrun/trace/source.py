"""The probes of one container: `bpf/trace.bcc.c` compiled by bcc, attached, read, detached.

Whatever goes into the C text is a number of ours. Everything that bcc attaches hangs on descriptors of this
process, so even a kill -9 leaves no probe behind.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from agentrun.base.errors import TraceError
from agentrun.trace.target import Target

WHAT = ("memory", "cpu", "syscalls")
ENTRIES = 4096  # cgroups that are counted at once; ended calls make room
OTHER_SYSCALL = 1023  # AR_OTHER
_SYMBOLS = {1: "__mem_cgroup_handle_over_high", 0: "mem_cgroup_handle_over_high"}
_FAULTS = ("exceptions", "page_fault_user")
# Members of struct ar_counts.
_C_NAMES = ("faults", "pages", "reclaims", "reclaim_ns", "highs", "high_ns", "waits", "wait_ns")


@dataclass(frozen=True, slots=True)
class Counts:
    """What one cgroup did: times in nanoseconds, `allocated` in bytes, numbers else."""

    faults: int = 0
    allocated: int = 0
    reclaims: int = 0
    reclaim_ns: int = 0
    highs: int = 0
    high_ns: int = 0
    waits: int = 0
    wait_ns: int = 0


@dataclass(frozen=True, slots=True)
class Reading:
    """All counters since the start: by cgroup; `syscalls` by cgroup and number, (calls, nanoseconds in them).

    `lost` counts events for which a table was full.
    """

    counts: dict[int, Counts] = field(default_factory=dict)
    syscalls: dict[int, dict[int, tuple[int, int]]] = field(default_factory=dict)
    lost: int = 0


def text_path() -> Path:
    """The C text: in LIBEXECDIR/bpf, or in a source tree."""
    return Path(__file__).parents[2] / "bpf/trace.bcc.c"


def over_high(symbols: Iterable[str]) -> int | None:
    """AR_HIGH, by the function's name in this kernel (lines of /proc/kallsyms); None for none. Pure."""
    names = {words[2] for line in symbols if len(words := line.split()) >= 3}
    return next((value for value, name in _SYMBOLS.items() if name in names), None)


def definitions(target: Target, what: Iterable[str], *, faults: bool, high: int | None) -> list[str]:
    """The compiler's -D for a trace: numbers only. Pure."""
    wanted = set(what)
    values: dict[str, str] = {
        "AR_CONTAINER": f"{target.cgroup_id:d}ULL",
        "AR_CALLS": f"{target.calls_id:d}ULL",
        "AR_LEVEL": f"{target.level:d}",
        "AR_ENTRIES": f"{ENTRIES:d}",
    }
    values |= {f"AR_{part.upper()}": "1" for part in WHAT if part in wanted}
    if "memory" in wanted and faults:
        values["AR_FAULTS"] = "1"
    if "memory" in wanted and high is not None:
        values["AR_HIGH"] = f"{high:d}"
    return [f"-D{name}={value}" for name, value in values.items()]


class Probes:
    """The attached probes; a context manager that detaches them.

    `unknown` names the counters that this kernel does not give, `notes` says why. Raises TraceError where the
    kernel or the compiler refuses; the compiler's own words are on stderr then.
    """

    def __init__(self, bcc: Any, target: Target, what: Iterable[str]) -> None:
        self.unknown: set[str] = set()
        self.notes: list[str] = []
        self._page_bytes = os.sysconf("SC_PAGE_SIZE")
        self._syscall_names: Any = None
        if "syscalls" in what:
            from importlib import import_module

            self._syscall_names = import_module(f"{bcc.__name__}.syscall").syscall_name
        self._bpf = self._load(bcc, target, set(what))

    def _load(self, bcc: Any, target: Target, what: set[str]) -> Any:
        faults, high = True, None
        if "memory" in what:
            faults = bool(bcc.BPF.tracepoint_exists(*_FAULTS))
            if not faults:
                self._miss("faults", f"page faults are not counted: no tracepoint {':'.join(_FAULTS)}")
            with open("/proc/kallsyms", encoding="ascii", errors="replace") as symbols:
                high = over_high(symbols) if bcc.BPF.support_kfunc() else None
        if high is not None:
            try:
                return _compile(bcc, definitions(target, what, faults=faults, high=high), show=False)
            except TraceError as error:
                reason = f"this kernel takes no program there ({error.__cause__})"
        else:
            reason = "it needs BTF and a kernel that takes programs at functions (fentry)"
        if "memory" in what:
            self._miss("highs", f"waits for memory.high are not counted: {reason}")
        return _compile(bcc, definitions(target, what, faults=faults, high=None), show=True)

    def _miss(self, counter: str, note: str) -> None:
        self.unknown.add(counter)
        self.notes.append(note)

    def __enter__(self) -> Probes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bpf.cleanup()

    def read(self) -> Reading:
        """All counters as they are now."""
        counts = {int(key.value): self._sum(values) for key, values in self._bpf["ar_counts"].items()}
        syscalls: dict[int, dict[int, tuple[int, int]]] = {}
        if self._syscall_names is not None:
            for key, value in self._bpf["ar_syscalls"].items():
                syscalls.setdefault(int(key.id), {})[int(key.number)] = (int(value.count), int(value.ns))
        return Reading(counts, syscalls, sum(int(value.value) for _, value in self._bpf["ar_lost"].items()))

    def _sum(self, per_cpu: Iterable[Any]) -> Counts:
        total = dict.fromkeys(_C_NAMES, 0)
        for one in per_cpu:
            for name in _C_NAMES:
                total[name] += int(getattr(one, name))
        return Counts(allocated=total.pop("pages") * self._page_bytes, **total)

    def forget(self, cgroup_id: int, syscalls: Iterable[int]) -> None:
        """Make room: drop what is counted for one cgroup, and its syscalls of these numbers."""
        _drop(self._bpf["ar_counts"], cgroup_id)
        for number in syscalls:
            table = self._bpf["ar_syscalls"]
            _drop(table, table.Key(cgroup_id, number))

    def syscall_name(self, number: int) -> str:
        """The name of a syscall by its number."""
        if number == OTHER_SYSCALL or self._syscall_names is None:
            return "other"
        name = self._syscall_names(number).decode("ascii", "replace")
        return f"syscall {number}" if name.startswith("[") else name


def _drop(table: Any, key: Any) -> None:
    # KeyError: nothing was counted.
    with contextlib.suppress(KeyError):
        del table[table.Key(key) if isinstance(key, int) else key]


def _compile(bcc: Any, flags: list[str], *, show: bool) -> Any:
    """Compile and attach all. Raises TraceError; `show`: then what the compiler said goes to stderr."""
    text = text_path()
    try:
        source = text.read_text(encoding="ascii")
    except OSError as error:
        raise TraceError(
            f"trace: cannot read {str(text)!r} ({error.strerror}): install agentrun again"
        ) from error
    with _stderr_kept() as said:
        try:
            # -w: warnings are about the kernel's headers.
            return bcc.BPF(text=source, cflags=[*flags, "-w"])
        except Exception as error:  # noqa: BLE001 bcc raises nothing else
            reason = error
    lines = [line for line in said[0].splitlines() if line.strip()]
    if show:
        sys.stderr.write("".join(f"{line}\n" for line in lines))
    last = f"; {lines[-1].strip()}" if lines and not show else ""
    raise TraceError(f"trace: the probes cannot be compiled or attached: {reason}{last}") from reason


@contextlib.contextmanager
def _stderr_kept() -> Iterator[list[str]]:
    """Keep what libraries write to descriptor 2; the list has it at the end."""
    said: list[str] = []
    saved = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield said
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            file.seek(0)
            said.append(file.read(1 << 16).decode("utf-8", "replace"))
