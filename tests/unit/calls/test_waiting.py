"""A runtime that dies at any line of its wait leaves nothing that anybody counts."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from crash import die_at_line, in_child

from agentrun.base.errors import RefusedError
from agentrun.base.paths import Paths
from agentrun.calls import slots
from agentrun.calls.names import WAITING, waiting_name
from agentrun.calls.session import open_calls
from agentrun.daemon.main import take_lock
from agentrun.runtime import admission

STATE = {"id": "0" * 19, "rank": [100, 100], "calls": "/sys/fs/cgroup/none/agentrun-calls", "care": {}}
REFUSE = {"wait": 0.01, "then": "refuse"}


@pytest.fixture
def paths(tmp_path: Path):
    for folder in ("var/lib", "var/log", "runc"):
        (tmp_path / folder).mkdir(parents=True)
    made = Paths(str(tmp_path))
    lock = take_lock(made)
    text = {"until": time.monotonic() + 9, "closed": [{"domain": "host", "below": None, "why": "full"}]}
    Path(made.gate).write_text(json.dumps(text))
    Path(made.gate).chmod(0o600)
    yield made
    os.close(lock)


def found(paths: Paths) -> Any:
    return SimpleNamespace(
        root=f"{paths.root}/runc", container_id="c1", cgroup="/sys/fs/cgroup/none", is_running=lambda: True
    )


def admit(paths: Paths) -> None:
    """A call that waits for a moment and is refused."""
    with pytest.raises(RefusedError):
        admission.admit(paths, found(paths), {**STATE, "start": time.time()}, REFUSE)


def records(paths: Paths) -> list[str]:
    path = Path(paths.records)
    return [json.loads(line)["verdict"] for line in path.read_text().splitlines()] if path.exists() else []


def test_death_at_any_line_leaves_nothing(paths):
    for number in range(1000):

        def work(number: int = number) -> None:
            die_at_line(number, admission, slots)
            admit(paths)

        status = in_child(work)
        session = open_calls(paths, f"{paths.root}/runc", "c1")
        assert session
        assert session.waiting() == [] and session.slots() == []
        session.close()
        assert not [n for n in os.listdir(session.where) if n.startswith(WAITING)]
        if status != 9:
            break
    assert (status, number > 80) == (0, True)
    assert set(records(paths)) == {"refused"}  # some died after it


def test_names_of_waiting_calls_are_in_order():
    ranks = [([300, 50], "b"), ([100, 200], "a"), ([100, 100], "a"), ([100, 100], "b"), ([1, 50], "a")]
    names = [waiting_name(rank, call_id) for rank, call_id in ranks]
    assert names == sorted(names)


def test_damaged_file_of_a_waiting_call_hinders_nobody(paths):
    session = open_calls(paths, f"{paths.root}/runc", "c1")
    assert session
    (Path(session.where) / "wait-damaged").write_text("{")
    admit(paths)
    assert session.waiting() == [] and records(paths) == ["refused"]
    session.forget_if_empty()
    session.close()
    assert not Path(session.where).exists()
