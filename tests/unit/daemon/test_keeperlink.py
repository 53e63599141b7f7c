"""agentrund's side of the keeper, where the host has no process to give for a while."""

from __future__ import annotations

import errno
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agentrun.base.paths import Paths
from agentrun.daemon.keeperlink import KeeperLink


class Loop:
    """Nothing happens by itself: `run` does what was planned."""

    def __init__(self) -> None:
        self.planned: list[Callable[[], None]] = []

    def later(self, _: float, action: Callable[[], None]) -> None:
        self.planned.append(action)

    def watch(self, *_: object) -> None: ...

    def unwatch(self, _: int) -> None: ...

    def run(self) -> None:
        planned, self.planned = self.planned, []
        for action in planned:
            action()


def end(link: KeeperLink, loop: Loop) -> None:
    """Close it, and reap what there was."""
    link.close()
    while loop.planned:
        loop.run()
        time.sleep(0.01)


def test_keeper_is_there_as_soon_as_the_host_has_a_process_for_it(tmp_path, monkeypatch):
    (tmp_path / "var/log").mkdir(parents=True)
    paths, loop, again = Paths(str(tmp_path)), Loop(), []
    popen: Any = subprocess.Popen

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    link = KeeperLink(loop, paths, lambda: again.append(True))  # type: ignore[arg-type]
    monkeypatch.setattr(subprocess, "Popen", refuse)
    link.start()
    loop.run()
    assert link.check()["pid"] is None and not again
    assert len(Path(paths.log).read_text().splitlines()) == 1
    monkeypatch.setattr(subprocess, "Popen", popen)
    loop.run()
    try:
        assert link.check()["pid"] is not None and again == [True]
    finally:
        end(link, loop)


@pytest.mark.parametrize("closed", [False, True])
def test_only_an_open_link_starts_a_keeper(tmp_path, closed):
    loop = Loop()
    link = KeeperLink(loop, Paths(str(tmp_path)), lambda: None)  # type: ignore[arg-type]
    link.start()
    pid = link.pid
    assert pid is not None
    if closed:
        link.close()
    else:
        link._lost()
    loop.run()
    try:
        assert (link.pid is None) == closed and link.pid != pid
    finally:
        end(link, loop)
