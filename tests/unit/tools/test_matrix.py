"""Pairwise: each two values meet, in few rows."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matrix import cells, pairs_of, pairwise

ENGINES, RUNTIMES = ("docker", "podman", "ctr"), ("runc", "crun")


@pytest.mark.parametrize("sizes", [(2, 2, 2), (2, 2, 13), (3, 2, 4, 5), (2, 2), (4,)], ids=str)
def test_each_two_values_of_any_two_axes_meet(sizes):
    rows = list(itertools.product(*(range(size) for size in sizes)))
    kept = pairwise(rows)
    for (i, one), (j, other) in itertools.combinations(enumerate(sizes), 2):
        assert {(row[i], row[j]) for row in kept} == set(itertools.product(range(one), range(other)))
    assert set(kept) <= set(rows)


@given(st.sets(st.tuples(*[st.integers(0, 3)] * 3), max_size=30))
def test_pairs_of_what_is_no_product_are_kept_and_none_is_made_up(rows):
    kept = pairwise(sorted(rows))
    assert set().union(*map(pairs_of, kept)) == set().union(*map(pairs_of, rows))
    assert set(kept) <= rows


def test_two_axes_are_kept_whole():
    rows = cells(ENGINES, RUNTIMES)
    assert pairwise(rows) == rows and len(rows) == 6


def test_third_axis_costs_the_product_of_the_two_longest():
    assert len(pairwise([(*cell, n) for cell in cells(ENGINES[:2], RUNTIMES) for n in range(13)])) == 26
    assert len(pairwise([(*cell, n) for cell in cells(ENGINES[:2], RUNTIMES) for n in range(2)])) == 4
