"""What the two kinds of machine have in common: hardware, pid file, logs, and ssh into them."""

import os
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from vmlib.errors import lost_vm
from vmlib.paths import socket_dir
from vmlib.recipe import MEM, SMP
from vmlib.ssh import Address, Ssh


@dataclass(frozen=True, slots=True)
class Hardware:
    smp: int = SMP
    mem: str = MEM
    tcg_thread: str = "multi"
    is_fast: bool = False

    @property
    def is_counted(self) -> bool:
        return self.tcg_thread == "counted"

    def serves(self, wanted: "Hardware") -> bool:
        """Whether a command that wants `wanted` can use this machine; a default takes what there is."""
        return wanted in (self, Hardware()) or (self.is_fast and wanted == fast_hardware())

    def __str__(self) -> str:
        if self.is_fast:
            return f"fast, 1 CPU, {self.mem}"
        return f"{self.smp} CPUs, {self.mem}, tcg {self.tcg_thread}"


def fast_hardware(mem: str = MEM) -> Hardware:
    """The hardware of a guest that is not emulated: it has one CPU."""
    return Hardware(smp=1, mem=mem, tcg_thread="none", is_fast=True)


@dataclass(frozen=True, slots=True)
class Machine(ABC):
    """A machine by the directory that holds its disk, logs and sockets.

    The process is found by its pid file, which counts only while the process's command
    line names that very file: a pid of a killed machine may be somebody else's today.
    """

    PID_FILE: ClassVar[str]

    directory: Path

    @property
    def pid_file(self) -> Path:
        return self.directory / self.PID_FILE

    @property
    def serial_log(self) -> Path:
        return self.directory / "serial.log"

    @abstractmethod
    def address(self, port: int) -> Address:
        """Where its sshd is."""

    @abstractmethod
    def stop(self) -> None:
        """End it, whatever it does. Its disk is thrown away anyway."""

    def ssh(self, port: int) -> Ssh:
        own = self.directory
        control = socket_dir(own) / "ctl"
        return Ssh(own / "id", own / "known_hosts", self.address(port), control, own / "ssh.log")

    def pid(self) -> int | None:
        found = self._find_process()
        return None if found is None else found[0]

    def _find_process(self) -> tuple[int, list[str]] | None:
        """Its pid and command line."""
        try:
            pid = int(self.pid_file.read_text())
            argv = os.fsdecode(Path(f"/proc/{pid}/cmdline").read_bytes()).split("\0")
        except (OSError, ValueError):
            return None
        return (pid, argv) if os.fspath(self.pid_file) in argv else None

    def is_alive(self) -> bool:
        return self.pid() is not None

    def wait_exit(self, timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        while self.is_alive():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True

    def wait_ssh(self, port: int, timeout_s: float) -> Ssh:
        ssh = self.ssh(port)
        start = time.monotonic()
        if ssh.wait_banner(timeout_s, self.is_alive) and ssh.ensure_master():
            return ssh
        waited = int(time.monotonic() - start)
        what = "no ssh to the VM" if self.is_alive() else "the VM died while it started"
        raise lost_vm(f"{what}, after {waited} s", self.serial_log)
