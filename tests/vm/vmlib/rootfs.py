"""The guest's root file system, from Debian packages to a disk image."""

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from vmlib.errors import BuildError
from vmlib.host import apt_settings, find_mirror, tool
from vmlib.ociimage import make_busybox_rootfs, write_docker_archive
from vmlib.paths import GUEST_DIR
from vmlib.progress import run_logged, say
from vmlib.recipe import AGENTBOX_PACKAGES, BACKPORTS, DISK_SIZE, KEYRING, SUITE, include_list

HELPERS = "usr/local/lib/agentrun-vm"
DATA = "var/lib/agentrun-vm"
IMAGE_PREFIX = "agentrun-test"
AGENTBOX_JUNK = (
    "var/lib/apt",
    "var/lib/dpkg/info",
    "var/cache/apt",
    "usr/bin/perl*",
    "usr/lib/*/perl-base",
    "usr/lib/*/gconv",
    "usr/share/i18n",
    "usr/share/perl5",
    "usr/share/zoneinfo",
)


def build_disk(work: Path) -> None:
    """Fill `work` with base.qcow2, vmlinuz, initrd, id and known_hosts."""
    log = work / "build.log"
    root, agentbox = work / "root", work / "agentbox"
    mirror = find_mirror()
    with ThreadPoolExecutor() as pool:
        beside = pool.submit(_bootstrap_agentbox, mirror, agentbox, work / "agentbox.log")
        _bootstrap_system(mirror, root, log)
        beside.result()
    _add_images(root, agentbox)
    _add_ssh_keys(root, work)
    run_logged(["chroot", os.fspath(root), f"/{HELPERS}/configure"], log, "configure the system")
    _take_kernel(root, work)
    _make_disk(root, work, log)
    shutil.rmtree(root)
    shutil.rmtree(agentbox)


def mmdebstrap_argv(variant: str, packages: str, extra: list[str], target: Path) -> list[str]:
    """The command that makes a Debian tree in `target`; the sources are to be appended."""
    options = [f'--aptopt={name} "{value}"' for name, value in apt_settings().items()]
    return [
        tool("mmdebstrap"),
        "--mode=root",
        f"--variant={variant}",
        "--architectures=amd64",
        f"--include={packages}",
        "--format=directory",
        *options,
        *extra,
        SUITE,
        os.fspath(target),
    ]


def debian_source(mirror: str, suite: str) -> str:
    """One line of sources.list."""
    return f"deb [signed-by={KEYRING}] {mirror} {suite} main"


def build_environment() -> dict[str, str]:
    """The environment of a build step: nothing of ours but proxies."""
    kept = ("http_proxy", "https_proxy", "no_proxy", "TMPDIR")
    passed = {name: os.environ[name] for name in kept if name in os.environ}
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    return {"PATH": path, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"} | passed


def _bootstrap_system(mirror: str, root: Path, log: Path) -> None:
    # The guest's files go in before the bulk of the packages, for dpkg and initramfs-tools.
    hook = f"--essential-hook=cp -rT --preserve=mode '{GUEST_DIR}' \"$1\""
    argv = mmdebstrap_argv("minbase", include_list(), [hook], root)
    argv += [debian_source(mirror, SUITE), debian_source(mirror, BACKPORTS)]
    run_logged(argv, log, "install the system from Debian packages", build_environment())


def _bootstrap_agentbox(mirror: str, rootfs: Path, log: Path) -> None:
    unwanted = ("doc", "man", "locale", "info")
    excluded = [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in unwanted]
    argv = mmdebstrap_argv("essential", ",".join(AGENTBOX_PACKAGES), excluded, rootfs)
    argv.append(debian_source(mirror, SUITE))
    run_logged(argv, log, "install the agentbox image from Debian packages", build_environment())
    # Every megabyte is hashed and unpacked under emulation, once for each engine.
    for junk in AGENTBOX_JUNK:
        for path in rootfs.glob(junk):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    with (rootfs / "etc/passwd").open("a") as passwd:
        passwd.write("app:x:1000:1000:app:/home/app:/bin/bash\n")
    with (rootfs / "etc/group").open("a") as group:
        group.write("app:x:1000:\n")
    (rootfs / "home/app").mkdir()
    os.chown(rootfs / "home/app", 1000, 1000)


def _add_images(root: Path, agentbox: Path) -> None:
    say("make the container images")
    rootfs_dir, images_dir = root / DATA / "rootfs", root / DATA / "images"
    rootfs_dir.mkdir(parents=True)
    images_dir.mkdir()
    make_busybox_rootfs(root / "usr/bin/busybox", rootfs_dir / "busybox")
    subprocess.run(["cp", "-aT", agentbox, rootfs_dir / "agentbox"], check=True)
    for name in ("busybox", "agentbox"):
        image = f"{IMAGE_PREFIX}/{name}:latest"
        write_docker_archive(rootfs_dir / name, image, images_dir / f"{name}.tar")


def _add_ssh_keys(root: Path, work: Path) -> None:
    """A key pair of this image only, and the guest's host key as the one we expect."""
    key = work / "id"
    keygen = [tool("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-C", "agentrun-vm", "-f"]
    subprocess.run([*keygen, key], check=True)
    ssh_dir = root / "root/.ssh"
    ssh_dir.mkdir(mode=0o700, exist_ok=True)
    shutil.copyfile(work / "id.pub", ssh_dir / "authorized_keys")
    host_key = root / "etc/ssh/ssh_host_ed25519_key"
    if not host_key.exists():
        subprocess.run([*keygen, host_key], check=True)
    public = host_key.with_suffix(".pub").read_text().split()
    (work / "known_hosts").write_text(f"agentrun-vm {public[0]} {public[1]}\n")


def _take_kernel(root: Path, work: Path) -> None:
    for pattern, name in (("vmlinuz-*", "vmlinuz"), ("initrd.img-*", "initrd")):
        found = sorted((root / "boot").glob(pattern))
        if len(found) != 1:
            raise BuildError(f"find kernel boot/{pattern}: {len(found)} candidates, need one")
        shutil.copyfile(found[0], work / name)


def _make_disk(root: Path, work: Path, log: Path) -> None:
    raw, base = work / "disk.raw", work / "base.qcow2"
    with raw.open("wb"):
        pass
    mke2fs = [tool("mke2fs"), "-q", "-F", "-t", "ext4", "-m", "0", "-E", "lazy_itable_init=0"]
    mke2fs += ["-d", os.fspath(root), os.fspath(raw), DISK_SIZE]
    run_logged(mke2fs, log, "make the file system")
    convert = [tool("qemu-img"), "convert", "-f", "raw", "-O", "qcow2"]
    run_logged([*convert, os.fspath(raw), os.fspath(base)], log, "make the disk image")
    raw.unlink()
