"""Calls read in one system call: the BPF program's numbers against the files', on a real kernel."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from inside import TAKE, begin, remove
from runtimes import CGROUP, LOG, require, run

from agentrun.base.errors import BpfError
from agentrun.base.paths import Paths
from agentrun.bpf import modules, pins, snapshot, syscall, types
from agentrun.daemon.controller.snapshot import Member

PATHS = Paths()
BUDGET = Path(__file__).parents[2] / "bpf/budget.json"
TOP = CGROUP / "agentrun-snapshot"
MIB = 1 << 20
STARTED: list[subprocess.Popen[str]] = []

pytestmark = pytest.mark.needs("bpf")


@pytest.fixture(autouse=True)
def loaded(host) -> Iterator[None]:
    """The module in force, and a cgroup to try it in."""
    missing = None if modules.object_path("snapshot") else "the BPF objects are not built (make bpf)"
    require(missing)
    modules.load(PATHS, snapshot.MODULE)
    TOP.mkdir()
    (TOP / "cgroup.subtree_control").write_text("+memory")
    yield
    remove(TOP, STARTED)
    STARTED.clear()
    modules.unload(PATHS, snapshot.MODULE)


@pytest.fixture
def snapshots() -> Iterator[snapshot.Snapshots]:
    made = snapshot.Snapshots()
    yield made
    made.close()


def made(name: str, mebibytes: int = 0, high: str = "") -> Path:
    """A cgroup, in which a process has so much where that is more than nothing."""
    path = TOP / name
    path.mkdir()
    if high:
        (path / "memory.high").write_text(high)
    if mebibytes:
        STARTED.append(begin(TAKE, path, str(mebibytes)))
    return path


def test_answers_are_what_the_files_say(snapshots):
    calls = [made("empty"), made("small", 5), made("slowed", 24, high="16M"), made("large", 40)]
    time.sleep(0.3)
    ids = [path.stat().st_ino for path in calls]
    for path, seen in zip(calls, snapshots.read(ids) or (), strict=True):
        files = Member(str(path), {"id": path.name}, (100, 100)).look()
        assert (seen.is_populated, seen.high) == (files.is_populated, files.high), path
        assert abs(seen.usage - int((path / "memory.current").read_text())) <= MIB, path
    assert [seen.is_populated for seen in snapshots.read(ids) or ()] == [False, True, True, True]
    slowed = (snapshots.read(ids) or [])[2]
    assert slowed.high > 0
    # In another order, and one that is no more.
    (TOP / "empty").rmdir()
    again = snapshots.read(ids[::-1]) or []
    assert again[0].usage > 40 * MIB and again[3] == snapshot.Seen(0, 0, False)


def test_process_in_a_nested_cgroup_lives_too(snapshots):
    path = made("call")
    made("call/inner", 4)
    (seen,) = snapshots.read([path.stat().st_ino]) or [None]
    assert seen is not None
    assert seen.is_populated and seen.usage > 4 * MIB


def test_more_than_there_is_room_for_is_not_answered(snapshots):
    assert snapshots.read(range(types.SNAPSHOT_CALLS + 1)) is None
    assert len(snapshots.read(range(1, types.SNAPSHOT_CALLS + 1)) or ()) == types.SNAPSHOT_CALLS


def test_it_costs_the_verifier_and_the_kernel_little(snapshots):
    (program,) = pins.programs(f"{snapshot.MODULE.directory}/{modules.loaded_version(snapshot.MODULE)}")
    assert program.info.verified_insns <= json.loads(BUDGET.read_text())["snapshot"]["read_calls"]
    calls = [made(f"call-{number}") for number in range(100)]
    members = [Member(str(path), {"id": path.name}, (100, 100)) for path in calls]
    ids = [path.stat().st_ino for path in calls]

    def quickest(action) -> float:
        times = []
        for _ in range(9):
            began = time.perf_counter()
            action()
            times.append(time.perf_counter() - began)
        return min(times)

    at_once = quickest(lambda: snapshots.read(ids))
    files = quickest(lambda: [member.look() for member in members])
    for member in members:
        member.files.close()
    print(f"100 calls: at once {at_once * 1e3:.2f} ms, their files {files * 1e3:.2f} ms")
    assert at_once < files / 3


def test_what_is_not_ours_is_not_opened(tmp_path):
    directory = f"{snapshot.MODULE.directory}/{modules.loaded_version(snapshot.MODULE)}"
    with pytest.raises(BpfError, match="not program 'other'"):
        pins.open_program(f"{directory}/prog_read_calls", "other")
    with pytest.raises(BpfError, match="not program"):
        pins.open_program(f"{directory}/map_ar_seen", "ar_seen")
    os.chmod(f"{directory}/prog_read_calls", 0o666)
    with pytest.raises(BpfError, match="not root's alone"):
        snapshot.Snapshots()


def test_agentrund_reads_with_it(host):
    """With the capabilities that its unit leaves it."""
    run("systemctl", "restart", "agentrund")
    pid = int(run("systemctl", "show", "-p", "MainPID", "--value", "agentrund").stdout)
    links = [os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()]
    assert "anon_inode:bpf-prog" in links, links
    version = modules.loaded_version(snapshot.MODULE)
    program = syscall.obj_get(f"{snapshot.MODULE.directory}/{version}/prog_read_calls")
    try:
        number = syscall.program_info(program).id
    finally:
        os.close(program)
    infos = [path.read_text() for path in Path(f"/proc/{pid}/fdinfo").iterdir()]
    assert any(f"prog_id:\t{number}\n" in info for info in infos)
    run("systemctl", "stop", "agentrund")
    assert not LOG.exists(), LOG.read_text()
