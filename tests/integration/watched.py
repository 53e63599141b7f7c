"""Calls of real engines with agentrund at work."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from engine import IMAGE, MATRIX, Engine, configure
from runtimes import LOG, RECORDS, run, wait_for

TREE = Path(__file__).parents[2]


@pytest.fixture(scope="module", autouse=True)
def daemon(host) -> Iterator[None]:
    """agentrund, as systemd starts it."""
    configure(TREE)
    run("systemctl", "daemon-reload")
    run("systemctl", "start", "agentrund")
    yield
    run("systemctl", "stop", "agentrund")
    assert not LOG.exists(), LOG.read_text()


@contextlib.contextmanager
def box(name: str, backend: str, *options: str) -> Iterator[Engine]:
    """An engine with a container of 300 MB that is called box."""
    made = Engine(name, backend)
    made.create("box", made.wrapped, "-m", "300m", *options, IMAGE, "sleep", "1000000")
    try:
        yield made
    finally:
        made.rm("box")


@pytest.fixture(scope="module", params=MATRIX, ids="-".join)
def engine(request) -> Iterator[Engine]:
    """Each engine on each backend."""
    with box(*request.param) as made:
        yield made


@contextlib.contextmanager
def policy(path: Path, text: str) -> Iterator[None]:
    """A policy file that is in force."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    try:
        run("agentrunctl", "policy", "compile")
        yield
    finally:
        path.unlink()
        run("agentrunctl", "policy", "compile")


def hog(mib: int) -> tuple[str, ...]:
    """A command that takes so much memory."""
    return "python3", "-c", f"x = bytearray({mib} << 20)"


def raw_records() -> list[dict[str, Any]]:
    """Records as agentrund wrote them; nothing here harvests."""
    journals = [path for path in (RECORDS.with_suffix(".jsonl.1"), RECORDS) if path.exists()]
    return [json.loads(line) for path in journals for line in path.read_text().splitlines()]


def call(engine: Engine, *command: str, intent: str = "") -> tuple[Any, dict[str, Any]]:
    """Run a call; returns what the engine returned, and the record, which nobody asked for."""
    container = engine("inspect", "-f", "{{.Id}}", "box").stdout.strip()
    known = {r["id"] for r in raw_records()}
    options = ("-e", f"AGENTRUN_INTENT={intent}") if intent else ()
    done = engine("exec", *options, "box", *command, check=False)

    def fresh() -> list[dict[str, Any]]:
        return [r for r in raw_records() if r["id"] not in known and r["container"] == container]

    return done, wait_for(fresh, "the record")[0]


def start(engine: Engine, *command: str) -> subprocess.Popen[bytes]:
    """Start a call and leave it running."""
    return subprocess.Popen([engine.name, "exec", "box", *command], stdin=subprocess.DEVNULL)


def names_in_calls(engine: Engine) -> set[str]:
    """The names of the processes in all calls of the box."""
    found = set()
    for file in engine.cgroup("box").glob("agentrun-calls/call-*/cgroup.procs"):
        with contextlib.suppress(OSError):  # the call, or the process, ended meanwhile
            found |= {Path(f"/proc/{pid}/comm").read_text().strip() for pid in file.read_text().split()}
    return found
