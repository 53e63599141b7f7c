"""agentrund and the BPF modules under their real units; then the main job on a kernel that has none of it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from engine import IMAGE, Engine
from runtimes import CGROUP, require, run, wait_for
from test_bpf import missing as bpf_missing
from watched import box, call, hog, raw_records
from watched import daemon as daemon

from agentrun.base.paths import Paths
from agentrun.bpf import modules, pins, ringbuf, types
from agentrun.daemon import status as daemonstatus

PATHS = Paths()
CASES = [("docker", "crun"), ("podman", "runc")]
CONFIG = Path("/etc/agentrun/config.toml")
OOMS = int(os.environ.get("AGENTRUN_OOMS", "5"))
SLICE = CGROUP / "agentruntest.slice"
CAP_SYS_ADMIN, CAP_PERFMON, CAP_BPF = 21, 38, 39
needs_bpf = pytest.mark.needs("bpf")


def said(part: str) -> dict[str, Any]:
    """What agentrund says of a part of it."""
    return (daemonstatus.read(PATHS) or {}).get(part) or {}


def found() -> dict[str, tuple[str, str]]:
    """Level and text of what doctor finds."""
    lines = run("agentrunctl", "doctor", "--json", check=False).stdout
    return {f["what"]: (f["level"], f["text"]) for f in json.loads(lines)}


@pytest.fixture(scope="module")
def events(daemon) -> Iterator[None]:
    """Events and net loaded by their unit, and read by agentrund."""
    require(bpf_missing())
    run("systemctl", "start", "agentrun-bpf")
    wait_for(lambda: said("events").get("is_read"), "agentrund to read events")
    yield
    run("systemctl", "stop", "agentrun-bpf")
    for module in modules.MODULES.values():
        modules.unload(PATHS, module)


@pytest.fixture(params=CASES, ids="-".join)
def engine(request) -> Iterator[Engine]:
    with box(*request.param, "--cgroup-parent", SLICE.name) as made:
        yield made


def main_pid() -> int:
    return int(run("systemctl", "show", "-P", "MainPID", "agentrund").stdout)


@needs_bpf
def test_reading_needs_no_capability_for_bpf(events):
    status = Path(f"/proc/{main_pid()}/status").read_text()
    bounding, effective = (int(status.split(f"{name}:")[1].split()[0], 16) for name in ("CapBnd", "CapEff"))
    for capability in (CAP_SYS_ADMIN, CAP_PERFMON, CAP_BPF):
        assert not (bounding | effective) >> capability & 1
    assert found()["agentrund: events"][0] == "ok"
    assert found()["agentrund: keeper"][0] == "ok"


@needs_bpf
def test_kill_names_its_victim_and_the_limit_at_every_level(events, engine):
    own = engine.cgroup("box")
    script = "x = bytearray(150 << 20)"
    _, record = call(engine, "python3", "-c", script, intent="memory=64m")
    assert (record["verdict"], record["level"]) == ("oom-killed", "call")
    assert record["oom"]["limit"] == record["cgroup"]
    assert record["oom"]["process"] == "python3" and 32 << 20 < record["oom"]["memory"] < 128 << 20

    # A child dies for the container's limit; the call itself ends well, and is judged by the kill.
    _, record = call(engine, "sh", "-c", "python3 -c 'x = bytearray(400 << 20)'; exit 0")
    assert (record["verdict"], record["level"]) == ("oom-killed", "session")
    assert record["oom"]["limit"] in (str(own), str(own.parent)), (record["oom"], str(own))

    (SLICE / "memory.max").write_text(str(150 << 20))
    try:
        _, record = call(engine, *hog(250))
    finally:
        (SLICE / "memory.max").write_text("max")
    assert (record["verdict"], record["level"]) == ("oom-killed", "above")
    assert record["oom"]["limit"] == str(SLICE)


@contextlib.contextmanager
def oom_hold(text: str, milliseconds: int) -> Iterator[None]:
    """The host's configuration says how long victims wait, and agentrund has told the kernel."""

    def told() -> int:
        with contextlib.closing(pins.open_map(f"{pins.SHARED}/ar_listener", "ar_listener")) as table:
            return int(types.Listener.from_buffer_copy(table.lookup(bytes(4)) or b"").hold_ms)

    assert not CONFIG.exists()
    CONFIG.parent.mkdir(exist_ok=True)
    CONFIG.write_text(f'version = 1\noom_hold = "{text}"\n')
    try:
        wait_for(lambda: told() == milliseconds, "agentrund to say how long")
        yield
    finally:
        CONFIG.unlink()


@needs_bpf
def test_text_for_an_oom_kill_is_there_before_the_call_ends(events, engine):
    """Also with conmon, which reads what is in the pipe when the first process has ended, and goes."""
    with oom_hold("1s", 1000):  # the emulated CPU is that slow
        for _ in range(OOMS):
            done, record = call(engine, *hog(200), intent="memory=64m")
            (note,) = record["feedback"]
            assert (done.returncode, note["event"], note["why"]) == (137, "oom-killed", None)
            assert note["text"] in done.stderr and "its own memory limit of 64M" in note["text"]
    with oom_hold("1s", 1000):
        done, record = call(engine, *hog(400))
        assert record["level"] == "session" and record["feedback"][0]["text"] in done.stderr


@needs_bpf
def test_victim_waits_only_so_long_for_an_agentrund_that_is_stopped(events, engine):
    pid = main_pid()
    with oom_hold("1s", 1000):
        os.kill(pid, signal.SIGSTOP)
        try:
            done = engine("exec", "-e", "AGENTRUN_INTENT=memory=64m", "box", *hog(200), check=False)
        finally:
            os.kill(pid, signal.SIGCONT)
    assert done.returncode == 137
    container = engine("inspect", "-f", "{{.Id}}", "box").stdout.strip()
    (record,) = wait_for(lambda: [r for r in raw_records() if r["container"] == container], "the record")
    assert record["verdict"] == "oom-killed"


@contextlib.contextmanager
def many_calls(count: int) -> Iterator[list[Path]]:
    """Cgroups by hand that are calls to the programs, and to nobody else."""
    top = CGROUP / "by-hand-flood"
    made = [top / f"agentrun-calls/call-{number}" for number in range(count)]
    for path in made:
        path.mkdir(parents=True)
    try:
        yield made
    finally:
        wait_for(lambda: "populated 0" in (top / "cgroup.events").read_text(), "the flood to end")
        for path in (*made, top / "agentrun-calls", top):
            path.rmdir()


def flood(paths: list[Path], forks: int) -> None:
    """More execs and exits than the buffer has room for, with at most 50 a second of each call told."""
    script = f'echo $$ >"$1/cgroup.procs"; i=0; while [ $i -lt {forks} ]; do (:); i=$((i+1)); done'
    for path in paths:
        subprocess.run(["sh", "-c", script, "sh", path], check=True)


@needs_bpf
def test_full_buffer_hides_no_kill_and_delays_no_record(events):
    engine = Engine("docker", "crun")
    engine.create("box", engine.wrapped, "-m", "300m", IMAGE, "sleep", "1000000")
    run("systemctl", "service-watchdogs", "no")  # it would have it killed after half a minute
    run("systemctl", "kill", "-s", "STOP", "--kill-whom=main", "agentrund")
    try:
        before = ringbuf.dropped()
        with many_calls(80) as paths:
            flood(paths, 60)
        dropped = ringbuf.dropped()
        assert dropped["exit"] > before["exit"]
        options = ("-e", "AGENTRUN_INTENT=memory=64m")
        assert engine("exec", *options, "box", *hog(150), check=False).returncode == 137
        assert ringbuf.dropped()["oom_victim"] == before["oom_victim"]
    finally:
        os.kill(main_pid(), signal.SIGCONT)
        run("systemctl", "service-watchdogs", "yes")
    container = engine("inspect", "-f", "{{.Id}}", "box").stdout.strip()

    kept = wait_for(lambda: [r for r in raw_records() if r["container"] == container], "the record")[0]
    assert (kept["verdict"], kept["level"], kept["oom"]["process"]) == ("oom-killed", "call", "python3")
    assert "exit" in found()["eBPF events dropped"][1]
    engine.rm("box")


@needs_bpf
def test_flood_starves_nobody(events):
    engine = Engine("docker", "crun")
    engine.create("box", engine.wrapped, "-m", "300m", IMAGE, "sleep", "1000000")
    code = (
        "import os, sys\n"
        "while True:\n"
        "    for path in sys.argv[1:]:\n"
        "        if (pid := os.fork()) == 0:\n"
        "            os.write(os.open(path + '/cgroup.procs', os.O_WRONLY), b'0'); os._exit(0)\n"
        "        os.waitpid(pid, 0)\n"
    )
    with many_calls(8) as paths:
        flooding = subprocess.Popen(["python3", "-c", code, *map(str, paths)])
        done, record = call(engine, "sh", "-c", "sleep 1000", intent="time=5s")
        assert flooding.poll() is None, "the flood goes on"
        flooding.kill()
        flooding.wait()
    assert (done.returncode, record["verdict"]) == (137, "timed-out")
    assert record["end"] - record["start"] < 11
    engine.rm("box")


@needs_bpf
def test_buffer_that_goes_and_comes_back_is_found_again(events):
    for module in modules.MODULES.values():
        modules.unload(PATHS, module)
    wait_for(lambda: said("events").get("is_read") is False, "agentrund to let go")
    assert found()["agentrund: events"][0] == "note"
    run("agentrunctl", "bpf", "load", "events")
    wait_for(lambda: said("events").get("is_read"), "agentrund to read again")
    engine = Engine("docker", "runc")
    engine.create("box", engine.wrapped, "-m", "300m", IMAGE, "sleep", "1000000")
    _, record = call(engine, *hog(150), intent="memory=64m")
    assert record["oom"]["level"] == "call"
    engine.rm("box")


@needs_bpf
def test_agentrund_reads_the_buffer_of_another_module_where_events_is_not_loaded(events):
    run("agentrunctl", "bpf", "load", "net")
    modules.unload(PATHS, modules.MODULES["events"])
    Path(daemonstatus.path_of(PATHS)).unlink()
    run("systemctl", "restart", "agentrund")
    try:
        wait_for(lambda: said("events").get("is_read"), "agentrund to read what net has made")
    finally:
        run("agentrunctl", "bpf", "load", "events")


# A kernel without any of it.


@pytest.fixture(scope="module")
def bare_kernel(daemon) -> Iterator[None]:
    """No BTF, no BPF file system, no sched_ext, as far as anybody can see: the fast guest has none anyway."""
    hidden = [path for path in ("/sys/kernel/btf", "/sys/kernel/sched_ext") if os.path.isdir(path)]
    had_bpffs = pins.is_mounted()
    if had_bpffs:
        for module in modules.MODULES.values():
            modules.unload(PATHS, module)
        run("umount", "-l", pins.BPFFS)
    for path in hidden:
        run("mount", "-t", "tmpfs", "-o", "ro,mode=755", "tmpfs", path)
    run("systemctl", "restart", "agentrund")
    yield
    for path in hidden:
        run("umount", path)
    if had_bpffs:
        run("mount", "-t", "bpf", "-o", "mode=700", "bpf", pins.BPFFS)


@pytest.mark.usefixtures("bare_kernel")
def test_doctor_says_what_is_missing_on_a_bare_kernel():
    wait_for(lambda: said("keeper").get("heard_s") is not None, "agentrund")
    shown = found()
    assert shown["kernel: BTF"] == ("note", "no eBPF enforcement")
    assert "the kernel has no BTF or no /sys/fs/bpf" in shown["eBPF"][1]
    assert shown["CPU scheduler"] == ("note", "no sched_ext: EEVDF shares by cpu.weight")
    assert shown["agentrund: events"] == ("note", "none are read: OOM kills are only counted")
    assert shown["agentrund"][0] == shown["agentrund: keeper"][0] == "ok"
    refused = run("agentrunctl", "bpf", "load", check=False)
    assert refused.returncode == 1 and "no BPF file system at /sys/fs/bpf" in refused.stderr
    at_boot = run("agentrunctl", "bpf", "load", "--at-boot", check=False)
    assert at_boot.returncode == 0 and "no BPF file system" in at_boot.stderr
    assert run("agentrunctl", "bpf", "load", "--at-boot", "scx", check=False).returncode == 1


@pytest.mark.usefixtures("bare_kernel")
def test_main_job_is_done_on_a_bare_kernel(engine):
    intent = "memory=64m,cpu=0.5,pids=99,net=none"
    files = "memory.max memory.oom.group pids.max cpu.max"
    waiting = subprocess.Popen(
        [engine.name, "exec", "-e", f"AGENTRUN_INTENT={intent}", "box", "sleep", "1000"],
        stdin=subprocess.DEVNULL,
    )
    calls = engine.cgroup("box") / "agentrun-calls"
    slot = wait_for(lambda: next(calls.glob("call-*"), None), "the call's cgroup")
    limits = wait_for(
        lambda: (
            (slot / "cgroup.procs").read_text() and [(slot / n).read_text().strip() for n in files.split()]
        ),
        "the call's process",
    )
    assert limits == [str(64 << 20), "1", "99", "50000 100000"]
    done, killed = call(engine, *hog(150), intent="memory=64m")
    assert done.returncode == 137
    assert (killed["verdict"], killed["level"], killed["oom"]) == ("oom-killed", "call", None)
    assert waiting.poll() is None and (slot / "cgroup.procs").read_text(), "the neighbour lives"
    done, record = call(engine, "sh", "-c", "cat /proc/self/cgroup; exit 7", intent=intent)
    assert done.stdout.startswith("0::/agentrun-calls/call-") and done.returncode == 7
    assert (record["verdict"], record["exit_code"]) == ("failed", 7)
    assert record["not_enforced"] == ["network"] and record["network"] is None
    done, slow = call(engine, "sleep", "1000", intent="time=5s")
    assert (done.returncode, slow["verdict"]) == (137, "timed-out")
    (slot / "cgroup.kill").write_text("1")
    waiting.wait(timeout=60)
