"""What goes wrong around a call: broken state, races, killed runtimes, unusual descriptors."""

from __future__ import annotations

import array
import concurrent.futures
import contextlib
import functools
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest
from runtimes import CGROUP, LOG, PATH, SESSIONS, Bundle, leftovers, records, run, started, wait_for

LIB = Path("/usr/libexec/agentrun")
CONFIG = Path("/etc/agentrun/config.toml")
IN_CALL = "0::/agentrun-calls/call-"


@pytest.fixture(params=["runc", "crun"])
def box(request, tmp_path):
    """A started container of each backend, for one test."""
    with started(Bundle(tmp_path / "bundle", f"agentrun-{request.param}", f"e-{tmp_path.name[:30]}")) as made:
        yield made


def bare(box):
    return box.runtime[0].removeprefix("agentrun-")


@contextlib.contextmanager
def expected_log(*words):
    """Our log says the words in the meantime, and is gone afterwards."""
    LOG.unlink(missing_ok=True)
    yield
    text = LOG.read_text() if LOG.exists() else ""
    assert all(word in text for word in words), text
    LOG.unlink(missing_ok=True)


def life_of(folder, runtime):
    """Create, start, exec, kill and delete one container; returns what the call printed."""
    bundle = Bundle(folder / "bundle", runtime, f"life-{folder.name[:30]}")
    bundle.write(["sleep", "1000000"])
    try:
        bundle.start()
        printed = bundle.exec("cat", "/proc/self/cgroup").stdout
        bundle("kill", bundle.id, "KILL")
        wait_for(lambda: '"stopped"' in bundle("state", bundle.id).stdout, "the container to stop")
        bundle("delete", bundle.id)
        return printed
    finally:
        bundle("delete", "--force", bundle.id, check=False)


def test_console_socket(box, tmp_path):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "console"))
        server.listen(1)
        options = ("--tty", "--detach", "--console-socket", tmp_path / "console")
        box.detached("exec", *options, box.id, "sh", "-c", "tty; cat /proc/self/cgroup; sleep 1")
        connection, _ = server.accept()
        with connection:
            _, ancillary, _, _ = connection.recvmsg(4096, socket.CMSG_SPACE(4))
    descriptor = array.array("i", ancillary[0][2])[0]
    text = b""
    with open(descriptor, "rb", buffering=0) as terminal:
        while b"call-" not in text:
            text += terminal.read(4096)
    assert b"/dev/pts/" in text and IN_CALL.encode() in text


def test_preserved_descriptors(box, tmp_path):
    (tmp_path / "data").write_text("through descriptor 3\n")
    shell = 'exec "$0" exec --preserve-fds 1 "$1" sh -c "cat <&3" 3<"$2"'
    done = run("sh", "-c", shell, box.runtime[0], box.id, tmp_path / "data")
    assert done.stdout == "through descriptor 3\n"


def test_socket_activation_is_that_of_the_bare_backend(box, tmp_path):
    (tmp_path / "data").write_text("listening\n")
    shell = 'LISTEN_FDS=1 LISTEN_PID=$$ exec "$0" exec "$1" sh -c "echo \\$LISTEN_FDS; cat <&3" 3<"$2"'
    seen = []
    for runtime in (bare(box), box.runtime[0]):
        done = run("sh", "-c", shell, runtime, box.id, tmp_path / "data", check=False)
        seen.append((done.returncode, done.stdout))
    assert seen[0] == seen[1]


def test_relative_paths(tmp_path):
    bundle = Bundle(tmp_path / "bundle", "agentrun-runc", "relative")
    bundle.write(["sleep", "1000000"])
    try:
        null = subprocess.DEVNULL
        create = ["agentrun-runc", "create", "--bundle", ".", "--pid-file", "init.pid", bundle.id]
        subprocess.run(create, cwd=bundle.folder, check=True, stdin=null, stdout=null, stderr=null)
        run("agentrun-runc", "start", bundle.id, cwd=bundle.folder)
        call = ["agentrun-runc", "exec", "--detach", "--pid-file", "call.pid", bundle.id, "sleep", "1000"]
        subprocess.run(call, cwd=bundle.folder, check=True, stdin=null, stdout=null, stderr=null)
        pid = (bundle.folder / "call.pid").read_text()
        assert "agentrun-calls/call-" in Path(f"/proc/{pid}/cgroup").read_text()
    finally:
        bundle("delete", "--force", bundle.id, check=False)


def test_empty_environment(box):
    done = run("/usr/bin/env", "-i", f"/usr/bin/{box.runtime[0]}", "exec", box.id, "cat", "/proc/self/cgroup")
    assert done.stdout.startswith(IN_CALL)


@pytest.mark.parametrize("options", ["ro", "size=4k"])
def test_state_directory_read_only_or_full(tmp_path, options):
    """/run/agentrun cannot be written: the container lives its whole life, without limits."""
    SESSIONS.parent.mkdir(exist_ok=True)
    run("mount", "-t", "tmpfs", "-o", f"{options},mode=700", "tmpfs", SESSIONS.parent)
    try:
        if options != "ro":
            with contextlib.suppress(OSError):  # full is what we want
                (SESSIONS.parent / "filler").write_bytes(bytes(1 << 20))
        with expected_log("handed off without taking part"):
            assert life_of(tmp_path, "agentrun-crun") == "0::/agentrun-agent\n"
    finally:
        run("umount", SESSIONS.parent)


def test_hot_path_removed(tmp_path):
    shutil.move(LIB / "oci.py", LIB / "oci.py.away")
    try:
        with expected_log("Python is not usable"):
            assert life_of(tmp_path, "agentrun-runc") == "0::/\n"
    finally:
        shutil.move(LIB / "oci.py.away", LIB / "oci.py")
        (SESSIONS.parent / "bypassed").unlink(missing_ok=True)


def test_configuration_broken_while_running(box):
    kept = CONFIG.read_bytes() if CONFIG.exists() else None
    CONFIG.parent.mkdir(exist_ok=True)
    try:
        with expected_log("configuration refused"):
            CONFIG.write_text("version = 1\nmode = [\n")
            assert box.exec("cat", "/proc/self/cgroup").stdout.startswith(IN_CALL)
    finally:
        CONFIG.unlink() if kept is None else CONFIG.write_bytes(kept)
    box.exec("true")


def test_container_that_owns_its_cgroup_files_cannot_take_a_calls_place(tmp_path):
    def writable_cgroup(spec):
        for mount in spec["mounts"]:
            if mount["type"] == "cgroup":
                mount["options"].remove("ro")

    bundle = Bundle(tmp_path / "bundle", "agentrun-crun", "own-cgroupfs")
    bundle.write(["sh", "-c", "mkdir /sys/fs/cgroup/agentrun-calls/call-0; sleep 1000000"], writable_cgroup)
    try:
        bundle.start()
        planted = bundle.cgroup() / "agentrun-calls/call-0"
        wait_for(planted.exists, "the container to plant a cgroup")
        assert bundle.exec("cat", "/proc/self/cgroup").stdout == f"{IN_CALL}1\n"
        assert planted.exists()
    finally:
        bundle("delete", "--force", bundle.id, check=False)
    assert leftovers_of("own-cgroupfs") == []


def nothing_left_of(name):
    return leftovers_of(name) == []


def leftovers_of(name):
    return [path for path in leftovers() if name in path]


def test_front_runs_in_busybox_too():
    ours = run("busybox", "sh", "/usr/bin/agentrun-runc", "--version").stdout
    assert ours == run("runc", "--version").stdout


def test_call_of_an_engine_that_is_exempt_from_oom_kills_can_be_killed(box):
    hog = ("awk", 'BEGIN { s = "12345678"; while (length(s) < 150000000) s = s s }')
    limit = ("-e", "AGENTRUN_INTENT=memory=40m", "-e", f"PATH={PATH}")
    done = run("choom", "-n", "-1000", "--", *box.runtime, "exec", *limit, box.id, *hog, check=False)
    assert done.returncode == 137


def test_call_is_no_less_killable_than_the_agent(box):
    """dockerd's shim has -998 and hands it down; what the kernel kills must not be the agent."""
    command = (
        *box.runtime,
        "exec",
        "-e",
        f"PATH={PATH}",
        box.id,
        "cat",
        "/proc/self/oom_score_adj",
        "/proc/1/oom_score_adj",
    )
    call, agent = map(int, run("choom", "-n", "-998", "--", *command).stdout.split())
    assert call >= agent


def test_fork_storm_is_moved_completely(tmp_path):
    """A container that `run` started, and that forks all the time: the first call still finds its place."""
    bundle = Bundle(tmp_path / "bundle", "agentrun-crun", "storm")
    bundle.write(["sh", "-c", "for i in 1 2 3; do (while :; do sleep 0.01; done) & done; wait"])
    try:
        bundle.detached("run", "--detach", "--bundle", bundle.folder, bundle.id)
        time.sleep(1)
        for _ in range(3):
            assert bundle.exec("cat", "/proc/self/cgroup").stdout.startswith(IN_CALL)
        assert (bundle.cgroup() / "cgroup.procs").read_text() == ""
    finally:
        bundle("delete", "--force", bundle.id, check=False)


@pytest.mark.parametrize("runtime", ["agentrun-runc", "agentrun-crun"])
def test_delete_in_the_middle_of_calls(tmp_path, runtime):
    """Every call ends with some status, and nothing of the container stays behind."""
    for turn in range(3):
        bundle = Bundle(tmp_path / f"bundle-{turn}", runtime, f"race-{runtime[9:]}-{turn}")
        bundle.write(["sleep", "1000000"])
        with concurrent.futures.ThreadPoolExecutor(6) as pool:
            bundle.start()
            calls = [pool.submit(bundle.exec, "sleep", "0.2", check=False) for _ in range(6)]
            time.sleep(0.4 * (turn + 1))
            bundle("delete", "--force", bundle.id, check=False)
            assert all(isinstance(call.result().returncode, int) for call in calls)
        bundle("delete", "--force", bundle.id, check=False)
        run("agentrunctl", "calls")
        wait_for(functools.partial(nothing_left_of, bundle.id), "an empty host", 30)
    LOG.unlink(missing_ok=True)  # calls that lost the race may say so


def test_delete_that_a_call_was_in_the_way_of(tmp_path):
    """runc gives up on a busy cgroup and forgets the container; with the last call the cgroup goes too."""
    bundle = Bundle(tmp_path / "bundle", "agentrun-runc", "in-the-way")
    with started(bundle), contextlib.ExitStack() as stack:
        calls = bundle.cgroup() / "agentrun-calls"
        call = subprocess.Popen(
            [*bundle.runtime, "exec", bundle.id, "sleep", "1000"], stdin=subprocess.DEVNULL
        )
        stack.callback(call.wait, timeout=60)
        wait_for(lambda: any(p.read_text() for p in calls.glob("call-*/cgroup.procs")), "the call to run")
        # As a runtime that has entered the call's cgroup, and not yet the container's PID namespace.
        starting = subprocess.Popen(["sleep", "1000"])
        stack.callback(starting.wait, timeout=60)
        stack.callback(starting.kill)
        (calls / "call-0/cgroup.procs").write_text(str(starting.pid))
        run("runc", "delete", "--force", bundle.id, check=False)
        assert run("runc", "state", bundle.id, check=False).returncode != 0
        assert leftovers_of("in-the-way")
        starting.kill()
        starting.wait()
        call.wait(timeout=60)
        run("agentrunctl", "calls")
        assert leftovers_of("in-the-way") == []
        assert not (CGROUP / "by-hand/in-the-way").exists()


def test_container_that_ends_in_the_middle_of_calls(tmp_path):
    bundle = Bundle(tmp_path / "bundle", "agentrun-crun", "ends")
    bundle.write(["sleep", "1"])
    bundle.start()
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda _: bundle.exec("sleep", "5", check=False), range(8)))
    assert all(d.returncode != 0 for d in done)
    bundle("delete", "--force", bundle.id)
    assert leftovers_of("ends") == []
    LOG.unlink(missing_ok=True)


KILL_AT = [
    *[("mkdir,mkdirat", n) for n in (1, 2)],
    *[("link,linkat", n) for n in (1,)],
    *[("write", n) for n in range(1, 6)],
    *[("unlink,unlinkat", n) for n in (1, 2)],
    ("flock", 1),
    ("execve", 2),
    ("execve", 3),
]


def test_runtime_killed_at_any_step(tmp_path):
    """SIGKILL at each system call that changes something: the next call works, and all is cleaned up."""
    killed = 0
    with started(Bundle(tmp_path / "bundle", "agentrun-crun", "killed")) as box:
        for calls, number in KILL_AT:
            inject = f"inject={calls}:signal=SIGKILL:when={number}"
            done = run(
                *("strace", "-f", "-o", "/dev/null", "-e", f"trace={calls}", "-e", inject),
                *(*box.runtime, "exec", box.id, "true"),
                check=False,
            )
            killed += done.returncode != 0
            assert box.exec("cat", "/proc/self/cgroup").stdout.startswith(IN_CALL), (calls, number)
        assert killed >= len(KILL_AT) // 2
        records(box.id)
        wait_for(lambda: not list((box.cgroup() / "agentrun-calls").glob("call-*")), "the last cgroup to go")
    assert leftovers_of("killed") == []


def test_our_log_stays_empty():
    assert not LOG.exists(), LOG.read_text()
    assert os.access("/usr/bin/agentrun", os.X_OK)
