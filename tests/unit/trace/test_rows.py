"""Rows of `agentrunctl trace`: sums and differences, the table, and the lines for programs."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from node import node as node
from rich.console import Console

from agentrun.trace import rows, run, table
from agentrun.trace.rows import Row, Totals
from agentrun.trace.source import Counts

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


def test_lines_are_objects_for_programs(capsys):
    output = run.Lines("c1", run.Options(("cpu",)), set())
    output.interval([row("1", wait_ns=5000)], 1.0)
    output.summary([row("1", wait_ns=9000)], 2.0, 3)
    first, last = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first["type"], first["calls"][0]["runqueue_wait_us"]) == ("interval", 5)
    assert (last["type"], last["lost"], last["calls"][0]["runqueue_wait_us"]) == ("summary", 3, 9)
