"""Read all calls in one system call, where the BPF module `snapshot` is loaded; else their files are read."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping

from agentrun.base.paths import Paths
from agentrun.bpf.following import Following
from agentrun.bpf.snapshot import MODULE, Seen, Snapshots
from agentrun.daemon.controller.ids import Ids

_LOOK_S = 5.0  # a module that goes or is replaced answers on, for as long as it is open


class AtOnce:
    """Call it with the paths of calls' cgroups; it knows all of them that are there, or none."""

    def __init__(self, paths: Paths, ids: Ids, clock: Callable[[], float] = time.monotonic) -> None:
        self._ids = ids
        self._module = Following(MODULE, Snapshots, paths, clock, _LOOK_S, "calls are not read at once")

    def __call__(self, paths: Iterable[str]) -> Mapping[str, Seen]:
        """What is known, by path; nothing where it cannot be used."""
        self._module.look()
        snapshots = self._module.opened
        if snapshots is None:
            return {}
        ids = self._ids.of(paths)
        found: dict[str, Seen] = {}

        def read() -> None:
            answers = snapshots.read(list(ids.values()))
            if answers is not None:
                found.update(zip(ids, answers, strict=True))

        if not self._module.guarded(read):
            self._module.close()
        return found

    def close(self) -> None:
        """Let go."""
        self._module.close()
