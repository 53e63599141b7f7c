"""Numbers with units."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrun.base.units import parse_count, parse_duration, parse_size, show_size

DURATIONS = {
    "500ms": 0.5,
    "30s": 30,
    "10m": 600,
    "1h": 3600,
    "1h30m": 5400,
    "2d": 172800,
    "1.5h": 5400,
    "10M": 600,
}


@pytest.mark.parametrize("text", DURATIONS)
def test_duration_is_read(text):
    assert parse_duration(text) == DURATIONS[text]


@pytest.mark.parametrize(
    "text", ["", "10", "s", "0s", "-1s", "10x", "1h-1m", "10 s", "1e9s", "9" * 70 + "s", "1h30"]
)
def test_malformed_duration_is_refused(text):
    assert parse_duration(text) is None


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "", "1e3", "0x10"])
def test_malformed_count_is_refused(text):
    assert parse_count(text) is None


def test_sizes_are_shown_in_the_unit_that_reads_best():
    assert [show_size(n) for n in (512, 64 << 10, 1536 << 20, 2 << 30, 5 << 40)] == [
        "512B",
        "64K",
        "1.5G",
        "2G",
        "5T",
    ]


@given(st.text(max_size=80))
def test_any_text_is_a_positive_number_or_none(text):
    for parse in (parse_size, parse_duration, parse_count):
        value = parse(text)
        assert value is None or value > 0
