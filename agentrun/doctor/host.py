"""The host itself: cgroups, kernel, directories, backends, configuration, our log."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from agentrun.base.paths import Paths
from agentrun.cgroups import layout
from agentrun.decision import inforce
from agentrun.doctor.finding import Finding
from agentrun.kernel import processes

CRUN_PS_FIXED = (1, 27, 1)  # crun 1492e83c: `ps` lists nested cgroups
_FREE_LIMIT = 64 << 20
_DAY_S = 86400.0


def cgroups(paths: Paths) -> Iterator[Finding]:
    """cgroup v2, with the controllers that limits need."""
    root = Path(paths.cgroup_root)
    if not (root / "cgroup.controllers").exists():
        yield Finding("problem", "cgroup v2", f"not at {root}: agentrun passes everything through here")
        return
    available = set((root / "cgroup.controllers").read_text().split())
    missing = [name for name in layout.CONTROLLERS if name not in available]
    if missing:
        yield Finding("problem", "cgroup v2", f"no {', '.join(missing)} controller: these limits do not hold")
    else:
        yield Finding("ok", "cgroup v2", f"{root}: {' '.join(sorted(available))}")


def _version(path: str) -> str:
    done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=20, check=False)
    return done.stdout.partition("\n")[0] or f"status {done.returncode}"


def parse_version(text: str) -> tuple[int, ...]:
    """The first dotted number in a text: `crun version 1.21` is (1, 21)."""
    found = re.search(r"\d+(\.\d+)+", text)
    return tuple(map(int, found[0].split("."))) if found else ()


def backends(paths: Paths) -> Iterator[Finding]:
    """The runtimes that agentrun hands off to."""
    found = inforce.load(paths).backends
    if not found:
        yield Finding("problem", "backend", "neither runc nor crun is installed")
    for kind, path in found:
        version = _version(path)
        yield Finding("ok", f"backend {kind}", f"{path}: {version}")
        if kind == "crun" and parse_version(version) < CRUN_PS_FIXED:
            yield Finding(
                "note", "backend crun", "before 1.27.1 `ps` lists no nested cgroup: agentrun answers itself"
            )


def configuration(paths: Paths) -> Iterator[Finding]:
    """Configuration and policy, as they are in force."""
    loaded = inforce.load(paths)
    for problem in loaded.problems:
        yield Finding("problem", "configuration", f"{problem}\nthe last good one stays in force")
    policy = loaded.policy
    files = ", ".join(inforce.policy_names(paths)) or "built-in"
    text = f"{files}: {len(policy['classes'])} classes, {len(policy['rules'])} rules, hash {policy['hash']}"
    yield Finding("ok", "policy", text)
    yield Finding("ok" if loaded.mode == "enforce" else "note", "mode", loaded.mode)


def directories(paths: Paths) -> Iterator[Finding]:
    """Where state and records go."""
    yield _directory(paths.run, "calls run without limits and records")
    yield _directory(paths.state, f"records wait in memory, {paths.spill}")


def _directory(path: str, otherwise: str) -> Finding:
    what = f"directory {path}"
    if not os.path.isdir(path):
        return Finding("note", what, "not there yet: the first container makes it")
    info = os.stat(path)
    if info.st_uid != os.geteuid() or info.st_mode & 0o022:
        return Finding(
            "problem", what, "belongs to others or can be written by them: agentrun will not use it"
        )
    try:
        with tempfile.TemporaryFile(dir=path) as file:
            file.write(b"x")
            file.flush()
    except OSError as error:
        return Finding("problem", what, f"cannot be written ({error.strerror}): {otherwise}")
    free = os.statvfs(path).f_bavail * os.statvfs(path).f_frsize
    if free < _FREE_LIMIT:
        return Finding("problem", what, f"{free >> 20} MiB left")
    return Finding("ok", what, "can be written")


def kernel(_: Paths) -> Iterator[Finding]:
    """What agentrun can use of the kernel, and goes without elsewhere."""
    features: tuple[tuple[str, Callable[[], bool], str], ...] = (
        (
            "exit status by pidfd",
            _tells_exit_status,
            "before Linux 6.15: exit codes come from the proc connector alone",
        ),
        ("PSI", lambda: os.path.exists("/proc/pressure/memory"), "boot with psi=1 for pressure"),
        (
            "BTF",
            lambda: os.path.exists("/sys/kernel/btf/vmlinux"),
            "no eBPF enforcement",
        ),
    )
    for name, is_there, otherwise in features:
        there = is_there()
        yield Finding("ok" if there else "note", f"kernel: {name}", "there" if there else otherwise)


def _tells_exit_status() -> bool:
    child = subprocess.Popen(["/bin/sh", "-c", "read _; exit 7"], stdin=subprocess.PIPE)
    try:
        pidfd = os.pidfd_open(child.pid)
    except OSError:
        return False
    finally:
        child.communicate(b"\n")
    try:
        return processes.exit_status(pidfd) == 7 << 8
    finally:
        os.close(pidfd)


def log(paths: Paths) -> Iterator[Finding]:
    """The last day's warnings, the latest in full."""
    if not os.path.exists(paths.log):
        yield Finding("ok", "log", "empty: our part never failed")
        return
    lines = Path(paths.log).read_text(errors="replace").splitlines()
    since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - _DAY_S))
    recent = [line for line in lines if f'"time":"{since}' <= line[1:] or '"time":null' in line]
    if recent:
        yield Finding(
            "note", "log", f"{len(recent)} in the last day in {paths.log}, the latest: {recent[-1]}"
        )
    else:
        yield Finding("ok", "log", "nothing in the last day")
