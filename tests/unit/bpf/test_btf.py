"""The little BTF that probing takes, on hand-made files: the kernel's own are read in the VM."""

from __future__ import annotations

import struct

import pytest

from agentrun.base.errors import BpfError
from agentrun.bpf import btf


def write(path, strings: list[str], types: bytes, *, magic: int = 0xEB9F, first: bytes = b"\0") -> None:
    """A BTF file with these strings and types; a module's strings have no empty one at the beginning."""
    text = first + b"".join(s.encode() + b"\0" for s in strings)
    header = struct.pack("=HBBIIIII", magic, 1, 0, 24, 0, len(types), len(types), len(text))
    path.write_bytes(header + types + text)


def make_struct(name: int, members: list[int]) -> bytes:
    """One BTF_KIND_STRUCT; names are offsets of strings."""
    head = struct.pack("=III", name, 4 << 24 | len(members), 8 * len(members))
    return head + b"".join(struct.pack("=III", member, 1, 0) for member in members)


INT = struct.pack("=III", 0, 1 << 24, 8) + bytes(4)


@pytest.fixture
def kernel(tmp_path):
    # offsets: 1 "wanted", 8 "first", 14 "second"
    write(tmp_path / "vmlinux", ["wanted", "first", "second"], INT + make_struct(1, [8, 14]))
    return tmp_path


def test_members_of_a_struct_of_the_kernel(kernel):
    assert btf.struct_members("wanted", str(kernel)) == ["first", "second"]


def test_struct_that_is_nowhere(kernel):
    assert btf.struct_members("absent", str(kernel)) is None


def test_name_that_is_only_a_member_is_no_struct(kernel):
    assert btf.struct_members("first", str(kernel)) is None


def test_names_of_a_module_count_on_from_the_kernels(kernel):
    base = len(b"\0wanted\0first\0second\0")
    types = make_struct(base, [8, base + 4])
    write(kernel / "module", ["ops", "own"], types, first=b"")
    assert btf.struct_members("ops", str(kernel)) == ["", "own"]


def test_kernel_without_types(tmp_path):
    assert btf.struct_members("wanted", str(tmp_path)) is None


def test_damage_is_named(kernel):
    write(kernel / "vmlinux", ["wanted"], struct.pack("=III", 0, 31 << 24, 0) + make_struct(1, []))
    with pytest.raises(BpfError, match="kind 31 is not known"):
        btf.struct_members("wanted", str(kernel))
    write(kernel / "vmlinux", ["wanted"], INT, magic=0x9FEB)
    with pytest.raises(BpfError, match="byte order"):
        btf.struct_members("wanted", str(kernel))
