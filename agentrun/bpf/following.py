"""What a loaded module gives, opened while it is loaded, and anew when it was replaced.

Optional: what goes wrong is logged, once, and never raised, for who asks works without.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from agentrun.base import log
from agentrun.base.errors import BpfError
from agentrun.base.paths import Paths
from agentrun.bpf import modules
from agentrun.decision import inforce
from agentrun.decision.config import Config


class _Closable(Protocol):
    def close(self) -> None: ...


_Opened = TypeVar("_Opened", bound=_Closable)


class Following(Generic[_Opened]):
    """Opens with `make`, and looks again once in `every_s`. `loss` is what the log says of a failure."""

    def __init__(
        self,
        module: modules.Module,
        make: Callable[[], _Opened],
        paths: Paths,
        clock: Callable[[], float],
        every_s: float,
        loss: str,
    ) -> None:
        self._module = module
        self._make = make
        self._paths = paths
        self._clock = clock
        self._every_s = every_s
        self._loss = loss
        self._looked_at = float("-inf")
        self._version: tuple[str, int] | None = None
        self._said = ""
        self.opened: _Opened | None = None

    def look(self) -> Config | None:
        """Take the module as it is now, if that is due: it may come, go, and be replaced.

        Returns the configuration that was looked at for it, None when nothing was due.
        """
        if self._clock() - self._looked_at < self._every_s:
            return None
        self._looked_at = self._clock()
        configuration = inforce.load(self._paths)
        version = modules.identity(self._module) if configuration.uses_bpf else None
        if version != self._version:
            self.close()
            self._version = version
            if version is not None:
                self.guarded(self._open)
        return configuration

    def _open(self) -> None:
        self.opened = self._make()

    def guarded(self, action: Callable[[], None]) -> bool:
        """Do something with what is opened; whether it went well."""
        try:
            action()
        except BpfError as error:
            if str(error) != self._said:
                self._said = str(error)
                log.warn(self._paths, self._loss, error=self._said)
            return False
        return True

    def close(self) -> None:
        """Let go of it."""
        opened, self.opened, self._version = self.opened, None, None
        if opened is not None:
            self.guarded(opened.close)
