"""The bundle of the hot path holds all that is imported, or is not built."""

from __future__ import annotations

import marshal
import subprocess
import sys
from importlib.util import MAGIC_NUMBER
from pathlib import Path

import pytest

from agentrun.front import bundle

TREE = Path(__file__).parents[3]
PROGRAM = TREE / "agentrun/front/bundle.py"
ENTRY = bundle.ENTRY.removeprefix("agentrun.").replace(".", "/") + ".py"


@pytest.fixture
def package(tmp_path):
    """Writes a package that has the entry, and other files: `package({path: text})`."""

    def write(files: dict[str, str]) -> Path:
        folder = tmp_path / "agentrun"
        for name, text in {"__init__.py": "", ENTRY: "", **files}.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            for parent in path.relative_to(folder).parents:
                (folder / parent / "__init__.py").touch()
        return folder

    return write


def build(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", "-S", str(PROGRAM), str(folder), str(folder / "bundle"), "/opt/lib"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_bundle_has_packages_before_modules_and_what_is_imported_before_who_imports(package):
    folder = package(
        {
            ENTRY: "from agentrun.inner import one\n",
            "inner/one.py": "from agentrun.inner.two import X\n",
            "inner/two.py": "X = 1\n",
        }
    )
    assert build(folder).returncode == 0
    data = (folder / "bundle").read_bytes()
    assert data.startswith(MAGIC_NUMBER)
    rows = [(name, is_package) for name, _, is_package in marshal.loads(data[len(MAGIC_NUMBER) :])]
    assert [row for row in rows if "inner" in row[0]] == [
        ("agentrun.inner", True),
        ("agentrun.inner.two", False),
        ("agentrun.inner.one", False),
    ]
    assert rows[0] == ("agentrun", True) and rows[-1] == (bundle.ENTRY, False)


def test_bundle_leaves_out_what_is_imported_later_or_never(package):
    text = """
TYPE_CHECKING = False
if TYPE_CHECKING:
    from agentrun import hint
    import typing
try:
    import _json
except ImportError:
    import json
def later():
    from agentrun import later
    import os
"""
    assert set(bundle.bundle(str(package({ENTRY: text})))) >= {"agentrun", bundle.ENTRY}
    assert not {"agentrun.hint", "agentrun.later"} & set(bundle.bundle(str(package({ENTRY: text}))))


def test_bundle_of_an_entry_that_is_not_there_is_an_error(package):
    folder = package({})
    (folder / ENTRY).unlink()
    result = build(folder)
    assert result.returncode != 0 and f"no module {bundle.ENTRY}" in result.stderr
    assert not (folder / "bundle").exists()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("import errno\nfrom agentrun import gone\n", ":2: no module agentrun.gone"),
        ("from agentrun.gone import name\n", ":1: no module agentrun.gone"),
        ("import agentrun.gone\n", ":1: no module agentrun.gone"),
        ("if 1:\n    from agentrun import gone\n", ":2: no module agentrun.gone"),
        ("from . import name\n", ":1: a relative import"),
        ("import hashlib\n", ":1: hashlib is not for the hot path"),
        ("try:\n    import struct\nfinally:\n    pass\n", ":2: struct is not for the hot path"),
        ("from os.path import join\n", ":1: os.path is not for the hot path"),
        ("class A:\n    import os\n", ":2: os is not for the hot path"),
        ("def a(:\n", "invalid syntax"),
    ],
)
def test_bundle_of_what_is_not_there_or_not_for_the_hot_path_is_an_error(package, text, problem):
    folder = package({ENTRY: text})
    result = build(folder)
    assert result.returncode != 0 and problem in result.stderr
    assert not (folder / "bundle").exists()


def test_name_of_a_package_itself_is_no_module(package):
    folder = package({"__init__.py": '__version__ = "1"\n', ENTRY: "from agentrun import __version__\n"})
    assert build(folder).returncode == 0
