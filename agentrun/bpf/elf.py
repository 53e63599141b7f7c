"""Where the constants (`const volatile` knobs) of a BPF object are in .rodata, by the ELF symbol table."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from agentrun.base.errors import BpfError

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_SYMTAB = 2
_RODATA = b".rodata"
_SIZES = {1: "B", 2: "H", 4: "I", 8: "Q"}


@dataclass(frozen=True, slots=True)
class _Section:
    name: int
    kind: int
    offset: int
    size: int
    link: int


def _sections(data: bytes) -> tuple[list[_Section], int]:
    """All sections, and the index of the one with their names."""
    fields = _HEADER.unpack_from(data)
    if not fields[0].startswith(b"\x7fELF\x02\x01"):
        raise ValueError("not a 64-bit little-endian ELF file")
    start, size, number, names = fields[6], fields[11], fields[12], fields[13]
    found = []
    for index in range(number):
        name, kind, _, _, offset, length, link, *_ = _SECTION.unpack_from(data, start + index * size)
        found.append(_Section(name, kind, offset, length, link))
    return found, names


def _string(data: bytes, table: _Section, at: int) -> bytes:
    begin = table.offset + at
    return data[begin : data.index(b"\0", begin)]


def _symbols(data: bytes) -> Iterator[tuple[str, int, int]]:
    """(name, offset, size) of every object in .rodata."""
    sections, names = _sections(data)
    rodata = [i for i, each in enumerate(sections) if _string(data, sections[names], each.name) == _RODATA]
    for table in (each for each in sections if each.kind == _SYMTAB):
        for at in range(table.offset, table.offset + table.size, _SYMBOL.size):
            name, _, _, section, value, size = _SYMBOL.unpack_from(data, at)
            if section in rodata and size:
                yield _string(data, sections[table.link], name).decode(), value, size


def constants(path: str, values: Mapping[str, int]) -> dict[int, bytes]:
    """Bytes to write into .rodata by offset, for constants by name. Raises BpfError for an unknown one."""
    try:
        places = {name: (offset, size) for name, offset, size in _symbols(Path(path).read_bytes())}
    except (struct.error, ValueError, IndexError) as error:
        raise BpfError(f"read BPF object {path!r}: {error}") from error
    written = {}
    for name, value in values.items():
        if name not in places or places[name][1] not in _SIZES:
            raise BpfError(f"set constant {name!r} of {path!r}: there is none of that name")
        offset, size = places[name]
        try:
            written[offset] = struct.pack("<" + _SIZES[size], value)
        except struct.error as error:
            raise BpfError(f"set constant {name!r} of {path!r} to {value}: {error}") from error
    return written
