"""The C text of `agentrunctl trace`, what is given to the compiler, and what a kernel may lack of it."""

from __future__ import annotations

import ctypes
import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from node import TREE
from node import node as node

from agentrun.base.errors import TraceError
from agentrun.cgroups.cgroup import Cgroup
from agentrun.trace import source, target
from agentrun.trace.source import Counts

TEXT = (TREE / "bpf/trace.bcc.c").read_text()

TARGET = target.Target("c1", Cgroup("/sys/fs/cgroup/x"), 11, 12, 1, None)


def test_only_numbers_go_into_the_text():
    hostile = target.Target('c"; bad', Cgroup("/x/$(bad)\n"), 11, 12, 3, "/y")
    flags = source.definitions(hostile, source.WHAT, faults=True, high=1)
    assert all(re.fullmatch(r"-DAR_[A-Z]+=\d+(ULL)?", flag) for flag in flags)
    assert {"-DAR_CONTAINER=11ULL", "-DAR_CALLS=12ULL", "-DAR_LEVEL=3", "-DAR_HIGH=1"} <= set(flags)


def test_text_asks_for_what_is_defined():
    asked = set(re.findall(r"^#ifdef (AR_\w+)", TEXT, re.MULTILINE))
    flags = source.definitions(TARGET, source.WHAT, faults=True, high=0)
    assert asked < {flag[2:].partition("=")[0] for flag in flags}
    few = source.definitions(TARGET, ["cpu"], faults=True, high=0)
    assert not asked - {"AR_CPU"} & {flag[2:].partition("=")[0] for flag in few}


def test_text_and_python_agree():
    struct = TEXT.partition("struct ar_counts {")[2].partition("}")[0]
    assert tuple(re.findall(r"u64 (\w+);", struct)) == source._C_NAMES
    assert f"#define AR_OTHER {source.OTHER_SYSCALL} " in TEXT
    assert "#define AR_OVER_HIGH __mem_cgroup_handle_over_high" in TEXT


@pytest.mark.parametrize(
    ("names", "high"),
    [(["mem_cgroup_handle_over_high"], 0), (["__mem_cgroup_handle_over_high"], 1), (["x"], None)],
)
def test_name_of_the_function_is_taken_from_the_kernel(names, high):
    lines = [f"0000 T {name}\n" for name in names] + ["0000 t __pfx___mem_cgroup_handle_over_high\n", "odd\n"]
    assert source.over_high(lines) == high


class Bcc:
    """bcc with tables of the test's; `refuses` names a -D that its kernel does not take."""

    __name__ = "no_such_package"

    def __init__(self, refuses: str = "none", faults: bool = True) -> None:
        self.flags: list[list[str]] = []
        self.cleaned = 0
        outer = self

        class BPF:
            def __init__(self, text: str, cflags: list[str]) -> None:
                assert text == TEXT
                outer.flags.append(cflags)
                if any(refuses in flag for flag in cflags):
                    os.write(2, b"verifier: no\n\n")
                    raise Exception("Failed to load BPF program")

            @staticmethod
            def tracepoint_exists(category: str, event: str) -> bool:
                return faults

            @staticmethod
            def support_kfunc() -> bool:
                return True

            def cleanup(self) -> None:
                outer.cleaned += 1

        self.BPF = BPF


@pytest.fixture
def with_symbol():
    if source.over_high(Path("/proc/kallsyms").read_text().splitlines()) is None:
        missing = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        missing("this kernel has no memory controller")


def test_kernel_without_fentry_loses_only_that_counter(with_symbol, capfd):
    bcc = Bcc(refuses="AR_HIGH")
    with source.Probes(bcc, TARGET, ["memory"]) as probes:
        assert probes.unknown == {"highs"} and "memory.high" in probes.notes[0]
    assert len(bcc.flags) == 2 and not any("AR_HIGH" in flag for flag in bcc.flags[1])
    assert bcc.cleaned == 1
    assert capfd.readouterr().err == ""


def test_kernel_without_the_tracepoint_of_faults_loses_only_that_counter():
    with source.Probes(Bcc(faults=False), TARGET, ["memory"]) as probes:
        assert "faults" in probes.unknown


def test_what_the_compiler_says_is_shown_when_nothing_is_left(capfd):
    with pytest.raises(TraceError, match="cannot be compiled or attached: Failed to load"):
        source.Probes(Bcc(refuses="AR_CPU"), TARGET, ["cpu"])
    assert capfd.readouterr().err == "verifier: no\n"


def test_probes_are_detached_when_something_fails():
    bcc = Bcc()
    with pytest.raises(ZeroDivisionError), source.Probes(bcc, TARGET, ["cpu"]):
        raise ZeroDivisionError
    assert bcc.cleaned == 1


def test_per_cpu_counters_are_added():
    struct = type(
        "Leaf", (ctypes.Structure,), {"_fields_": [(name, ctypes.c_uint64) for name in source._C_NAMES]}
    )
    probes = source.Probes(Bcc(), TARGET, ["cpu"])
    tables: dict[str, list[tuple[Any, Any]]] = {
        "ar_counts": [(ctypes.c_uint64(7), [struct(1, 2, 3), struct(10, 20, 30, 40)])],
        "ar_lost": [(ctypes.c_int(0), ctypes.c_uint64(5))],
    }
    probes._bpf = {name: SimpleNamespace(items=pairs.copy) for name, pairs in tables.items()}
    reading = probes.read()
    page = os.sysconf("SC_PAGE_SIZE")
    assert reading.counts == {7: Counts(faults=11, allocated=22 * page, reclaims=33, reclaim_ns=40)}
    assert reading.lost == 5
