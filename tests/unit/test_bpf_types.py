"""The contract between the BPF programs and Python, compared by BTF; needs `make bpf` and bpftool."""

from __future__ import annotations

import ctypes
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from agentrun.bpf import types

BPF = Path(__file__).parents[2] / "bpf"


@pytest.fixture(scope="module")
def btf() -> dict[Any, Any]:
    """Structs of the alignment object by name, and all types by id."""
    tool = shutil.which("bpftool") or shutil.which("bpftool", path="/usr/sbin")
    if tool is None or not shutil.which("clang"):
        pytest.skip("bpftool or clang is not installed")
    subprocess.run(["make", "-s", "-C", BPF], check=True, capture_output=True)
    dump = [tool, "--json", "btf", "dump", "file", str(BPF / "build/align.bpf.o")]
    return {
        t["id"]: t for t in json.loads(subprocess.run(dump, check=True, capture_output=True).stdout)["types"]
    }


def struct(btf: dict[Any, Any], name: str) -> dict[Any, Any]:
    return next(t for t in btf.values() if t["kind"] == "STRUCT" and t["name"] == name)


@pytest.mark.parametrize("name", types.STRUCTS)
def test_fields_are_where_the_programs_have_them(btf, name):
    ours, theirs = types.STRUCTS[name], struct(btf, name)
    assert ctypes.sizeof(ours) == theirs["size"]
    fields = [(field[0], getattr(ours, field[0]).offset) for field in ours._fields_]
    assert fields == [(member["name"], member["bits_offset"] // 8) for member in theirs["members"]]


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
