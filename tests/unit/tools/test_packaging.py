"""What a wheel carries beside the package."""

from __future__ import annotations

import configparser
from pathlib import Path

TREE = Path(__file__).parents[3]


def data_files() -> dict[str, list[str]]:
    """The patterns of each folder, as `setup.cfg` has them."""
    parser = configparser.ConfigParser()
    parser.read(TREE / "setup.cfg")
    return {folder: names.split() for folder, names in parser["options.data_files"].items()}


def test_data_files_are_there():
    missing = [name for names in data_files().values() for name in names if not [*TREE.glob(name)]]
    assert not missing


def test_all_of_configs_is_carried_to_its_own_folder():
    carried = {
        f"{folder}/{path.name}": str(path.relative_to(TREE))
        for folder, names in data_files().items()
        for name in names
        for path in TREE.glob(name)
    }
    files = [path for path in (TREE / "configs").rglob("*") if path.is_file()]
    expected = {f"share/agentrun/{path.relative_to(TREE)}": str(path.relative_to(TREE)) for path in files}
    assert carried == expected
