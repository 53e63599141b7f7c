"""With which share of the CPUs calls are started; for the front see tests/contract/test_exec_share.py."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentrun.base.paths import Paths
from agentrun.calls import slots
from agentrun.calls.session import open_calls
from agentrun.runtime import startshare


@pytest.mark.parametrize(
    ("tier", "starts"), [(None, None), (400, None), (100, None), (99, 99), (25, 25), (1, startshare.LEAST)]
)
def test_only_a_tier_with_less_than_the_usual_weight_has_its_own(tier, starts):
    assert startshare.lower(tier) == starts


@pytest.fixture
def session(tmp_path: Path) -> Iterator[slots.Calls]:
    """The calls of a container on a host below `tmp_path`, whose cgroups are there too."""
    found = open_calls(Paths(str(tmp_path), str(tmp_path)), "/run/runc", "box")
    assert found
    yield found
    found.close()


def make_share(folder: Path, **files: str) -> Path:
    """A cgroup for starts with these files."""
    share = folder / "agentrun-starts-25"
    share.mkdir()
    for name, text in files.items():
        (share / name.replace("_", ".")).write_text(text)
    return share


@pytest.mark.parametrize("has_controller", [True, False])
def test_share_is_made_entered_and_noted_where_there_is_a_controller(tmp_path, session, has_controller):
    share = make_share(tmp_path, **({"cpu_weight": "", "cgroup_procs": ""} if has_controller else {}))
    startshare.enter(session, "low", 25)
    of_tier = Path(session.paths.start_shares, "low")
    noted = [path.read_text() for path in [*Path(session.where).iterdir(), of_tier] if path.exists()]
    assert noted == [f"{share} {os.cpu_count()}\n"] * 2 * has_controller
    assert share.exists() == has_controller
    if has_controller:
        assert [(share / name).read_text() for name in ("cpu.weight", "cgroup.procs")] == ["25", "0"]
    startshare.forget(session.paths, "low")
    assert not of_tier.exists()


def test_who_is_in_the_share_already_is_not_moved_again(tmp_path, session):
    share = make_share(tmp_path, cpu_weight="", cgroup_procs=f"1\n{os.getpid()}\n")
    startshare.enter(session, "low", 25)
    assert (share / "cgroup.procs").read_text() == f"1\n{os.getpid()}\n"


def test_tier_that_no_annotation_says_is_not_noted_for_the_front(tmp_path, session):
    share = make_share(tmp_path, cpu_weight="", cgroup_procs="")
    startshare.enter(session, None, 25)
    assert not Path(session.paths.start_shares).exists() and (share / "cgroup.procs").read_text() == "0"
