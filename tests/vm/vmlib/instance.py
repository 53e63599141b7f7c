"""Named instances: machines that outlive the tool, each with its own disk."""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from vmlib.errors import LostVMError, UsageError, lost_vm
from vmlib.machine import Hardware, Machine
from vmlib.paths import instances_dir, locked
from vmlib.qemu import Qemu
from vmlib.ssh import SSH_FAILED, Ssh
from vmlib.uml import Uml

NAME_PATTERN = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
PROBE_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class State:
    """What is remembered of a started instance, besides its pid file."""

    port: int
    key: str
    restored: bool
    started: float
    smp: int
    mem: str
    tcg_thread: str
    is_fast: bool

    @property
    def hardware(self) -> Hardware:
        return Hardware(self.smp, self.mem, self.tcg_thread, self.is_fast)


@dataclass(frozen=True, slots=True)
class Instance:
    name: str

    @property
    def directory(self) -> Path:
        return instances_dir() / self.name

    @property
    def machine(self) -> Machine:
        """The machine that is or was started here."""
        fast = self.fast_machine
        return fast if fast.pid_file.exists() else self.emulated_machine

    @property
    def emulated_machine(self) -> Qemu:
        return Qemu(self.directory)

    @property
    def fast_machine(self) -> Uml:
        return Uml(self.directory)

    @property
    def _state_file(self) -> Path:
        return self.directory / "state.json"

    def state(self) -> State | None:
        """The state of a running instance, None when it is down."""
        if not self.machine.is_alive():
            return None
        try:
            return State(**json.loads(self._state_file.read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def write_state(self, state: State) -> None:
        part = self._state_file.with_suffix(".part")
        part.write_text(json.dumps(asdict(state)))
        part.rename(self._state_file)

    @contextmanager
    def lock(self) -> Iterator[None]:
        waiting_for = f"another command on instance {self.name!r}"
        with locked(instances_dir() / f".{self.name}.lock", waiting_for):
            yield

    def ssh(self) -> Ssh:
        """The shared ssh connection of a running instance, made anew when it is gone."""
        state = self.state()
        if state is None:
            raise UsageError(f"use instance {self.name!r}: it is not up")
        ssh = self.machine.ssh(state.port)
        # A lock of its own: another command may hold the instance's for minutes.
        with locked(instances_dir() / f".{self.name}.ssh.lock"):
            if ssh.ensure_master():
                return ssh
        raise self.lost("cannot connect to the VM with ssh")

    def lost(self, reason: str) -> LostVMError:
        machine = self.machine
        if not machine.is_alive():
            machine.ssh(0).stop_master()
        return lost_vm(reason, machine.serial_log)

    def is_reachable(self, ssh: Ssh) -> bool:
        """Whether the guest still runs commands, asked after an ssh command failed."""
        if not self.machine.is_alive():
            return False
        try:
            return ssh.run("true", PROBE_TIMEOUT_S).returncode != SSH_FAILED
        except subprocess.TimeoutExpired:
            return False


def get_instance(name: str) -> Instance:
    if not NAME_PATTERN.fullmatch(name):
        raise UsageError(f"use instance name {name!r}: want {NAME_PATTERN.pattern}")
    return Instance(name)


def list_instances() -> list[Instance]:
    names = sorted(path.name for path in instances_dir().iterdir() if path.is_dir())
    return [Instance(name) for name in names if NAME_PATTERN.fullmatch(name)]


def images_in_use() -> set[str]:
    states = (instance.state() for instance in list_instances())
    return {state.key for state in states if state is not None}


def run_ssh(instance: Instance, argv: list[str]) -> int:
    """Run an ssh command line on the tool's own stdio; tell a dead VM from a failed command."""
    ssh = instance.ssh()
    with subprocess.Popen([os.fspath(part) for part in argv]) as process:
        try:
            status = _wait(process, instance.machine)
        except BaseException:
            process.terminate()
            raise
    if status is None or (status == SSH_FAILED and not instance.is_reachable(ssh)):
        raise instance.lost("the VM died or ssh to it is lost")
    return status if status >= 0 else 128 - status


def _wait(process: subprocess.Popen[bytes], machine: Machine) -> int | None:
    """The command's status, or None when qemu is gone while ssh does not notice."""
    while True:
        try:
            return process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            if machine.is_alive():
                continue
        try:
            # qemu is gone: ssh will see its connection break, but need not.
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
        return None
