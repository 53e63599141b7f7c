"""BPF modules and network profiles on a real kernel: in cgroups made by hand, and through runc."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import itertools
import json
import os
import platform
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from runtimes import PATH, Bundle, records, require, run, started, wait_for

from agentrun.base.errors import BpfError
from agentrun.base.paths import Paths
from agentrun.bpf import modules, pins, ringbuf, syscall, types
from agentrun.policy.netprofile import BUILTIN, compile_profile

PROBE = Path(__file__).with_name("netprobe.py")
BUDGET = Path(__file__).parents[2] / "bpf/budget.json"
CYCLES = int(os.environ.get("AGENTRUN_BPF_CYCLES", "5"))
_PATHS = Paths(cgroup_root=os.environ.get("AGENTRUN_CGROUP_ROOT", "/sys/fs/cgroup"))
Profile = dict[str, Any]
_numbers = itertools.count()

pytestmark = pytest.mark.needs("bpf")


def missing() -> str | None:
    """Why BPF cannot be tested here."""
    if os.geteuid() != 0 or not pins.is_mounted():
        return "needs root and a BPF file system"
    absent = [name for name in modules.MODULES if modules.object_path(name) is None]
    return f"not built: {', '.join(absent)} (make bpf)" if absent else None


@pytest.fixture(autouse=True, scope="module")
def loaded():
    """Events and net in force; nothing of ours is left behind."""
    require(missing())
    for name in ("events", "net"):
        modules.load(_PATHS, modules.MODULES[name])
    yield
    for module in modules.MODULES.values():
        modules.unload(_PATHS, module)
    assert os.listdir(pins.ROOT) == []


class Call:
    """A call's cgroup by hand, `<top>/agentrun-calls/call-N`."""

    def __init__(self, cgroup: Path) -> None:
        self.cgroup = cgroup

    @property
    def id(self) -> int:
        return self.cgroup.stat().st_ino

    def profile(self, network: Profile | None) -> None:
        program = None if network is None else compile_profile(network)
        if program is not None:
            os.setxattr(self.cgroup, types.NET_XATTR, program)

    def probe(self, *probes: str, mode: str = "plain", cgroup: Path | None = None) -> dict[str, str]:
        where = str(cgroup or self.cgroup)
        return json.loads(run(sys.executable, "-I", "-S", PROBE, where, mode, *probes).stdout)

    def counts(self) -> types.NetCount:
        directory = f"{pins.ROOT}/net/{modules.status(modules.MODULES['net']).loaded}"
        opened = pins.open_map(f"{directory}/map_ar_net_counts", "ar_net_counts")
        try:
            data = opened.lookup(self.id.to_bytes(8, sys.byteorder))
        finally:
            opened.close()
        return types.NetCount.from_buffer_copy(data or bytes(ctypes.sizeof(types.NetCount)))


@contextlib.contextmanager
def made_call(network: Profile | None = None) -> Iterator[Call]:
    top = Path(_PATHS.cgroup_root) / f"by-hand-bpf-{next(_numbers)}"
    call = Call(top / "agentrun-calls/call-0")
    call.cgroup.mkdir(parents=True)
    try:
        call.profile(network)
        yield call
    finally:
        for folder in sorted(top.rglob("*"), reverse=True):
            if folder.is_dir():
                folder.rmdir()
        top.rmdir()


def allow(*entries: list[Any]) -> Profile:
    return {"default": "deny", "allow": list(entries)}


LOCAL, METADATA, OUTSIDE = "127.0.0.1:9", "169.254.169.254:80", "192.0.2.1:443"
V6 = "2001:db8::1:443"


# Network profiles: every denial has a control that is let through.


@pytest.mark.parametrize(
    "probe",
    ["tcp:192.0.2.1:443", "udp:192.0.2.1:443", "send:192.0.2.1:443", "tcp:2001:db8::1:443",
     "udp:2001:db8::1:443", "send:2001:db8::1:443", "tcp:::ffff:192.0.2.1:443",
     "send:::ffff:192.0.2.1:443", "tcp:127.0.0.1:9", "tcp:0.0.0.0:9", "tcp:::1:9", "send:192.0.2.53:53"],
)  # fmt: skip
def test_none_denies_every_destination_and_only_in_its_call(probe):
    with made_call(BUILTIN["none"]) as denied, made_call() as free:
        assert denied.probe(probe) == {probe: "EPERM"}
        assert free.probe(probe) == {probe: "ok"}
        assert denied.probe(probe, cgroup=Path(_PATHS.cgroup_root)) == {probe: "ok"}
        assert denied.counts().denied == 1 and free.counts().denied == 0


def test_loopback_is_all_of_this_host_and_nothing_else():
    with made_call(BUILTIN["loopback"]) as call:
        inside = [
            "tcp:127.0.0.1:9",
            "tcp:127.8.9.10:9",
            "tcp:::1:9",
            "tcp:0.0.0.0:9",
            "tcp:::ffff:127.0.0.1:9",
        ]
        assert set(call.probe(*inside).values()) == {"ok"}
        assert set(call.probe("tcp:192.0.2.1:443", "tcp:2001:db8::1:443").values()) == {"EPERM"}


def test_allowlist_lets_out_to_its_prefixes_and_ports():
    rules = allow(["192.0.2.0/28", None], ["198.51.100.7", 443], ["2001:db8::/32", 443], ["dns", None])
    with made_call(rules) as call:
        let_out = ["tcp:192.0.2.15:22", "tcp:198.51.100.7:443", "tcp:2001:db8::5:443", "send:203.0.113.1:53"]
        kept_in = ["tcp:192.0.2.16:22", "tcp:198.51.100.7:80", "tcp:2001:db9::5:443", "send:203.0.113.1:54"]
        assert set(call.probe(*let_out).values()) == {"ok"}
        assert set(call.probe(*kept_in).values()) == {"EPERM"}


def test_longest_prefix_decides_and_mapped_addresses_follow_the_ipv4_rules():
    rules = {"default": "allow", "deny": [["169.254.169.254", None], ["10.0.0.0/8", None]],
             "allow": [["10.1.0.0/16", 443], ["*", 80]]}  # fmt: skip
    with made_call(rules) as call:
        denied = [f"tcp:{METADATA}", "tcp:::ffff:169.254.169.254:80", "tcp:10.1.2.3:80", "tcp:10.2.0.1:443"]
        assert set(call.probe(*denied).values()) == {"EPERM"}
        assert set(call.probe("tcp:10.1.2.3:443", f"tcp:{OUTSIDE}").values()) == {"ok"}


def test_raw_packet_and_mptcp_sockets_are_refused_under_a_profile():
    if modules.status(modules.MODULES["net"]).lost:
        require("this kernel takes no fmod_ret at security_socket_create")
    with made_call(BUILTIN["loopback"]) as call, made_call() as free:
        probes = ("raw:127.0.0.1:0", "packet:127.0.0.1:0", "mptcp:127.0.0.1:0")
        assert set(call.probe(*probes).values()) == {"EPERM"}
        assert call.probe("unix:127.0.0.1:0") == {"unix:127.0.0.1:0": "ok"}
        assert "EPERM" not in free.probe(*probes).values()


def test_children_new_sessions_and_nested_cgroups_stay_under_the_profile():
    with made_call(BUILTIN["none"]) as call:
        assert call.probe(f"tcp:{OUTSIDE}", mode="setsid") == {f"tcp:{OUTSIDE}": "EPERM"}
        nested = call.cgroup / "a/b"
        nested.mkdir(parents=True)
        assert call.probe(f"tcp:{OUTSIDE}", cgroup=nested) == {f"tcp:{OUTSIDE}": "EPERM"}


def test_nesting_cgroups_deeper_than_we_look_hides_nobody():
    with made_call() as call:
        nested = call.cgroup.joinpath(*(["n"] * 60))
        nested.mkdir(parents=True)
        assert call.probe(f"tcp:{OUTSIDE}", cgroup=nested) == {f"tcp:{OUTSIDE}": "EPERM"}
        allowed = call.cgroup.joinpath(*(["n"] * 20))
        assert call.probe(f"tcp:{OUTSIDE}", cgroup=allowed) == {f"tcp:{OUTSIDE}": "ok"}


def test_a_damaged_profile_denies():
    with made_call() as call:
        os.setxattr(call.cgroup, types.NET_XATTR, b"\xff")
        assert call.probe(f"tcp:{LOCAL}") == {f"tcp:{LOCAL}": "EPERM"}


def test_a_full_profile_is_read_to_its_last_rule():
    rules = allow(*([f"10.0.{n}.0/24", None] for n in range(127)), ["192.0.2.0/30", 443])
    with made_call(rules) as call:
        assert set(call.probe(f"tcp:{OUTSIDE}", "tcp:10.0.126.9:1").values()) == {"ok"}
        assert call.probe("tcp:192.0.2.4:443") == {"tcp:192.0.2.4:443": "EPERM"}


def test_bytes_of_a_call_are_counted():
    with made_call(BUILTIN["loopback"]) as call, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        call.probe(f"udp:127.0.0.1:{server.getsockname()[1]}")
        assert server.recv(200) == b"x" * 100
        assert call.counts().tx_bytes == 128  # with the IP and UDP heads


def test_denials_are_told_once_and_then_counted():
    with made_call(BUILTIN["none"]) as call, contextlib.closing(ringbuf.open_ring()) as ring:
        ring.read()
        for _ in range(3):
            call.probe(*([f"tcp:{OUTSIDE}"]), *(f"tcp:192.0.2.1:{port}" for port in range(1, 20)))
        told = [e for e in ring.read() if e.call == call.id and e.kind == types.Kind.DENIED]
        assert call.counts().denied == 60
        assert 1 <= len(told) <= 10
        assert (told[0].address, told[0].port) == ("192.0.2.1", 443)


def test_without_privileges_nobody_takes_a_profile_or_a_program_off():
    loaded = modules.loaded_version(modules.MODULES["net"])
    link = pins.links(f"{pins.ROOT}/net/{loaded}")[0]
    code = (
        f"import os, sys; sys.path.insert(0, {str(Path(modules.__file__).parents[2])!r})\n"
        "from agentrun.bpf import syscall; from agentrun.base.errors import BpfError\n"
        "cgroup, link = sys.argv[1:]; os.setgroups([])\n"
        "os.setresgid(*[65534] * 3); os.setresuid(*[65534] * 3)\n"
        f"for change in (lambda: os.removexattr(cgroup, {types.NET_XATTR!r}),\n"
        f"               lambda: os.setxattr(cgroup, {types.NET_XATTR!r}, b''),\n"
        "               lambda: syscall.link_by_id(int(link)), lambda: os.listdir('/sys/fs/bpf/agentrun')):\n"
        "    try: change()\n"
        "    except (PermissionError, BpfError) as error: print(type(error.__cause__ or error).__name__)\n"
    )
    with made_call(BUILTIN["none"]) as call:
        done = run(sys.executable, "-c", code, call.cgroup, str(link.info.id))
        assert done.stdout.split() == ["PermissionError"] * 4
        assert call.probe(f"tcp:{OUTSIDE}") == {f"tcp:{OUTSIDE}": "EPERM"}


# Events.


def test_events_tell_of_exec_exit_and_the_end_of_a_call():
    with made_call() as call, contextlib.closing(ringbuf.open_ring()) as ring:
        ring.read()
        script = f"echo $$ > {call.cgroup}/cgroup.procs; exec sh -c 'true; exit 3'"
        run("sh", "-c", script, check=False)
        # The end wakes a reader also when execs and exits before it, which do not, were left unread.
        assert select.select([ring], [], [], 10)[0]
        time.sleep(0.2)
        told = [e for e in ring.read() if e.call == call.id]
        kinds = [e.kind for e in told]
        assert kinds[:2] == [types.Kind.POPULATED, types.Kind.ATTACH] or kinds[:2] == [
            types.Kind.ATTACH, types.Kind.POPULATED]  # fmt: skip
        ends = [e for e in told if e.kind == types.Kind.EXIT]
        assert any(e.value == 3 << 8 and e.comm == "sh" for e in ends)
        assert told[-1].kind == types.Kind.POPULATED and told[-1].value == 0


def test_a_full_ring_buffer_counts_drops_and_blocks_nobody():
    before = ringbuf.dropped()
    with made_call() as call:
        script = f"echo $$ > {call.cgroup}/cgroup.procs; for i in $(seq 400); do (exit 0); done"
        run("sh", "-c", script)
    assert ringbuf.dropped()["exit"] > before["exit"]


# Loading.


def test_programs_cost_the_verifier_what_the_budget_says():
    budget = json.loads(BUDGET.read_text())
    for name in ("events", "net"):
        status = modules.status(modules.MODULES[name])
        for program in status.programs:
            insns = program.info.verified_insns
            assert insns <= budget[name][program.name], f"{name}/{program.name}: {insns}"


def in_kernel() -> dict[str, int]:
    """How many programs, maps and links there are in the whole kernel, by walking their ids.

    The kernel frees what was unpinned a moment later (RCU, a workqueue).
    """
    libc = ctypes.CDLL(None, use_errno=True)
    found = {}
    for name, command in (("programs", 11), ("maps", 12), ("links", 31)):  # BPF_*_GET_NEXT_ID
        attributes = (ctypes.c_uint32 * 3)()
        found[name] = 0
        while libc.syscall(syscall._NUMBERS[platform.machine()], command, attributes, 12) == 0:
            attributes[0] = attributes[1]
            found[name] += 1
        assert ctypes.get_errno() == errno.ENOENT
    return found


def test_loading_again_changes_nothing_and_cycles_leave_nothing():
    both = [modules.MODULES["events"], modules.MODULES["net"]]
    assert [modules.load(_PATHS, module) for module in both] == [False, False]
    pinned = sorted(str(path) for path in Path(pins.ROOT).rglob("*"))
    time.sleep(2)
    before, descriptors = in_kernel(), len(os.listdir("/proc/self/fd"))
    for _ in range(CYCLES):
        for module in both:
            assert modules.unload(_PATHS, module)
        assert not os.path.exists(pins.SHARED)
        for module in both:
            assert modules.load(_PATHS, module)
    assert all(modules.status(module).in_force for module in both)
    assert sorted(str(path) for path in Path(pins.ROOT).rglob("*")) == pinned
    assert len(os.listdir("/proc/self/fd")) <= descriptors
    wait_for(lambda: all(count <= before[kind] for kind, count in in_kernel().items()), f"{before} again")


def test_a_link_that_was_detached_is_seen_and_mended():
    module = modules.MODULES["net"]
    fd = syscall.obj_get(f"{module.directory}/{modules.loaded_version(module)}/link_net_connect4")
    syscall.link_detach(fd)
    os.close(fd)
    status = modules.status(module)
    assert status.dead == ["net_connect4"] and not status.in_force
    with made_call(BUILTIN["none"]) as call:
        assert call.probe(f"tcp:{OUTSIDE}") == {f"tcp:{OUTSIDE}": "ok"}
        assert modules.load(_PATHS, module) is True
        assert modules.status(module).in_force
        assert call.probe(f"tcp:{OUTSIDE}") == {f"tcp:{OUTSIDE}": "EPERM"}


def test_an_upgrade_replaces_the_version_without_a_gap(tmp_path, monkeypatch):
    module = modules.MODULES["net"]
    old = modules.status(module)
    assert old.file is not None
    newer = tmp_path / "net.bpf.o"
    newer.write_bytes(Path(old.file).read_bytes() + b"\0")
    with made_call(BUILTIN["none"]) as call:
        monkeypatch.setattr(modules, "object_path", lambda _: str(newer))
        assert modules.load(_PATHS, module) is True
        status = modules.status(module)
        assert status.loaded != old.loaded and os.listdir(module.directory) == [status.loaded]
        assert call.probe(f"tcp:{OUTSIDE}") == {f"tcp:{OUTSIDE}": "EPERM"}
    monkeypatch.undo()
    modules.load(_PATHS, module)


def test_a_loader_that_is_killed_leaves_nothing_that_counts():
    module = modules.MODULES["net"]
    modules.unload(_PATHS, module)
    code = (
        f"import sys; sys.path.insert(0, {str(Path(modules.__file__).parents[2])!r})\n"
        "from agentrun.bpf import modules; from agentrun.base.paths import Paths; import os, signal\n"
        "modules.os.rename = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"modules.load(Paths(cgroup_root={_PATHS.cgroup_root!r}), modules.MODULES['net'])\n"
    )
    died = subprocess.run([sys.executable, "-c", code], check=False)
    assert died.returncode == -signal.SIGKILL
    assert modules.status(module).loaded is None
    assert modules.load(_PATHS, module) is True
    assert len(os.listdir(module.directory)) == 1


def test_pins_that_somebody_else_could_have_made_are_refused():
    os.chmod(pins.ROOT, 0o755)
    try:
        with pytest.raises(BpfError, match="not a directory of root's alone"):
            ringbuf.open_ring()
        modules.unload(_PATHS, modules.MODULES["events"])
        with pytest.raises(BpfError, match="not a directory of root's alone"):
            modules.load(_PATHS, modules.MODULES["events"])
    finally:
        os.chmod(pins.ROOT, 0o700)
    modules.load(_PATHS, modules.MODULES["events"])


def test_a_map_of_another_name_under_our_pin_is_refused():
    os.rename(f"{pins.SHARED}/ar_ring", f"{pins.SHARED}/kept")
    os.link(f"{pins.SHARED}/ar_dropped", f"{pins.SHARED}/ar_ring")
    try:
        with pytest.raises(BpfError, match="it is map 'ar_dropped'"):
            ringbuf.open_ring()
    finally:
        os.unlink(f"{pins.SHARED}/ar_ring")
        os.rename(f"{pins.SHARED}/kept", f"{pins.SHARED}/ar_ring")


# What people type.


def test_status_load_and_unload_say_what_is_there():
    shown = json.loads(run("agentrunctl", "bpf", "status", "--json").stdout)
    assert {m["module"] for m in shown["modules"] if m["in_force"]} == {"events", "net"}
    assert run("agentrunctl", "bpf", "unload", "net").stdout == "net: unloaded\n"
    assert run("agentrunctl", "bpf", "load", "net").stdout.startswith("net: loaded\n")
    unknown = run("agentrunctl", "bpf", "load", "nets", check=False)
    assert unknown.returncode == 1
    assert unknown.stderr.startswith("agentrunctl: no module 'nets', known: events, net")


def test_doctor_proves_every_limit_and_leaves_nothing():
    findings = json.loads(run("agentrunctl", "doctor", "--probe", "--json", check=False).stdout)
    probes = {f["what"]: (f["level"], f["text"]) for f in findings if f["what"].startswith("probe")}
    assert {what: level for what, (level, _) in probes.items()} == dict.fromkeys(
        ("probe: memory", "probe: CPU", "probe: kill", "probe: network"), "ok"
    ), probes
    assert not list(Path(_PATHS.cgroup_root).rglob("agentrun-probe-*"))


# Through a runtime.


@pytest.mark.parametrize("runtime", ["runc", "crun"])
def test_a_call_through_agentrun_gets_the_network_of_its_intent(runtime, tmp_path):
    bundle = Bundle(tmp_path, f"agentrun-{runtime}", f"net-{runtime}")
    with started(bundle):
        script = "nc -w 1 127.0.0.1 9 </dev/null; wget -q -T 1 -O - http://127.0.0.1:9/"
        free = bundle.exec("sh", "-c", script, check=False)
        kept = bundle.exec(
            "sh", "-c", script, options=("-e", "AGENTRUN_INTENT=net=none", "-e", f"PATH={PATH}"), check=False
        )
        assert "not permitted" not in free.stderr.lower()
        assert "operation not permitted" in kept.stderr.lower()
    last = records(bundle.id)[-1]
    assert last["limits"]["net"] == "none" and "network" not in last["not_enforced"]


def test_a_profile_that_cannot_be_enforced_is_named_in_the_record(tmp_path):
    modules.unload(_PATHS, modules.MODULES["net"])
    try:
        bundle = Bundle(tmp_path, "agentrun-runc", "net-absent")
        with started(bundle):
            bundle.exec("true", options=("-e", "AGENTRUN_INTENT=net=none", "-e", f"PATH={PATH}"))
        assert "network" in records(bundle.id)[-1]["not_enforced"]
    finally:
        modules.load(_PATHS, modules.MODULES["net"])
