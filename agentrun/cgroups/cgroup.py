"""All reading and writing of cgroup v2 files, on one directory at a time."""

from __future__ import annotations

import errno
import posix
import stat
import time

from agentrun.base.errors import CgroupError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_REMOVE_TRIES = 10
_MOVE_ROUNDS = 100
_BELOW_LIMIT = 4096  # cgroups in a cgroup that is removed


def parse_pressure(text: str) -> dict[str, tuple[float, int]]:
    """A PSI file: for `some` and `full`, the percent of the last 10 s and the microseconds in all. Pure."""
    rows = [line.split() for line in text.splitlines()]
    return {
        row[0]: (float(row[1].removeprefix("avg10=")), int(row[4].removeprefix("total=")))
        for row in rows
        if len(row) == 5
    }


class Cgroup:
    """One cgroup directory. Writes raise CgroupError; reads of a missing file give None."""

    __slots__ = ("path",)

    def __init__(self, path: str) -> None:
        self.path = path

    def child(self, name: str) -> Cgroup:
        """The cgroup `name` below this one; it need not exist."""
        return Cgroup(f"{self.path}/{name}")

    def exists(self) -> bool:
        """Whether the directory is there."""
        try:
            return stat.S_ISDIR(posix.stat(self.path, follow_symlinks=False).st_mode)
        except OSError:
            return False

    def make(self) -> bool:
        """Make the directory; False when it exists already. Raises CgroupError."""
        try:
            posix.mkdir(self.path, 0o755)
        except FileExistsError:
            return False
        except OSError as error:
            raise CgroupError("make cgroup", self.path, error) from error
        return True

    def read(self, name: str) -> str | None:
        """The stripped text of one file, None where the file or the whole cgroup is missing."""
        try:
            fd = posix.open(f"{self.path}/{name}", posix.O_RDONLY | posix.O_CLOEXEC | posix.O_NOFOLLOW)
        except OSError:
            return None
        try:
            text = b""
            while chunk := posix.read(fd, 65536):
                text += chunk
        except OSError:  # ENODEV: removed while we read
            return None
        finally:
            posix.close(fd)
        return text.decode("ascii", "replace").strip()

    def write(self, name: str, value: str) -> None:
        """Write one file. Raises CgroupError with the kernel's reason; then nothing was changed."""
        self._write(name, value, 0)

    def write_at_once(self, name: str, value: str) -> None:
        """Write a limit of memory without waiting until usage is below it. Raises CgroupError.

        O_NONBLOCK leaves that reclaim to the ones who exceed it, since Linux 6.16 (c8e6002bd611); before, the
        kernel gives up after some rounds.
        """
        self._write(name, value, posix.O_NONBLOCK)

    def _write(self, name: str, value: str, flags: int) -> None:
        path = f"{self.path}/{name}"
        try:
            fd = posix.open(path, posix.O_WRONLY | posix.O_CLOEXEC | posix.O_NOFOLLOW | flags)
            try:
                posix.write(fd, value.encode())
            finally:
                posix.close(fd)
        except OSError as error:
            raise CgroupError(f"write {value!r} to cgroup file", path, error) from error

    def number(self, name: str) -> int | None:
        """One number in a file of its own; None for `max` and for a missing file."""
        text = self.read(name)
        return int(text) if text is not None and text.isdigit() else None

    def pairs(self, name: str) -> dict[str, int] | None:
        """A flat keyed file (`memory.events`, `cpu.stat`); None where it is missing."""
        text = self.read(name)
        if text is None:
            return None
        rows = (line.split() for line in text.splitlines())
        return {row[0]: int(row[1]) for row in rows if len(row) == 2 and row[1].isdigit()}

    def kernel_id(self) -> int | None:
        """The id that BPF programs know it by: the inode of its directory. None when it is gone."""
        try:
            return posix.stat(self.path, follow_symlinks=False).st_ino
        except OSError:
            return None

    def pids(self) -> list[int]:
        """Processes that are directly in this cgroup."""
        return [int(pid) for pid in (self.read("cgroup.procs") or "").split()]

    def pids_below(self, most: int) -> list[int]:
        """Processes in this cgroup and below: so many of them, from so many cgroups, which may be nested."""
        found: list[int] = []
        places = [self]
        for number, here in enumerate(places):  # which grows meanwhile
            if max(number, len(found)) >= most:
                break
            found += here.pids()
            places += here.children()
        return found[:most]

    def is_populated(self) -> bool:
        """Whether any living process is in this cgroup or below (zombies do not count)."""
        return (self.pairs("cgroup.events") or {}).get("populated", 0) == 1

    def children(self) -> Iterator[Cgroup]:
        """The cgroups directly below this one."""
        try:
            with posix.scandir(self.path) as entries:
                names = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
        except OSError:
            return
        for name in names:
            yield self.child(name)

    def move_all(self, target: Cgroup) -> None:
        """Move every process of this cgroup to `target`, again until none is left. Raises CgroupError.

        A process that forks while it is moved leaves its child behind, hence the rounds.
        """
        for _ in range(_MOVE_ROUNDS):
            pids = self.pids()
            if not pids:
                return
            for pid in pids:
                target.add(pid)
        busy = OSError(errno.EBUSY, "processes keep appearing")
        raise CgroupError("move all processes out of cgroup", self.path, busy)

    def add(self, pid: int) -> None:
        """Move one process here; one that has ended meanwhile is no error. Raises CgroupError."""
        try:
            self.write("cgroup.procs", str(pid))
        except CgroupError as error:
            # EINVAL: a task that is still being made (opencontainers/cgroups retries it as well);
            # the caller's next round sees it again.
            if error.errno not in (errno.ESRCH, errno.EINVAL):
                raise

    def remove(self) -> bool:
        """Remove this cgroup and all below it; False when it stays busy. Raises CgroupError."""
        for attempt in range(_REMOVE_TRIES):
            try:
                posix.rmdir(self.path)
                return True
            except FileNotFoundError:
                return True
            except OSError as error:
                if error.errno not in (errno.EBUSY, errno.ENOTEMPTY):
                    raise CgroupError("remove cgroup", self.path, error) from error
            if self.is_populated():
                return False
            self._remove_below()
            if attempt:
                time.sleep(0.001 * attempt)
        return False

    def _remove_below(self) -> None:
        """Remove what is below, the deepest first. Raises CgroupError.

        Who can write cgroup files nests as many as he likes: no recursion, and an end.
        """
        found = [self]
        for cgroup in found:  # grows meanwhile
            if len(found) > _BELOW_LIMIT:
                break
            found += cgroup.children()
        for cgroup in reversed(found[1:]):
            try:
                posix.rmdir(cgroup.path)
            except OSError as error:
                if error.errno not in (errno.EBUSY, errno.ENOTEMPTY, errno.ENOENT):
                    raise CgroupError("remove cgroup", cgroup.path, error) from error
        if len(found) > _BELOW_LIMIT:
            many = OSError(errno.E2BIG, f"more than {_BELOW_LIMIT} cgroups")
            raise CgroupError("remove all cgroups below", self.path, many)
