"""The command line of tests/run."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType

from runner import report
from runner.guests import Guests
from runner.parts import PARTS, Guest, Part, chosen, title
from runner.processes import Processes
from runner.run import Run

EPILOG = """\
Every part has a guest of its own; AGENTRUN_VM_JOBS (2) of them run side by side. With CI=true a guest that
cannot be had is a failure. Else the full guest does the fast one's work, and without any parts are skipped.
"""


# Two processes that take about as long: calls by the thousand, and all else, which mostly waits.
_BUSY = ("tests/contract/test_exec.py", "tests/contract/test_load.py")
NATIVE = {
    "native-calls": " ".join(("-p no:cacheprovider", *_BUSY)),
    "native-rest": " ".join(f"--ignore={path}" for path in _BUSY),
}


def parsed(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="tests/run", description="Run the test suite, or parts of it.", epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("what", choices=("all", "vm", "list"), help="all: lint and native tests, too")
    parser.add_argument("parts", nargs="*", metavar="PART", help="default: those of `make test`")
    parser.add_argument("--matrix", choices=("pairwise", "whole"), default="pairwise")
    args = parser.parse_args(argv)
    try:
        args.parts = chosen(args.parts)
    except KeyError as error:
        parser.error(f"no such part: {error}; they are {', '.join(map(title, PARTS))}")
    return args


def main(argv: Sequence[str]) -> int:
    """0 when all passed."""
    args = parsed(argv)
    if args.what == "list":
        print(*(f"{title(part)}: {' '.join(part.files)}" for part in args.parts), sep="\n")
        return 0
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _terminate)
    # A shell starts what is in its background with SIGINT ignored, and pytest would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    processes = Processes()
    run = Run(processes, args.matrix)
    try:
        run_suite(run, processes, args.parts, with_native=args.what == "all")
    except (KeyboardInterrupt, SystemExit) as error:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        print("tests: interrupted; ending what was started", file=sys.stderr, flush=True)
        return error.code if isinstance(error, SystemExit) else 128 + signal.SIGINT  # type: ignore[return-value]
    finally:
        processes.end()
    print(*report.lines(run.results, run.wall_s()), sep="\n", flush=True)
    return 0 if all(result.is_good for result in run.results) else 1


def run_suite(run: Run, processes: Processes, parts: list[Part], *, with_native: bool) -> None:
    """Guests are built meanwhile; parts are not worth their time where the first steps fail."""
    needed = {part.guest for part in parts} | {Guest.FULL}
    guests = Guests(processes, frozenset(needed))
    guests.build()
    if not has_passed(run, with_native=with_native):
        print("vm tests: not run, for what comes before them failed", flush=True)
        return
    guests.hurry()
    run.parts(parts, guests, int(os.environ.get("AGENTRUN_VM_JOBS", "2")))


def has_passed(run: Run, *, with_native: bool) -> bool:
    """What is done on this machine."""
    first = ("lint", "bpf") if with_native else ("bpf",)
    if not all(run.step(name, ["make", name]).is_good for name in first):
        return False
    native = {name: ["make", "native-test", f"TESTS={tests}"] for name, tests in NATIVE.items()}
    return not with_native or all(step.is_good for step in run.steps(native))


def _terminate(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
