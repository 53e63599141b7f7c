"""The pins below `/sys/fs/bpf/agentrun`: made for root alone, and checked before they are used again.

    /sys/fs/bpf/agentrun/                 0700, root
    ├── shared/MAP                        maps that several modules and versions use (the ring buffer)
    └── MODULE/HASH/{map,prog,link}_NAME  one loaded version of a module

Whoever could make a file there first could hand us a map of theirs, so a pin counts only if it and every
directory above it belong to root, nobody else can write them, and it is of the type and name that we expect.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from agentrun.base.errors import BpfError
from agentrun.bpf import syscall

BPFFS = "/sys/fs/bpf"
ROOT = f"{BPFFS}/agentrun"
SHARED = f"{ROOT}/shared"
_BPFFS_MAGIC_NAME = "bpf"
_Info = TypeVar("_Info")


def is_mounted(path: str = BPFFS) -> bool:
    """Whether a BPF file system is mounted there, and nothing over it."""
    with open("/proc/self/mounts", encoding="utf-8") as mounts:
        kinds = [words[2] for line in mounts if (words := line.split())[1] == path]
    return kinds[-1:] == [_BPFFS_MAGIC_NAME]


def _check_private(path: str) -> None:
    info = _lstat(path)
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != 0 or info.st_mode & 0o077:
        raise BpfError(
            f"use pins in {path!r}: not a directory of root's alone (mode {stat.S_IMODE(info.st_mode):04o},"
            f" owner {info.st_uid}); look who made it, then remove it"
        )


def make_directory(path: str) -> None:
    """Make a directory of root's alone below bpffs, or check that it is one. Raises BpfError."""
    if not is_mounted():
        raise BpfError(f"use pins: no BPF file system at {BPFFS} (mount -t bpf bpf {BPFFS})")
    at = ROOT
    for part in ["", *os.path.relpath(path, ROOT).split("/")]:
        at = os.path.normpath(os.path.join(at, part))
        try:
            os.mkdir(at, 0o700)
        except FileExistsError:
            pass
        except OSError as error:
            raise BpfError(f"make directory {at!r}: {error.strerror}") from error
        _check_private(at)


def _lstat(path: str) -> os.stat_result:
    """lstat(2). BpfError where it fails; `syscall.is_missing` says whether there is nothing."""
    try:
        return os.lstat(path)
    except OSError as error:
        raise BpfError(f"use pin {path!r}: {error.strerror}") from error


def check_owner(path: str) -> None:
    """Raise BpfError unless a pin belongs to root and its mode lets nobody else write it."""
    info = _lstat(path)
    if not stat.S_ISREG(info.st_mode) or info.st_uid != 0 or info.st_mode & 0o022:
        raise BpfError(
            f"use pin {path!r}: not root's alone (mode {stat.S_IMODE(info.st_mode):04o}, owner {info.st_uid})"
        )


def _open(path: str) -> int:
    """A descriptor of a pin that is root's alone, and stands where nobody else could have put it."""
    _check_parents(path)
    check_owner(path)
    return syscall.obj_get(path)


def open_map(path: str, name: str, kind: int | None = None) -> syscall.Map:
    """Open a pinned map after checking owner, type and name (the kernel keeps 15 characters of that)."""
    fd = _open(path)
    if syscall.kind_of(fd) != "map":
        os.close(fd)
        raise BpfError(f"use pin {path!r}: it is no map")
    opened = syscall.Map(fd)
    if opened.info.name != name[:15] or kind not in (None, opened.info.type):
        opened.close()
        raise BpfError(
            f"use pin {path!r}: it is map {opened.info.name!r} of type {opened.info.type}, not {name!r}"
        )
    return opened


def open_program(path: str, name: str) -> int:
    """Open a pinned program after the same checks; returns a descriptor."""
    fd = _open(path)
    if syscall.kind_of(fd) != "prog" or syscall.program_info(fd).name != name[:15]:
        os.close(fd)
        raise BpfError(f"use pin {path!r}: it is not program {name!r}")
    return fd


def _check_parents(path: str) -> None:
    directory = os.path.dirname(path)
    while directory.startswith(ROOT):
        _check_private(directory)
        directory = os.path.dirname(directory)


@dataclass(frozen=True, slots=True)
class PinnedProgram:
    """A pinned program."""

    name: str
    info: syscall.ProgramInfo


@dataclass(frozen=True, slots=True)
class PinnedLink:
    """A pinned link; dead once what it was attached to is gone or the kernel threw it out."""

    name: str
    info: syscall.LinkInfo

    @property
    def alive(self) -> bool:
        """Whether it is still attached."""
        return self.info.target != 0


def _names(directory: str, prefix: str) -> Iterator[str]:
    try:
        names = sorted(os.listdir(directory))
    except FileNotFoundError:
        return
    for name in names:
        if name.startswith(prefix):
            yield name


def _pinned(directory: str, prefix: str, read: Callable[[int], _Info]) -> Iterator[tuple[str, _Info]]:
    """Name without the prefix, and what the kernel says, of each pin with a prefix."""
    for name in _names(directory, prefix):
        fd = syscall.obj_get(f"{directory}/{name}")
        try:
            yield name.removeprefix(prefix), read(fd)
        finally:
            os.close(fd)


def programs(directory: str) -> list[PinnedProgram]:
    """The pinned programs of one version of a module."""
    return [PinnedProgram(*found) for found in _pinned(directory, "prog_", syscall.program_info)]


def links(directory: str) -> list[PinnedLink]:
    """The pinned links of one version of a module."""
    return [PinnedLink(*found) for found in _pinned(directory, "link_", syscall.link_info)]


def remove(directory: str) -> None:
    """Remove one version of a module: links first, so that nothing runs half. Missing is no error."""
    for name in sorted(_names(directory, ""), key=lambda name: not name.startswith("link_")):
        os.unlink(f"{directory}/{name}")
    try:
        os.rmdir(directory)
    except FileNotFoundError:
        return
