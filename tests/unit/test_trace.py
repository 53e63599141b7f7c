"""`agentrunctl trace` as far as it needs no bcc."""

from __future__ import annotations

import ctypes
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from node import TREE, Node, wait_for
from node import node as node
from rich.console import Console

from agentrun import calls
from agentrun.cgroup import Cgroup
from agentrun.errors import TraceError
from agentrun.trace import collector, needs, rows, run, source, table, target
from agentrun.trace.rows import Row, Totals
from agentrun.trace.source import Counts, Reading

TEXT = (TREE / "bpf/trace.bcc.c").read_text()

# What a host lacks.


@pytest.fixture
def whole(tmp_path) -> Path:
    """A root directory with headers and tracefs."""
    (tmp_path / "lib/modules/7.3/build/include/linux").mkdir(parents=True)
    (tmp_path / "lib/modules/7.3/build/include/linux/kconfig.h").touch()
    (tmp_path / "sys/kernel/tracing/events").mkdir(parents=True)
    return tmp_path


def test_whole_host_lacks_nothing(whole):
    needs.check(0, "7.3", "/nowhere", str(whole))


@pytest.mark.parametrize(
    ("lacks", "says"),
    [
        ("root", "needs root"),
        ("lib/modules/7.3/build", "apt install linux-headers-7.3"),
        ("sys/kernel/tracing", "mount -t tracefs tracefs /sys/kernel/tracing"),
    ],
)
def test_what_is_missing_is_named_with_its_remedy(whole, lacks, says):
    if (whole / lacks).exists():
        (whole / lacks).rename(whole / "gone")
    with pytest.raises(TraceError, match=says):
        needs.check(1000 if lacks == "root" else 0, "7.3", "/nowhere", str(whole))


def test_headers_in_the_kernel_or_where_bcc_is_told_will_do(tmp_path, monkeypatch):
    assert not needs.has_headers("7.3", str(tmp_path))
    (tmp_path / "include/linux").mkdir(parents=True)
    (tmp_path / "include/linux/kconfig.h").touch()
    monkeypatch.setenv("BCC_KERNEL_SOURCE", str(tmp_path))
    assert needs.has_headers("7.3", str(tmp_path))
    monkeypatch.delenv("BCC_KERNEL_SOURCE")
    (tmp_path / "sys/kernel").mkdir(parents=True)
    (tmp_path / "sys/kernel/kheaders.tar.xz").touch()
    assert needs.has_headers("7.3", str(tmp_path))


def test_cgroup_namespace_is_refused(whole, tmp_path):
    with pytest.raises(TraceError, match="cgroup namespace"):
        needs.check(0, "7.3", str(tmp_path), str(whole))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, r"no bcc for .*: apt install python3-bpfcc"),
        ("raise OSError('libbcc.so.0: cannot open shared object file')", "libbcc.so.0.*python3-bpfcc"),
        ("encode = 1", "not BPF's bcc"),
    ],
)
def test_bcc_that_is_missing_or_another_is_named(tmp_path, monkeypatch, content, says):
    name = f"agentrun_test_bcc_{os.urandom(4).hex()}"
    if content is not None:
        (tmp_path / f"{name}.py").write_text(content)
        monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(TraceError, match=says):
        needs.import_bcc(name)


def test_lack_is_one_line_and_exit_status_1():
    # Without tracefs, headers or root: one of them lacks wherever unit tests run.
    code = "import os; os.geteuid = lambda: 1000; from agentrun.ctl import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "trace", "x"], cwd=TREE, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert (
        done.stderr
        == "agentrunctl: trace: needs root: it loads eBPF programs and sees what every call does\n"
    )


# Which container.

ONE, TWO = target.Candidate("abc1", "/c/1", "box"), target.Candidate("abc2", "/c/2", "abc")


@pytest.mark.parametrize(
    ("wanted", "found"), [("abc1", ONE), ("box", ONE), ("abc", TWO), ("x", None), ("", None)]
)
def test_whole_id_or_name_comes_before_how_an_id_begins(wanted, found):
    assert target.choose(wanted, [ONE, TWO]) == found


def test_several_that_begin_so_are_an_error():
    with pytest.raises(TraceError, match="several begin so: abc1, abc2"):
        target.choose("ab", [ONE, TWO])


@pytest.mark.parametrize(
    ("cgroup", "one_of"),
    [
        ("/s/system.slice/docker-0123abcd.scope", "0123abcd"),
        ("/s/machine.slice/libpod-0123abcd.scope/container", "0123abcd"),
        ("/s/system.slice/agentrun-test:my-box.scope", "my-box.scope".removesuffix(".scope")),
        ("/s/by-hand/my-box", "my-box"),
    ],
)
def test_id_is_found_in_a_cgroup_name(cgroup, one_of):
    assert one_of.rpartition(":")[2] in [word.rpartition(":")[2] for word in target.ids_of(cgroup)]


def test_level_counts_cgroups_below_the_root():
    assert target.level_of("/sys/fs/cgroup/a/b", "/sys/fs/cgroup") == 2


def test_container_with_a_call_is_found_by_its_id(node):
    node.call("sleep", "100")
    found = target.find(node.paths, "c")
    assert (found.container_id, found.cgroup.path) == ("c1", str(node.cgroup))
    assert found.cgroup_id == node.cgroup.stat().st_ino
    assert found.calls_id == (node.cgroup / "agentrun-calls").stat().st_ino
    assert found.where and found.where.endswith("/c1")


def test_container_without_a_call_is_found_by_its_cgroup(node):
    found = target.find(node.paths, node.cgroup.name)
    assert found.cgroup.path == str(node.cgroup) and found.where is None


def test_container_without_a_call_is_found_by_its_name(node):
    path = node.cgroup / "docker-0123abcd.scope"
    (path / "agentrun-calls").mkdir(parents=True)
    (node.cgroup / "agentrun-calls").rmdir()
    known = Path(f"{node.root}/var/lib/docker/containers/0123abcd/config.v2.json")
    known.parent.mkdir(parents=True)
    known.write_text(json.dumps({"Name": "/box", "Config": {"Image": "x"}}))
    for wanted in ("box", "0123"):
        found = target.find(node.paths, wanted)
        assert (found.container_id, found.cgroup.path) == ("0123abcd", str(path))


def test_no_such_container_is_an_error(node):
    with pytest.raises(TraceError, match="find container 'nope': none that runs under agentrun"):
        target.find(node.paths, "nope")


# The C text and what is given to the compiler.

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


# Rows.

_numbers = st.integers(0, 1 << 40)
_counts = st.builds(Counts, *[_numbers] * 8)
_syscalls = st.dictionaries(st.sampled_from("abcd"), st.tuples(st.integers(1, 99), _numbers))
_totals = st.builds(Totals, _counts, _syscalls, _numbers, _numbers)


@given(_totals, _totals)
def test_what_was_done_since_is_the_difference(before, more):
    assert rows.since(rows.add(before, more), before) == more


@given(_totals, _totals)
def test_nothing_is_negative_after_a_table_lost_an_entry(now, before):
    done = rows.since(now, before)
    assert all(value >= 0 for value in (done.cpu_us or 0, done.counts.faults, done.syscall_count))


def test_time_that_is_not_known_stays_unknown():
    assert rows.since(Totals(), Totals(cpu_us=3)).cpu_us is None
    assert rows.add(Totals(), Totals(cpu_us=3)).cpu_us == 3


def row(name: str, state: str = rows.LIVE, **counts: int) -> Row:
    return Row(name, "sh", state, Totals(Counts(**counts)))


def test_many_calls_are_a_few_rows_and_the_rest_together():
    many = [row(f"{n:03}", reclaim_ns=n * 1_000_000) for n in range(300)] + [row("agent", rows.AGENT)]
    shown = rows.top(many, ["memory"], 3)
    assert [r.id for r in shown] == ["agent", "299", "298", "297", "297 more"]
    assert shown[-1].done.counts.reclaim_ns == sum(range(297)) * 1_000_000


def test_calls_that_had_ended_before_are_not_in_an_interval():
    before = [row("1", rows.ENDED), row("2", faults=5)]
    now = [row("1", rows.ENDED), row("2", rows.ENDED, faults=7), row("3", faults=1)]
    assert [(r.id, r.done.counts.faults) for r in rows.interval(now, before)] == [("2", 2), ("3", 1)]


def printed(shown: list[Row], what: Iterable[str], unknown: Iterable[str] = ()) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(table.as_table(shown, list(what), set(unknown), "t"))
    return console.export_text()


def test_name_of_a_command_steers_no_terminal():
    text = printed([Row("1", "a\x1b[2J\nb\u202e[red]", rows.LIVE)], ["cpu"])
    assert "a?[2J?b?[red]" in text and "\x1b" not in text


def test_counter_that_is_not_known_is_a_question_mark():
    assert "?" in printed([row("1")], ["memory"], ["highs"])
    told = table.as_json(row("1"), ["memory"], {"highs"})
    assert (told["high_waits"], told["high_wait_us"], told["faults"]) == (None, None, 0)


def test_table_shows_what_was_asked_for():
    done = Totals(
        Counts(wait_ns=1_500_000_000), {"read": (12_345, 85_000), "openat": (3, 0)}, 2_000_000, 40_000
    )
    text = printed([Row("1", "sh", rows.LIVE, done)], ["cpu", "syscalls"])
    assert "FAULTS" not in text
    cells = re.split(r"  +", text.splitlines()[2].strip())
    assert cells == ["1", "sh", "live", "2.0 s", "40 ms", "1.5 s", "12k", "read 12k 85 us, openat 3 -"]


@pytest.mark.parametrize(
    ("ns", "text"), [(None, "-"), (0, "-"), (999, "1 us"), (1.5e6, "1.5 ms"), (6e10, "60 s")]
)
def test_time_is_for_people(ns, text):
    assert table.format_ns(ns) == text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "-"), (999, "999"), (1500, "1.5k"), (15_000, "15k"), (2 * 10**6, "2.0M")]
)
def test_number_is_for_people(count, text):
    assert table.format_count(count) == text


# Which cgroup is which call, on real cgroups; only the counters are the test's.


class Scripted:
    """Counters that the test sets, and what was dropped."""

    def __init__(self) -> None:
        self.reading = Reading()
        self.forgotten: list[int] = []

    def read(self) -> Reading:
        return self.reading

    def forget(self, cgroup_id: int, syscalls: Iterable[int]) -> None:
        self.forgotten.append(cgroup_id)
        self.reading.counts.pop(cgroup_id, None)
        self.reading.syscalls.pop(cgroup_id, None)

    def syscall_name(self, number: int) -> str:
        return {0: "read", 1: "write"}[number]


@pytest.fixture
def traced(node: Node):
    (node.cgroup / "agentrun-agent").mkdir()
    first = node.call("sleep", "100", command={"name": "sleep"})
    found = target.find(node.paths, "c1")
    script = Scripted()
    return SimpleNamespace(
        node=node, first=first, target=found, script=script,
        collector=collector.Collector(node.paths, found, script),
    )  # fmt: skip


def inode(node: Node, slot: str) -> int:
    return (node.cgroup / "agentrun-calls" / slot).stat().st_ino


def by_id(shown: list[Row]) -> dict[str, Row]:
    return {row.id: row for row in shown}


def test_counters_are_those_of_the_call_with_that_cgroup(traced):
    second = traced.node.call("sleep", "100", command={"name": "other"})
    traced.script.reading.counts[inode(traced.node, "call-1")] = Counts(faults=7)
    traced.script.reading.syscalls[inode(traced.node, "call-0")] = {0: (3, 500)}
    shown = by_id(traced.collector.sample())
    assert set(shown) == {"agent", traced.first, second}
    assert (shown[second].command, shown[second].done.counts.faults) == ("other", 7)
    assert shown[traced.first].done.syscalls == {"read": (3, 500)}
    assert shown["agent"].done.counts == Counts() == shown[traced.first].done.counts


def test_slot_that_is_taken_again_is_another_call(traced):
    old = inode(traced.node, "call-0")
    traced.script.reading.counts[old] = Counts(faults=1)
    (traced.node.cgroup / "agentrun-calls/call-0/cgroup.kill").write_text("1")
    wait_for(
        lambda: traced.node.reap() or not Cgroup(f"{traced.target.calls.path}/call-0").is_populated(),
        "its end",
    )
    session = calls.open_where(traced.node.paths, traced.target.where)
    assert session and session.harvest() == 1
    session.close()
    second = traced.node.call("sleep", "100")
    traced.script.reading.counts[inode(traced.node, "call-0")] = Counts(faults=2)
    shown = by_id(traced.collector.sample())
    assert [(shown[i].state, shown[i].done.counts.faults) for i in (traced.first, second)] == [
        (rows.ENDED, 1), (rows.LIVE, 2),
    ]  # fmt: skip
    # What ended makes room in the tables, and stays in the sum.
    shown = by_id(traced.collector.sample())
    assert traced.script.forgotten == [old]
    assert by_id(traced.collector.sample())[traced.first].done.counts.faults == 1


def test_call_that_nobody_saw_alive_is_counted_with_its_like(traced):
    for number in (998, 999):
        traced.script.reading.counts[number] = Counts(faults=number)
        shown = by_id(traced.collector.sample())
    assert shown["short calls"].done.counts.faults == 998 + 999
    assert traced.script.forgotten == [998, 999]


def test_number_of_rows_is_bounded(traced, monkeypatch):
    monkeypatch.setattr(collector, "KEPT_ENDED", 2)
    for number in range(5):
        made = collector.Member(5000 + number, f"old{number}", "x", rows.ENDED, Cgroup("/nowhere"))
        traced.collector._members[made.cgroup_id] = made
        traced.script.reading.counts[made.cgroup_id] = Counts(faults=1)
    shown = by_id(traced.collector.sample())
    assert set(shown) == {"agent", traced.first, "old3", "old4", "short calls"}
    assert shown["short calls"].done.counts.faults == 3


def test_record_completes_what_ended_between_two_looks(traced):
    (traced.node.cgroup / "agentrun-calls/call-0/cgroup.kill").write_text("1")
    traced.node.processes[0].wait(timeout=10)
    traced.collector.sample()
    record = {"cpu_usage_us": 10**9, "cpu_throttled_us": 2 * 10**9, "memory_peak": 5}
    traced.collector.complete({traced.first: record})
    done = by_id(traced.collector.rows())[traced.first]
    assert done.done.cpu_us and done.done.cpu_us > 9 * 10**8 and done.peak == 5


# The end.


class Kept:
    """An output that keeps what it is told."""

    def __init__(self) -> None:
        self.intervals: list[list[Row]] = []
        self.end: list[Row] | None = None

    def interval(self, shown: list[Row], took_s: float) -> None:
        self.intervals.append(shown)

    def summary(self, shown: list[Row], took_s: float, lost: int) -> None:
        self.end = shown


def follow(traced, **options: Any) -> tuple[Kept, float]:
    kept, began = Kept(), time.monotonic()
    with run._interruptible():
        run._follow(
            traced.node.paths, traced.target, traced.script, run.Options(source.WHAT, **options), kept
        )
    return kept, time.monotonic() - began


def test_trace_ends_after_its_seconds_with_a_summary(traced):
    kept, took_s = follow(traced, seconds=0.5, interval=0.2)
    assert 0.5 <= took_s < 3 and len(kept.intervals) == 3
    assert kept.end is not None and set(by_id(kept.end)) == {"agent", traced.first}


def test_trace_ends_with_its_container(traced):
    kill = threading.Timer(0.3, (traced.node.cgroup / "cgroup.kill").write_text, ["1"])
    kill.start()
    reaper = threading.Timer(0.4, traced.node.reap)
    reaper.start()
    kept, _ = follow(traced, seconds=20, interval=15)
    kill.join()
    assert kept.end is not None and by_id(kept.end)[traced.first].state == rows.ENDED


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_ends_a_trace_with_its_summary(traced, number):
    threading.Timer(0.3, os.kill, [os.getpid(), number]).start()
    kept, took_s = follow(traced, interval=30)
    assert took_s < 10 and kept.end is not None


def test_short_call_is_seen_between_two_looks(traced):
    made: list[str] = []
    threading.Timer(0.2, lambda: made.append(traced.node.call("true", command={"name": "true"}))).start()
    kept, _ = follow(traced, seconds=1, interval=0.9)
    assert kept.end is not None and by_id(kept.end)[made[0]].command == "true"


def test_lines_are_objects_for_programs(capsys):
    output = run.Lines("c1", run.Options(("cpu",)), set())
    output.interval([row("1", wait_ns=5000)], 1.0)
    output.summary([row("1", wait_ns=9000)], 2.0, 3)
    first, last = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first["type"], first["calls"][0]["runqueue_wait_us"]) == ("interval", 5)
    assert (last["type"], last["lost"], last["calls"][0]["runqueue_wait_us"]) == ("summary", 3, 9)
