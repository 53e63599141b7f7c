"""The modules: one object file each, loaded once, pinned, and replaced in place when the file changes.

A version is the directory `/sys/fs/bpf/agentrun/MODULE/HASH`, HASH of the object file. It is filled under
another name and renamed when everything in it is attached, so a loader that dies half way leaves nothing that
counts; what it left is removed by the next one. The old version goes after the new one is in force. Nothing
here has to keep running: pinned links stay attached.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from agentrun.base import files
from agentrun.base.errors import AgentrunError, BpfError, StateError
from agentrun.base.paths import Paths
from agentrun.bpf import pins
from agentrun.bpf.libbpf import Object

_HALF = "new"  # the name of a version until it is whole
_LOCK_WAIT_S = 60.0
_HASH_DIGITS = 16


@dataclass(frozen=True, slots=True)
class Module:
    """One object file. `exclusive`: two versions cannot be in force at once (a sched_ext scheduler).

    `constants` gives bytes to write over .rodata by offset, before the load. `default`: loaded by
    `agentrunctl bpf load` without a name. `optional` names programs that are left out where a kernel does not
    take them, with what is lost then. `by_cgroup`: its struct_ops maps are filled and pinned, and attached to
    cgroups later. `bonus`: without it nothing is lost but time, so it is no failure where a kernel does not
    take it.
    """

    name: str
    what: str
    exclusive: bool = False
    default: bool = True
    by_cgroup: bool = False
    bonus: bool = False
    optional: Mapping[str, str] = field(default_factory=dict)
    constants: Mapping[int, bytes] = field(default_factory=dict)

    @property
    def directory(self) -> str:
        """Where its versions are pinned."""
        return f"{pins.ROOT}/{self.name}"


MODULES = {
    module.name: module
    for module in (
        Module(
            "events",
            "ends, execs, exits and OOM victims of calls",
            optional={
                "on_oom": "whose limit an OOM kill was for is only counted, not told (this kernel takes no"
                " program at out_of_memory)",
                "on_exit_files": "a text for an OOM kill may come too late for podman (this kernel takes no"
                " program at exit_files)",
            },
        ),
        Module(
            "net",
            "network profiles and counters of calls",
            optional={
                "net_socket": "raw, packet and MPTCP sockets get around a network profile (this kernel takes"
                " no program at security_socket_create), and a server's bytes are not counted"
            },
        ),
        Module("memcg_ops_v6", "soft memory limits by memcg_bpf_ops (RFC v6)", default=False, by_cgroup=True),
        Module("memcg_ops_v7", "soft memory limits by memcg_bpf_ops (RFC v7)", default=False, by_cgroup=True),
        Module("snapshot", "what calls use, read by agentrund in one system call", bonus=True),
        Module("mempressure", "which calls wait for memory, seen as it is charged", default=False),
        Module("scx", "CPU shares by cgroup, in a scheduler of our own", exclusive=True, default=False),
    )
}


@dataclass(frozen=True, slots=True)
class Status:
    """What is known of a module: `file` and `hash` of its object (None: not installed), `loaded` version.

    `current` where the loaded version is the installed one; `dead` names links that are no longer attached.
    """

    module: Module
    file: str | None
    hash: str | None
    loaded: str | None
    programs: list[pins.PinnedProgram]
    dead: list[str]

    @property
    def lost(self) -> list[str]:
        """What does not hold because this kernel took only a part."""
        there = {program.name for program in self.programs}
        return [] if self.loaded is None else [t for n, t in self.module.optional.items() if n not in there]

    @property
    def in_force(self) -> bool:
        """Whether it does its work."""
        return self.loaded is not None and not self.dead

    @property
    def current(self) -> bool:
        """Whether the loaded version is the installed one."""
        return self.loaded is not None and self.loaded == self.hash


def object_path(name: str) -> str | None:
    """The installed object of a module (LIBEXECDIR/bpf), or the built one of a source tree; None without."""
    tree = Path(__file__).parents[2]
    for folder in (tree / "bpf", tree / "bpf" / "build"):
        path = folder / f"{name}.bpf.o"
        if path.is_file():
            return os.fspath(path)
    return None


def _hash(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:_HASH_DIGITS]


def _versions(module: Module) -> list[str]:
    """The whole versions that are pinned, the latest last."""
    try:
        names = [name for name in os.listdir(module.directory) if name != _HALF]
    except FileNotFoundError:
        return []
    return sorted(names, key=lambda name: os.stat(f"{module.directory}/{name}").st_mtime_ns)


def loaded_version(module: Module) -> str | None:
    """The version in force; None where none is."""
    versions = _versions(module)
    return versions[-1] if versions else None


def identity(module: Module) -> tuple[str, int] | None:
    """What tells a loaded module from another, also from one of the same version; None where none is."""
    try:
        version = loaded_version(module)
        return None if version is None else (version, os.stat(f"{module.directory}/{version}").st_ino)
    except OSError:
        return None  # it is being replaced


def loaded_directory(module: Module, what: str) -> str:
    """Where the version in force is pinned. Raises BpfError, `what` being what that was wanted for."""
    version = loaded_version(module)
    if version is None:
        raise BpfError(f"{what}: not loaded (agentrunctl bpf load {module.name})")
    return f"{module.directory}/{version}"


def status(module: Module) -> Status:
    """Look, change nothing. Raises BpfError where pins cannot be read."""
    file = object_path(module.name)
    loaded = loaded_version(module)
    where = f"{module.directory}/{loaded}"
    return Status(
        module,
        file,
        None if file is None else _hash(file),
        loaded,
        pins.programs(where) if loaded else [],
        [link.name for link in pins.links(where) if not link.alive] if loaded else [],
    )


@contextlib.contextmanager
def _locked(paths: Paths) -> Iterator[None]:
    """One loader at a time."""
    os.close(files.open_private_directory(paths.run, StateError))
    fd = os.open(f"{paths.run}/bpf.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        deadline = time.monotonic() + _LOCK_WAIT_S
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise BpfError("load BPF modules: another loader has been at it for a minute") from None
                time.sleep(0.05)
        yield
    finally:
        os.close(fd)


def load(paths: Paths, module: Module) -> bool:
    """Bring the installed version of a module in force; False where it was already. Raises BpfError."""
    with _locked(paths):
        before = status(module)
        if before.file is None or before.hash is None:
            raise BpfError(f"load {module.name}: its object is not installed (make -C bpf, make install)")
        if before.current and before.in_force:
            _drop_others(module, before.hash)
            return False
        _prepare(module)
        if module.exclusive or before.current:
            _drop_others(module, None)
        _load_version(paths, module, before.file, before.hash)
        _drop_others(module, before.hash)
        return True


def _prepare(module: Module) -> None:
    pins.make_directory(pins.SHARED)
    pins.make_directory(module.directory)
    pins.remove(f"{module.directory}/{_HALF}")  # of a loader that died
    for name in os.listdir(pins.SHARED):
        pins.check_owner(f"{pins.SHARED}/{name}")  # libbpf reuses what it finds there


def _load_version(paths: Paths, module: Module, file: str, version: str) -> None:
    """Load, pin and attach, without the optional programs where it does not work with them."""
    try:
        _try_version(paths, module, file, version, left_out=())
    except BpfError:
        if not module.optional:
            raise
        _try_version(paths, module, file, version, left_out=tuple(module.optional))


def _try_version(paths: Paths, module: Module, file: str, version: str, left_out: Sequence[str]) -> None:
    half = f"{module.directory}/{_HALF}"
    pins.make_directory(half)
    try:
        with Object(file, pins.SHARED) as opened:
            for offset, data in module.constants.items():
                opened.set_constants(offset, data)
            opened.leave_out(left_out)
            opened.load()
            _pin_all(opened, half)
            _attach_all(paths, module, opened, half)
        os.rename(half, f"{module.directory}/{version}")
    except (OSError, AgentrunError) as error:
        pins.remove(half)
        if isinstance(error, OSError):
            raise BpfError(f"load {module.name}: {error}") from error
        raise


def _pin_all(opened: Object, directory: str) -> None:
    for program in opened.programs():
        opened.pin_program(program, f"{directory}/prog_{program.name}")
    for each in opened.maps():
        if not each.shared and not each.struct_ops and not each.internal:
            opened.pin_map(each, f"{directory}/map_{each.name}")


def _attach_all(paths: Paths, module: Module, opened: Object, directory: str) -> None:
    """Attach cgroup programs to the cgroup root, the others as their sections say, and struct_ops maps.

    At the root, because a container's cgroup would have to be attached to before its first process and again
    after every restart of anything; the programs look at the current cgroup first and leave what is no call.
    """
    root = os.open(paths.cgroup_root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for program in opened.programs():
            if program.section.startswith(("struct_ops", "syscall")):
                continue  # attached to a cgroup later; run by whoever wants its answer
            is_cgroup = program.section.startswith("cgroup")
            link = opened.attach_cgroup(program, root) if is_cgroup else opened.attach(program)
            opened.pin_link(link, f"{directory}/link_{program.name}")
    finally:
        os.close(root)
    for each in opened.maps():
        if each.struct_ops and module.by_cgroup:
            opened.fill_struct_ops(each)
            opened.pin_map(each, f"{directory}/map_{each.name}")
        elif each.struct_ops:
            opened.pin_link(opened.attach_struct_ops(each), f"{directory}/link_{each.name}")


def _drop_others(module: Module, keep: str | None) -> None:
    for version in _versions(module):
        if version != keep:
            pins.remove(f"{module.directory}/{version}")


def unload(paths: Paths, module: Module) -> bool:
    """Detach and forget a module; False where it was not loaded. Raises BpfError."""
    with _locked(paths):
        was_loaded = bool(_versions(module))
        _drop_others(module, None)
        for directory in (f"{module.directory}/{_HALF}", module.directory):
            pins.remove(directory)
        if not any(os.path.isdir(each.directory) for each in MODULES.values()):
            pins.remove(pins.SHARED)
        return was_loaded
