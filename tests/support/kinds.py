"""Rows as `learning.samples` reads them, for tests of what is made of them."""

from __future__ import annotations

from typing import Any

from agentrun.learning import samples as learned
from agentrun.learning import usage

MIB = 1 << 20


def row(**fields: Any) -> dict[str, Any]:
    """The fields of a record of `pytest` that used 100 MiB and one second."""
    made: dict[str, Any] = {
        **dict.fromkeys(learned.FIELDS),
        "image": "img",
        "family": "pytest",
        "mode": "enforce",
        "class": "test",
        "rule": "tests",
        "policy": "p1",
        "peak": 100 * MIB,
        "cpu_us": 1_000_000,
        "limit": 512 * MIB,
        "verdict": "ok",
    }
    return {**made, **fields}


def samples(*rows: dict[str, Any]) -> list[usage.Sample]:
    return [sample for each in rows if (sample := usage.sample_of(each)) is not None]
