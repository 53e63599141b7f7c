"""Mirror the repository's work tree to /src in the guest, sending only what differs.

Files that git ignores are neither sent nor removed: they are the guest's build outputs. The exception are
`BUILT_HERE`, which the guest has no compiler for.
"""

import os
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path

from vmlib.errors import InstallError, LostVMError, VmError
from vmlib.host import tool
from vmlib.paths import TOOL_DIR
from vmlib.ssh import SSH_FAILED, Ssh

GUEST_SRC = "/src"
LIST_COMMAND = (
    f"mkdir -p {GUEST_SRC} && cd {GUEST_SRC} && "
    "find . -mindepth 1 ! -type d -printf '%P\\0%s\\0%T@\\0%m\\0%l\\0'"
)
INSTALL_COMMAND = (
    f"grep -Eqs '^install[[:space:]]*:' {GUEST_SRC}/Makefile || exit 0; "
    f"make -C {GUEST_SRC} install PREFIX=/usr </dev/null 2>&1"
)
ATTEMPTS = 3
BUILT_HERE = ("bpf/build/*.bpf.o", "tests/memcg_ops/build/*.ko")


@dataclass(frozen=True, slots=True)
class Entry:
    """What tells one version of a file from another."""

    size: int
    mtime_us: int
    mode: int
    target: str


def mirror_tree(ssh: Ssh) -> None:
    """Make /src the same as the work tree; retried, for others may be editing it."""
    root = _repository()
    for attempt in range(ATTEMPTS):
        wanted, present = _scan_host(root), _scan_guest(ssh)
        gone = _not_ignored(root, sorted(present.keys() - wanted.keys()))
        if gone:
            _remove(ssh, gone)
        changed = sorted(name for name in wanted if present.get(name) != wanted[name])
        if not changed or _send(ssh, root, changed):
            return
        if attempt == ATTEMPTS - 1:
            raise VmError(f"send the work tree {str(root)!r}: it keeps changing")


def install_product(ssh: Ssh) -> None:
    result = ssh.run(INSTALL_COMMAND)
    if result.returncode == SSH_FAILED:
        raise LostVMError("lost ssh while the product was installed")
    if result.returncode != 0:
        output = (result.stdout + result.stderr).strip()
        raise InstallError(f"make install in the guest: status {result.returncode}\n{output}")


def _git(root: Path, *args: str, data: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    # The tree may belong to another user; we only list it.
    argv = [tool("git"), "-c", "safe.directory=*", "-C", os.fspath(root), *args]
    return subprocess.run(argv, input=data, capture_output=True, check=False)


def _repository() -> Path:
    result = _git(TOOL_DIR, "rev-parse", "--show-toplevel")
    if result.returncode != 0:
        raise VmError(f"find the repository: {os.fsdecode(result.stderr).strip()}")
    return Path(os.fsdecode(result.stdout).rstrip("\n"))


def _scan_host(root: Path) -> dict[str, Entry]:
    result = _git(root, "ls-files", "-coz", "--exclude-standard")
    if result.returncode != 0:
        raise VmError(f"list the work tree: {os.fsdecode(result.stderr).strip()}")
    entries = {}
    built = [os.fspath(path.relative_to(root)) for pattern in BUILT_HERE for path in root.glob(pattern)]
    for name in [*os.fsdecode(result.stdout).split("\0"), *built]:
        entry = _entry(root / name) if name else None
        if entry is not None:
            entries[name] = entry
    return entries


def _entry(path: Path) -> Entry | None:
    """The entry of a file; None for what was deleted, and for directories of submodules."""
    try:
        info = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    if stat.S_ISLNK(info.st_mode):
        target = os.fspath(path.readlink())
        return Entry(info.st_size, info.st_mtime_ns // 1000, 0o777, target)
    if not stat.S_ISREG(info.st_mode):
        return None
    return Entry(info.st_size, info.st_mtime_ns // 1000, stat.S_IMODE(info.st_mode), "")


def _scan_guest(ssh: Ssh) -> dict[str, Entry]:
    result = subprocess.run(
        ssh.argv(LIST_COMMAND), stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    if result.returncode != 0:
        raise _failed("list /src in the guest", result)
    fields = os.fsdecode(result.stdout).split("\0")[:-1]
    entries = {}
    for name, size, mtime, mode, target in zip(*[iter(fields)] * 5, strict=True):
        seconds, _, fraction = mtime.partition(".")
        mtime_us = int(seconds) * 1_000_000 + int(fraction[:6] or "0")
        entries[name] = Entry(int(size), mtime_us, int(mode, 8), target)
    return entries


def _not_ignored(root: Path, names: list[str]) -> list[str]:
    if not names:
        return []
    data = b"".join(os.fsencode(name) + b"\0" for name in names)
    result = _git(root, "check-ignore", "-z", "--stdin", "--no-index", data=data)
    ignored = set(os.fsdecode(result.stdout).split("\0"))
    return [name for name in names if name not in ignored]


def _remove(ssh: Ssh, names: list[str]) -> None:
    command = f"cd {GUEST_SRC} && xargs -0 rm -rf -- && find . -mindepth 1 -type d -empty -delete"
    data = b"".join(os.fsencode(f"./{name}") + b"\0" for name in names)
    result = subprocess.run(ssh.argv(command), input=data, capture_output=True, check=False)
    if result.returncode != 0:
        raise _failed("remove files from /src in the guest", result)


def _send(ssh: Ssh, root: Path, names: list[str]) -> bool:
    """Send files with tar; False when the tree changed meanwhile."""
    pack = [tool("tar"), "-C", os.fspath(root), "--format=posix", "--owner=0", "--group=0"]
    pack += ["--numeric-owner", "--no-recursion", "--null", "--verbatim-files-from"]
    unpack = f"tar -C {GUEST_SRC} --no-same-owner -xpf -"
    with (
        subprocess.Popen(
            [*pack, "-T", "-", "-cf", "-"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as packer,
        subprocess.Popen(
            ssh.argv(unpack), stdin=packer.stdout, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as unpacker,
    ):
        assert packer.stdin is not None and packer.stdout is not None
        packer.stdout.close()
        packer.stdin.write(b"".join(os.fsencode(name) + b"\0" for name in names))
        packer.stdin.close()
        output, _ = unpacker.communicate()
        packed = packer.wait()
    if unpacker.returncode != 0:
        done = subprocess.CompletedProcess(unpacker.args, unpacker.returncode, b"", output)
        raise _failed("unpack the work tree in the guest", done)
    return packed == 0


def _failed(what: str, result: subprocess.CompletedProcess[bytes]) -> VmError:
    reason = os.fsdecode(result.stderr).strip()
    if result.returncode == SSH_FAILED:
        return LostVMError(f"{what}: lost ssh to the VM: {reason}")
    return VmError(f"{what}: status {result.returncode}: {reason}")
