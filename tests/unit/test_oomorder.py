"""Calls before agents in the kernel's order of victims."""

import os
import subprocess
from collections.abc import Iterator

import pytest

from agentrun import oomorder


@pytest.mark.parametrize(
    ("own", "base", "plus", "wanted"),
    [
        (0, 0, 500, 500),
        (0, -998, 500, None),  # more already, as an exec without a value of its own
        (-998, -998, 500, -498),
        (900, 900, 500, 1000),
        (1000, 900, 500, None),
        (700, 0, 500, None),  # it offers itself
    ],
)
def test_raised(own: int, base: int, plus: int, wanted: int | None) -> None:
    assert oomorder.raised(own, base, plus) == wanted


@pytest.fixture
def process() -> Iterator[int]:
    """A process that lives."""
    with subprocess.Popen(["sleep", "1000"]) as made:
        yield made.pid
        made.kill()


def test_process_is_raised_once(process: int) -> None:
    base = oomorder.read(process)
    assert base is not None
    assert oomorder.raise_process(process, base, 10)
    assert oomorder.read(process) == min(1000, base + 10)
    assert not oomorder.raise_process(process, base, 10)


def test_process_that_is_gone_is_no_error(process: int) -> None:
    os.kill(process, 9)
    os.waitpid(process, 0)
    assert not oomorder.raise_process(process, 0, 10)
