"""Calls that are over before anybody has looked: each has its exit code and verdict, in exactly one record.

AGENTRUN_EXECS says how many there are one after the other (`make short-calls-test`: 2,000, and 64 at once).
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from engine import IMAGE, Engine
from runtimes import Bundle, run, started, wait_for
from watched import TREE as TREE
from watched import daemon as daemon
from watched import raw_records

EXECS = int(os.environ.get("AGENTRUN_EXECS", "20"))
AT_ONCE = 64 if EXECS > 100 else 24
RESTART_S = 6.0
CONCURRENT = 4
WAYS = ["docker-runc", "docker-crun", "podman-runc", "podman-crun", "runc", "crun"]
COMMANDS = {"true": ("ok", 0), "false": ("failed", 1)}
End = tuple[str, str | None, int | None]


class Way:
    """A way to run an exec, with a container for it."""

    def __init__(self, argv: list[str], container: str) -> None:
        self.argv = argv
        self.container = container

    def exec(self, number: int) -> End:
        """One call, with an argument of its own; returns its digest and the end that it is to have."""
        name = list(COMMANDS)[number % 2]
        command = [name, str(number)]
        done = subprocess.run(
            [*self.argv, *command], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout, done.stderr) == (COMMANDS[name][1], "", ""), name
        return (hashlib.sha256("\0".join(command).encode()).hexdigest()[:16], *COMMANDS[name])

    def ends(self) -> list[End]:
        """The ends that are recorded; no call twice."""
        mine = [r for r in raw_records() if r["container"] == self.container]
        assert len({r["id"] for r in mine}) == len(mine)
        return [(r["command"]["sha256"], r["verdict"], r["exit_code"]) for r in mine]


@pytest.fixture(params=WAYS)
def way(request, tmp_path: Path) -> Iterator[Way]:
    """Each engine on each runtime, and each runtime by hand."""
    name, _, backend = request.param.partition("-")
    if not backend:
        container = f"short-{name}-{time.time_ns()}"
        with started(Bundle(tmp_path / "bundle", f"agentrun-{name}", container)) as bundle:
            yield Way([*bundle.runtime, "exec", bundle.id], bundle.id)
        return
    engine = Engine(name, backend)
    container = engine.create("short", engine.wrapped, IMAGE, "sleep", "1000000")
    yield Way([name, "exec", "short"], container)
    engine.rm("short")


def check(way: Way, expected: list[End]) -> None:
    """Each call is recorded, and nothing else."""
    wait_for(lambda: len(way.ends()) >= len(expected), "all records")
    assert sorted(way.ends()) == sorted(expected)


def test_calls_one_after_the_other_have_their_ends(way):
    began = time.monotonic()
    expected = [way.exec(number) for number in range(EXECS)]
    check(way, expected)
    print(f"{EXECS} execs, {(time.monotonic() - began) / EXECS * 1000:.0f} ms each")


def test_calls_at_once_have_their_ends(way):
    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        expected = list(pool.map(way.exec, range(AT_ONCE)))
    check(way, expected)


@pytest.mark.parametrize("how", ["killed", "restarted"])
def test_calls_while_agentrund_is_not_there_have_their_ends(way, how):
    """What the kernel tells meanwhile waits in a socket that systemd holds."""
    command = ("kill", "-s", "KILL", "agentrund") if how == "killed" else ("restart", "agentrund")
    with concurrent.futures.ThreadPoolExecutor(CONCURRENT) as pool:
        running = [pool.submit(way.exec, number) for number in range(EXECS)]
        restarts = 0
        while not all(one.done() for one in running):
            run("systemctl", *command)
            restarts += 1
            time.sleep(RESTART_S)
        expected = [one.result() for one in running]
    wait_for(lambda: len(way.ends()) >= len(expected), "all records")
    found = way.ends()
    unknown = [end for end in found if end[1:] == (None, None)]
    print(f"{how} {restarts} times: no exit code of {len(unknown)} in {len(expected)} calls")
    # What was told to one that was killed is gone with it: of calls that were live then.
    assert len(unknown) <= (CONCURRENT * restarts if how == "killed" else 0)
    assert sorted(end[0] for end in found) == sorted(end[0] for end in expected)
    assert set(found) - set(unknown) <= set(expected)
