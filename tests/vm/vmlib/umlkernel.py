"""The kernel of the fast guest: Debian's source, built for User-Mode Linux and kept in the cache.

As with the image, it is a directory named by the hash of its inputs, made in a work directory and renamed
into place with its stamp. Building takes no root where the tools are there and namespaces are allowed.
"""

import hashlib
import os
import platform
import re
import shutil
from pathlib import Path

from vmlib.errors import BuildError, tail_of
from vmlib.host import apt_settings, ensure_tools, find_mirror, tool
from vmlib.paths import TOOL_DIR, cache_dir, locked
from vmlib.progress import last_line, run_logged, say
from vmlib.recipe import BACKPORTS, KEYRING
from vmlib.rootfs import build_environment, debian_source
from vmlib.stamp import matches_stamp, write_stamp

FRAGMENT = TOOL_DIR / "uml/fragment.config"
PACKAGE = "linux-source"
KEPT_KERNELS = 2
STAMP = "stamp.json"
KERNEL = "linux"
TOOLS = {
    "apt-get": "apt",
    "dpkg-deb": "dpkg",
    KEYRING: "debian-archive-keyring",
    "tar": "tar",
    "xz": "xz-utils",
    "gcc": "gcc",
    "/usr/include/stdio.h": "libc6-dev",
    "make": "make",
    "bc": "bc",
    "flex": "flex",
    "bison": "bison",
}
# Trees that no User-Mode Linux is made from: half of 1.8 GB. Kconfig reads files of some, which stay.
UNNEEDED = (
    "arch/arm*", "arch/mips", "arch/powerpc", "arch/riscv", "arch/s390", "drivers/gpu",
    "drivers/infiniband", "drivers/media", "drivers/net/ethernet", "drivers/net/wireless", "drivers/scsi",
    "drivers/staging", "sound", "tools/perf", "tools/testing",
)  # fmt: skip
_OPTION = re.compile(r"^(CONFIG_\w+)=(.*)$", re.M)


def kernels_dir() -> Path:
    path = cache_dir() / "kernels"
    path.mkdir(exist_ok=True)
    return path


def kernel_key() -> str:
    """The hash of the inputs: which version of the source was the newest is only in the stamp."""
    digest = hashlib.sha256(platform.machine().encode())
    for path in (FRAGMENT, Path(__file__)):
        data = path.read_bytes()
        digest.update(f"{path.name} {len(data)}\n".encode() + data)
    return digest.hexdigest()[:16]


def current_kernel() -> Path:
    """The directory of the kernel that belongs to the inputs as they are now, whether it is there or not."""
    return kernels_dir() / kernel_key()


def kernel_is_whole(directory: Path) -> bool:
    return matches_stamp(directory, STAMP)


def ensure_kernel() -> Path:
    """The current kernel, built when it is absent or broken."""
    directory = current_kernel()
    work = kernels_dir() / f".build-{directory.name}"
    if not kernel_is_whole(directory):
        with locked(cache_dir() / "kernel.lock", "another kernel build", _make_log(work)):
            if not kernel_is_whole(directory):
                _build(work, directory)
                _prune(directory)
    return directory / KERNEL


def missing_options(fragment: str, config: str) -> list[str]:
    """What a fragment asks for and a finished .config does not say, as lines to read."""
    actual = dict(_OPTION.findall(config))
    wanted = _OPTION.findall(fragment)
    return [
        f"{name}={value} (is {actual.get(name, 'n')})"
        for name, value in wanted
        if actual.get(name, "n") != value
    ]


def source_package(record: str) -> tuple[str, str]:
    """From what apt-cache shows of the metapackage: the package with the source, and its version."""
    fields = dict(re.findall(r"^(Depends|Version): *(.*)$", record, re.M))
    found = re.search(rf"\b{PACKAGE}-[0-9][0-9.]*", fields.get("Depends", ""))
    if found is None or "Version" not in fields:
        raise BuildError(f"find the kernel's source: {PACKAGE} names no package: {record[-200:]!r}")
    return found[0], fields["Version"]


def compiled(log: Path) -> str:
    """How far make is, from its log."""
    try:
        count = log.read_bytes().count(b"\n  CC ")
    except OSError:
        count = 0
    return f"{count} objects, {' '.join(last_line(log).split())}"


def _make_log(work: Path) -> Path:
    return work / "make.log"


def _build(work: Path, directory: Path) -> None:
    ensure_tools(TOOLS)
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    log = work / "build.log"
    try:
        version = _fetch_source(work, log)
        _configure(work, log)
        _compile(work)
        _install(work, directory, version)
    except BaseException:
        for path in (log, _make_log(work)):
            if path.exists():
                shutil.copyfile(path, cache_dir() / f"last-kernel-{path.name}")
        raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _fetch_source(work: Path, log: Path) -> str:
    """Unpack the newest kernel source into work/src; returns its version."""
    conf = _write_apt_config(work / "apt")
    env = build_environment() | {"APT_CONFIG": os.fspath(conf)}
    run_logged([tool("apt-get"), "-q", "update"], log, "read the package lists", env)
    shown = work / "package"
    argv = [tool("apt-cache"), "show", "--no-all-versions", PACKAGE]
    run_logged(argv, shown, f"look for {PACKAGE}", env)
    package, version = source_package(shown.read_text())
    download = 'cd "$0" && exec apt-get -q download "$1"'
    argv = [tool("sh"), "-c", download, os.fspath(work), package]
    run_logged(argv, log, f"download {package} {version}", env)
    (deb,) = work.glob(f"{package}_*.deb")
    run_logged([tool("dpkg-deb"), "-x", os.fspath(deb), os.fspath(work / "deb")], log, "unpack", env)
    deb.unlink()
    (archive,) = (work / "deb/usr/src").glob(f"{package}.tar.*")
    source = work / "src"
    source.mkdir()
    excluded = [f"--exclude=*/{tree}/*.[{kind}]" for tree in UNNEEDED for kind in "chS"]
    argv = [tool("tar"), "-xf", os.fspath(archive), "-C", os.fspath(source), "--strip-components=1"]
    run_logged([*argv, "--no-same-owner", *excluded], log, "unpack the source", env)
    shutil.rmtree(work / "deb")
    return version


def _write_apt_config(directory: Path) -> Path:
    """An apt of our own: backports only, and nothing of the host's but its proxies."""
    parts = ("etc/apt.conf.d", "etc/preferences.d", "etc/sources.list.d")
    for name in (*parts, "state/lists/partial", "cache/archives/partial"):
        (directory / name).mkdir(parents=True)
    (directory / "etc/sources.list").write_text(debian_source(find_mirror(), BACKPORTS) + "\n")
    (directory / "status").touch()
    settings = apt_settings() | {
        "Dir::Etc": f"{directory}/etc",
        "Dir::State": f"{directory}/state",
        "Dir::State::status": f"{directory}/status",
        "Dir::Cache": f"{directory}/cache",
        "APT::Architecture": "amd64",
        # Its own user could not write here, and without root there is no other user.
        "APT::Sandbox::User": "root",
        "Acquire::Languages": "none",
    }
    conf = directory / "apt.conf"
    conf.write_text("".join(f'{name} "{value}";\n' for name, value in settings.items()))
    return conf


def _make(work: Path, *words: str) -> list[str]:
    return [tool("make"), "-C", os.fspath(work / "src"), "ARCH=um", f"O={work / 'o'}", *words]


def _configure(work: Path, log: Path) -> None:
    env = build_environment()
    run_logged(_make(work, "x86_64_defconfig"), log, "configure the kernel", env)
    config = work / "o/.config"
    fragment = FRAGMENT.read_text()
    with config.open("a") as file:
        file.write(fragment)
    run_logged(_make(work, "olddefconfig"), log, "configure the kernel, our options", env)
    if missing := missing_options(fragment, config.read_text()):
        raise BuildError(f"configure the kernel: not what {FRAGMENT.name} asks for: {', '.join(missing)}")


def _compile(work: Path) -> None:
    jobs = len(os.sched_getaffinity(0))
    log = _make_log(work)
    argv = _make(work, f"-j{jobs}", KERNEL)
    run_logged(argv, log, "compile the kernel (8 minutes of CPU time)", build_environment(), compiled)
    if not (work / "o" / KERNEL).is_file():
        raise BuildError(f"compile the kernel: no {KERNEL}\n{tail_of(log)}")


def _install(work: Path, directory: Path, version: str) -> None:
    made = work / "made"
    made.mkdir()
    argv = [tool("strip"), "-o", os.fspath(made / KERNEL), os.fspath(work / "o" / KERNEL)]
    run_logged(argv, work / "build.log", "strip the kernel", build_environment())
    write_stamp(made, STAMP, (KERNEL,), source=version)
    shutil.rmtree(directory, ignore_errors=True)
    made.rename(directory)
    say(f"kernel {directory.name} built from {PACKAGE} {version}")


def _prune(newest: Path) -> None:
    """Remove old kernels, and builds that were killed. A running guest keeps what it has mapped."""
    kernels = sorted(kernels_dir().iterdir(), key=lambda path: path.stat().st_mtime)
    kept = [path for path in kernels if not path.name.startswith(".")][-KEPT_KERNELS:]
    for path in kernels:
        if path not in (*kept, newest):
            say(f"remove old kernel {path.name}")
            shutil.rmtree(path)
