"""What types the running kernel and its modules have: the members of one struct, from /sys/kernel/btf.

Only as much of BTF (Documentation/bpf/btf.rst) as that takes. Most kernels lack the struct in question, and
then its name is not among the strings either: those are looked at first, for there are 150,000 types.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

from agentrun.base.errors import BpfError

DIRECTORY = "/sys/kernel/btf"
_BASE = "vmlinux"
_MAGIC = 0xEB9F
_STRUCT = 4  # enum BTF_KIND_*
# Bytes that follow the 12 of struct btf_type, by kind: (fixed, for each of vlen).
_TAILS = dict.fromkeys(range(20), (0, 0)) | {
    1: (4, 0),  # INT
    3: (12, 0),  # ARRAY
    4: (0, 12),  # STRUCT
    5: (0, 12),  # UNION
    6: (0, 8),  # ENUM
    13: (0, 8),  # FUNC_PROTO
    14: (4, 0),  # VAR
    15: (0, 12),  # DATASEC
    17: (4, 0),  # DECL_TAG
    19: (0, 12),  # ENUM64
}


class _Btf:
    """One BTF file. Names in a module's BTF go on counting where the kernel's end."""

    def __init__(self, path: str, base_strings: int) -> None:
        data = Path(path).read_bytes()
        magic, _, _, header, type_at, self.type_size, string_at, self.string_size = struct.unpack_from(
            "=HBBIIIII", data
        )
        if magic != _MAGIC:
            raise BpfError(f"read types in {path!r}: not BTF of this machine's byte order")
        self.path = path
        self.types = memoryview(data)[header + type_at : header + type_at + self.type_size]
        self.strings = data[header + string_at : header + string_at + self.string_size]
        self.base = base_strings

    def offset_of(self, name: str) -> int | None:
        """Where a name stands among all strings; None where it is not in this file."""
        # A module's strings begin at once, the kernel's with an empty one.
        at = (b"\0" + self.strings).find(b"\0" + name.encode() + b"\0")
        return None if at < 0 else self.base + at

    def name_at(self, offset: int) -> str:
        """The string at an offset; empty where it is one of the kernel's, which are not read for a module."""
        at = offset - self.base
        return "" if at < 0 else self.strings[at : self.strings.index(b"\0", at)].decode()

    def members(self, name: str) -> list[str] | None:
        """The members of a struct, in order; None where this file has no such struct."""
        wanted = self.offset_of(name)
        if wanted is None:
            return None
        for found, kind, vlen, tail in self._walk():
            if found == wanted and kind == _STRUCT:
                offsets = (struct.unpack_from("=I", self.types, tail + 12 * i)[0] for i in range(vlen))
                return [self.name_at(offset) for offset in offsets]
        return None

    def _walk(self) -> Iterator[tuple[int, int, int, int]]:
        """(name, kind, number of members, where they are) of every type."""
        at = 0
        while at < self.type_size:
            name, info, _ = struct.unpack_from("=III", self.types, at)
            kind, vlen = info >> 24 & 0x1F, info & 0xFFFF
            if kind not in _TAILS:
                raise BpfError(f"read types in {self.path!r}: kind {kind} is not known")
            yield name, kind, vlen, at + 12
            fixed, each = _TAILS[kind]
            at += 12 + fixed + each * vlen


def struct_members(name: str, directory: str = DIRECTORY) -> list[str] | None:
    """The members of a struct that the kernel or one of its modules has; None where none has it.

    Names of members that a module shares with the kernel are empty. Raises BpfError where BTF is damaged.
    """
    try:
        base = _Btf(f"{directory}/{_BASE}", 0)
    except FileNotFoundError:
        return None  # a kernel without BTF
    found = base.members(name)
    if found is not None:
        return found
    for module in sorted(set(os.listdir(directory)) - {_BASE}):
        try:
            found = _Btf(f"{directory}/{module}", base.string_size).members(name)
        except FileNotFoundError:
            continue  # unloaded meanwhile
        if found is not None:
            return found
    return None
