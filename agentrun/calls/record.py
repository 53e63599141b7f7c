"""The record of a finished call: one JSON line in the journal, `/var/lib/agentrun/calls.jsonl`.

From there it goes into the store (`ingest`), which the exec path never touches.
"""

from __future__ import annotations

import posix
import time

from agentrun.base import fastjson, files, journal
from agentrun.base.errors import StateError
from agentrun.calls import verdict
from agentrun.cgroups.cgroup import Cgroup, parse_pressure
from agentrun.decision import intent

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from agentrun.base.paths import Paths

VERSION = 1
_PLANNED = (
    "mode", "policy", "session", "tier", "class", "rank", "rule", "intent", "limits", "ceilings", "reasons",
    "not_enforced", "waited",
)  # fmt: skip
# What agentrund notes in the state of a call while that runs.
NOTES = (
    "exit_code", "signal", "timed_out", "slow", "stalled", "killed_by", "background", "adapted", "feedback",
    "network", "oom", "image", "learned", "end",
)  # fmt: skip
_WORD_LIMIT = 64
_COMMAND_LIMIT = 4096  # characters of a whole command
# Only where nobody takes them into the store for so long: two files of 64 MiB are some 100,000 calls.
_SIZE_LIMIT = 64 << 20
_SPILL_LIMIT = 8 << 20  # of memory: /run is a tmpfs


def new_id() -> str:
    """A new call's id: 11 hex digits of milliseconds since the epoch and 8 random ones; sorts by time."""
    return f"{time.time_ns() // 1_000_000:011x}{posix.urandom(4).hex()}"


def _sha256() -> Any:
    for module in ("_sha2", "_sha256", "hashlib"):  # Python 3.12, 3.11, any other
        try:
            return __import__(module).sha256
        except ImportError:
            continue
    raise ImportError("no SHA-256 in this interpreter")


def digest(text: str) -> str:
    """16 hex digits of SHA-256, from the interpreter's built-in module (hashlib costs 2 ms to import)."""
    try:
        data = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can hold
        data = text.encode("utf-8", "surrogatepass")
    return str(_sha256()(data).hexdigest()[:16])


def describe_command(
    argv: list[Any], program: str, stored: str, family: str | None = None
) -> dict[str, Any] | None:
    """What may be stored of a command: `none`, `hash`, `name` (and the hash), or `full`.

    `program` is the unwrapped program's name: `pytest`, where argv begins with `bash`; `family` has the word
    after it where that decides (`npm install`). The hash leaves out an intent: a command that is tried again
    with a larger one is the same command.
    """
    words = [word for word in argv if isinstance(word, str)]
    if not words or stored == "none":
        return None
    described: dict[str, Any] = {"sha256": digest("\0".join(intent.without(words)))}
    if stored != "hash":
        described["name"] = program[:_WORD_LIMIT]
        described["family"] = (family or program)[:_WORD_LIMIT]
    if stored == "full":
        described["argv"] = _cut(words)
    return described


def _cut(words: list[str]) -> list[str]:
    """The command within `_COMMAND_LIMIT` characters."""
    kept, left = [], _COMMAND_LIMIT
    for word in words:
        if left <= 0:
            break
        kept.append(word[:left])
        left -= len(word) + 1
    return kept


def make(slot: str | None, state: dict[str, Any], call: Cgroup) -> dict[str, Any]:
    """The record of a call whose cgroup was found empty.

    With agentrund, `end` is when its last process was gone. Without, the kernel does not keep that, and
    `end` is when the cgroup was found empty: an upper bound (`end_is` says which). Measurements are null
    where the cgroup had vanished before (systemd removes a stopped container's scope with all below it), and
    where the call was refused before it had one; `slot` is None then.
    """
    record = {
        "version": VERSION,
        **{key: state.get(key) for key in ("id", "container", "root", "backend", "exec_id")},
        "slot": slot,
        "cgroup": None if slot is None else call.path,
        "command": state.get("command"),
        **{key: state.get(key) for key in _PLANNED},
        "start": state.get("start"),
        "end": state.get("end") or time.time(),
        "end_is": "seen" if state.get("end") else "found-empty" if call.exists() else "found-removed",
        **{key: state.get(key) for key in NOTES if key != "end"},
        "retry_of": None,  # found when it is taken into the store
        "oom_before": state.get("oom_before"),
        "oom_after": oom_counts(_container(call)),
        **_measure(call),
    }
    record["verdict"], record["level"] = verdict.judge(record)
    record["flags"] = verdict.flags(record)
    return record


def glance(state: dict[str, Any], call: Cgroup) -> dict[str, Any]:
    """What the record of a call that is being killed will say of that, read as fast as it can be.

    A few milliseconds decide whether a text for the agent still arrives.
    """
    found = {**state, "end": time.time(), **_measure_memory(call)}
    if not (found["memory_events_local"] or {}).get("oom"):
        found["oom_after"] = oom_counts(_container(call))
    found["verdict"], found["level"] = verdict.judge(found)
    return found


def _container(call: Cgroup) -> Cgroup:
    return Cgroup(call.path.rpartition("/")[0].rpartition("/")[0])


def oom_counts(container: Cgroup) -> list[int]:
    """How often something had to die for the container's own limit, and for limits above it."""
    # agentrund may bound the calls as a whole below the container's limit, for the agent's sake.
    bounded = container.child("agentrun-calls").pairs("memory.events.local") or {}
    counts = [bounded.get("oom", 0), 0]
    for cgroup, is_session in _around(container):
        events = cgroup.pairs("memory.events.local")
        if events is None:
            break
        counts[0 if is_session else 1] += events.get("oom", 0)
    return counts


def levels(call: Cgroup) -> Iterator[tuple[Cgroup, str]]:
    """A call's cgroup and those above it, each with the level of a kill for its limit (docs/records.md)."""
    yield call, "call"
    yield Cgroup(call.path.rpartition("/")[0]), "session"
    for cgroup, is_session in _around(_container(call)):
        yield cgroup, "session" if is_session else "above"


def _around(container: Cgroup) -> Iterator[tuple[Cgroup, bool]]:
    """A container's cgroup and those above it, each with whether its limits are the container's own.

    crun on systemd makes the container's cgroup below its scope and sets the limits on both.
    """
    at, is_session = container, True
    while at.path:
        yield at, is_session
        head, _, name = at.path.rpartition("/")
        is_session = is_session and name == "container" and head.endswith(".scope")
        at = Cgroup(head)


def _measure_memory(call: Cgroup) -> dict[str, Any]:
    return {
        "memory_peak": call.number("memory.peak"),
        "memory_events": call.pairs("memory.events"),
        "memory_events_local": call.pairs("memory.events.local"),
    }


def _measure(call: Cgroup) -> dict[str, Any]:
    cpu = call.pairs("cpu.stat") or {}
    return {
        **_measure_memory(call),
        "cpu_usage_us": cpu.get("usage_usec"),
        "cpu_user_us": cpu.get("user_usec"),
        "cpu_system_us": cpu.get("system_usec"),
        "cpu_throttled_us": cpu.get("throttled_usec"),
        "pids_peak": call.number("pids.peak"),
        "pressure": {kind: stalled_us(call, kind) for kind in ("memory", "cpu", "io")},
    }


def stalled_us(call: Cgroup, kind: str) -> dict[str, int] | None:
    """Microseconds in which some, and all, of a call's processes waited for `memory`, `cpu` or `io` (PSI).

    None where the kernel does not tell.
    """
    pressure = parse_pressure(call.read(f"{kind}.pressure") or "")
    return {who: total for who, (_, total) in pressure.items()} or None


def append(paths: Paths, record: dict[str, Any]) -> None:
    """Append one record to the journal. Raises OSError.

    Where the disk is full, broken or read-only it goes to the one below /run, which is memory.
    """
    line = fastjson.dumps(record)
    try:
        _append_durably(paths, line)
    except (OSError, StateError):
        journal.append(paths.spill, line, _SPILL_LIMIT)


def _append_durably(paths: Paths, line: str) -> None:
    try:
        journal.append(paths.records, line, _SIZE_LIMIT)
    except FileNotFoundError:
        posix.close(files.open_private_directory(paths.state, StateError))
        journal.append(paths.records, line, _SIZE_LIMIT)
