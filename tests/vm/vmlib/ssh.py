"""ssh to one guest, over one shared connection: a handshake is slow under emulation."""

import os
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vmlib.host import tool

# Cheap to compute in the guest, and all of it stays on the loopback device.
OPTIONS = (
    "BatchMode=yes",
    "IdentitiesOnly=yes",
    "StrictHostKeyChecking=yes",
    "HostKeyAlias=agentrun-vm",
    "HostKeyAlgorithms=ssh-ed25519",
    "KexAlgorithms=curve25519-sha256",
    "LogLevel=ERROR",
    "ConnectTimeout=60",
    "ServerAliveInterval=30",
    "ServerAliveCountMax=10",
)
SSH_FAILED = 255


@dataclass(frozen=True, slots=True)
class Ssh:
    key: Path
    known_hosts: Path
    port: int
    control: Path
    log: Path

    def options(self) -> list[str]:
        own = (f"UserKnownHostsFile={self.known_hosts}", f"ControlPath={self.control}")
        pairs = [part for option in (*OPTIONS, *own) for part in ("-o", option)]
        return ["-F", "none", "-i", os.fspath(self.key), *pairs]

    def argv(self, command: str | None, *, tty: bool = False) -> list[str]:
        """The ssh command line; `command` is a line for the guest's shell."""
        flags = ["-tt"] if tty else ["-T"]
        argv = [tool("ssh"), *self.options(), *flags, "-p", str(self.port), "root@127.0.0.1"]
        return argv if command is None else [*argv, "--", command]

    def scp_argv(self, sources: Sequence[str], target: str) -> list[str]:
        return [tool("scp"), "-q", "-r", *self.options(), "-P", str(self.port), *sources, target]

    def run(self, command: str, timeout_s: float | None = None) -> subprocess.CompletedProcess[str]:
        """Run a helper command in the guest and capture its output."""
        return subprocess.run(
            self.argv(command),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
        )

    def has_master(self) -> bool:
        argv = [tool("ssh"), *self.options(), "-O", "check", "-p", str(self.port), "root@127.0.0.1"]
        return self.control.exists() and _quiet(argv, None) == 0

    def ensure_master(self) -> bool:
        """Start the shared connection when it is gone.

        It is a process of its own: one made by ControlMaster=auto would keep the first
        command's stderr open for ever.
        """
        if self.has_master():
            return True
        self.control.unlink(missing_ok=True)
        persist = ["-M", "-N", "-f", "-o", "ControlPersist=yes", "-E", os.fspath(self.log)]
        argv = [tool("ssh"), *persist, *self.options(), "-p", str(self.port), "root@127.0.0.1"]
        return _quiet(argv, 180) == 0

    def stop_master(self) -> None:
        if self.control.exists():
            argv = [tool("ssh"), *self.options(), "-O", "exit", "-p", str(self.port)]
            _quiet([*argv, "root@127.0.0.1"], 10)
            self.control.unlink(missing_ok=True)

    def wait_banner(self, timeout_s: float, is_alive: Callable[[], bool]) -> bool:
        """Wait until sshd greets; False when the machine died or time is up."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline and is_alive():
            try:
                # The emulated network accepts before the guest does: only a banner counts.
                with socket.create_connection(("127.0.0.1", self.port), timeout=10) as sock:
                    if sock.recv(4) == b"SSH-":
                        return True
            except OSError:
                pass
            time.sleep(0.2)
        return False


def _quiet(argv: Sequence[str], timeout_s: float | None) -> int:
    try:
        return subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=timeout_s,
            check=False,
        ).returncode
    except subprocess.TimeoutExpired:
        return SSH_FAILED
