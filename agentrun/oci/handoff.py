"""Become the backend. The only place that calls execve, and the end of every runtime command.

execve and never fork: engines arm PDEATHSIG, count on our pid (LISTEN_PID, CRI-O's pid registry), wait for
end-of-file on our stdio and read our exit status.
"""

from __future__ import annotations

# The C module: `signal` itself imports enum, which costs 4 ms.
import _signal as signal  # type: ignore[import-not-found]
import posix

from agentrun.base.errors import HandoffError, reason

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

# Tells a second agentrun in the same chain of runtimes (agentrun -> nvidia-container-runtime -> agentrun)
# to go to the plain backend. The shell front reads it.
DEPTH_VARIABLE = "AGENTRUN_DEPTH"


def exec_backend(path: str, argv: Sequence[str]) -> NoReturn:
    """Execute the backend with `argv` (without the program name). Raises HandoffError.

    argv[0] is the backend's own path: crun picks a handler by it. CPython ignores SIGPIPE and SIGXFSZ,
    and an ignored signal stays ignored over execve, so both go back to their defaults.
    """
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    environment = {**posix.environ, DEPTH_VARIABLE.encode(): b"1"}
    try:
        posix.execve(path, [path, *argv], environment)
    except OSError as error:
        raise HandoffError(f"execute backend {path!r}: {reason(error)}") from error
