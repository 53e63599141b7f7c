"""One User-Mode Linux guest: the guest's kernel is a program of the host, nothing is emulated.

Everything that belongs to a guest is in namespaces of its own, and ends with their init: User-Mode Linux
leaves processes behind when it is killed. The host's other end of the guest's network is in there, too.
"""

import contextlib
import os
import re
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from vmlib.errors import UsageError, VmError, lost_vm
from vmlib.host import tool
from vmlib.machine import Hardware, Machine
from vmlib.progress import say
from vmlib.ssh import Address

GUEST_ADDRESS = "10.77.0.2"
HOST_ADDRESS = "10.77.0.1/24"
SSH_PORT = 22
START_TIMEOUT_S = 20.0
DISK = "disk.raw"
MEMORY_DIR = Path("/dev/shm")
RUN_TOOLS = {
    "qemu-img": "qemu-utils",
    "ssh": "openssh-client",
    "scp": "openssh-client",
    "tar": "tar",
    "git": "git",
    "ip": "iproute2",
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "setarch": "util-linux",
}
# $0 is the pid file, which names the guest to Machine.pid; $1 is made when the network is there. The shell
# stays: init of a pid namespace would not be told of the signals by which User-Mode Linux ends itself.
SCRIPT = f"""\
ready=$1; shift
ip link set lo up &&
ip link add host0 type veth peer name guest0 &&
ip addr add {HOST_ADDRESS} dev host0 &&
ip link set host0 up && ip link set guest0 up || exit
: >"$ready"
"$@"
status=$?
echo "the guest's kernel ended with status $status"
exit $status
"""
_MEMORY = re.compile(r"([0-9]+)([KMGT]?)B?", re.I)
_UNITS = {"K": 1 << 10, "": 1 << 20, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


@dataclass(frozen=True, slots=True)
class Uml(Machine):
    PID_FILE = "uml.pid"

    @property
    def ready_file(self) -> Path:
        return self.directory / "network-is-up"

    def address(self, port: int) -> Address:
        enter = [tool("nsenter"), "--target", str(self.pid() or 0), "--net"]
        if os.geteuid() != 0:
            enter += ["--user", "--preserve-credentials"]
        return Address(GUEST_ADDRESS, port, tuple(enter))

    def memory_bytes(self) -> int:
        """The memory of the guest if it runs, as its command line says: its state is written only later."""
        found = self._find_process()
        sizes = [word[4:] for word in found[1] if word.startswith("mem=")] if found is not None else []
        return parse_memory(sizes[0]) if sizes else 0

    def start(self, kernel: Path, disk: Path, hardware: Hardware, promised_bytes: int) -> int:
        """Start it on a copy-on-write file over `disk`; returns the port of the guest's ssh.

        `promised_bytes` is the memory of the guests that run already.
        """
        memory_bytes = parse_memory(hardware.mem)
        memory_dir = self._memory_dir(memory_bytes, promised_bytes)
        # The kernel's options have no quoting: what they name is in its working directory.
        (self.directory / DISK).symlink_to(disk)
        argv = [*contain(os.geteuid() == 0), tool("sh"), "-c", SCRIPT, os.fspath(self.pid_file)]
        argv += [os.fspath(self.ready_file), tool("setarch"), "-R"]
        argv += kernel_argv(kernel, memory_bytes)
        with self.serial_log.open("wb") as serial:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=serial,
                stderr=serial,
                cwd=self.directory,
                env={"PATH": os.environ.get("PATH", os.defpath), "TMPDIR": os.fspath(memory_dir)},
                start_new_session=True,
            )
        try:
            self.pid_file.write_text(str(process.pid))
            self._wait_network(process)
        except BaseException:
            process.kill()
            process.wait()
            raise
        return SSH_PORT

    def _memory_dir(self, memory_bytes: int, promised_bytes: int) -> Path:
        """Where the file goes that is the guest's memory."""
        reason = unfit_for_memory(MEMORY_DIR, memory_bytes, promised_bytes)
        if reason is None:
            return MEMORY_DIR
        say(f"warning: the guest's memory is in {self.directory}, which is slow: {reason}")
        return self.directory

    def _wait_network(self, process: subprocess.Popen[bytes]) -> None:
        """Before the namespaces are there, whoever enters them would be in the host's."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self.ready_file.exists():
            if process.poll() is not None:
                raise lost_vm(f"start the guest: status {process.returncode}", self.serial_log)
            if time.monotonic() > deadline:
                raise lost_vm(f"start the guest: no network after {START_TIMEOUT_S} s", self.serial_log)
            time.sleep(0.01)

    def stop(self) -> None:
        """Kill init of its pid namespace: what started it ends when all of the namespace is gone."""
        pid = self.pid()
        if pid is None:
            return
        with contextlib.suppress(OSError):
            for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
                os.kill(int(child), signal.SIGKILL)
        if not self.wait_exit(20):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if not self.wait_exit(20):
            raise VmError(f"end the guest {pid}: it survives SIGKILL")


def contain(is_root: bool) -> list[str]:
    """The command that runs another in the namespaces of a guest; whoever kills it kills all in them."""
    user = [] if is_root else ["--user", "--map-root-user"]
    return [tool("unshare"), *user, "--net", "--pid", "--fork", "--kill-child", "--"]


def kernel_argv(kernel: Path, memory_bytes: int) -> list[str]:
    """The command line of the guest's kernel, which runs in the machine's directory."""
    return [
        os.fspath(kernel),
        "umid=uml",
        "uml_dir=.",
        f"mem={memory_bytes >> 20}M",
        f"ubd0=cow,{DISK}",
        "root=/dev/ubda", "rw", "rootfstype=ext4",
        # The disk is thrown away: as little is flushed as with qemu's cache=unsafe.
        "rootflags=barrier=0",
        "con=null", "con0=null,fd:1", "ssl=null",
        # A tap instead panics in a kernel with SMP.
        "vec0:transport=raw,ifname=guest0,depth=128,gro=1",
        # System calls are caught by seccomp: ptrace takes three to ten times as long.
        "seccomp=on",
        "psi=1", "panic=-1", "noreboot", "systemd.show_status=0",
    ]  # fmt: skip


def parse_memory(text: str) -> int:
    """Bytes of what qemu's -m takes: a number alone is MiB."""
    match = _MEMORY.fullmatch(text)
    if match is None:
        raise UsageError(f"read memory size {text!r}: want a number and K, M, G or T")
    return int(match[1]) * _UNITS[match[2].upper()]


def unfit_for_memory(directory: Path, memory_bytes: int, promised_bytes: int) -> str | None:
    """Why the guest's memory cannot be a file in `directory`; it is mapped for execution.

    The file is sparse and only grows. A guest dies when it finds no room, so all must fit at their largest.
    """
    try:
        info = os.statvfs(directory)
    except OSError as e:
        return f"{directory}: {e.strerror}"
    if info.f_flag & os.ST_NOEXEC:
        return f"{directory} is mounted noexec"
    size, free = info.f_blocks * info.f_frsize, info.f_bavail * info.f_frsize
    room = min(free, size - promised_bytes)
    if room < memory_bytes:
        return f"{directory} has room for {max(room, 0) >> 20} MiB, the guest wants {memory_bytes >> 20}"
    return None
