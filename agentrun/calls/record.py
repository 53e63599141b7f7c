"""The record of a finished call: one JSON line in the journal, `/var/lib/agentrun/calls.jsonl`.

From there it goes into the store (`ingest`), which the exec path never touches.
"""

from __future__ import annotations

import posix
import time

from agentrun.base import fastjson, files, journal
from agentrun.base.digest import digest
from agentrun.base.errors import StateError
from agentrun.calls import fields, verdict
from agentrun.cgroups.around import container_of, oom_counts
from agentrun.cgroups.cgroup import Cgroup
from agentrun.cgroups.measure import measure_all, measure_memory
from agentrun.decision import intent

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from agentrun.base.paths import Paths

VERSION = 1
WORD_LIMIT = 64  # characters of a name
COMMAND_LIMIT = 4096  # characters of a whole command
# Only where they are not taken into the store for so long: two files of 64 MiB are some 100,000 calls.
_SIZE_LIMIT = 64 << 20
_SPILL_LIMIT = 8 << 20  # of memory: /run is a tmpfs


def new_id() -> str:
    """A new call's id: 11 hex digits of milliseconds since the epoch and 8 random ones; sorts by time."""
    return f"{time.time_ns() // 1_000_000:011x}{posix.urandom(4).hex()}"


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
        described["name"] = program[:WORD_LIMIT]
        described["family"] = (family or program)[:WORD_LIMIT]
    if stored == "full":
        described["argv"] = _cut(words)
    return described


def _cut(words: list[str]) -> list[str]:
    """The command within `COMMAND_LIMIT` characters."""
    kept, left = [], COMMAND_LIMIT
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
    record = {name: state.get(name) for name in (*fields.IDENTITY, *fields.PLANNED, *fields.NOTED)}
    record |= {
        "version": VERSION,
        "slot": slot,
        "cgroup": None if slot is None else call.path,
        "end": state.get("end") or time.time(),
        "end_is": "seen" if state.get("end") else "found-empty" if call.exists() else "found-removed",
        "retry_of": None,  # found when it is taken into the store
        "oom_before": state.get("oom_before"),
        "oom_after": oom_counts(container_of(call)),
        **measure_all(call),
    }
    record["verdict"], record["level"] = verdict.judge(record)
    record["flags"] = verdict.flags(record)
    return record


def glance(state: dict[str, Any], call: Cgroup) -> dict[str, Any]:
    """What the record of a call that is being killed will say of that, read as fast as it can be.

    A few milliseconds decide whether a text for the agent still arrives.
    """
    found = {**state, "end": time.time(), **measure_memory(call)}
    if not (found["memory_events_local"] or {}).get("oom"):
        found["oom_after"] = oom_counts(container_of(call))
    found["verdict"], found["level"] = verdict.judge(found)
    return found


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
