"""Starting instances and ending them: what a machine is made of, and how each kind comes up."""

import shutil
import subprocess
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from vmlib import host, uml
from vmlib.errors import UsageError
from vmlib.fastdisk import ensure_fast_disk
from vmlib.host import ensure_tools
from vmlib.image import BOOT_TIMEOUT_S, Image, current_image, ensure_image, prune
from vmlib.instance import PROBE_TIMEOUT_S, Instance, State, images_in_use, list_instances
from vmlib.machine import Hardware
from vmlib.paths import socket_dir
from vmlib.progress import heartbeat, say
from vmlib.qemu import QemuStartError
from vmlib.recipe import MEM, SMP, SNAPSHOT
from vmlib.umlkernel import ensure_kernel

# A restored guest answers within seconds; a busy host may be slow.
RESTORE_TIMEOUT_S = 120.0
SETTLED = "systemctl is-system-running --wait"


@dataclass(frozen=True, slots=True)
class FastParts:
    """What a fast guest needs besides the image."""

    kernel: Path
    disk: Path


def build(*, check: bool) -> Image:
    image = ensure_image(check=check)
    prune(images_in_use())
    return image


def build_fast(image: Image) -> FastParts:
    return FastParts(ensure_kernel(), ensure_fast_disk(image))


def bring_up(instance: Instance, hardware: Hardware, *, fresh: bool = False) -> State:
    """Return the running instance, started first when it is down or `fresh` is wanted."""
    ensure_tools(uml.RUN_TOOLS if hardware.is_fast else host.RUN_TOOLS)
    state = instance.state()
    if state is not None and not fresh:
        return _reused(instance, state, hardware)
    image = current_image()
    if not (image.is_whole() and image.has_snapshot()):
        image = build(check=False)
    parts = build_fast(image) if hardware.is_fast else None
    with instance.lock():
        state = instance.state()
        if state is not None and not fresh:
            return _reused(instance, state, hardware)
        _clear(instance)
        return _start(instance, image, hardware, parts)


def _reused(instance: Instance, state: State, hardware: Hardware) -> State:
    if not state.hardware.serves(hardware):
        raise UsageError(
            f"change instance {instance.name!r}: it is up with other hardware ({state.hardware})"
        )
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
    machine.stop()
    machine.ssh(0).stop_master()
    sockets = socket_dir(directory)
    if sockets != directory:
        shutil.rmtree(sockets, ignore_errors=True)
    shutil.rmtree(directory)


def _start(instance: Instance, image: Image, hardware: Hardware, parts: FastParts | None) -> State:
    begin = time.monotonic()
    instance.directory.mkdir()
    for name in ("id", "known_hosts"):
        shutil.copy2(image.directory / name, instance.directory / name)
    try:
        if parts is None:
            state = _start_emulated(instance, image, hardware)
        else:
            state = _start_fast(instance, image, hardware, parts)
    except BaseException:
        instance.machine.stop()
        raise
    how = "restored" if state.restored else "booted"
    say(f"instance {instance.name!r} {how} in {time.monotonic() - begin:.1f} s")
    return state


def _start_fast(instance: Instance, image: Image, hardware: Hardware, parts: FastParts) -> State:
    machine = instance.fast_machine
    with heartbeat("boot"):
        port = machine.start(parts.kernel, parts.disk, hardware, _promised_memory())
        machine.wait_ssh(port, BOOT_TIMEOUT_S).run(SETTLED, BOOT_TIMEOUT_S)
    return _remember(instance, image, hardware, port, restored=False)


def _promised_memory() -> int:
    """How much memory the fast guests that run may come to use, in bytes."""
    return sum(instance.fast_machine.memory_bytes() for instance in list_instances())


def _start_emulated(instance: Instance, image: Image, hardware: Hardware) -> State:
    # The overlay names its backing file relative to itself.
    (instance.directory / "base.qcow2").symlink_to(image.base)
    # The snapshot's clock is the host's: one that counts would be taken for a broken TSC.
    can_restore = (hardware.smp, hardware.mem) == (SMP, MEM) and not hardware.is_counted
    state = _restore(instance, image, hardware) if can_restore else None
    return state or _cold_boot(instance, image, hardware)


def _copy_disk(instance: Instance, image: Image) -> Path:
    """A disk of the instance's own, on the image's shared base."""
    disk = instance.directory / "disk.qcow2"
    subprocess.run(["cp", "--reflink=auto", "--sparse=always", image.ready, disk], check=True)
    return disk


def _restore(instance: Instance, image: Image, hardware: Hardware) -> State | None:
    """Start from the snapshot; None when qemu refuses it."""
    disk = _copy_disk(instance, image)
    machine = instance.emulated_machine
    try:
        port = machine.start(disk, image.directory, hardware, SNAPSHOT)
    except QemuStartError as e:
        say(f"cannot restore the snapshot, boot instead: {e}")
        return None
    ssh = machine.wait_ssh(port, RESTORE_TIMEOUT_S)
    # The guest's clock stands at the time of the snapshot.
    ssh.run(f"date -u -s @{time.time():.3f}", PROBE_TIMEOUT_S)
    return _remember(instance, image, hardware, port, restored=True)


def _cold_boot(instance: Instance, image: Image, hardware: Hardware) -> State:
    """Boot the snapshot's disk as it stands: it was synced before the machine was saved."""
    disk = _copy_disk(instance, image)
    machine = instance.emulated_machine
    with heartbeat("boot"):
        port = machine.start(disk, image.directory, hardware)
        machine.wait_ssh(port, BOOT_TIMEOUT_S).run(SETTLED, BOOT_TIMEOUT_S)
    return _remember(instance, image, hardware, port, restored=False)


def _remember(instance: Instance, image: Image, hardware: Hardware, port: int, *, restored: bool) -> State:
    state = State(port, image.key, restored, time.time(), **asdict(hardware))
    instance.write_state(state)
    return state
