"""Calls before agents in the kernel's order of victims."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentrun.daemon.parts import oomorder


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


def value(pid: int) -> int:
    """A process's oom_score_adj."""
    return int(Path(f"/proc/{pid}/oom_score_adj").read_text())


def cgroup_of(pid: int) -> str:
    """A process's cgroup v2, as the kernel writes it."""
    lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    return next(line[3:] for line in lines if line.startswith("0::"))


def test_process_is_raised_once(process: int) -> None:
    base = value(process)
    assert oomorder.raise_process(process, cgroup_of(process), base, 10)
    assert value(process) == min(1000, base + 10)
    assert not oomorder.raise_process(process, cgroup_of(process), base, 10)


def test_process_that_is_elsewhere_by_now_is_let_alone(process: int) -> None:
    base = value(process)
    assert not oomorder.raise_process(process, cgroup_of(process) + "/elsewhere", base, 10)
    assert value(process) == base


def test_process_that_is_gone_is_no_error(process: int) -> None:
    cgroup = cgroup_of(process)
    os.kill(process, 9)
    os.waitpid(process, 0)
    assert not oomorder.raise_process(process, cgroup, 0, 10)
