"""Engines, runtimes and drivers to run tests with: all combinations, or as few as have all pairs.

A fixture takes the product of its axes from `cells`. Where a test has a third axis, a parameter of its own, a
pairwise run keeps of its cases as many as are needed for each two values to meet: `docker`, `crun` and each
command, but not each command with each engine on each runtime. With two axes these are all.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Sequence

KINDS = ("whole", "pairwise")
Row = tuple[Hashable, ...]


class Cell(tuple[str, ...]):
    """A combination of values, one of each axis."""


def cells(*axes: Sequence[str]) -> list[Cell]:
    """The product of axes, for a fixture's `params` (with `ids="-".join`)."""
    return [Cell(values) for values in itertools.product(*axes)]


def pairwise(rows: Sequence[Row]) -> list[Row]:
    """The rows to keep so that each two values that meet in some row meet in one that is kept.

    Greedy: always the first of those that add most. All rows have the same number of columns.
    """
    missing = {pair for row in rows for pair in pairs_of(row)}
    kept = []
    while missing:
        best = max(rows, key=lambda row: len(pairs_of(row) & missing))
        kept.append(best)
        missing -= pairs_of(best)
    return [row for row in rows if row in kept]


def pairs_of(row: Row) -> set[tuple[tuple[int, Hashable], ...]]:
    """Each two values of a row, with their columns. A row of one or two columns is itself one pair."""
    return set(itertools.combinations(enumerate(row), min(2, len(row))))
