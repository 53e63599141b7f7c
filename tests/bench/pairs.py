"""Time commands side by side: interleaved in one run, in changing order, and compared pair by pair."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Comparison:
    """Two ways to do the same thing; the samples are milliseconds, pair by pair."""

    title: str
    base_name: str
    name: str
    base_ms: list[float]
    ms: list[float]

    def ratio(self) -> float:
        """Median of the pairs' ratios: what drifts over the run cancels out."""
        return statistics.median(b / a for a, b in zip(self.base_ms, self.ms, strict=True))

    def added_ms(self) -> float:
        """Median of the pairs' differences."""
        return statistics.median(b - a for a, b in zip(self.base_ms, self.ms, strict=True))

    def row(self) -> str:
        """One row of the table in docs/benchmarks.md."""
        cells = [
            self.title,
            f"{self.base_name}: {spread(self.base_ms)}",
            f"{self.name}: {spread(self.ms)}",
            str(len(self.ms)),
            f"{self.added_ms():+.1f}",
            f"{self.ratio():.2f}" if min(self.base_ms) > 0 else "-",
        ]
        return "| " + " | ".join(cells) + " |"


HEADER = (
    "| what | base: median (min, p90) ms | agentrun: median (min, p90) ms | pairs | added ms | ratio |\n"
    "|---|---|---|---|---|---|"
)


def spread(samples: list[float]) -> str:
    """Median, minimum and 90th percentile."""
    p90 = statistics.quantiles(samples, n=10)[-1]
    return f"{statistics.median(samples):.1f} ({min(samples):.1f}, {p90:.1f})"


def time_ms(command: Sequence[str]) -> float:
    """Run one command to its end; a failing one ends the benchmark."""
    began = time.perf_counter()
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False
    )
    took = (time.perf_counter() - began) * 1000
    if done.returncode:
        sys.exit(f"bench: {' '.join(command)}: status {done.returncode}: {done.stderr.decode().strip()}")
    return took


def compare(
    title: str, base: tuple[str, Sequence[str]], other: tuple[str, Sequence[str]], pairs: int
) -> Comparison:
    """Time `pairs` pairs of two named commands, after three of each to warm up."""
    for _ in range(3):
        time_ms(base[1])
        time_ms(other[1])
    base_ms: list[float] = []
    other_ms: list[float] = []
    for number in range(pairs):
        if number % 2:
            other_ms.append(time_ms(other[1]))
            base_ms.append(time_ms(base[1]))
        else:
            base_ms.append(time_ms(base[1]))
            other_ms.append(time_ms(other[1]))
    result = Comparison(title, base[0], other[0], base_ms, other_ms)
    print(f"bench: {title}: ratio {result.ratio():.2f}, added {result.added_ms():+.1f} ms", file=sys.stderr)
    return result
