"""`make install` of a tree into a directory of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TREE = Path(__file__).parents[2]


def interpreter() -> str:
    """The system's Python; ours where that has no PyYAML, which compiles policies."""
    command = ["/usr/bin/python3", "-c", "import yaml"]
    has_yaml = subprocess.run(command, capture_output=True, check=False).returncode == 0
    return command[0] if has_yaml else sys.executable


def make_command(target: str, folder: Path, tree: Path = TREE) -> list[str]:
    """`make install` or `make uninstall` of a tree, below `folder`."""
    return ["make", "-s", "-C", str(tree), target, f"PREFIX={folder}/usr", f"PYTHON={interpreter()}"]
