"""JSON without the standard library's `json`."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrun.base import fastjson

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(VALUES)
def test_what_is_written_reads_back(value):
    assert json.loads(fastjson.dumps(value)) == value
    assert fastjson.loads(fastjson.dumps(value)) == value


@given(VALUES)
def test_what_the_standard_library_wrote_is_read(value):
    assert fastjson.loads(json.dumps(value, indent=1).encode()) == value


@given(st.binary(max_size=40) | st.text(max_size=40))
def test_anything_else_is_a_value_error(data):
    try:
        fastjson.loads(data)
    except ValueError:
        return
    json.loads(data if isinstance(data, str) else data.decode("utf-8", "surrogateescape"))


@pytest.mark.parametrize("text", ["", " ", "{", "[1,", '"abc', '{"a":tru', "nul", "{} {}", "[" * 100_000])
def test_damaged_text_is_a_value_error(text):
    with pytest.raises(ValueError, match="."):
        fastjson.loads(text)


def test_bytes_that_are_not_utf_8_survive():
    assert fastjson.loads(b'["\xff"]') == ["\udcff"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_json_lacks_become_null(value):
    assert fastjson.dumps(value) == "null"


def test_one_line_whatever_the_text():
    assert "\n" not in fastjson.dumps({"a\n": "\n\x1b[2J"})


def test_other_types_are_refused():
    with pytest.raises(TypeError, match="set"):
        fastjson.dumps({1})
