"""The disk of the fast guests: the image's snapshot as a raw file, which all of them have below their own."""

import os
import subprocess
from pathlib import Path

from vmlib.errors import BuildError
from vmlib.host import tool
from vmlib.image import Image
from vmlib.paths import cache_dir, locked
from vmlib.progress import heartbeat, say
from vmlib.recipe import SNAPSHOT
from vmlib.stamp import matches_stamp, write_stamp

DISK = "fast.raw"
STAMP = "fast.json"


def has_fast_disk(image: Image) -> bool:
    return matches_stamp(image.directory, STAMP)


def ensure_fast_disk(image: Image) -> Path:
    """The raw disk of a whole image, made when it is not there. Nothing writes it later."""
    disk = image.directory / DISK
    if has_fast_disk(image):
        return disk
    with locked(cache_dir() / "build.lock", "another build"):
        if not has_fast_disk(image):
            say("convert the image's disk")
            (image.directory / STAMP).unlink(missing_ok=True)
            _convert(image.ready, disk)
            write_stamp(image.directory, STAMP, (DISK,))
    return disk


def _convert(snapshot_of: Path, disk: Path) -> None:
    # The disk as it was when the machine was saved: just synced, with the engines' images in it.
    argv = [tool("qemu-img"), "convert", "-f", "qcow2", "-O", "raw", "-l", f"snapshot.name={SNAPSHOT}"]
    part = disk.with_suffix(".part")
    with heartbeat("convert the disk"):
        result = subprocess.run(
            [*argv, os.fspath(snapshot_of), os.fspath(part)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
    if result.returncode != 0:
        part.unlink(missing_ok=True)
        raise BuildError(f"convert the image's disk: {result.stderr.strip()}")
    part.rename(disk)
