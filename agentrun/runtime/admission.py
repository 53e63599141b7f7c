"""Wait before a call starts, while agentrund says that there is no room for it.

agentrund keeps `/run/agentrun/gate` only while memory is short somewhere; without that file this module is
not even imported. Whoever waits looks at the file's stamp and holds no lock. It starts in its turn when the
gate opens, when nobody keeps that any more, and in any case after its longest wait, or is then refused.

A call that waits has a file `wait-...` beside those of live calls, with what will be in its record. A SIGKILL
leaves that behind: its owner is dead then, so nobody counts it, and whoever meets it removes it.
"""

from __future__ import annotations

# The C module: `signal` itself imports enum, which costs 4 ms.
import _signal as signal  # type: ignore[import-not-found]
import posix
import stat
import time

from agentrun.base import agentrund, fastjson, files, log
from agentrun.base.errors import RefusedError, StateError
from agentrun.calls import names, record, slots
from agentrun.calls.session import count_waiting_before, open_calls
from agentrun.cgroups.cgroup import Cgroup

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from agentrun.base.paths import Paths
    from agentrun.oci.container import Container

HOST = "host"  # the machine as a domain; others are paths of cgroups, as for the controller
VALID_MOST_S = 10.0  # agentrund promises no more than a few seconds ahead
_LIMIT = 1 << 18
_POLL_S = 0.05
_TURN_S = 0.05  # between two that start when the gate opens: agentrund sees what each takes
_CHECK_S = 0.25  # whether the container and agentrund still live
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Closed:
    """That there is no room: in which domain, and why."""

    __slots__ = ("domain", "why")

    def __init__(self, domain: str, why: str) -> None:
        self.domain = domain
        self.why = why


def closed(gate: Any, cgroup: str, rank: list[int], now: float) -> Closed | None:
    """Whether the gate is closed for a call of that rank in that container. Pure; ValueError on nonsense.

    `gate` is `{"until": seconds, "closed": [{"domain", "below", "why"}]}`: until then (CLOCK_MONOTONIC) calls
    below that limit wait whose rank is below that one; `below` is null for all. After that it is open.
    """
    try:
        left = gate["until"] - now
        if not 0 < left <= VALID_MOST_S:
            return None
        for entry in gate["closed"]:
            domain, below = entry["domain"], entry["below"]
            is_inside = domain == HOST or f"{cgroup}/agentrun-calls/".startswith(domain + "/")
            if is_inside and (below is None or rank < below):
                return Closed(domain, str(entry["why"]))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a gate: {error!r}") from error
    return None


def level_of(domain: str, cgroup: str) -> str:
    """Whose memory a domain is, seen from a container: `session`, `above` or `host`."""
    if domain == HOST:
        return "host"
    head, _, name = cgroup.rpartition("/")
    if name == "container" and head.endswith(".scope"):  # crun on systemd limits both
        cgroup = head
    return "session" if f"{domain}/".startswith(cgroup + "/") else "above"


class Gate:
    """The gate as agentrund publishes it; whatever is wrong with the file, it is open."""

    __slots__ = ("_content", "_stamp", "paths")

    def __init__(self, paths: Paths) -> None:
        self.paths = paths
        self._stamp: tuple[int, int] | None = None
        self._content: Any = None

    def closed(self, cgroup: str, rank: list[int]) -> Closed | None:
        """Whether it is closed now; read anew only when the file changed."""
        try:
            info = posix.stat(self.paths.gate, follow_symlinks=False)
            if (info.st_mtime_ns, info.st_ino) != self._stamp:
                self._stamp = (info.st_mtime_ns, info.st_ino)
                self._content = None
                self._content = self._read(info)
            return None if self._content is None else closed(self._content, cgroup, rank, time.monotonic())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            self._content = None
            log.warn(self.paths, "gate not believed", path=self.paths.gate, error=str(error))
            return None

    def _read(self, info: posix.stat_result) -> Any:
        if not stat.S_ISREG(info.st_mode) or info.st_uid != posix.geteuid() or info.st_mode & 0o022:
            raise ValueError("not a file that only we can write")
        data = files.read_regular(self.paths.gate, _LIMIT)
        return fastjson.loads(data or b"")


class Waited:
    """A wait that is over. Call `forget` once the call is seen elsewhere (or never will be)."""

    __slots__ = ("_session", "domain", "name", "outcome", "seconds", "why")

    def __init__(self, session: slots.Calls, name: str, found: Closed) -> None:
        self._session: slots.Calls | None = session
        self.name = name
        self.domain = found.domain
        self.why = found.why
        self.seconds = 0.0
        self.outcome = ""

    def describe(self, cgroup: str) -> dict[str, Any]:
        """As the record shows it."""
        return {
            "seconds": round(self.seconds, 3),
            "outcome": self.outcome,
            "level": level_of(self.domain, cgroup),
            "why": self.why,
        }

    def forget(self) -> None:
        """The call does not wait any more."""
        if self._session is not None:
            self._session.free_slot(self.name)
            self._session.close()
            self._session = None


def admit(paths: Paths, found: Container, state: dict[str, Any], terms: dict[str, Any]) -> Waited | None:
    """Wait for room, as long as `terms` (`wait` in seconds, `then`) say. None where there is no need to.

    `state` is what is known of the call: shown while the call waits, recorded where it is refused.
    Raises RefusedError, StateError or OSError; then nothing is left behind.
    """
    gate = Gate(paths)
    at_first = gate.closed(found.cgroup, state["rank"])
    if at_first is None or not agentrund.is_daemon_alive(paths):
        return None
    session = open_calls(paths, found.root, found.container_id)
    if session is None:
        return None
    waited = Waited(session, names.waiting_name(state["rank"], state["id"]), at_first)
    try:
        until = state["start"] + terms["wait"]
        with _Ending(waited.forget):
            session.begin_waiting(waited.name, {**state, "waiting": {"until": until, "why": at_first.why}})
            _wait(gate, found, state["rank"], waited, terms["wait"])
        if waited.outcome == "bound" and terms["then"] == "refuse":
            waited.outcome = "refused"
            raise RefusedError(_refuse(paths, found, state, waited))
    except BaseException:
        waited.forget()
        raise
    return waited


def _wait(gate: Gate, found: Container, rank: list[int], waited: Waited, seconds: float) -> None:
    """Until the gate is open (`room`), nobody is left to wait for (`gone`), or the time is up (`bound`)."""
    began = now = time.monotonic()
    check_at = began + _CHECK_S
    turn: float | None = None  # when it may start, once the gate is open
    while not waited.outcome:
        time.sleep(max(0.0, min(_POLL_S, began + seconds - now)))
        now = time.monotonic()
        still = gate.closed(found.cgroup, rank)
        if still is None:
            turn = turn or now + _TURN_S * count_waiting_before(gate.paths, waited.name)
            if now >= min(turn, began + seconds):
                waited.outcome = "room"
        elif now - began >= seconds:
            waited.outcome = "bound"
        elif now >= check_at:
            check_at = now + _CHECK_S
            if not found.is_running() or not agentrund.is_daemon_alive(gate.paths):
                waited.outcome = "gone"
        if still is not None:
            turn, waited.domain, waited.why = None, still.domain, still.why
    waited.seconds = now - began


class _Ending:
    """Leave nothing behind when a signal ends this process meanwhile; it still dies of that signal."""

    __slots__ = ("_before", "_forget")

    def __init__(self, forget: Callable[[], None]) -> None:
        self._forget = forget
        self._before: list[tuple[int, Any]] = []

    def __enter__(self) -> None:
        for number in _SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:
                self._before.append((number, signal.signal(number, self._end)))

    def _end(self, number: int, _: object) -> None:
        self._forget()
        signal.signal(number, signal.SIG_DFL)
        posix.kill(posix.getpid(), number)

    def __exit__(self, *_: object) -> None:
        for number, before in self._before:
            signal.signal(number, before)


def _refuse(paths: Paths, found: Container, state: dict[str, Any], waited: Waited) -> str:
    """Record a call that will not start; returns what its caller is told."""
    from agentrun.feedback import text as feedback

    state = {**state, "waited": waited.describe(found.cgroup), "end": time.time()}
    made = record.make(None, state, Cgroup(state["calls"]).child(waited.name))
    templates = state["care"].get("templates") or {}
    text = feedback.sentence("refused", made, templates)
    made["feedback"] = [
        {"event": "refused", "text": text, "at": state["end"], "delivered": True, "why": None}
    ]
    try:
        record.append(paths, made)
    except (OSError, StateError) as error:
        log.warn(paths, "record lost", call=state["id"], error=str(error))
    return text
