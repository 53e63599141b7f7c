"""The controller on a host whose cgroups are plain files, and whose time passes when the test says so."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agentrun.base.paths import Paths
from agentrun.calls.session import open_calls, open_where
from agentrun.cgroups.cgroup import Cgroup
from agentrun.daemon.controller.controller import Controller

MIB = 1 << 20
LIMIT = 600 * MIB
HIGH, LOW = [300, 100], [100, 100]


class Loop:
    """Time that passes when the test says so; nothing becomes ready by itself."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.live: dict[tuple[str, str], Any] = {}
        self.planned: list[tuple[float, Callable[[], None]]] = []
        self.watched: dict[int, Callable[[int], None]] = {}

    def later(self, seconds: float, action: Callable[[], None]) -> None:
        self.planned.append((self.now + seconds, action))

    def watch(self, fd: int, events: int, handler: Callable[[int], None]) -> None:
        assert fd not in self.watched
        self.watched[fd] = handler

    def unwatch(self, fd: int) -> None:
        del self.watched[fd]

    def run(self, seconds: float) -> None:
        """Let time pass."""
        end = self.now + seconds
        while due := [entry for entry in self.planned if entry[0] <= end]:
            first = min(due, key=lambda entry: entry[0])
            self.planned.remove(first)
            self.now = max(self.now, first[0])
            first[1]()
        self.now = end


class Host:
    """A pod of 600 MB with a container for each call, on plain files."""

    def __init__(self, root: Path) -> None:
        self.paths = Paths(str(root), str(root / "cgroup"))
        self.pod = root / "cgroup/pod"
        for folder in ("var/log", "var/lib", "runc"):
            (root / folder).mkdir(parents=True)
        self.pod.mkdir(parents=True)
        self.write(self.pod, {"memory.max": LIMIT, "memory.stat": "inactive_file 0\nactive_file 0"})
        self.use(0)
        self.loop = Loop()
        self.controller = Controller(self.loop, self.paths, clock=lambda: self.loop.now)

    def write(self, folder: Path, content: dict[str, object]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for name, value in content.items():
            (folder / name).write_text(f"{value}\n")

    def use(self, mib: int) -> None:
        self.write(self.pod, {"memory.current": mib * MIB})

    def call(
        self,
        name: str,
        rank: list[int],
        mib: int = 1,
        populated: int = 1,
        call_id: str = "",
        **more: object,
    ) -> Path:
        """A call in a container of that name, known to agentrund."""
        parent = self.pod / name / "agentrun-calls"
        session = open_calls(self.paths, f"{self.paths.root}/runc", name)
        assert session
        state = {"id": call_id or name, "container": name, "calls": str(parent), "rank": rank, "start": 1.0}
        state |= more
        slot = session.take_slot(state)
        session.close()
        self.write(parent, {"memory.max": "max", "memory.current": 0})
        self.set(parent / slot, mib, populated)
        self.write(parent / slot, {"cgroup.freeze": 0, "memory.high": "max", "memory.events": "high 0"})
        self.write(parent / slot, {"cpu.weight": 100, "cpu.stat": "usage_usec 0"})
        live = SimpleNamespace(where=session.where, slot=slot, state=state, cgroup=Cgroup(str(parent / slot)))
        self.loop.live[session.where, slot] = live
        self.controller.changed()
        return parent / slot

    def set(self, call: Path, mib: int, populated: int = 1) -> None:
        self.write(call, {"memory.current": mib * MIB, "cgroup.events": f"populated {populated}\nfrozen 0"})

    def over(self, call: Path) -> None:
        """The call is over and recorded: its slot is free for the next one."""
        key = next(key for key, live in self.loop.live.items() if live.cgroup.path == str(call))
        del self.loop.live[key]
        session = open_where(self.paths, key[0])
        assert session
        session.free_slot(key[1])
        session.close()

    def state(self, name: str) -> dict[str, Any]:
        path = next(Path(self.paths.run).glob(f"sessions/*/{name}/call-0"))
        return json.loads(path.read_text())


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    made = Host(tmp_path)
    yield made
    made.controller.close()
    assert made.loop.watched == {}
