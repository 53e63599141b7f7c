"""Named instances: machines that outlive the tool, each with its own disk."""

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from vmlib.errors import LostVMError, UsageError, lost_vm
from vmlib.host import RUN_TOOLS, ensure_tools
from vmlib.image import BOOT_TIMEOUT_S, Image, current_image, ensure_image, prune
from vmlib.paths import instances_dir, locked, socket_dir
from vmlib.progress import heartbeat, say
from vmlib.qemu import Hardware, Machine, QemuStartError
from vmlib.recipe import MEM, SMP, SNAPSHOT
from vmlib.ssh import SSH_FAILED, Ssh

NAME_PATTERN = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
# A restored guest answers within seconds; a busy host may be slow.
RESTORE_TIMEOUT_S = 120.0
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


@dataclass(frozen=True, slots=True)
class Instance:
    name: str

    @property
    def directory(self) -> Path:
        return instances_dir() / self.name

    @property
    def machine(self) -> Machine:
        return Machine(self.directory)

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
        return lost_vm(reason, self.machine.serial_log)

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


def build(*, check: bool) -> Image:
    image = ensure_image(check=check)
    prune(images_in_use())
    return image


def bring_up(instance: Instance, hardware: Hardware, *, fresh: bool = False) -> State:
    """Return the running instance, started first when it is down or `fresh` is wanted."""
    ensure_tools(RUN_TOOLS)
    state = instance.state()
    if state is not None and not fresh:
        return _reused(instance, state, hardware)
    image = current_image()
    if not (image.is_whole() and image.has_snapshot()):
        image = build(check=False)
    with instance.lock():
        state = instance.state()
        if state is not None and not fresh:
            return _reused(instance, state, hardware)
        _clear(instance)
        return _start(instance, image, hardware)


def _reused(instance: Instance, state: State, hardware: Hardware) -> State:
    is_same = (state.smp, state.mem, state.tcg_thread) == tuple(asdict(hardware).values())
    if not is_same and hardware != Hardware():
        raise UsageError(f"change instance {instance.name!r}: it is up with other hardware")
    if state.key != current_image().key:
        say(f"note: instance {instance.name!r} runs an older image (see --fresh)")
    return state


def take_down(instance: Instance) -> None:
    with instance.lock():
        _clear(instance)


def _clear(instance: Instance) -> None:
    """End the instance's processes and remove all of its files."""
    directory = instance.directory
    if not directory.exists():
        return
    machine = instance.machine
    state = instance.state()
    machine.stop()
    if state is not None:
        machine.ssh(state.port).stop_master()
    sockets = socket_dir(directory)
    if sockets != directory:
        shutil.rmtree(sockets, ignore_errors=True)
    shutil.rmtree(directory)


def _start(instance: Instance, image: Image, hardware: Hardware) -> State:
    begin = time.monotonic()
    directory = instance.directory
    directory.mkdir()
    for name in ("id", "known_hosts"):
        shutil.copy2(image.directory / name, directory / name)
    # The overlay names its backing file relative to itself.
    (directory / "base.qcow2").symlink_to(image.base)
    try:
        # The snapshot's clock is the host's: one that counts would be taken for a broken TSC.
        can_restore = (hardware.smp, hardware.mem) == (SMP, MEM) and not hardware.is_counted
        state = _restore(instance, image, hardware) if can_restore else None
        if state is None:
            state = _cold_boot(instance, image, hardware)
    except BaseException:
        instance.machine.stop()
        raise
    how = "restored" if state.restored else "booted"
    say(f"instance {instance.name!r} {how} in {time.monotonic() - begin:.1f} s")
    return state


def _copy_disk(instance: Instance, image: Image) -> Path:
    """A disk of the instance's own, on the image's shared base."""
    disk = instance.directory / "disk.qcow2"
    subprocess.run(["cp", "--reflink=auto", "--sparse=always", image.ready, disk], check=True)
    return disk


def _restore(instance: Instance, image: Image, hardware: Hardware) -> State | None:
    """Start from the snapshot; None when qemu refuses it."""
    disk = _copy_disk(instance, image)
    try:
        port = instance.machine.start(disk, image.directory, hardware, SNAPSHOT)
    except QemuStartError as e:
        say(f"cannot restore the snapshot, boot instead: {e}")
        return None
    ssh = instance.machine.wait_ssh(port, RESTORE_TIMEOUT_S)
    # The guest's clock stands at the time of the snapshot.
    ssh.run(f"date -u -s @{time.time():.3f}", PROBE_TIMEOUT_S)
    return _remember(instance, image, hardware, port, restored=True)


def _cold_boot(instance: Instance, image: Image, hardware: Hardware) -> State:
    """Boot the snapshot's disk as it stands: it was synced before the machine was saved."""
    disk = _copy_disk(instance, image)
    with heartbeat("boot"):
        port = instance.machine.start(disk, image.directory, hardware)
        ssh = instance.machine.wait_ssh(port, BOOT_TIMEOUT_S)
        ssh.run("systemctl is-system-running --wait", BOOT_TIMEOUT_S)
    return _remember(instance, image, hardware, port, restored=False)


def _remember(
    instance: Instance,
    image: Image,
    hardware: Hardware,
    port: int,
    *,
    restored: bool,
) -> State:
    state = State(port, image.key, restored, time.time(), **asdict(hardware))
    instance.write_state(state)
    return state


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
