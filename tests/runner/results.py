"""What pytest's output says: how many passed, what failed, what took long."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

# The short summary's lines, the last line, the lines of --durations, and those of progress.
_FAILED = re.compile(r"^(?:FAILED|ERROR) (?P<test>\S+?::.*?)(?: - .*)?$|^(?:FAILED|ERROR) ")
_TOTAL = re.compile(r"^(=* ?)(no tests ran|\d+ \w+(?:, \d+ \w+)*)( in [\d.]+s.*)$")
_COUNT = re.compile(r"(\d+) (passed|failed|error|skipped|deselected)s?\b")
_DURATION = re.compile(r"^ *(?P<seconds>\d+\.\d+)s (?P<phase>setup|call|teardown) +(?P<test>\S.*?)\s*$")
_PROGRESS = re.compile(r"^(?P<marks>[.sxXFE]+)\s*(?:\[ *\d+%\])?\s*(?:vm: .*)?$")

LOST_GUEST = 250  # the exit status of tests/vm/vm
MOST_AGAIN = 2  # tests of a whole run; more than that is no bad luck


@dataclass
class Result:
    """How one step or part ended, and what it said."""

    name: str
    guest: str = "-"
    status: int = -1
    started: float = 0.0
    seconds: float = 0.0
    counts: dict[str, int] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    slow: list[tuple[float, str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    is_skipped: bool = False
    is_unstable: bool = False
    has_failed_so_far: bool = False

    def read(self, line: str) -> None:
        """Take what a line of pytest's output says."""
        found = _FAILED.search(line)
        if found is not None and found["test"]:
            self.failed.append(found["test"])
        if total := _TOTAL.match(line):
            self.counts = {what: int(number) for number, what in _COUNT.findall(total[2])}
        if found is not None or total:
            self.told.append(line.rstrip())
        if duration := _DURATION.match(line):
            self.slow.append((float(duration["seconds"]), duration["phase"], duration["test"]))
        if progress := _PROGRESS.match(line):
            self.has_failed_so_far |= "F" in progress["marks"] or "E" in progress["marks"]

    @property
    def is_good(self) -> bool:
        return self.status == 0

    def count(self, what: str) -> int:
        """How many passed, were skipped, deselected, or failed.

        An error is a failure. So is a step that failed and names no test.
        """
        number = self.counts.get(what, 0)
        if what == "failed":
            number += self.counts.get("error", 0)
            return number if self.is_good else max(1, number)
        return number

    def lost_guest(self) -> bool:
        """Whether its guest died, and nothing had failed before."""
        return self.status == LOST_GUEST and not (self.failed or self.has_failed_so_far)

    def take_second(self, second: Result) -> None:
        """The tests that failed were run again: what passed then has passed, and is named as unstable."""
        again = second.count("failed")
        self.counts["passed"] = self.count("passed") + max(0, self.count("failed") - again)
        self.counts |= {"failed": again, "error": 0}
        self.status = second.status
        self.told += second.told
        self.seconds += second.seconds
        self.is_unstable = second.is_good
        self.notes.append("run again alone: " + ("all passed" if second.is_good else "failed again"))


def to_run_again(results: list[Result]) -> list[Result]:
    """The parts whose few failures run once more, alone: an emulated CPU stands still for seconds at times.

    None where a part failed without naming a test, or where more failed than bad luck explains.
    """
    failed = [result for result in results if not result.is_good]
    number = sum(len(set(result.failed)) for result in failed)
    return failed if all(result.failed for result in failed) and number <= MOST_AGAIN else []
