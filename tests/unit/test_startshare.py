"""With which share of the CPUs calls are started; for the front see tests/contract/test_exec_share.py."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agentrun import calls, startshare
from agentrun.paths import Paths


@pytest.mark.parametrize(
    ("tier", "starts"), [(None, None), (400, None), (100, None), (99, 99), (25, 25), (1, startshare.LEAST)]
)
def test_only_a_tier_with_less_than_the_usual_weight_has_its_own(tier, starts):
    assert startshare.lower(tier) == starts


@pytest.mark.parametrize("has_controller", [True, False])
def test_share_is_made_entered_and_noted_where_there_is_a_controller(tmp_path: Path, has_controller):
    share = tmp_path / "agentrun-starts-25"
    share.mkdir()
    for name in ("cpu.weight", "cgroup.procs") if has_controller else ():
        (share / name).touch()
    session = calls.open_calls(Paths(str(tmp_path), str(tmp_path)), "/run/runc", "box")
    assert session
    startshare.enter(session, 25, str(tmp_path))
    noted = [path.read_text() for path in Path(session.where).iterdir()]
    session.close()
    assert noted == [f"{share} {os.cpu_count()}\n"] * has_controller
    assert share.exists() == has_controller
    if has_controller:
        assert [(share / name).read_text() for name in ("cpu.weight", "cgroup.procs")] == ["25", "0"]
