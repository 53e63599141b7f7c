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
    paths = Paths(str(tmp_path), str(tmp_path))
    session = calls.open_calls(paths, "/run/runc", "box")
    assert session
    startshare.enter(paths, session, "low", 25)
    of_tier = Path(paths.start_shares, "low")
    noted = [path.read_text() for path in [*Path(session.where).iterdir(), of_tier] if path.exists()]
    session.close()
    assert noted == [f"{share} {os.cpu_count()}\n"] * 2 * has_controller
    assert share.exists() == has_controller
    if has_controller:
        assert [(share / name).read_text() for name in ("cpu.weight", "cgroup.procs")] == ["25", "0"]
    startshare.forget(paths, "low")
    assert not of_tier.exists()


def test_who_is_in_the_share_already_is_not_moved_again(tmp_path: Path):
    share = tmp_path / "agentrun-starts-25"
    share.mkdir()
    (share / "cpu.weight").touch()
    (share / "cgroup.procs").write_text(f"1\n{os.getpid()}\n")
    paths = Paths(str(tmp_path), str(tmp_path))
    session = calls.open_calls(paths, "/run/runc", "box")
    assert session
    startshare.enter(paths, session, "low", 25)
    session.close()
    assert (share / "cgroup.procs").read_text() == f"1\n{os.getpid()}\n"


def test_tier_that_no_annotation_says_is_not_noted_for_the_front(tmp_path: Path):
    share = tmp_path / "agentrun-starts-25"
    share.mkdir()
    for name in ("cpu.weight", "cgroup.procs"):
        (share / name).touch()
    paths = Paths(str(tmp_path), str(tmp_path))
    session = calls.open_calls(paths, "/run/runc", "box")
    assert session
    startshare.enter(paths, session, None, 25)
    session.close()
    assert not Path(paths.start_shares).exists() and (share / "cgroup.procs").read_text() == "0"
