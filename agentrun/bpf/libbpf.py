"""Load CO-RE objects through libbpf.so.1, by ctypes: open, constants, load, attach, pin.

libbpf does what is hard to do well (relocations, struct_ops, verifier logs); what is one system call is in
`syscall`. Errors carry the object, the step, the reason and the end of libbpf's and the verifier's log.
"""

from __future__ import annotations

import collections
import ctypes
import errno
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from agentrun.base.errors import BpfError

_LIBRARY = "libbpf.so.1"
_LOG_LINES = 15  # of libbpf's output that an error shows
_MAP_STRUCT_OPS = 26  # enum bpf_map_type
_LINE = 4096
# Noise that says nothing about a failure.
_NOISE = ("-- BEGIN PROG LOAD LOG", "-- END PROG LOAD LOG", "processed ")

_Print = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)


class _OpenOptions(ctypes.Structure):
    """struct bpf_object_open_opts, as far as libbpf 1.0 has it."""

    _fields_ = (
        ("size", ctypes.c_size_t),
        ("object_name", ctypes.c_char_p),
        ("relaxed_maps", ctypes.c_bool),
        ("pin_root_path", ctypes.c_char_p),
        ("kconfig", ctypes.c_char_p),
        ("btf_custom_path", ctypes.c_char_p),
        ("kernel_log_buf", ctypes.c_void_p),
        ("kernel_log_size", ctypes.c_size_t),
        ("kernel_log_level", ctypes.c_uint32),
    )


_SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "libbpf_set_print": (ctypes.c_void_p, (_Print,)),
    "bpf_object__open_file": (ctypes.c_void_p, (ctypes.c_char_p, ctypes.c_void_p)),
    "bpf_object__load": (ctypes.c_int, (ctypes.c_void_p,)),
    "bpf_object__close": (None, (ctypes.c_void_p,)),
    "bpf_object__next_program": (ctypes.c_void_p, (ctypes.c_void_p, ctypes.c_void_p)),
    "bpf_object__next_map": (ctypes.c_void_p, (ctypes.c_void_p, ctypes.c_void_p)),
    "bpf_program__name": (ctypes.c_char_p, (ctypes.c_void_p,)),
    "bpf_program__section_name": (ctypes.c_char_p, (ctypes.c_void_p,)),
    "bpf_program__fd": (ctypes.c_int, (ctypes.c_void_p,)),
    "bpf_program__set_autoload": (ctypes.c_int, (ctypes.c_void_p, ctypes.c_bool)),
    "bpf_program__attach": (ctypes.c_void_p, (ctypes.c_void_p,)),
    "bpf_program__attach_cgroup": (ctypes.c_void_p, (ctypes.c_void_p, ctypes.c_int)),
    "bpf_program__pin": (ctypes.c_int, (ctypes.c_void_p, ctypes.c_char_p)),
    "bpf_map__name": (ctypes.c_char_p, (ctypes.c_void_p,)),
    "bpf_map__type": (ctypes.c_int, (ctypes.c_void_p,)),
    "bpf_map__fd": (ctypes.c_int, (ctypes.c_void_p,)),
    "bpf_map__is_pinned": (ctypes.c_bool, (ctypes.c_void_p,)),
    "bpf_map__is_internal": (ctypes.c_bool, (ctypes.c_void_p,)),
    "bpf_map__pin": (ctypes.c_int, (ctypes.c_void_p, ctypes.c_char_p)),
    "bpf_map__attach_struct_ops": (ctypes.c_void_p, (ctypes.c_void_p,)),
    "bpf_map__initial_value": (ctypes.c_void_p, (ctypes.c_void_p, ctypes.POINTER(ctypes.c_size_t))),
    "bpf_link__pin": (ctypes.c_int, (ctypes.c_void_p, ctypes.c_char_p)),
    "bpf_link__destroy": (ctypes.c_int, (ctypes.c_void_p,)),
}


class _Library:
    """libbpf with its signatures, and the last lines that it said."""

    def __init__(self) -> None:
        try:
            self.c = ctypes.CDLL(_LIBRARY, use_errno=True)
        except OSError as error:
            raise BpfError(f"load {_LIBRARY}: {error} (apt install libbpf1)") from error
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(self.c, name)
            function.restype, function.argtypes = result, arguments
        self.said: collections.deque[str] = collections.deque(maxlen=200)
        libc = ctypes.CDLL(None)
        self._format = libc.vsnprintf
        self._format.argtypes = (ctypes.c_char_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_void_p)
        self._print = _Print(self._hear)  # kept: libbpf calls it for as long as we live
        self.c.libbpf_set_print(self._print)

    def _hear(self, level: int, pattern: bytes, arguments: int) -> int:
        """Keep what libbpf says. A va_list is passed as a pointer on every 64-bit ABI that Linux has."""
        if level > 1:  # LIBBPF_DEBUG
            return 0
        line = ctypes.create_string_buffer(_LINE * 16)
        self._format(line, len(line), pattern, arguments)
        self.said.extend(line.value.decode("utf-8", "replace").splitlines())
        return 0

    def fail(self, what: str, number: int | None = None) -> BpfError:
        """An error with errno's reason and the end of what libbpf and the verifier said."""
        code = abs(number) if number else ctypes.get_errno()
        lines = [line for line in self.said if line.strip() and not line.startswith(_NOISE)]
        tail = "".join(f"\n  {line}" for line in lines[-_LOG_LINES:])
        error = BpfError(f"{what}: {os.strerror(code)} ({errno.errorcode.get(code, code)}){tail}")
        error.__cause__ = OSError(code, os.strerror(code))
        return error


_library: _Library | None = None


def library() -> _Library:
    """libbpf, loaded once."""
    global _library
    if _library is None:
        _library = _Library()
    return _library


@dataclass(frozen=True, slots=True)
class Program:
    """A program of an open object. `section` says how it is attached."""

    handle: int
    name: str
    section: str


@dataclass(frozen=True, slots=True)
class ObjectMap:
    """A map of an open object. `shared`: pinned by its own name, below the pin root."""

    handle: int
    name: str
    shared: bool
    struct_ops: bool
    internal: bool


class Object:
    """One object file. A context manager: leaving it closes everything that was not pinned."""

    def __init__(self, path: str, pin_root: str) -> None:
        self.path = path
        self._lib = library()
        self._lib.said.clear()
        options = _OpenOptions(size=ctypes.sizeof(_OpenOptions), pin_root_path=os.fsencode(pin_root))
        handle = self._lib.c.bpf_object__open_file(os.fsencode(path), ctypes.byref(options))
        if not handle:
            raise self._lib.fail(f"open BPF object {path!r}")
        self._handle: int = handle
        self._links: list[int] = []
        self._left_out: set[str] = set()

    def __enter__(self) -> Object:
        return self

    def __exit__(self, *_: object) -> None:
        for link in self._links:
            self._lib.c.bpf_link__destroy(link)
        self._lib.c.bpf_object__close(self._handle)

    def programs(self) -> Iterator[Program]:
        """Its programs, without those that are left out."""
        at = None
        while at := self._lib.c.bpf_object__next_program(self._handle, at):
            name = self._lib.c.bpf_program__name(at).decode()
            if name in self._left_out:
                continue
            yield Program(at, name, self._lib.c.bpf_program__section_name(at).decode())

    def maps(self) -> Iterator[ObjectMap]:
        """Its maps."""
        at = None
        while at := self._lib.c.bpf_object__next_map(self._handle, at):
            yield ObjectMap(
                at,
                self._lib.c.bpf_map__name(at).decode(),
                bool(self._lib.c.bpf_map__is_pinned(at)),
                self._lib.c.bpf_map__type(at) == _MAP_STRUCT_OPS,
                bool(self._lib.c.bpf_map__is_internal(at)),
            )

    def set_constants(self, offset: int, data: bytes) -> None:
        """Overwrite part of .rodata (the `const volatile` knobs) before the load."""
        for each in self.maps():
            if each.internal and each.name.endswith(".rodata"):
                size = ctypes.c_size_t()
                start = self._lib.c.bpf_map__initial_value(each.handle, ctypes.byref(size))
                if not start or offset + len(data) > size.value:
                    raise BpfError(f"set constants of {self.path!r}: outside of .rodata")
                ctypes.memmove(start + offset, data, len(data))
                return
        raise BpfError(f"set constants of {self.path!r}: it has none")

    def leave_out(self, names: Collection[str]) -> None:
        """Do not load some programs (this kernel lacks what they need)."""
        for program in self.programs():
            if program.name in names:
                self._lib.c.bpf_program__set_autoload(program.handle, False)
                self._left_out.add(program.name)

    def load(self) -> None:
        """Have the kernel check and load it all. Raises BpfError with the verifier's last words."""
        result = self._lib.c.bpf_object__load(self._handle)
        if result:
            raise self._lib.fail(f"load BPF object {self.path!r}", result)

    def _keep(self, link: int | None, what: str) -> int:
        if not link:
            raise self._lib.fail(f"{what} of {self.path!r}")
        self._links.append(link)
        return link

    def attach(self, program: Program) -> int:
        """Attach as the section says; returns the link. It is detached at the end unless it is pinned."""
        return self._keep(self._lib.c.bpf_program__attach(program.handle), f"attach {program.name!r}")

    def attach_cgroup(self, program: Program, cgroup_fd: int) -> int:
        """Attach to a cgroup (and, by inheritance, to all below it); returns the link."""
        link = self._lib.c.bpf_program__attach_cgroup(program.handle, cgroup_fd)
        return self._keep(link, f"attach {program.name!r} to a cgroup")

    def attach_struct_ops(self, ops: ObjectMap) -> int:
        """Register a struct_ops map that was defined in section `.struct_ops.link`; returns the link."""
        return self._keep(self._lib.c.bpf_map__attach_struct_ops(ops.handle), f"register {ops.name!r}")

    def fill_struct_ops(self, ops: ObjectMap) -> None:
        """Have a struct_ops map filled, for links that name a cgroup, which are made by bpf(2).

        libbpf fills the map in bpf_map__attach_struct_ops alone, and registers without a cgroup right after:
        a type that wants one refuses that with EINVAL, and the map is filled.
        """
        link = self._lib.c.bpf_map__attach_struct_ops(ops.handle)
        if link:
            self._keep(link, f"register {ops.name!r}")
        elif ctypes.get_errno() != errno.EINVAL:
            raise self._lib.fail(f"fill {ops.name!r} of {self.path!r}")

    def pin_link(self, link: int, path: str) -> None:
        """Pin a link: it stays attached when this process ends."""
        self._check(self._lib.c.bpf_link__pin(link, os.fsencode(path)), path)

    def pin_program(self, program: Program, path: str) -> None:
        """Pin a program."""
        self._check(self._lib.c.bpf_program__pin(program.handle, os.fsencode(path)), path)

    def pin_map(self, each: ObjectMap, path: str) -> None:
        """Pin a map."""
        self._check(self._lib.c.bpf_map__pin(each.handle, os.fsencode(path)), path)

    def _check(self, result: int, path: str) -> None:
        if result:
            raise self._lib.fail(f"pin {path!r}", result)
