"""The contract between the BPF programs and Python, compared by the BTF of a built object (`make bpf`)."""

from __future__ import annotations

import ctypes
import os
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from agentrun.bpf import elf, snapshot, types
from agentrun.bpf.btf import _STRUCT, _Btf

BPF = Path(__file__).parents[3] / "bpf"
Struct = tuple[int, list[tuple[str, int]]]


@pytest.fixture(scope="module")
def structs(tmp_path_factory) -> dict[str, Struct]:
    """Size and (member, offset), in bytes, of every struct of the alignment object."""
    if not shutil.which("clang"):
        missing = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        missing("clang is not installed")
    subprocess.run(["make", "-s", "-C", BPF], check=True, capture_output=True)
    data = (BPF / "build/align.bpf.o").read_bytes()
    sections, names = elf._sections(data)
    (section,) = [each for each in sections if elf._string(data, sections[names], each.name) == b".BTF"]
    path = tmp_path_factory.mktemp("btf") / "align"
    path.write_bytes(data[section.offset : section.offset + section.size])
    btf, found = _Btf(str(path), 0), {}
    for name, kind, count, tail in btf._walk():
        if kind == _STRUCT:
            members = [struct.unpack_from("=III", btf.types, tail + 12 * i) for i in range(count)]
            (size,) = struct.unpack_from("=I", btf.types, tail - 4)
            found[btf.name_at(name)] = size, [(btf.name_at(m), bits // 8) for m, _, bits in members]
    return found


@pytest.mark.parametrize("name", types.STRUCTS)
def test_fields_are_where_the_programs_have_them(structs, name):
    ours = types.STRUCTS[name]
    fields = [(field[0], getattr(ours, field[0]).offset) for field in ours._fields_]
    assert (ctypes.sizeof(ours), fields) == structs[name]


def test_answers_of_the_snapshot_are_unpacked_as_they_are_laid_out():
    values = (1 << 40, 2 << 40, 3 << 40, 4, 5)
    seen = types.Seen(*values)
    assert snapshot.ENTRY.size == ctypes.sizeof(seen) and snapshot.ENTRY.unpack(bytes(seen)) == values


@pytest.mark.parametrize("name", types.STRUCTS)
def test_no_struct_has_padding_that_is_not_a_field(name):
    ours = types.STRUCTS[name]
    assert sum(getattr(ours, field[0]).size for field in ours._fields_) == ctypes.sizeof(ours)


def test_constants_are_those_of_the_header():
    header = (BPF / "agentrun.h").read_text()
    assert f"#define AR_NET_FORMAT {types.NET_FORMAT}\n" in header
    assert f"#define AR_NET_RULES {types.NET_RULES}\n" in header
    assert f'#define AR_NET_XATTR "{types.NET_XATTR}"\n' in header
    assert f"#define AR_PRESSURE_MEMBERS {types.PRESSURE_MEMBERS}\n" in header
    assert f"#define AR_SNAPSHOT_CALLS {types.SNAPSHOT_CALLS}\n" in header
    for how in types.How:
        assert f"AR_PRESSURE_{how.name} = {how.value}," in header
    for kind in types.Kind:
        assert f"AR_EVENT_{kind.name} = {kind.value}," in header
    for by in types.DeniedBy:
        assert f"AR_BY_{by.name} = {by.value}," in header
