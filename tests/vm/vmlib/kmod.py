"""Kernel modules for the guest, built on the host in a small Debian tree (20 s once, 5 s a build).

The tree has the guest kernel's headers and the compiler that Debian built that kernel with. The guest
itself would need a minute for the same under emulation, and 400 MB more in its image.
"""

import os
import shutil
from pathlib import Path

from vmlib.errors import BuildError, UsageError
from vmlib.host import BUILD_TOOLS, ensure_tools, find_mirror, tool
from vmlib.image import current_image, ensure_image
from vmlib.paths import cache_dir, locked
from vmlib.progress import run_logged
from vmlib.recipe import BACKPORTS, SUITE
from vmlib.rootfs import build_environment, debian_source, mmdebstrap_argv

PACKAGES = ("gcc", "make", "pahole", "libelf1")
VARIANT = "essential"
# Offset of the pointer to the version string in a bzImage (Documentation/arch/x86/boot.rst).
_VERSION_POINTER = slice(0x20E, 0x210)
_SETUP_BASE = 0x200
_IN_TREE = "module"


def kernel_release(vmlinuz: Path) -> str:
    """The release of a kernel image, as `uname -r` will print it. Raises BuildError."""
    with vmlinuz.open("rb") as file:
        head = file.read(1 << 16)
    at = int.from_bytes(head[_VERSION_POINTER], "little") + _SETUP_BASE
    release = head[at : at + 128].partition(b" ")[0].decode("ascii", "replace")
    if not release or not release.isprintable():
        raise BuildError(f"read the release of {str(vmlinuz)!r}: not a bzImage")
    return release


def build_modules(source: Path) -> list[Path]:
    """Build the modules of `source` (with a Kbuild Makefile) into `source/build`; returns the .ko files."""
    if not (source / "Makefile").is_file():
        raise UsageError(f"build modules of {str(source)!r}: no Makefile there")
    ensure_image()
    release = kernel_release(current_image().directory / "vmlinuz")
    with locked(cache_dir() / "kbuild.lock", "another module build"):
        tree = _ensure_tree(release)
        return _build(tree, release, source)


def _ensure_tree(release: str) -> Path:
    """The Debian tree for one kernel, made when it is not there; others are removed."""
    if os.geteuid() != 0:
        raise BuildError("build kernel modules: needs root (mmdebstrap and chroot)")
    base = cache_dir() / "kbuild"
    tree = base / release
    if (tree / "usr/src" / f"linux-headers-{release}").is_dir():
        return tree
    ensure_tools(BUILD_TOOLS)
    shutil.rmtree(base, ignore_errors=True)
    base.mkdir()
    work = base / ".work"
    mirror = find_mirror()
    packages = ",".join((f"linux-headers-{release}/{BACKPORTS}", *PACKAGES))
    argv = mmdebstrap_argv(VARIANT, packages, [], work)
    argv += [debian_source(mirror, SUITE), debian_source(mirror, BACKPORTS)]
    run_logged(argv, base / "build.log", f"install the headers of {release}", build_environment())
    work.rename(tree)
    return tree


def _build(tree: Path, release: str, source: Path) -> list[Path]:
    work = tree / _IN_TREE
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    for path in source.iterdir():
        if path.is_file():
            shutil.copyfile(path, work / path.name)
    # Kbuild reads /proc (objtool's stack limit); the mount ends with the step's own namespace.
    script = 'mount -t proc proc "$0/proc" && exec chroot "$0" make -C "$1" M="$2" modules'
    argv = [tool("sh"), "-c", script, os.fspath(tree)]
    argv += [f"/usr/src/linux-headers-{release}", f"/{_IN_TREE}"]
    run_logged(argv, tree.parent / "module.log", f"build {source.name}", build_environment())
    target = source / "build"
    target.mkdir(exist_ok=True)
    made = [target / path.name for path in sorted(work.glob("*.ko"))]
    for path in made:
        shutil.copyfile(work / path.name, path)
    return made
