"""Stamps: what a directory of the cache holds when it is whole. What has no valid stamp does not count."""

import json
from pathlib import Path


def write_stamp(directory: Path, name: str, files: tuple[str, ...], **extra: str) -> None:
    sizes = {file: (directory / file).stat().st_size for file in files}
    part = directory / f"{name}.part"
    part.write_text(json.dumps({"sizes": sizes} | extra))
    part.rename(directory / name)


def read_stamp(path: Path) -> dict[str, object]:
    try:
        stamp = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def matches_stamp(directory: Path, name: str) -> bool:
    """Whether all files of a stamp are there in their stamped sizes; nothing writes them later."""
    sizes = read_stamp(directory / name).get("sizes")
    if not isinstance(sizes, dict):
        return False
    try:
        return all((directory / file).stat().st_size == size for file, size in sizes.items())
    except OSError:
        return False
