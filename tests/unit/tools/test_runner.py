"""tests/run: the order of parts, what it takes from pytest's report, what runs again, and what it says."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from runner import guests as runner_guests
from runner import report
from runner import run as runner_run
from runner.guests import Guests
from runner.main import main
from runner.parts import PARTS, Guest, Part, State, Turn, chosen, longest_first, next_turn, room, turn_of
from runner.processes import EndedError, Processes
from runner.results import LOST_GUEST, Result, to_run_again
from runner.run import PYTEST, Run

TREE = Path(__file__).parents[3]
LONG, SHORT = Part("long", Guest.FULL, 9, ("bpf",)), Part("short", Guest.FAST, 2, ("engines",))
READY = dict.fromkeys(Guest, State.READY)
TESTS = """
import pytest

def test_fails(): assert 1 == 2, "a - b"
@pytest.mark.parametrize("word", ["two words", "a-b"])
def test_with(word): assert word == "a-b"
@pytest.fixture
def broken():
    yield
    raise OSError("gone")
def test_teardown(broken): pass
@pytest.mark.skip(reason="why not")
def test_skipped(): pass
def test_not_chosen(): pass
"""


def result_of(text: str, status: int = 0, **fields: Any) -> Result:
    """A result that has read a report."""
    result = Result(fields.pop("name", "fast/it"), **fields)
    for line in text.splitlines(keepends=True):
        result.read(line)
    result.status = status
    return result


# The order.


def test_longest_part_is_first():
    assert longest_first([SHORT, LONG]) == [LONG, SHORT]
    assert longest_first(PARTS) == sorted(PARTS, key=lambda part: part.minutes, reverse=True)


def test_part_whose_guest_is_being_built_lets_others_go_first():
    states = {Guest.FAST: State.READY, Guest.FULL: State.BUILDING}
    assert next_turn([LONG, SHORT], states, is_ci=True) == (SHORT, Guest.FAST)
    assert next_turn([LONG], states, is_ci=True) is None


CASES = {
    "ready": (SHORT, READY, False, Guest.FAST),
    "in ci": (SHORT, READY | {Guest.FAST: State.ABSENT}, True, Turn.FAIL),
    "no fast guest": (SHORT, READY | {Guest.FAST: State.ABSENT}, False, Guest.FULL),
    "the other is being built": (
        SHORT, {Guest.FAST: State.ABSENT, Guest.FULL: State.BUILDING}, False, Turn.WAIT),
    "no guest": (SHORT, dict.fromkeys(Guest, State.ABSENT), False, Turn.SKIP),
    "no full guest": (LONG, READY | {Guest.FULL: State.ABSENT}, False, Turn.SKIP),
    "no full guest in ci": (LONG, READY | {Guest.FULL: State.ABSENT}, True, Turn.FAIL),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_where_a_part_is_run(name):
    part, states, is_ci, turn = CASES[name]
    assert turn_of(part, states, is_ci=is_ci) == turn


def test_guest_that_is_being_built_takes_a_place():
    assert room(2, READY) == 2
    assert room(2, READY | {Guest.FAST: State.BUILDING}) == 1
    assert room(1, READY | {Guest.FAST: State.BUILDING}) == 1


def test_parts_are_chosen_by_name():
    assert not any(part.is_own_target for part in chosen([]))
    assert [part.name for part in chosen(["scx"])] == ["scx"]
    assert [part.guest for part in chosen(["engines", "fast/engines"])] == [Guest.FAST]
    with pytest.raises(KeyError):
        chosen(["no such"])


def test_names_and_files_of_parts_are_right():
    titles = [(part.guest, part.name) for part in PARTS]
    assert len(titles) == len(set(titles))
    for part in PARTS:
        assert all((TREE / f"tests/integration/test_{name}.py").exists() for name in part.files)
    tested = {name for part in PARTS for name in part.files}
    assert tested == {path.stem.removeprefix("test_") for path in TREE.glob("tests/integration/test_*.py")}


def test_only_targets_of_their_own_are_run_without_choice():
    (scx,) = chosen(["scx"])
    assert scx.arguments("pairwise") == ["-m", "not figures", "tests/integration/test_scx.py"]
    expected = ["--guest=fast", "--matrix=whole", "tests/integration/test_engines.py"]
    assert SHORT.arguments("whole") == expected


# What pytest says.


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """What is read of a real report."""
    folder = tmp_path_factory.mktemp("report")
    (folder / "test_it.py").write_text(TESTS)
    options = ["--durations-min=0", "--deselect", "test_it.py::test_not_chosen"]
    done = subprocess.run(
        [sys.executable, *PYTEST[1:], *options, "test_it.py"],
        cwd=folder, check=False, capture_output=True, text=True,
    )  # fmt: skip
    return result_of(done.stdout, done.returncode)


def test_failures_of_a_real_report_are_found(real):
    assert sorted(real.failed) == [
        "test_it.py::test_fails",
        "test_it.py::test_teardown",
        "test_it.py::test_with[two words]",
    ]
    assert any("2 failed, 2 passed, 1 skipped, 1 deselected, 1 error in" in line for line in real.told)


def test_counts_and_durations_of_a_real_report_are_found(real):
    assert [real.count(what) for what in ("passed", "failed", "skipped", "deselected")] == [2, 3, 1, 1]
    assert ("call", "test_it.py::test_with[two words]") in {(phase, test) for _, phase, test in real.slow}
    assert real.has_failed_so_far


@pytest.mark.parametrize(
    ("line", "passed"),
    [
        ("1712 passed in 453.61s (0:07:33)", 1712),
        ("3 passed, 2 deselected, 1 warning in 0.1s", 3),
        ("no tests ran in 0.01s", 0),
        ("it says 5 passed in between", 0),
    ],
)
def test_last_line_is_read(line, passed):
    assert result_of(line).count("passed") == passed


def test_step_that_fails_and_names_no_test_counts_as_one_failure():
    assert result_of("", 252).count("failed") == 1
    assert result_of("2 failed, 1 passed, 1 error in 1s", 1).count("failed") == 3


# What is run again.


LOST = {
    "at the beginning": ("", True),
    "after some had passed": ("...s...  [ 50%]\n..vm: LostVMError: the VM died", True),
    "after one had failed": ("...F...  [ 50%]\n..", False),
    "in the line of one that failed": ("..F.vm: LostVMError: the VM died", False),
}


@pytest.mark.parametrize("name", LOST)
def test_lost_guest_is_told_from_tests_that_fail(name):
    text, is_lost = LOST[name]
    assert result_of(text, LOST_GUEST).lost_guest() == is_lost
    assert not result_of(text, 1).lost_guest()


@pytest.mark.parametrize("number", [1, 2, 3])
def test_at_most_two_tests_of_a_run_run_again(number):
    results = [result_of(f"FAILED t.py::test_{n} - why\n1 failed in 1s", 1) for n in range(number)]
    assert to_run_again([result_of("1 passed in 1s"), *results]) == (results if number <= 2 else [])


def test_part_that_fails_without_a_test_keeps_all_from_running_again():
    assert to_run_again([result_of("FAILED t.py::one\n1 failed in 1s", 1), result_of("", 250)]) == []


class Scripted(Run):
    """A run whose guests say what they are told to."""

    def __init__(self, *said: tuple[str, int]) -> None:
        super().__init__(Processes(), "pairwise")
        self.said = list(said)
        self.ran: list[tuple[str, list[str]]] = []

    def _in_guest(self, result: Result, part: Part, guest: Guest, arguments: Sequence[str]) -> Result:
        self.ran.append((result.name, list(arguments)))
        text, status = self.said.pop(0)
        return result_of(text, status, name=result.name, guest=guest)


def ran(*said: tuple[str, int], parts: Sequence[Part] = (SHORT,)) -> Scripted:
    """Run parts one by one, with guests that are there."""
    run = Scripted(*said)
    guests = Guests(Processes(), frozenset())
    guests.states = dict(READY)
    run.parts(parts, guests, jobs=1)
    assert not run.said
    return run


def told(run: Run) -> str:
    return "\n".join(report.lines(run.results, 100))


def test_what_passes_the_second_time_is_named_as_unstable():
    run = ran(("FAILED t.py::lucky - why\n1 failed, 4 passed in 1s", 1), ("1 passed in 1s", 0))
    assert run.ran[1] == ("fast/short again", ["t.py::lucky"])
    (result,) = run.results
    assert (result.status, result.count("passed"), result.count("failed")) == (0, 5, 0)
    assert "UNSTABLE" in told(run) and "FAILED t.py::lucky - why" in told(run)
    assert told(run).endswith("\n5 passed, 0 failed")


def test_what_fails_again_has_failed():
    run = ran(
        ("FAILED t.py::a\nFAILED t.py::b\n2 failed, 4 passed in 1s", 1), ("1 failed, 1 passed in 1s", 1)
    )
    (result,) = run.results
    assert (result.status, result.count("passed"), result.count("failed")) == (1, 5, 1)
    assert "UNSTABLE" not in told(run)
    assert told(run).endswith("\n5 passed, 1 failed")


def test_part_that_loses_its_guest_is_repeated_once_and_told_as_unstable():
    run = ran(("...", LOST_GUEST), ("4 passed in 1s", 0))
    assert [arguments for _, arguments in run.ran] == [SHORT.arguments("pairwise")] * 2
    assert "its guest was lost" in told(run) and "UNSTABLE" in told(run)
    run = ran(("...", LOST_GUEST), ("...", LOST_GUEST))
    assert [result.is_good for result in run.results] == [False]
    assert told(run).endswith("\n0 passed, 1 failed")


def test_part_that_loses_its_guest_after_a_failure_is_not_repeated():
    run = ran(("..F", LOST_GUEST))
    assert "its guest was lost" in told(run)


def test_what_goes_on_is_said_now_and_then(monkeypatch, capsys):
    monkeypatch.setattr(runner_run, "SAY_S", 0)

    def slow(*_: object) -> Result:
        time.sleep(1.5)
        return result_of("1 passed in 1s")

    monkeypatch.setattr(Scripted, "_in_guest", slow)
    guests = Guests(Processes(), frozenset())
    guests.states = dict(READY)
    Scripted().parts((SHORT, LONG), guests, jobs=1)
    assert re.search(r"^vm tests\| full/long for \d s; 1 waiting$", capsys.readouterr().out, re.MULTILINE)


def test_parts_are_all_run_longest_first():
    run = ran(("1 passed in 1s", 0), ("2 passed in 1s", 0), parts=(SHORT, LONG))
    assert [name for name, _ in run.ran] == ["full/long", "fast/short"]


# What is told at the end.


def test_table_has_each_step_and_the_total_in_a_hundred_columns():
    results = [
        result_of("1712 passed in 453.61s (0:07:33)", name="native-test", started=31, seconds=453),
        result_of("9 failed, 80 passed, 30 deselected in 200s", 1, guest="fast", started=500, seconds=212),
        result_of("", name="lint", seconds=31),
    ]
    lines = list(report.table(results, 3600))
    assert max(map(len, lines)) <= report.WIDTH
    assert [line.split()[0] for line in lines] == ["step", "lint", "native-test", "fast/it", "total"]
    assert lines[3].split() == ["fast/it", "fast", "80", "9", "-", "30", "212", "500", "FAILED"]
    assert lines[4].split() == ["total", "1792", "9", "0", "30", "3600", "0"]


def test_slowest_tests_are_those_of_all_parts():
    results = [
        result_of("".join(f"{n}.00s call     tests/integration/test_a.py::test_{n}\n" for n in range(8))),
        result_of("6.50s setup    tests/unit/test_b.py::test_" + "x" * 100 + "[end]\n", name="native-test"),
        result_of("".join(f"0.{n}0s call     tests/unit/test_c.py::test_{n}\n" for n in range(8))),
    ]
    lines = list(report.slowest(results))
    assert len(lines) == report.SLOWEST and max(map(len, lines)) <= report.WIDTH
    assert lines[0] == "    7.0 s  call     -     test_a.py::test_7"
    assert lines[1].startswith("    6.5 s  setup    -     unit/test_b.py::test_xxx")
    assert "xxx...xxx" in lines[1] and lines[1].endswith("x[end]")


def test_last_line_counts():
    assert (
        report.summary([result_of("5 passed in 1s"), result_of("1 failed in 1s", 1)]) == "5 passed, 1 failed"
    )
    assert report.summary([result_of("5 passed, 2 skipped in 1s")]) == "5 passed, 0 failed, 2 skipped"


def test_part_without_a_guest_is_skipped_or_fails():
    run = Run(Processes(), "pairwise")
    run.without_guest(LONG, Turn.SKIP)
    assert told(run).endswith("there is no full guest here (the reason stands above)\n\n0 passed, 0 failed")
    run.without_guest(LONG, Turn.FAIL)
    assert told(run).endswith("0 passed, 1 failed")


# Processes.


def test_everything_is_ended_and_nothing_is_started_any_more():
    processes = Processes()
    process = processes.start(
        ["sh", "-c", "trap 'echo told; exit 3' INT; echo on; while :; do sleep 0.1; done"]
    )
    with process:
        assert process.stdout is not None and process.stdout.readline() == "on\n"
        processes.end()
        assert process.returncode == 3 and process.stdout.read() == "told\n"
    with pytest.raises(EndedError):
        processes.start(["true"])


def test_guests_are_built_one_after_the_other(monkeypatch, tmp_path):
    monkeypatch.setattr(runner_guests, "LOGS", tmp_path)
    steps = {Guest.FULL: [["echo", "one"], ["echo", "two"]], Guest.FAST: [["false"], ["echo", "never"]]}
    monkeypatch.setattr(runner_guests, "STEPS", steps)
    guests = Guests(Processes(), frozenset(Guest))
    guests.build()
    with guests.changed:
        assert guests.changed.wait_for(lambda: State.BUILDING not in guests.states.values(), 60)
    assert guests.states == {Guest.FULL: State.READY, Guest.FAST: State.ABSENT}
    assert (tmp_path / "build-full.log").read_text() == "one\ntwo\n"


def test_interrupted_run_ends_what_it_started(tmp_path):
    script = f"""
import sys, threading, time
sys.path.insert(0, {str(TREE / "tests")!r})
from runner import main
def forever(run, *_, **__):
    run.step("sleeper", ["sh", "-c", "echo $$; exec sleep 1000"])
main.run_suite = forever
sys.exit(main.main(["vm"]))
"""
    # As a shell starts what is in its background.
    ignoring = ["env", "--ignore-signal=INT", sys.executable, "-c", script]
    with subprocess.Popen(ignoring, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline().partition("| ")[2])
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{pid}").exists()


def test_parts_can_be_listed(capsys):
    assert main(["list"]) == 0
    assert "fast/engines: engines\n" in capsys.readouterr().out
    assert os.access(TREE / "tests/run", os.X_OK)
