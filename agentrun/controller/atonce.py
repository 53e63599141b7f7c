"""Read all calls in one system call, where the BPF module `snapshot` is loaded; else their files are read."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping

from agentrun import config, log
from agentrun.bpf.following import Following
from agentrun.bpf.snapshot import MODULE, Seen, Snapshots
from agentrun.cgroup import Cgroup
from agentrun.paths import Paths

_LOOK_S = 5.0  # a module that goes or is replaced answers on, for as long as it is open


class AtOnce:
    """Call it with the paths of calls' cgroups; it knows some of them, all, or none."""

    def __init__(self, paths: Paths, clock: Callable[[], float] = time.monotonic) -> None:
        self._paths = paths
        self._clock = clock
        self._module = Following(MODULE, Snapshots, self._say)
        self._looked_at = float("-inf")
        self._ids: dict[str, int] = {}

    def _say(self, text: str) -> None:
        log.warn(self._paths, "calls are not read at once", error=text)

    def __call__(self, paths: Iterable[str]) -> Mapping[str, Seen]:
        """What is known, by path; nothing where it cannot be used."""
        if self._clock() - self._looked_at >= _LOOK_S:
            self._looked_at = self._clock()
            self._module.look(config.load(self._paths).enforcement in ("auto", "bpf"))
        snapshots = self._module.opened
        if snapshots is None:
            return {}
        ids = {path: self._ids.get(path) or Cgroup(path).kernel_id() for path in paths}
        self._ids = {path: number for path, number in ids.items() if number is not None}
        found: dict[str, Seen] = {}

        def read() -> None:
            answers = snapshots.read(list(self._ids.values()))
            found.update(zip(self._ids, answers or (), strict=answers is not None))

        if not self._module.guarded(read):
            self._module.close()
        return found

    def forget(self, path: str) -> None:
        """This cgroup is gone; the next one of the same path is another."""
        self._ids.pop(path, None)

    def close(self) -> None:
        """Let go."""
        self._module.close()
