"""One qemu process: start it, talk to its monitor, find it again, end it."""

import contextlib
import os
import re
import signal
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path

from vmlib.errors import VmError
from vmlib.host import tool
from vmlib.machine import Hardware, Machine
from vmlib.paths import socket_dir
from vmlib.recipe import machine_args
from vmlib.ssh import Address

PORT_ATTEMPTS = 8
PROMPT = b"(qemu) "
# A nanosecond of the guest is an instruction of its CPU, however fast the host runs it. An idle guest still
# waits in the host's time, or its timeouts would run out before ssh has said a word.
COUNTED = ["-icount", "shift=0,sleep=on"]


class QemuStartError(VmError):
    """qemu did not start; its own words are in the message."""


@dataclass(frozen=True, slots=True)
class Qemu(Machine):
    """An emulated machine; sshd is reached by a port of the host's loopback."""

    PID_FILE = "pid"

    @property
    def monitor(self) -> Path:
        return socket_dir(self.directory) / "mon"

    def address(self, port: int) -> Address:
        return Address("127.0.0.1", port)

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

    def stop(self) -> None:
        """Ask the monitor, then kill it."""
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
