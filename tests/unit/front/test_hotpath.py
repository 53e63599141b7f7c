"""Rules of the hot path that nobody should break by accident."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from agentrun.front import bundle

TREE = Path(__file__).parents[3]
PYTHON = "/usr/bin/python3" if shutil.which("/usr/bin/python3") else sys.executable
SCRIPT = """
import sys
before = set(sys.modules)
sys.path.insert(0, {tree!r})
import {entry}
from agentrun.base import fastjson
print(fastjson.dumps(sorted(set(sys.modules) - before)))
"""


def test_hot_path_imports_itself_and_builtins_only():
    """The bundle refuses others by their names; here is what they bring along."""
    script = SCRIPT.format(tree=str(TREE), entry=bundle.ENTRY)
    out = subprocess.run(
        [PYTHON, "-I", "-S", "-c", script], check=True, capture_output=True, text=True
    ).stdout
    loaded = set(json.loads(out))
    ours = {name for name in loaded if name.partition(".")[0] == "agentrun"}
    assert loaded - ours <= bundle.BUILTINS | set(sys.builtin_module_names)
    assert ours == set(bundle.bundle(str(TREE / "agentrun")))


@pytest.mark.parametrize("shell", ["dash", "bash --posix"])
def test_front_is_understood_by_every_posix_shell(shell):
    words = shell.split()
    if not shutil.which(words[0]):
        pytest.skip(f"{words[0]} is not installed")
    subprocess.run([*words, "-n", TREE / "agentrun/front/agentrun.in"], check=True)


def test_front_and_argv_know_the_same_global_options():
    from agentrun.oci import argv

    front = (TREE / "agentrun/front/agentrun.in").read_text()
    for name in argv._GLOBAL_VALUED | argv._GLOBAL_FLAGS:
        assert name in front, name
