"""The calls of one container: take a slot for a new one, record and remove those that ended.

Each live call has a file `call-N` in `/run/agentrun/sessions/<root>/<container>/` that says who started it,
when, and with which plan. Making that file (link(2), so it appears whole) is what takes the slot; the cgroup
of the same name follows. A call has ended when its cgroup is empty and the runtime that was to place a
process there is gone.
"""

from __future__ import annotations

import errno
import fcntl
import posix
import time

from agentrun.base import fastjson, files, log
from agentrun.base.errors import CgroupError, StateError
from agentrun.base.procfs import start_ticks
from agentrun.calls import record, verdict
from agentrun.calls.names import PREFIX, WAITING, is_slot, unescape_root
from agentrun.cgroups import cgroup as cg
from agentrun.cgroups import layout

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from agentrun.base.paths import Paths

_LOCK = "lock"
_BOUND = "bound"  # the cgroup of all calls, where agentrund bounds it
_START_SHARE = "start-share"  # the cgroup that runtimes start calls in; the shell front reads it
_STATE_LIMIT = 1 << 20
_HARVEST_LIMIT = 16  # slots that one exec looks at, so that its own cost stays bounded
_SLOTS_LIMIT = 1 << 16
_KILL_WAIT_S = 2.0
_LOCK_WAIT_S = 2.0
BACKLOG_LIMIT = 64  # calls of one container that wait for agentrund before an exec helps out


class Calls:
    """The calls of one container: the directory `where`. Use `open_calls`; `close` lets go of it."""

    __slots__ = ("_fd", "paths", "where")

    def __init__(self, paths: Paths, where: str, fd: int) -> None:
        self.paths = paths
        self.where = where
        self._fd = fd

    def close(self) -> None:
        """Let go of the directory."""
        posix.close(self._fd)

    def slots(self) -> list[str]:
        """Names of the calls that have not been recorded yet, in order."""
        return sorted((n for n in posix.listdir(self._fd) if is_slot(n)), key=lambda n: int(n[5:]))

    def take_slot(self, state: dict[str, Any]) -> str:
        """Store the state of a new call under the lowest free name; returns that name. Raises StateError."""
        owner = posix.getpid()
        state["owner"] = [owner, start_ticks(owner)]
        temporary = f".new-{owner}"
        try:
            self._write(temporary, fastjson.dumps(state).encode("ascii"))
            try:
                return self._link_lowest(temporary)
            finally:
                posix.unlink(temporary, dir_fd=self._fd)
        except OSError as error:
            raise StateError("take slot in", self.where, error) from error

    def _write(self, name: str, data: bytes) -> None:
        flags = posix.O_WRONLY | posix.O_CREAT | posix.O_TRUNC | posix.O_CLOEXEC | posix.O_NOFOLLOW
        fd = posix.open(name, flags, 0o600, dir_fd=self._fd)
        try:
            if posix.write(fd, data) != len(data):
                raise OSError(errno.ENOSPC, posix.strerror(errno.ENOSPC))
        finally:
            posix.close(fd)

    def _link_lowest(self, temporary: str) -> str:
        taken = set(posix.listdir(self._fd))
        for number in range(_SLOTS_LIMIT):
            name = f"{PREFIX}{number}"
            if name in taken:
                continue
            try:
                posix.link(temporary, name, src_dir_fd=self._fd, dst_dir_fd=self._fd)
            except FileExistsError:  # another exec was faster
                continue
            return name
        raise OSError(errno.EMFILE, f"{_SLOTS_LIMIT} calls are live")

    def free_slot(self, name: str) -> None:
        """Forget a call."""
        try:
            posix.unlink(name, dir_fd=self._fd)
        except FileNotFoundError:
            return

    def read(self, name: str) -> dict[str, Any] | None:
        """The state of a call; None when it is gone or damaged."""
        try:
            return self._load(name)
        except (OSError, ValueError):
            return None

    def states(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Slot and state of each call that has not been recorded yet, in order; damaged ones are left out."""
        for slot in self.slots():
            state = self.read(slot)
            if state is not None:
                yield slot, state

    def keep_bound(self, parent: str) -> None:
        """Note that the cgroup of all calls has a limit that goes with agentrund. Raises OSError."""
        self._write(_BOUND, parent.encode("utf-8", "surrogateescape"))

    def keep_start_share(self, note: bytes) -> None:
        """Note the cgroup that runtimes start calls in (see runtime/startshare.py). Raises OSError."""
        self._write(_START_SHARE, note)

    def bound(self) -> str | None:
        """The cgroup of all calls, where it was bounded once."""
        try:
            data = files.read_regular(_BOUND, _STATE_LIMIT, dir_fd=self._fd)
        except OSError:
            return None
        return data.decode("utf-8", "surrogateescape") if data else None

    def _load(self, name: str) -> dict[str, Any]:
        """The state of a call. FileNotFoundError when it is gone, OSError or ValueError when damaged."""
        data = files.read_regular(name, _STATE_LIMIT, dir_fd=self._fd)
        state = fastjson.loads(data) if data else None
        if not isinstance(state, dict):
            raise ValueError("no object")
        return state

    def begin_waiting(self, name: str, state: dict[str, Any]) -> None:
        """Show a call that waits before it starts, in a file of its `waiting_name`. Raises StateError."""
        owner = posix.getpid()
        temporary = f".wait-{owner}"
        try:
            self._write(
                temporary, fastjson.dumps({**state, "owner": [owner, start_ticks(owner)]}).encode("ascii")
            )
            posix.rename(temporary, name, src_dir_fd=self._fd, dst_dir_fd=self._fd)
        except OSError as error:
            raise StateError("show a waiting call in", self.where, error) from error

    def waiting(self) -> list[dict[str, Any]]:
        """The states of calls that wait before they start; those whose runtime was killed are forgotten."""
        found = []
        for name in sorted(posix.listdir(self._fd)):
            state = self.read(name) if name.startswith(WAITING) else None
            if state is not None and is_starting(state):
                found.append(state)
            elif state is not None:
                self.free_slot(name)
        return found

    def harvest(self, *, limit: int = _HARVEST_LIMIT, wait: bool = False) -> int:
        """Record and remove calls that ended; returns how many.

        One at a time per container: where another harvest is under way, this one leaves it to that
        (unless told to `wait`). At most `limit` slots are looked at, others on another turn.
        """
        slots = self.slots()
        if not slots:
            return 0
        first = posix.getpid() % len(slots) if len(slots) > limit else 0
        lock = self._lock(wait=wait)
        if lock is None:
            return 0
        try:
            return sum(map(self._harvest_one, (slots[first:] + slots[:first])[:limit]))
        finally:
            posix.close(lock)

    def harvest_slot(self, name: str, call_id: str, **notes: object) -> bool:
        """Record and remove one call if it ended, with what is known of its end."""
        lock = self._lock(wait=True)
        if lock is None:
            return False
        try:
            return self._harvest_one(name, call_id, notes)
        finally:
            posix.close(lock)

    def _lock(self, *, wait: bool) -> int | None:
        """The lock that guards harvests and notes; None where another holds it, or `delete` removed all.

        Waiting has an end: whoever holds it may be stopped, and a container must be deletable even so.
        """
        flags = posix.O_RDWR | posix.O_CREAT | posix.O_CLOEXEC | posix.O_NOFOLLOW
        try:
            lock = posix.open(_LOCK, flags, 0o600, dir_fd=self._fd)
        except FileNotFoundError:
            return None
        deadline = time.monotonic() + (_LOCK_WAIT_S if wait else 0)
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    posix.close(lock)
                    return None
                time.sleep(0.001)
            else:
                return lock

    def note(self, name: str, call_id: str, **notes: object) -> bool:
        """Add to the state of a live call what will be in its record; False when that call is over.

        Whoever records the call then knows it: agentrund, the next exec, or delete.
        """
        lock = self._lock(wait=True)
        if lock is None:
            return False
        try:
            state = self.read(name)
            if state is None or state.get("id") != call_id:
                return False
            temporary = f".note-{posix.getpid()}"
            self._write(temporary, fastjson.dumps({**state, **notes}).encode("ascii"))
            posix.rename(temporary, name, src_dir_fd=self._fd, dst_dir_fd=self._fd)
            return True
        finally:
            posix.close(lock)

    def _harvest_one(
        self, name: str, call_id: str | None = None, notes: dict[str, Any] | None = None
    ) -> bool:
        try:
            state = self._load(name)
        except FileNotFoundError:
            return False  # recorded by another since we listed it; the name may be a new call's by now
        except (OSError, ValueError):
            return self._drop_damaged(name)
        if call_id is not None and state.get("id") != call_id:
            return False  # recorded by another, and the slot is another call's by now
        state |= notes or {}
        call = cg.Cgroup(str(state.get("calls"))).child(name)
        if is_starting(state) or call.is_populated():
            return False
        self._record(name, state, call)
        return True

    def _drop_damaged(self, name: str) -> bool:
        """Drop a state file that cannot be read: nobody could ever tell whose call it was."""
        log.warn(self.paths, "damaged state of a call dropped", path=f"{self.where}/{name}")
        self.free_slot(name)
        return False

    def _record(self, name: str, state: dict[str, Any], call: cg.Cgroup) -> None:
        """Append the record, then remove the cgroup, then free the slot.

        In this order a crash between two steps repeats one (readers know a record by its id); in any
        other it would lose the record or leave the cgroup behind.
        """
        try:
            record.append(self.paths, record.make(name, state, call))
        except (OSError, StateError) as error:
            log.warn(self.paths, "record lost", call=state.get("id"), error=str(error))
        try:
            if not call.remove():
                return
        except CgroupError as error:
            log.warn(self.paths, "cgroup of a call stays behind", error=str(error))
        self.free_slot(name)
        if self._is_container_gone():
            self._remove_layout(state)

    def _is_container_gone(self) -> bool:
        """Whether the backend knows the container no more; False where that cannot be told."""
        head, _, container_id = self.where.rpartition("/")
        root = unescape_root(head.rpartition("/")[2])
        return root is not None and not files.exists(f"{root}/{container_id}")

    def _remove_layout(self, state: dict[str, Any]) -> None:
        """Remove what a delete left of its container's cgroup because this call's start was in its way.

        runc gives up on a cgroup that stays busy for 0.3 s (RemovePath in opencontainers/cgroups) and
        forgets the container all the same: nobody else would ever look there again.
        """
        try:
            layout.remove(cg.Cgroup(str(state.get("calls"))))
        except CgroupError as error:
            log.warn(self.paths, "cgroup of a deleted container stays behind", error=str(error))

    def finish(self, container: cg.Cgroup) -> None:
        """Record all calls of a container that is being deleted, and forget the container.

        Its processes die with it anyway; killing the calls here first makes the last numbers final.
        """
        calls = container.child(layout.CALLS)
        if calls.exists() and calls.is_populated():
            for name in self.slots():
                if calls.child(name).is_populated():
                    self.note(name, str((self.read(name) or {}).get("id")), killed_by=verdict.ENGINE)
            _kill(calls)
        self.harvest(limit=_SLOTS_LIMIT, wait=True)
        self.forget_if_empty()

    def forget_if_gone(self) -> None:
        """Remove the session's directory if its container is gone: an exec that raced with delete left it."""
        if self._is_container_gone():
            self.forget_if_empty()

    def forget_if_empty(self) -> None:
        """Remove the session's directory once no call is left in it."""
        if self.slots():
            return
        try:
            for name in posix.listdir(self._fd):
                if not is_slot(name):
                    posix.unlink(name, dir_fd=self._fd)
            posix.rmdir(self.where)
            posix.rmdir(self.where.rpartition("/")[0])
        except OSError as error:
            # A new call came in between, or another container of this root lives.
            if error.errno not in (errno.ENOTEMPTY, errno.ENOENT, errno.EEXIST):
                raise StateError("remove", self.where, error) from error


def is_starting(state: dict[str, Any]) -> bool:
    """Whether the runtime that is to place the call's first process still lives."""
    owner = state.get("owner")
    if not (isinstance(owner, list) and len(owner) == 2 and isinstance(owner[0], int)):
        return False
    return bool(start_ticks(owner[0]) == owner[1])


def _kill(calls: cg.Cgroup) -> None:
    try:
        calls.write("cgroup.kill", "1")
    except CgroupError:
        return  # before Linux 5.14: the backend kills them
    deadline = time.monotonic() + _KILL_WAIT_S
    while calls.is_populated() and time.monotonic() < deadline:
        time.sleep(0.001)
