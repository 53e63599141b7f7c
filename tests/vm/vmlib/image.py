"""The cached image: its key, whether it is whole, building it, and pruning old ones.

An image is a directory named by the hash of its inputs. It is made in a work directory
and renamed into place with its stamp; what has no valid stamp does not count.
"""

import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vmlib.errors import BuildError, LostVMError, VmError
from vmlib.host import BUILD_TOOLS, ensure_tools, tool
from vmlib.machine import Hardware
from vmlib.paths import GUEST_DIR, cache_dir, images_dir, locked
from vmlib.progress import heartbeat, say
from vmlib.qemu import Qemu, qemu_version
from vmlib.recipe import SNAPSHOT
from vmlib.rootfs import HELPERS, build_disk
from vmlib.ssh import Ssh
from vmlib.stamp import matches_stamp, read_stamp, write_stamp

KEPT_IMAGES = 2
BOOT_TIMEOUT_S = 600.0
PROVISION_TIMEOUT_S = 1800.0
STAMP = "stamp.json"
SNAPSHOT_STAMP = "snapshot.json"
BUILD_CODE = ("recipe.py", "rootfs.py", "ociimage.py", "image.py")
FILES = ("base.qcow2", "vmlinuz", "initrd", "id", "known_hosts")


@dataclass(frozen=True, slots=True)
class Image:
    key: str

    @property
    def directory(self) -> Path:
        return images_dir() / self.key

    @property
    def base(self) -> Path:
        return self.directory / "base.qcow2"

    @property
    def ready(self) -> Path:
        return self.directory / "ready.qcow2"

    def is_whole(self) -> bool:
        """Whether all files are there in their stamped sizes."""
        return matches_stamp(self.directory, STAMP)

    def has_snapshot(self) -> bool:
        stamp = read_stamp(self.directory / SNAPSHOT_STAMP)
        is_whole = matches_stamp(self.directory, SNAPSHOT_STAMP)
        return is_whole and stamp.get("qemu") == qemu_version()


def current_image() -> Image:
    """The image that belongs to the inputs as they are now."""
    digest = hashlib.sha256()
    code = [Path(__file__).parent / name for name in BUILD_CODE]
    guest = sorted(path for path in GUEST_DIR.rglob("*") if path.is_file())
    for path in [*code, *guest]:
        executable = bool(path.stat().st_mode & 0o100)
        data = path.read_bytes()
        digest.update(f"{path.name} {executable} {len(data)}\n".encode() + data)
    return Image(digest.hexdigest()[:16])


def ensure_image(*, check: bool = False) -> Image:
    """Return the current image, built first when it is absent or broken."""
    image = current_image()
    if not check and image.is_whole() and image.has_snapshot():
        return image
    with locked(cache_dir() / "build.lock", "another build"):
        if not image.is_whole() or (check and not _passes_check(image.base)):
            _build(image)
        if not image.has_snapshot() or (check and not _passes_check(image.ready)):
            _make_snapshot(image)
    return image


def prune(in_use: set[str]) -> None:
    """Remove half-finished builds and all images but the newest and those in use."""
    with locked(cache_dir() / "build.lock", "another build"):
        images = sorted(images_dir().iterdir(), key=lambda path: path.stat().st_mtime)
        keys = [path for path in images if not path.name.startswith(".")]
        for path in images:
            old = path in keys[:-KEPT_IMAGES] and path.name not in in_use
            if old or path not in keys:
                say(f"remove old image {path.name}")
                _discard(path)


def _build(image: Image) -> None:
    if os.geteuid() != 0:
        raise BuildError("build the image: needs root (mmdebstrap and mke2fs keep owners)")
    ensure_tools(BUILD_TOOLS)
    work = images_dir() / f".build-{image.key}"
    _discard(work)
    work.mkdir()
    try:
        build_disk(work)
        write_stamp(work, STAMP, FILES)
        _discard(image.directory)
        work.rename(image.directory)
        say(f"image {image.key} built")
    except subprocess.CalledProcessError as e:
        raise BuildError(f"build the image: {e}") from e
    finally:
        _discard(work)


def _discard(directory: Path) -> None:
    """Remove what a build left, and first a qemu that still runs in it."""
    if not directory.exists():
        return
    Qemu(directory).stop()
    for name in ("build.log", "serial.log"):
        if (directory / name).exists() and directory.name.startswith("."):
            shutil.copyfile(directory / name, cache_dir() / f"last-{name}")
    mounts = Path("/proc/self/mounts").read_text()
    if f"{directory}/" in mounts:
        raise BuildError(f"remove {str(directory)!r}: something is mounted in it")
    shutil.rmtree(directory)


@contextmanager
def _booted(directory: Path, disk: Path, label: str) -> Iterator[Ssh]:
    """A machine that runs only as long as the build step does."""
    machine = Qemu(directory)
    with heartbeat(label):
        try:
            port = machine.start(disk, directory, Hardware())
            ssh = machine.wait_ssh(port, BOOT_TIMEOUT_S)
            yield ssh
            ssh.stop_master()
        except LostVMError as e:
            raise BuildError(f"{label}: {e}") from e
        finally:
            machine.stop()


def _in_guest(ssh: Ssh, command: str, timeout_s: float) -> None:
    try:
        result = ssh.run(command, timeout_s)
    except subprocess.TimeoutExpired as e:
        raise BuildError(f"run {command!r} in the guest: no end after {timeout_s} s") from e
    if result.returncode != 0:
        output = (result.stdout + result.stderr).strip()
        raise BuildError(f"run {command!r} in the guest: status {result.returncode}\n{output}")


def _make_snapshot(image: Image) -> None:
    """Boot an overlay, load the container images, and save the running machine in it.

    One boot for both: under emulation a second one costs a minute.
    """
    say("boot, load the container images and save the snapshot")
    directory = image.directory
    (directory / SNAPSHOT_STAMP).unlink(missing_ok=True)
    image.ready.unlink(missing_ok=True)
    overlay = [tool("qemu-img"), "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", "base.qcow2"]
    subprocess.run([*overlay, image.ready], check=True)
    with _booted(directory, image.ready, "snapshot") as ssh:
        say("booted")
        _in_guest(ssh, f"/{HELPERS}/provision", PROVISION_TIMEOUT_S)
        say("container images loaded")
        warm_up = "docker info && podman info && systemctl is-system-running --wait; sync"
        _in_guest(ssh, f"({warm_up}) >/dev/null 2>&1; systemctl is-active docker containerd", 300)
        ssh.stop_master()
        output = Qemu(directory).command(f"savevm {SNAPSHOT}", 300)
        if output:
            raise BuildError(f"save the snapshot: {output}")
    write_stamp(directory, SNAPSHOT_STAMP, ("ready.qcow2",), qemu=qemu_version())
    say("snapshot saved")


def _passes_check(disk: Path) -> bool:
    try:
        argv = [tool("qemu-img"), "check", "-q", "-f", "qcow2", os.fspath(disk)]
    except VmError:
        return False
    return subprocess.run(argv, capture_output=True, check=False).returncode == 0
