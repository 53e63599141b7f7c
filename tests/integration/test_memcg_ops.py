"""The memcg_bpf_ops object against a provider of each posted form: load, attach, drive, detach.

No released kernel has memcg_bpf_ops; tests/memcg_ops is a module of ours that provides it and calls it from
the real charge path. `tests/vm/vm module tests/memcg_ops` builds it on the host.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentrun.base.errors import BpfError
from agentrun.base.paths import host_paths
from agentrun.bpf import btf, memcg_ops, pins, syscall
from agentrun.bpf.types import MemcgPolicy

MODULES = Path(__file__).parents[1] / "memcg_ops/build"
DEBUG = Path("/sys/kernel/debug/memcg_bpf_ops")
ROOT = Path("/sys/fs/cgroup/memcg-ops-test")
TIER, SESSION, CALL = ROOT, ROOT / "session", ROOT / "session/call"
MIB = 1 << 20

pytestmark = pytest.mark.needs("bpf")

# Joins the call's cgroup, touches 24 MiB, and says how long that took.
TOUCH = """
import sys, time
open(sys.argv[1] + "/cgroup.procs", "w").write("0")
start = time.monotonic()
hold = [bytearray(b"x") * (1 << 20) for _ in range(24)]
print(time.monotonic() - start)
"""


@pytest.fixture(params=[6, 7])
def form(request) -> Iterator[int]:
    """A kernel with that form of memcg_bpf_ops, and the object loaded."""
    name = f"memcg_ops_v{request.param}"
    path = MODULES / f"{name}.ko"
    assert path.exists(), "tests/vm/vm module tests/memcg_ops builds it on the host"
    subprocess.run(["insmod", path], check=True)
    try:
        assert memcg_ops.load(host_paths())
        yield request.param
    finally:
        memcg_ops.unload(host_paths())
        remove_module(name)


def remove_module(name: str) -> None:
    """Unload a kernel module once the last program and link are freed, which the kernel does later."""
    deadline = time.monotonic() + 10
    while subprocess.run(["rmmod", name], check=False, stderr=subprocess.DEVNULL).returncode:
        assert time.monotonic() < deadline, f"{name} is still in use: {holders(name)}"
        time.sleep(0.1)


def holders(name: str) -> str:
    return Path(f"/sys/module/{name}/refcnt").read_text().strip() + " references"


@pytest.fixture
def cgroups() -> Iterator[None]:
    """TIER / SESSION / CALL with the memory controller."""
    for path in (TIER, SESSION, CALL):
        path.mkdir()
        (path.parent / "cgroup.subtree_control").write_text("+memory")
    yield
    for path in (CALL, SESSION, TIER):
        if path.exists():
            path.rmdir()


@pytest.fixture
def ops(form, cgroups) -> Iterator[memcg_ops.MemcgOps]:
    opened = memcg_ops.MemcgOps()
    yield opened
    opened.close()


def figure(name: str) -> int:
    return int((DEBUG / name).read_text())


def touch() -> float:
    done = subprocess.run(
        [sys.executable, "-c", TOUCH, str(CALL)], capture_output=True, text=True, check=True, timeout=120
    )
    return float(done.stdout)


def policy(*, soft: int, delay_ms: int, protect: int = 0, for_s: float = 60) -> MemcgPolicy:
    until = time.monotonic_ns() + int(for_s * 1e9)
    return MemcgPolicy(throttle_until_ns=until, soft_bytes=soft, protect_bytes=protect, delay_ms=delay_ms)


def test_kernel_without_it_is_told_from_its_types():
    assert memcg_ops.probe() is None
    with pytest.raises(BpfError, match="this kernel has no such struct_ops type"):
        memcg_ops.load(host_paths())


def test_types_of_the_kernel_and_of_its_modules_are_read():
    assert "memory" in (btf.struct_members("mem_cgroup") or [])
    assert btf.struct_members("no_such_struct_at_all") is None


def test_form_is_known_by_its_members(form):
    assert memcg_ops.probe() == form


def test_cgroup_is_named_as_the_form_does(form, ops):
    ops.attach(str(TIER), override=True)
    if form == 6:  # link_create.cgroup.relative_fd
        assert figure("last_relative_fd") > 0 and figure("last_target_fd") == 0 and figure("last_flags") == 1
    else:  # link_create.target_fd and BPF_F_CGROUP_FD
        assert figure("last_relative_fd") == 0 and figure("last_target_fd") > 0
        assert figure("last_flags") == 1 | 1 << 7


def test_attached_top_down_where_the_one_above_allows_it(ops):
    ops.attach(str(TIER), override=True)
    ops.attach(str(SESSION), override=False)
    with pytest.raises(BpfError, match="EBUSY|busy"):
        ops.attach(str(CALL), override=False)  # the session does not allow it
    ops.detach(str(SESSION))
    ops.attach(str(CALL), override=False)
    with pytest.raises(BpfError, match="EBUSY|busy"):
        ops.attach(str(SESSION), override=True)  # the call below has ops already
    with pytest.raises(BpfError, match="EBUSY|busy"):
        ops.attach(str(CALL), override=False)  # its own already


def test_detached_at_once(ops):
    for _ in range(50):
        ops.attach(str(TIER), override=False)
        ops.detach(str(TIER))
    ops.detach(str(TIER))  # not attached: no error


def test_charges_over_the_soft_limit_are_delayed_until_the_deadline(ops):
    ops.attach(str(TIER), override=True)
    free = touch()
    ops.set_policy(str(SESSION), policy(soft=8 * MIB, delay_ms=60))
    delayed = touch()
    found = ops.policy(str(SESSION))
    assert found is not None and found.charges > found.delays > 20
    assert figure("slept_ms") >= 60 * 20 and delayed > free + 60 * 20 / 1000
    ops.set_policy(str(SESSION), policy(soft=8 * MIB, delay_ms=60, for_s=-1))
    touch()
    found = ops.policy(str(SESSION))
    assert found is not None and found.charges > 0 and found.delays == 0  # its deadline has passed


def test_neighbour_and_what_is_under_its_soft_limit_run_free(ops):
    ops.attach(str(TIER), override=True)
    ops.set_policy(str(SESSION), policy(soft=1 << 40, delay_ms=500))
    touch()
    found = ops.policy(str(SESSION))
    assert found is not None and found.charges > 0 and found.delays == 0
    before = figure("charges")
    outside = ROOT.parent / "memcg-ops-neighbour"
    outside.mkdir()
    try:
        subprocess.run([sys.executable, "-c", TOUCH, str(outside)], check=True, capture_output=True)
    finally:
        outside.rmdir()
    assert figure("charges") == before  # not below an attached cgroup


def test_protection_is_answered_for_the_whole_subtree(ops):
    ops.attach(str(TIER), override=True)
    (DEBUG / "drive").write_text(f"below_low /{CALL.relative_to('/sys/fs/cgroup')}")
    assert figure("result") == 0
    ops.set_policy(str(TIER), policy(soft=0, delay_ms=0, protect=1 << 40))
    (DEBUG / "drive").write_text(f"below_low /{CALL.relative_to('/sys/fs/cgroup')}")
    assert figure("result") == 1


def test_cgroup_that_goes_leaves_no_entry(ops):
    ops.attach(str(TIER), override=True)
    ops.set_policy(str(CALL), policy(soft=0, delay_ms=0))
    key = os.stat(CALL).st_ino.to_bytes(8, "little")
    CALL.rmdir()
    opened = pins.open_map(f"{ops.directory}/map_{memcg_ops.POLICIES}", memcg_ops.POLICIES)
    deadline = time.monotonic() + 10  # offline comes from a work queue
    while opened.lookup(key) is not None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert opened.lookup(key) is None and figure("offlines") >= 1
    opened.close()


def test_detached_is_over_and_the_module_can_go(ops):
    ops.attach(str(TIER), override=True)
    ops.set_policy(str(SESSION), policy(soft=0, delay_ms=60))
    ops.detach(str(TIER))
    before = figure("charges")
    touch()
    assert figure("charges") == before


def test_attachment_survives_whoever_made_it(form, cgroups):
    script = (
        "from agentrun.bpf import memcg_ops\n"
        "from agentrun.bpf.types import MemcgPolicy\n"
        f"ops = memcg_ops.MemcgOps(); ops.attach({str(TIER)!r}, override=True)\n"
        f"ops.set_policy({str(SESSION)!r}, MemcgPolicy(soft_bytes=1 << 40))\n"
        "import os; os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], check=False)
    assert done.returncode == -9
    touch()
    opened = memcg_ops.MemcgOps()
    found = opened.policy(str(SESSION))
    assert found is not None and found.charges > 0
    links = [link for link in pins.links(opened.directory) if link.info.type == syscall.LINK_STRUCT_OPS]
    assert len(links) == 1 and links[0].alive
    opened.close()
