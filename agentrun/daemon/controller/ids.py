"""The ids by which BPF programs know cgroups, each asked for once."""

from __future__ import annotations

from collections.abc import Iterable

from agentrun.cgroups.cgroup import Cgroup


class Ids:
    """By path. Whoever removes a cgroup from what is looked at calls `forget`."""

    def __init__(self) -> None:
        self._known: dict[str, int] = {}

    def of(self, paths: Iterable[str]) -> dict[str, int]:
        """The ids of those cgroups that are there, in the order of the paths."""
        found = {}
        for path in paths:
            number = self._known.get(path) or Cgroup(path).kernel_id()
            if number is not None:
                found[path] = self._known[path] = number
        return found

    def forget(self, path: str) -> None:
        """This cgroup is gone; the next one of the same path is another."""
        self._known.pop(path, None)
