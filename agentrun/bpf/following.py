"""What a loaded module gives, opened while it is loaded, and anew when it was replaced."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from agentrun.bpf import modules
from agentrun.errors import BpfError


class _Closable(Protocol):
    def close(self) -> None: ...


_Opened = TypeVar("_Opened", bound=_Closable)


class Following(Generic[_Opened]):
    """Opens with `make`; what goes wrong is told to `say`, once, and never raised: who asks works without."""

    def __init__(
        self, module: modules.Module, make: Callable[[], _Opened], say: Callable[[str], None]
    ) -> None:
        self._module = module
        self._make = make
        self._say = say
        self._version: tuple[str, int] | None = None
        self._said = ""
        self.opened: _Opened | None = None

    def look(self, wanted: bool) -> None:
        """Take the module as it is now: it may come, go, be replaced. Not `wanted`: as if it were gone."""
        version = _loaded(self._module) if wanted else None
        if version == self._version:
            return
        self.close()
        self._version = version
        if version is not None:
            self.guarded(self._open)

    def _open(self) -> None:
        self.opened = self._make()

    def guarded(self, action: Callable[[], None]) -> bool:
        """Do something with what is opened; whether it went well."""
        try:
            action()
        except BpfError as error:
            if str(error) != self._said:
                self._said = str(error)
                self._say(self._said)
            return False
        return True

    def close(self) -> None:
        """Let go of it."""
        opened, self.opened, self._version = self.opened, None, None
        if opened is not None:
            self.guarded(opened.close)


def _loaded(module: modules.Module) -> tuple[str, int] | None:
    """What tells one loaded module from another, also one of the same version; None without."""
    try:
        version = modules.loaded_version(module)
        return None if version is None else (version, os.stat(f"{module.directory}/{version}").st_ino)
    except OSError:
        return None  # it is being replaced
