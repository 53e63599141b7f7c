"""The keeper of rates: it looks until nothing of ours is left, whatever goes wrong meanwhile."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from agentrun.base.errors import NetError, NetLibraryError
from agentrun.base.paths import Paths
from agentrun.decision import inforce
from agentrun.net import keeper, plan, rate, status


@pytest.fixture
def host(tmp_path, monkeypatch):
    """A host whose policy wants rates, or not; each look brings about what is wanted, or fails."""
    (tmp_path / "var/log").mkdir(parents=True)
    found = SimpleNamespace(
        wanted=True, ours=False, error=None, looks=0, log=tmp_path / "var/log/agentrun.log"
    )

    @contextlib.contextmanager
    def opened() -> Iterator[None]:
        found.looks += 1
        if found.error is not None:
            raise found.error
        yield

    def look(*_: object, change: bool) -> tuple[bool, list[object]]:
        assert change
        found.ours = found.wanted
        return found.ours, []

    monkeypatch.setattr(inforce, "load", lambda _: SimpleNamespace(mode="enforce", policy=None))
    monkeypatch.setattr(rate, "are_wanted", lambda _: found.wanted)
    monkeypatch.setattr(plan, "has_ours", lambda ours: ours)
    monkeypatch.setattr(status, "write", lambda *_: None)
    monkeypatch.setattr(keeper, "opened", opened)
    monkeypatch.setattr(keeper, "look", look)
    found.keeper = keeper.Keeper(Paths(str(tmp_path)))
    return found


@pytest.mark.parametrize(
    "error", [NetError("list interfaces: No buffer space available"), NetLibraryError("no")]
)
def test_rates_that_left_the_policy_are_taken_off_though_a_look_failed(host, error):
    host.keeper.step()
    assert host.ours
    host.wanted, host.error = False, error
    host.keeper.step()
    host.keeper.step()
    assert host.ours and len(Path(host.log).read_text().splitlines()) == 1
    host.error = None
    host.keeper.step()
    assert not host.ours
    looks = host.looks
    host.keeper.step()
    assert host.looks == looks  # nothing is left to look for


def test_host_without_the_library_and_without_rates_is_left_alone(host):
    host.wanted, host.error = False, NetLibraryError("pyroute2 is not installed")
    for _ in range(3):
        host.keeper.step()
    assert host.looks == 1 and not host.log.exists()
