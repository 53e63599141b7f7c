"""The last lines of a run: a table of times, the slowest tests, what failed, and how many passed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from runner.results import Result

WIDTH = 100
SLOWEST = 10
_ROW = "{:<24} {:<5} {:>7} {:>7} {:>8} {:>11} {:>8} {:>8}  {}"
_HEAD = ("step or part", "guest", "passed", "failed", "skipped", "deselected", "wall s", "from s", "")
_COUNTED = ("passed", "failed", "skipped", "deselected")


def table(results: Sequence[Result], wall_s: float) -> Iterator[str]:
    """A line for each step and part, in the order of their starts, and the total."""
    yield _ROW.format(*_HEAD).rstrip()
    for result in sorted(results, key=lambda result: result.started):
        counts = [result.count(what) or "-" for what in _COUNTED]
        times = (f"{result.seconds:.0f}", f"{result.started:.0f}")
        yield _ROW.format(result.name[:24], result.guest, *counts, *times, ending(result)).rstrip()[:WIDTH]
    totals = [sum(result.count(what) for result in results) for what in _COUNTED]
    yield _ROW.format("total", "", *totals, f"{wall_s:.0f}", 0, "").rstrip()


def ending(result: Result) -> str:
    """How it ended, in a word."""
    if result.is_skipped:
        return "skipped"
    if not result.is_good:
        return "FAILED"
    return "UNSTABLE" if result.is_unstable else "ok"


def slowest(results: Sequence[Result]) -> Iterator[str]:
    """The tests that took longest, of all parts."""
    found = [(*slow, result.guest) for result in results for slow in result.slow]
    for seconds, phase, test, guest in sorted(found, reverse=True)[:SLOWEST]:
        begin = f"{seconds:7.1f} s  {phase:<8} {guest:<5} "
        yield begin + shortened(test.removeprefix("tests/").removeprefix("integration/"), WIDTH - len(begin))


def shortened(text: str, width: int) -> str:
    """A text without its middle; a test's parameters are at its end."""
    end = width // 3
    return text if len(text) <= width else f"{text[: width - end - 3]}...{text[-end:]}"


def failures(results: Sequence[Result]) -> Iterator[str]:
    """What failed, what was unstable, and what else is to be told, for each part that has such a thing."""
    for result in sorted(results, key=lambda result: (not result.is_good, result.is_unstable)):
        if result.is_good and not result.is_unstable and not result.notes:
            continue
        yield f"{result.name}: {ending(result)} (status {result.status})"
        if not result.is_good or result.is_unstable:
            yield from (f"  {line[:300]}" for line in result.told)
        yield from (f"  {note}" for note in result.notes)
        if result.is_good and result.is_unstable:
            yield "  UNSTABLE: failed once, and passed when run again"


def summary(results: Sequence[Result]) -> str:
    """How many tests passed and failed: the last line."""
    passed, failed, skipped = (sum(result.count(what) for result in results) for what in _COUNTED[:3])
    return f"{passed} passed, {failed} failed" + (f", {skipped} skipped" if skipped else "")


def lines(results: Sequence[Result], wall_s: float) -> Iterator[str]:
    """All of it."""
    yield ""
    yield from table(results, wall_s)
    if found := list(slowest(results)):
        yield f"\nthe slowest {len(found)} tests:"
        yield from found
    if told := list(failures(results)):
        yield ""
        yield from told
    yield ""
    yield summary(results)
