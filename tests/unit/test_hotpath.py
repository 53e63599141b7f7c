"""Rules of the hot path that nobody should break by accident."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TREE = Path(__file__).parents[2]
PYTHON = "/usr/bin/python3" if shutil.which("/usr/bin/python3") else sys.executable
FORBIDDEN = {
    "argparse", "collections", "dataclasses", "enum", "functools", "json", "logging", "os", "pathlib",
    "re", "signal", "site", "subprocess", "tomllib", "traceback", "types", "typing",
}  # fmt: skip
SCRIPT = """
import sys
sys.path.insert(0, {tree!r})
import agentrun.runtime
from agentrun import fastjson
print(fastjson.dumps(sorted(sys.modules)))
"""


def test_nothing_slow_is_imported():
    script = SCRIPT.format(tree=str(TREE))
    out = subprocess.run(
        [PYTHON, "-I", "-S", "-c", script], check=True, capture_output=True, text=True
    ).stdout
    loaded = set(json.loads(out))
    assert loaded & FORBIDDEN == set()
    assert "agentrun.configfile" not in loaded and "agentrun.ctl" not in loaded


@pytest.mark.parametrize("shell", ["dash", "bash --posix"])
def test_front_is_understood_by_every_posix_shell(shell):
    words = shell.split()
    if not shutil.which(words[0]):
        pytest.skip(f"{words[0]} is not installed")
    subprocess.run([*words, "-n", TREE / "agentrun/front/agentrun.in"], check=True)


def test_front_and_argv_know_the_same_global_options():
    from agentrun import argv

    front = (TREE / "agentrun/front/agentrun.in").read_text()
    for name in argv._GLOBAL_VALUED | argv._GLOBAL_FLAGS:
        assert name in front, name
