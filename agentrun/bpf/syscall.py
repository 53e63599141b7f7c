"""bpf(2) as far as pins, maps and links need it, without libbpf. Every function raises BpfError."""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys
from dataclasses import dataclass
from typing import NoReturn

from agentrun.base.errors import BpfError

# include/uapi/linux/bpf.h, enum bpf_cmd
_MAP_LOOKUP, _MAP_UPDATE, _MAP_DELETE, _MAP_NEXT_KEY = 1, 2, 3, 4
_OBJ_PIN, _OBJ_GET, _PROG_RUN, _INFO_BY_FD = 6, 7, 10, 15
_LINK_CREATE, _LINK_BY_ID, _LINK_DETACH = 28, 30, 34
_ATTACH_STRUCT_OPS = 44  # enum bpf_attach_type
_NUMBERS = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "s390x": 351, "ppc64le": 361}

# enum bpf_link_type
LINK_TRACING, LINK_CGROUP, LINK_STRUCT_OPS = 2, 3, 9
_INFO_SIZE = 256  # the kernel fills what it knows of this and leaves the rest zero

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


@dataclass(frozen=True, slots=True)
class MapInfo:
    """What the kernel says of a map."""

    type: int
    id: int
    key_size: int
    value_size: int
    max_entries: int
    name: str


@dataclass(frozen=True, slots=True)
class ProgramInfo:
    """What the kernel says of a program; `verified_insns` is 0 before Linux 5.16."""

    type: int
    id: int
    tag: str
    name: str
    verified_insns: int


@dataclass(frozen=True, slots=True)
class LinkInfo:
    """What the kernel says of a link. `target` is 0 once what it was attached to is gone."""

    type: int
    id: int
    program_id: int
    target: int


def _fail(what: str, number: int) -> NoReturn:
    error = BpfError(f"{what}: {os.strerror(number)} (errno {number})")
    error.__cause__ = OSError(number, os.strerror(number))
    raise error


def _bpf(command: int, attributes: bytes, what: str) -> int:
    number = _NUMBERS.get(platform.machine())
    if number is None:
        raise BpfError(f"{what}: bpf(2) has no known number on {platform.machine()}")
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    result: int = _libc.syscall(number, command, buffer, len(attributes))
    if result < 0:
        _fail(what, ctypes.get_errno())
    return result


def is_missing(error: BpfError) -> bool:
    """Whether an error says that there is no such entry or pin."""
    return isinstance(error.__cause__, FileNotFoundError)


def obj_get(path: str) -> int:
    """Open a pinned map, program or link; returns a descriptor (close-on-exec, as all of bpf(2)'s are)."""
    name = ctypes.create_string_buffer(os.fsencode(path))
    return _bpf(_OBJ_GET, struct.pack("=QII", ctypes.addressof(name), 0, 0), f"open pin {path!r}")


def obj_pin(fd: int, path: str) -> None:
    """Pin a descriptor."""
    name = ctypes.create_string_buffer(os.fsencode(path))
    _bpf(_OBJ_PIN, struct.pack("=QII", ctypes.addressof(name), fd, 0), f"pin {path!r}")


def run_program(program: int, context: bytes) -> None:
    """Run a program of type `syscall` with what it is to know. Needs Linux 5.14 (79a7f8bdb159)."""
    buffer = ctypes.create_string_buffer(context, len(context))
    where = ctypes.addressof(buffer)
    attributes = struct.pack("=IIIIQQIIIIQQIIII", program, *(0,) * 7, len(context), 0, where, 0, 0, 0, 0, 0)
    _bpf(_PROG_RUN, attributes, "run program")


def link_create(program: int, target: int, attach_type: int) -> int:
    """Attach a program to a cgroup (or another target by descriptor); returns the link's descriptor."""
    attributes = struct.pack("=IIII", program, target, attach_type, 0) + bytes(32)
    return _bpf(_LINK_CREATE, attributes, "create link")


def link_by_id(number: int) -> int:
    """Open a link by its id, pinned or not; returns a descriptor. Needs CAP_SYS_ADMIN."""
    return _bpf(_LINK_BY_ID, struct.pack("=III", number, 0, 0), f"open link {number}")


def link_struct_ops(ops: int, *, target_fd: int = 0, relative_fd: int = 0, flags: int = 0) -> int:
    """Attach a filled struct_ops map; returns the link's descriptor.

    The cgroup goes into `target_fd` or into link_create.cgroup.relative_fd (which follows `flags` in the
    union): which of them is the type's own convention.
    """
    attributes = struct.pack("=IIIII", ops, target_fd, _ATTACH_STRUCT_OPS, flags, relative_fd) + bytes(32)
    return _bpf(_LINK_CREATE, attributes, "create struct_ops link")


def link_detach(link: int) -> None:
    """Detach a link for good, whoever else holds it."""
    _bpf(_LINK_DETACH, struct.pack("=I", link), "detach link")


def id_key(number: int) -> bytes:
    """A cgroup's id as a map's key (u64)."""
    return number.to_bytes(8, sys.byteorder)


class Map:
    """An open map; keys and values are bytes of the map's sizes."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.info = map_info(fd)

    def close(self) -> None:
        """Let go of the map."""
        os.close(self.fd)

    def _call(self, command: int, key: bytes | None, value: ctypes.Array[ctypes.c_char] | None) -> None:
        key_buffer = None if key is None else ctypes.create_string_buffer(key, len(key))
        attributes = struct.pack(
            "=IIQQQ",
            self.fd,
            0,
            0 if key_buffer is None else ctypes.addressof(key_buffer),
            0 if value is None else ctypes.addressof(value),
            0,
        )
        _bpf(command, attributes, f"use map {self.info.name!r}")

    def lookup(self, key: bytes) -> bytes | None:
        """The value of a key; None without one. Not for per-CPU maps."""
        value = ctypes.create_string_buffer(self.info.value_size)
        try:
            self._call(_MAP_LOOKUP, key, value)
        except BpfError as error:
            if is_missing(error):
                return None
            raise
        return value.raw

    def update(self, key: bytes, value: bytes) -> None:
        """Set the value of a key."""
        if len(key) != self.info.key_size or len(value) != self.info.value_size:
            raise BpfError(f"update map {self.info.name!r}: key or value of the wrong size")
        self._call(_MAP_UPDATE, key, ctypes.create_string_buffer(value, len(value)))

    def delete(self, key: bytes) -> None:
        """Remove a key; one that is not there is no error."""
        try:
            self._call(_MAP_DELETE, key, None)
        except BpfError as error:
            if not is_missing(error):
                raise

    def next_key(self, key: bytes | None) -> bytes | None:
        """The key after `key` (None: the first); None after the last."""
        found = ctypes.create_string_buffer(self.info.key_size)
        try:
            self._call(_MAP_NEXT_KEY, key, found)
        except BpfError as error:
            if is_missing(error):
                return None
            raise
        return found.raw


def _info(fd: int) -> bytes:
    buffer = ctypes.create_string_buffer(_INFO_SIZE)
    attributes = struct.pack("=IIQ", fd, _INFO_SIZE, ctypes.addressof(buffer))
    _bpf(_INFO_BY_FD, attributes, "read information")
    return buffer.raw


def _name(raw: bytes) -> str:
    return raw.partition(b"\0")[0].decode("ascii", "replace")


def kind_of(fd: int) -> str:
    """`map`, `prog` or `link`: what a descriptor is."""
    target = os.readlink(f"/proc/self/fd/{fd}")
    return target.removeprefix("anon_inode:").strip("[]").removeprefix("bpf-").removeprefix("bpf_")


def map_info(fd: int) -> MapInfo:
    """Read struct bpf_map_info."""
    raw = _info(fd)
    kind, number, key_size, value_size, entries, _, name = struct.unpack_from("=6I16s", raw)
    return MapInfo(kind, number, key_size, value_size, entries, _name(name))


def program_info(fd: int) -> ProgramInfo:
    """Read struct bpf_prog_info."""
    raw = _info(fd)
    kind, number, tag = struct.unpack_from("=II8s", raw)
    (name,) = struct.unpack_from("=16s", raw, 64)
    (insns,) = struct.unpack_from("=I", raw, 216)
    return ProgramInfo(kind, number, tag.hex(), _name(name), insns)


def link_info(fd: int) -> LinkInfo:
    """Read struct bpf_link_info; `target` is the cgroup's id, the struct_ops map's id, or 1."""
    raw = _info(fd)
    kind, number, program = struct.unpack_from("=III", raw)
    target = 1
    if kind == LINK_CGROUP:
        (target,) = struct.unpack_from("=Q", raw, 16)
    elif kind == LINK_STRUCT_OPS:
        (target,) = struct.unpack_from("=I", raw, 16)
    return LinkInfo(kind, number, program, target)
