"""One qemu process: start it, talk to its monitor, find it again, end it."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from vmlib.errors import VmError, lost_vm
from vmlib.host import tool
from vmlib.paths import socket_dir
from vmlib.recipe import MEM, SMP, machine_args
from vmlib.ssh import Ssh

PORT_ATTEMPTS = 8
PROMPT = b"(qemu) "
# A nanosecond of the guest is an instruction of its CPU, however fast the host runs it. An idle guest still
# waits in the host's time, or its timeouts would run out before ssh has said a word.
COUNTED = ["-icount", "shift=0,sleep=on"]


@dataclass(frozen=True, slots=True)
class Hardware:
    smp: int = SMP
    mem: str = MEM
    tcg_thread: str = "multi"

    @property
    def is_counted(self) -> bool:
        return self.tcg_thread == "counted"


class QemuStartError(VmError):
    """qemu did not start; its own words are in the message."""


@dataclass(frozen=True, slots=True)
class Machine:
    """A qemu by the directory that holds its disk, logs and sockets.

    The process is found by its pid file, which counts only while the process's command
    line names that very file: a pid of a killed qemu may be somebody else's today.
    """

    directory: Path

    @property
    def pid_file(self) -> Path:
        return self.directory / "pid"

    @property
    def serial_log(self) -> Path:
        return self.directory / "serial.log"

    @property
    def monitor(self) -> Path:
        return socket_dir(self.directory) / "mon"

    def ssh(self, port: int) -> Ssh:
        own = self.directory
        control = socket_dir(own) / "ctl"
        return Ssh(own / "id", own / "known_hosts", port, control, own / "ssh.log")

    def pid(self) -> int | None:
        try:
            pid = int(self.pid_file.read_text())
            argv = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except (OSError, ValueError):
            return None
        return pid if os.fsencode(self.pid_file) in argv else None

    def is_alive(self) -> bool:
        return self.pid() is not None

    def start(
        self,
        disk: Path,
        boot_dir: Path,
        hardware: Hardware,
        snapshot: str | None = None,
    ) -> int:
        """Start qemu in the background and return the host port of the guest's ssh."""
        for attempt in range(PORT_ATTEMPTS):
            port = _free_port()
            argv = self._argv(disk, boot_dir, hardware, port)
            if snapshot is not None:
                argv += ["-loadvm", snapshot]
            result = subprocess.run(
                argv,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
            )
            if result.returncode == 0 and self.is_alive():
                return port
            taken = "host forwarding rule" in result.stderr
            if not taken or attempt == PORT_ATTEMPTS - 1:
                raise QemuStartError(f"start qemu: {result.stderr.strip() or 'it ended at once'}")
        raise AssertionError("unreachable")

    def _argv(self, disk: Path, boot_dir: Path, hardware: Hardware, port: int) -> list[str]:
        return [
            tool("qemu-system-x86_64"),
            *_emulation(hardware),
            "-kernel", os.fspath(boot_dir / "vmlinuz"),
            "-initrd", os.fspath(boot_dir / "initrd"),
            "-drive", f"file={_escape(disk)},format=qcow2,if=none,id=d0,cache=unsafe",
            "-netdev", f"user,id=n0,restrict=on,hostfwd=tcp:127.0.0.1:{port}-:22",
            "-serial", f"file:{_escape(self.serial_log)}",
            "-monitor", f"unix:{_escape(self.monitor)},server,nowait",
            "-pidfile", os.fspath(self.pid_file),
            "-daemonize",
        ]  # fmt: skip

    def command(self, line: str, timeout_s: float = 120) -> str:
        """Give the monitor one command and return what it prints."""
        try:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(timeout_s)
                sock.connect(os.fspath(self.monitor))
                _read_prompt(sock)
                sock.sendall(line.encode() + b"\n")
                output = _read_prompt(sock)
        except OSError as e:
            raise VmError(f"ask qemu's monitor {line!r}: {e}") from e
        # The monitor echoes the command as a line editor does: drop the first line.
        text = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", output.decode("utf-8", "replace"))
        return text.partition("\n")[2].strip()

    def wait_exit(self, timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        while self.is_alive():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True

    def stop(self) -> None:
        """End qemu: ask its monitor, then kill it. The guest's disk is thrown away anyway."""
        if not self.is_alive():
            return
        with contextlib.suppress(VmError):
            self.command("quit", timeout_s=5)
        if self.wait_exit(3):
            return
        if (pid := self.pid()) is not None:
            os.kill(pid, signal.SIGKILL)
        if not self.wait_exit(20):
            raise VmError(f"end qemu {pid}: it survives SIGKILL")

    def wait_ssh(self, port: int, timeout_s: float) -> Ssh:
        ssh = self.ssh(port)
        start = time.monotonic()
        if ssh.wait_banner(timeout_s, self.is_alive) and ssh.ensure_master():
            return ssh
        waited = int(time.monotonic() - start)
        what = "no ssh to the VM" if self.is_alive() else "the VM died while it started"
        raise lost_vm(f"{what}, after {waited} s", self.serial_log)


def _emulation(hardware: Hardware) -> list[str]:
    """The emulated hardware, and what its clock counts."""
    if hardware.is_counted:
        return [*machine_args(hardware.smp, hardware.mem, "single"), *COUNTED]
    return machine_args(hardware.smp, hardware.mem, hardware.tcg_thread)


def qemu_version() -> str:
    """What a snapshot depends on, besides the image and the hardware."""
    result = subprocess.run(
        [tool("qemu-system-x86_64"), "--version"], capture_output=True, text=True, check=False
    )
    return result.stdout.partition("\n")[0]


def _escape(path: Path) -> str:
    # In qemu's option lists a comma in a value is written twice.
    return os.fspath(path).replace(",", ",,")


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def _read_prompt(sock: socket.socket) -> bytes:
    data = b""
    while not data.endswith(PROMPT):
        chunk = sock.recv(65536)
        if not chunk:
            break
        data += chunk
    return data.removesuffix(PROMPT)
