"""`agentrunctl doctor`: what holds on this host, what does not, and what to do. Looks, changes nothing."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentrun.base import agentrund
from agentrun.base.errors import StoreError
from agentrun.base.paths import Paths
from agentrun.bpf import scheduler as scx
from agentrun.cgroups import layout
from agentrun.daemon import status as daemonstatus
from agentrun.decision import inforce
from agentrun.doctor import bpf as bpf_check
from agentrun.kernel import inotify
from agentrun.net import netlink, rate
from agentrun.net import status as netstatus
from agentrun.store import database, ingest, retention

CRUN_PS_FIXED = (1, 27, 1)  # crun 1492e83c: `ps` lists nested cgroups
_FREE_LIMIT = 64 << 20
_BACKLOG_LIMIT = 64 << 20
_DAY_S = 86400.0
_DOCKER = Path("/etc/docker/daemon.json")
_PODMAN = (Path("/etc/containers/containers.conf"), Path("/etc/containers/containers.conf.d"))


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at: `ok`, `note` (works, but know this) or `problem`."""

    level: str
    what: str
    text: str


def examine(paths: Paths) -> list[Finding]:
    """Everything that can be seen from here. A check that itself fails is a problem, not a crash."""
    found: list[Finding] = []
    for check in (
        _cgroups,
        _backends,
        _configuration,
        _daemon,
        _directories,
        _records,
        _kernel,
        _bpf,
        _scheduler,
        _network_rates,
        _engines,
        _log,
    ):
        try:
            found += check(paths)
        except OSError as error:
            found.append(Finding("problem", check.__name__.strip("_"), f"cannot be looked at: {error}"))
    return found


def _cgroups(paths: Paths) -> Iterator[Finding]:
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


def _backends(paths: Paths) -> Iterator[Finding]:
    backends = inforce.load(paths).backends
    if not backends:
        yield Finding("problem", "backend", "neither runc nor crun is installed")
    for kind, path in backends:
        version = _version(path)
        yield Finding("ok", f"backend {kind}", f"{path}: {version}")
        if kind == "crun" and parse_version(version) < CRUN_PS_FIXED:
            yield Finding(
                "note", "backend crun", "before 1.27.1 `ps` lists no nested cgroup: agentrun answers itself"
            )


def _configuration(paths: Paths) -> Iterator[Finding]:
    loaded = inforce.load(paths)
    for problem in loaded.problems:
        yield Finding("problem", "configuration", f"{problem}\nthe last good one stays in force")
    policy = loaded.policy
    files = ", ".join(inforce.policy_names(paths)) or "built-in"
    text = f"{files}: {len(policy['classes'])} classes, {len(policy['rules'])} rules, hash {policy['hash']}"
    yield Finding("ok", "policy", text)
    yield Finding("ok" if loaded.mode == "enforce" else "note", "mode", loaded.mode)


def _daemon(paths: Paths) -> Iterator[Finding]:
    if not agentrund.is_daemon_alive(paths):
        text = "does not run: no exit codes, no time limits (systemctl enable --now agentrund)"
        yield Finding("note", "agentrund", text)
        return
    yield from daemon_findings(daemonstatus.read(paths), time.monotonic())


def daemon_findings(status: dict[str, Any] | None, now_s: float) -> Iterator[Finding]:
    """What agentrund, which runs, says of itself (`daemonstatus.read`). Pure; `now_s` by CLOCK_MONOTONIC."""
    if status is None:
        yield Finding("note", "agentrund", "runs, but says nothing of itself (systemctl restart agentrund)")
        return
    age = now_s - status["at"]
    if age > daemonstatus.STALE_S:
        text = (
            f"its loop has not turned for {age:.0f} s: nothing is seen or told (systemctl restart agentrund)"
        )
        yield Finding("problem", "agentrund", text)
        return
    yield Finding("ok", "agentrund", f"runs (pid {status.get('pid')})")
    keeper = status.get("keeper") or {}
    heard_s = keeper.get("heard_s")
    if keeper.get("pid") is None:
        yield Finding("problem", "agentrund: keeper", "does not run: no feedback")
    elif heard_s is None or heard_s > daemonstatus.STALE_S:
        is_new = heard_s is None and status.get("up_s", 0) < daemonstatus.STALE_S
        text = f"pid {keeper['pid']} has not answered{' yet' if is_new else ': no feedback'}"
        yield Finding("note" if is_new else "problem", "agentrund: keeper", text)
    else:
        yield Finding("ok", "agentrund: keeper", f"answers (pid {keeper['pid']})")
    scheduler = status.get("scheduler") or {}
    if scheduler.get("ejections"):
        next_s = scheduler.get("next_s")
        then = "" if next_s is None else f"; it is loaded again in {next_s:.0f} s"
        text = (
            f"ejected {scheduler['ejections']} times since agentrund started, the last: {scheduler['last']}"
        )
        yield Finding("note", "agentrund: scheduler", text + then)
    events = status.get("events") or {}
    if events.get("problem"):
        yield Finding("problem", "agentrund: events", str(events["problem"]))
    elif events.get("is_read"):
        yield Finding(
            "ok", "agentrund: events", f"reads the kernel's events; OOM kills seen: {events['kills']}"
        )
    else:
        yield Finding("note", "agentrund: events", "none are read: OOM kills are only counted")
    yield _proc_events_finding(status.get("proc_events") or {})


def _proc_events_finding(said: dict[str, Any]) -> Finding:
    what = "agentrund: processes"
    if not said.get("is_listening"):
        text = "the kernel does not tell of them (CONFIG_PROC_EVENTS): short calls may have no exit code"
        return Finding("note", what, text)
    if lost := said.get("lost"):
        return Finding(
            "note", what, f"more than its queue holds, {lost} times: short calls may have no exit code"
        )
    return Finding("ok", what, "the kernel tells of all")


def _directories(paths: Paths) -> Iterator[Finding]:
    yield _directory(paths.run, "calls run without limits and records")
    yield _directory(paths.state, f"records wait in memory, {paths.spill}")


def _records(paths: Paths) -> Iterator[Finding]:
    """The store and the journal: what is wrong, what waits, what was lost."""
    try:
        with database.reading(paths) as connection:
            waiting = ingest.backlog(paths, connection)
            if connection is None:
                yield Finding("note", "records", f"no store yet, {waiting} bytes wait in the journal")
                return
            yield _state_of_store(connection, waiting)
            lost = connection.execute(
                "SELECT value FROM counters WHERE name = ?", (ingest.DAMAGED_LINES,)
            ).fetchone()
    except StoreError as error:
        yield Finding("problem", "records", f"{error}\nthey are kept in the journal and read from there")
        return
    if lost:
        yield Finding("note", "records", f"{lost[0]} damaged lines of the journal were passed over")
    if os.path.exists(paths.store + ".damaged"):
        text = f"{paths.store}.damaged was set aside; delete it once you have looked at it"
        yield Finding("note", "records", text)


def _state_of_store(connection: sqlite3.Connection, waiting: int) -> Finding:
    wrong = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if wrong != "ok":
        return Finding("problem", "records", f"the store is damaged: {wrong}")
    if waiting > _BACKLOG_LIMIT:
        text = f"{waiting >> 20} MiB wait in the journal; the oldest are lost beyond some 128 MiB"
        return Finding("problem", "records", f"{text}\nagentrund and `agentrunctl calls` take them in")
    count, oldest = connection.execute("SELECT count(*), min(ended) FROM calls").fetchone()
    since = time.strftime("%Y-%m-%d", time.gmtime(oldest)) if oldest else "-"
    size = retention.used_bytes(connection) >> 20
    return Finding("ok", "records", f"{count} since {since}, {size} MiB, {waiting} bytes wait in the journal")


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


def _kernel(_: Paths) -> Iterator[Finding]:
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


def _bpf(paths: Paths) -> Iterator[Finding]:
    for found in bpf_check.findings(paths):
        yield Finding(*found)


def _scheduler(paths: Paths) -> Iterator[Finding]:
    for level, text in scx.findings(paths):
        yield Finding(level, "CPU scheduler", text)


def _network_rates(paths: Paths) -> Iterator[Finding]:
    configuration = inforce.load(paths)
    if configuration.mode == "enforce" and rate.are_wanted(configuration.policy):
        yield from rate_findings(netstatus.read(paths), time.monotonic(), netlink.is_installed())


def rate_findings(said: dict[str, Any], now_s: float, is_installed: bool) -> Iterator[Finding]:
    """What agentrun-net says, where the policy has rates. Pure; `now_s` by CLOCK_MONOTONIC."""
    what = "network rates"
    if not is_installed:
        yield Finding("problem", what, f"not enforced: {netlink.MISSING}")
    elif not said or now_s - said["at"] > netstatus.STALE_S:
        text = "agentrun-net does not run: new containers get none (systemctl enable --now agentrun-net)"
        yield Finding("problem", what, text)
    elif said.get("problem"):
        yield Finding("problem", what, f"not enforced: {said['problem']}")
    else:
        sessions = said["sessions"]
        missed = {where: entry for where, entry in sessions.items() if not entry.get("enforced")}
        yield Finding("ok", what, f"in force for {len(sessions) - len(missed)} containers")
        for where, entry in sorted(missed.items()):
            container = where.rpartition("/")[2][:12]
            yield Finding("note", what, f"not in force for {container}: {'; '.join(entry['why'])}")


def _tells_exit_status() -> bool:
    child = subprocess.Popen(["/bin/sh", "-c", "read _; exit 7"], stdin=subprocess.PIPE)
    try:
        pidfd = os.pidfd_open(child.pid)
    except OSError:
        return False
    finally:
        child.communicate(b"\n")
    try:
        return inotify.exit_status(pidfd) == 7 << 8
    finally:
        os.close(pidfd)


def _engines(_: Paths) -> Iterator[Finding]:
    if _DOCKER.exists():
        text = _DOCKER.read_text()
        try:
            runtimes = json.loads(text).get("runtimes", {})
        except (ValueError, AttributeError):
            yield Finding("problem", "docker", f"{_DOCKER} is not valid JSON")
            return
        ours = [name for name, entry in runtimes.items() if "agentrun" in str(entry.get("path"))]
        yield Finding(
            "ok" if ours else "note",
            "docker",
            f"runtimes: {', '.join(ours)}" if ours else "agentrun is not registered",
        )
    files = [
        file
        for path in _PODMAN
        for file in (path.glob("*.conf") if path.is_dir() else [path])
        if file.exists()
    ]
    if any("agentrun" in file.read_text() for file in files):
        yield Finding("ok", "podman", "agentrun is registered")


def _log(paths: Paths) -> Iterator[Finding]:
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
