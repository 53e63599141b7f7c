"""In agentrund: something that the policy in force says, read anew when that was compiled anew.

Not `config.load`: that may compile, which the loop has no time for. Where there is nothing to read, an exec
compiles it, or says what is wrong with it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from agentrun.base import fastjson, files
from agentrun.base.paths import Paths

_LIMIT = 16 << 20

T = TypeVar("T")


class InForce(Generic[T]):
    """What `ask` takes from the compiled policy; `nothing` where there is none to read."""

    def __init__(self, paths: Paths, ask: Callable[[dict[str, Any]], T], nothing: T) -> None:
        self._path = paths.compiled
        self._ask = ask
        self._nothing = self._said = nothing
        self._stamp: tuple[int, int] | None = None

    def says(self) -> T:
        """See the class; one stat(2) where nothing has changed."""
        try:
            info = os.stat(self._path)
            if (info.st_mtime_ns, info.st_ino) != self._stamp:
                self._stamp, self._said = (info.st_mtime_ns, info.st_ino), self._nothing
                compiled = fastjson.loads(files.read_regular(self._path, _LIMIT) or b"")
                self._said = self._ask(compiled["policy"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            self._said = self._nothing
        return self._said
