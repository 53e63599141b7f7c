"""ssh to one guest, over one shared connection: a handshake is slow under emulation."""

import os
import subprocess
import sys
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
# Runs where the guest's network is. An emulated network accepts before the guest does: only a banner counts.
WAIT_BANNER = """
import socket, sys, time
while True:
    try:
        with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=1) as sock:
            sock.settimeout(10)
            if sock.recv(4) == b"SSH-":
                break
    except OSError:
        pass
    time.sleep(0.1)
"""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a guest's sshd is; `enter` is put before a command to run it in that network."""

    host: str
    port: int
    enter: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Ssh:
    key: Path
    known_hosts: Path
    address: Address
    control: Path
    log: Path

    @property
    def login(self) -> str:
        return f"root@{self.address.host}"

    def options(self) -> list[str]:
        own = (f"UserKnownHostsFile={self.known_hosts}", f"ControlPath={self.control}")
        pairs = [part for option in (*OPTIONS, *own) for part in ("-o", option)]
        return ["-F", "none", "-i", os.fspath(self.key), *pairs]

    def _argv(self, flags: Sequence[str]) -> list[str]:
        port = ["-p", str(self.address.port)]
        return [*self.address.enter, tool("ssh"), *self.options(), *flags, *port, self.login]

    def argv(self, command: str | None, *, tty: bool = False) -> list[str]:
        """The ssh command line; `command` is a line for the guest's shell."""
        argv = self._argv(["-tt"] if tty else ["-T"])
        return argv if command is None else [*argv, "--", command]

    def scp_argv(self, sources: Sequence[str], target: str) -> list[str]:
        argv = [*self.address.enter, tool("scp"), "-q", "-r", *self.options()]
        return [*argv, "-P", str(self.address.port), *sources, target]

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
        return self.control.exists() and _quiet(self._argv(["-O", "check"]), None) == 0

    def ensure_master(self) -> bool:
        """Start the shared connection when it is gone.

        It is a process of its own: one made by ControlMaster=auto would keep the first
        command's stderr open for ever.
        """
        if self.has_master():
            return True
        self.control.unlink(missing_ok=True)
        persist = ["-M", "-N", "-f", "-o", "ControlPersist=yes", "-E", os.fspath(self.log)]
        return _quiet(self._argv(persist), 180) == 0

    def stop_master(self) -> None:
        """End the shared connection; its socket is enough to talk to it, wherever the guest is."""
        if self.control.exists():
            argv = [tool("ssh"), *self.options(), "-O", "exit", self.login]
            _quiet(argv, 10)
            self.control.unlink(missing_ok=True)

    def wait_banner(self, timeout_s: float, is_alive: Callable[[], bool]) -> bool:
        """Wait until sshd greets; False when the machine died or time is up."""
        deadline = time.monotonic() + timeout_s
        target = [self.address.host, str(self.address.port)]
        argv = [*self.address.enter, sys.executable, "-I", "-S", "-c", WAIT_BANNER, *target]
        with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as waiter:
            try:
                while waiter.poll() is None and time.monotonic() < deadline and is_alive():
                    time.sleep(0.05)
                return waiter.poll() == 0
            finally:
                waiter.kill()


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
