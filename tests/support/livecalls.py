"""Calls as the exec path leaves them, on real cgroups but without a runtime; and agentrund of this tree."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cgroups import placed

from agentrun.base.paths import Paths
from agentrun.calls.session import open_calls

TREE = Path(__file__).parents[2]
RUN = f"import sys; sys.path.insert(0, {str(TREE)!r}); from agentrun.daemon.main import main; main()"
DAEMON = (sys.executable, "-c", RUN)  # what it serves is in its environment


def start(
    paths: Paths,
    state: Mapping[str, Any],
    command: Sequence[str],
    prepare: Callable[[Path], None],
    **streams: Any,
) -> subprocess.Popen[Any]:
    """Start a call: its slot, its cgroup, its first process in it. The runtime that did so counts as gone.

    `state` needs `id`, `container` and `calls`, the cgroup of all calls; `prepare` gets the call's own before
    anything runs there; `streams` are of `subprocess.Popen`.
    """
    session = open_calls(paths, f"{paths.root}/runc", state["container"])
    assert session
    whole = {"start": time.time(), **state}
    slot = session.take_slot(whole)
    where = Path(session.where, slot)
    session.close()
    cgroup = Path(state["calls"], slot)
    cgroup.mkdir()
    prepare(cgroup)
    process = subprocess.Popen(placed(cgroup, *command), **streams)
    while "populated 1" not in (cgroup / "cgroup.events").read_text():
        time.sleep(0.001)
    _forget_owner(where, whole)
    return process


def _forget_owner(path: Path, state: Mapping[str, Any]) -> None:
    """The runtime that started it, which is this process, is gone."""
    ended = subprocess.Popen(["true"])
    ended.wait()
    path.with_name(".owner").write_text(json.dumps({**state, "owner": [ended.pid, 1]}))
    os.rename(path.with_name(".owner"), path)
