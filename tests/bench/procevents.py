"""What it costs that the kernel tells agentrund of processes: procevents.py [PAIRS]

A process of this host starts and reaps `/bin/true`, with a listener and without, in turn. Prints two rows of
docs/benchmarks.md: the CPU time of a start (parent and child), and what agentrund needs to read of a process.
"""

from __future__ import annotations

import os
import resource
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from agentrun.kernel.procevents import ProcEvents

STARTS = 1000


def cpu_s() -> float:
    """CPU time of this process and of those that it has reaped."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)


def start_us() -> float:
    """Microseconds of CPU time of one start."""
    before = cpu_s()
    for _ in range(STARTS):
        os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)
    return (cpu_s() - before) / STARTS * 1e6


def read_us(events: ProcEvents) -> float:
    """Microseconds to read of one process of those that are queued."""
    before = time.perf_counter()
    events.read()
    return (time.perf_counter() - before) / STARTS * 1e6


def main(pairs: int) -> None:
    """Measure and print."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    without, listening, reading = [], [], []
    start_us()
    for _ in range(pairs):
        without.append(start_us())
        events = ProcEvents()
        events.start()
        listening.append(start_us())
        reading.append(read_us(events))
        assert events.lost == 0
        events.close()
    differences = [b - a for a, b in zip(without, listening, strict=True)]
    middle = statistics.median
    added = f"{middle(differences):+.1f} us ({min(differences):+.1f}, {max(differences):+.1f})"
    both = f"{middle(without):.0f} us | {middle(listening):.0f} us"
    print(f"| start and end of `/bin/true`, CPU time | {both} | {added} | {pairs} |")
    print(f"| agentrund reads what it is told of it | - | {middle(reading):.1f} us | | {pairs} |")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 15)
