"""Progress lines on stderr, and the one place that runs long host commands."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from vmlib.errors import BuildError, tail_of

HEARTBEAT_S = 10.0
# A build step dies with the tool, even one that is killed, and takes its processes and mounts
# along: without this, an interrupted mmdebstrap goes on and leaves /proc mounted in its tree.
CONTAIN = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork"]
CONTAIN += ["--kill-child", "--mount-proc"]

_start = time.monotonic()


def say(text: str) -> None:
    elapsed = int(time.monotonic() - _start)
    print(f"vm [{elapsed:4d} s] {text}", file=sys.stderr, flush=True)


def last_line(log: Path) -> str:
    return tail_of(log, 1)[:70]


@contextmanager
def heartbeat(
    label: str, log: Path | None = None, describe: Callable[[Path], str] = last_line
) -> Iterator[None]:
    """Show every few seconds that a long step lives, with what its log says (its last line)."""
    done = threading.Event()
    start = time.monotonic()

    def beat() -> None:
        while not done.wait(HEARTBEAT_S):
            last = describe(log) if log is not None else ""
            say(f"  ... {label}: {int(time.monotonic() - start)} s  {last}".rstrip())

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def run_logged(
    argv: Sequence[str],
    log: Path,
    label: str,
    env: Mapping[str, str] | None = None,
    describe: Callable[[Path], str] = last_line,
) -> None:
    """Run a build step with its output in a log; the log's end is shown on failure."""
    say(label)
    try:
        with log.open("ab") as out, heartbeat(label, log, describe):
            process = subprocess.Popen(
                [*_contain(), *argv], stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=env
            )
            try:
                status = process.wait()
            except BaseException:
                _end(process)
                raise
    except OSError as e:
        raise BuildError(f"{label}: cannot run {argv[0]!r}: {e.strerror}") from e
    if status != 0:
        raise BuildError(f"{label}: {argv[0]} failed with status {status}\n{tail_of(log)}")


def _contain() -> list[str]:
    # Not every step needs root: a kernel is built by anybody, who may have namespaces only as root of one.
    return [*CONTAIN, *([] if os.geteuid() == 0 else ["--map-root-user"]), "--"]


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill a contained step; when its namespace's init is gone, so is everything in it."""
    with suppress(OSError):
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
        for pid in children.split():
            os.kill(int(pid), signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=30)
    process.kill()
    process.wait()
