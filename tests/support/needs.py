"""What an integration test needs of its guest, and which kind of guest runs it.

A test says it with a mark: `@pytest.mark.needs("bpf")`, `@pytest.mark.needs("cpus:2")`. There are two kinds
of guest (tests/vm/README.md): `fast` has one CPU and a kernel without BPF's JIT, `full` has all of it. What
`fast` can run is run there. `full` runs the rest, and what is marked `smoke`.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass

GUESTS = ("fast", "full")


class UnknownNeedError(Exception):
    """A mark names something that is not in KNOWN."""


@dataclass(frozen=True)
class Need:
    """One thing that tests need: what it is called when it is missing, and how to find out."""

    missing: str
    is_there: Callable[[int], bool]
    # The largest number of it that the fast guest has; what has no number counts as 1.
    in_fast_guest: int = 0


@dataclass(frozen=True, order=True)
class Wanted:
    """A need as a mark says it: `cpus:2`, or `bpf`, which is `bpf:1`."""

    name: str
    number: int = 1

    def is_in_fast_guest(self) -> bool:
        return self.number <= KNOWN[self.name].in_fast_guest

    def missing_here(self) -> str | None:
        """Why a test cannot run here; None when it can."""
        need = KNOWN[self.name]
        return None if need.is_there(self.number) else need.missing.format(self.number)


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii") as file:
            return file.read()
    except OSError:
        return ""


def _has_bpf(_: int) -> bool:
    # Trampolines (fentry, tp_btf, fmod_ret, struct_ops) are the JIT's; a kernel without one has no such file.
    is_compiled = _read("/proc/sys/net/core/bpf_jit_enable").strip() not in ("", "0")
    return is_compiled and os.path.exists("/sys/kernel/btf/vmlinux")


def _has_kprobes(_: int) -> bool:
    folders = ("/sys/kernel/tracing", "/sys/kernel/debug/tracing")
    return any(os.path.exists(f"{folder}/kprobe_events") for folder in folders)


def _has_cpuset(_: int) -> bool:
    return "cpuset" in _read("/sys/fs/cgroup/cgroup.controllers").split()


KNOWN = {
    "bpf": Need("no BPF programs with trampolines (BTF and the JIT)", _has_bpf),
    "scx": Need("no sched_ext", lambda _: os.path.exists("/sys/kernel/sched_ext/state")),
    "kprobes": Need("no kprobes", _has_kprobes),
    "bcc": Need("no bcc (python3-bpfcc)", lambda _: importlib.util.find_spec("bcc") is not None),
    "cpuset": Need("no cpuset controller (a kernel without SMP has none)", _has_cpuset),
    "hugepages": Need("no huge pages", lambda _: os.path.exists("/proc/sys/vm/nr_hugepages")),
    "cpus": Need("fewer than {} CPUs", lambda n: len(os.sched_getaffinity(0)) >= n, in_fast_guest=1),
}  # fmt: skip


def parse(text: str) -> Wanted:
    """Read a need as a mark says it. Raises UnknownNeedError."""
    name, colon, number = text.partition(":")
    if name not in KNOWN or (colon and not (number.isascii() and number.isdigit() and int(number) > 0)):
        known = ", ".join(sorted(KNOWN))
        raise UnknownNeedError(f"unknown need {text!r}; known are {known}, each with or without `:NUMBER`")
    return Wanted(name, int(number) if colon else 1)


def runs_in(guest: str, wanted: Iterable[Wanted], *, is_smoke: bool) -> bool:
    """Whether a test is run in that kind of guest."""
    fits_fast = all(one.is_in_fast_guest() for one in wanted)
    return fits_fast if guest == "fast" else is_smoke or not fits_fast
