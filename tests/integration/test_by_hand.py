"""The main job with runc and crun called by hand, on both cgroup drivers."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import os
import subprocess
from pathlib import Path

import pytest
from matrix import cells
from runtimes import CGROUP, LOG, PATH, SESSIONS, Bundle, leftovers, records, run, started, wait_for

DRIVERS: dict[str, list[str]] = {"cgroupfs": [], "systemd": ["--systemd-cgroup"]}


@pytest.fixture(scope="module", params=cells(("runc", "crun"), tuple(DRIVERS)), ids="-".join)
def box(request, tmp_path_factory):
    """One started container for each backend and driver."""
    backend, driver = request.param
    folder = tmp_path_factory.mktemp("b") / "bundle"
    bundle = Bundle(folder, f"agentrun-{backend}", f"box-{backend}-{driver}", *DRIVERS[driver])
    with started(bundle):
        yield bundle


@pytest.fixture
def crun_box(tmp_path):
    """A container of the fast backend, for one test."""
    with started(
        Bundle(tmp_path / "bundle", "agentrun-crun", f"c-{os.getpid()}-{tmp_path.name[:20]}")
    ) as made:
        yield made


@contextlib.contextmanager
def background(box, *command):
    """A call that runs meanwhile; killed through its cgroup, which is what ends a call for sure."""
    call = subprocess.Popen([*box.runtime, "exec", box.id, *command], stdin=subprocess.DEVNULL)
    calls = box.cgroup() / "agentrun-calls"
    try:
        wait_for(lambda: any(p.read_text() for p in calls.glob("call-*/cgroup.procs")), "the call to run")
        yield call
    finally:
        (calls / "cgroup.kill").write_text("1")
        call.wait(timeout=60)


def test_call_is_in_its_own_cgroup_from_its_first_instruction(box):
    assert box.exec("cat", "/proc/self/cgroup").stdout.startswith("0::/agentrun-calls/call-")


def test_init_is_in_the_agents_leaf(box):
    assert box.exec("cat", "/proc/1/cgroup").stdout == "0::/agentrun-agent\n"


def test_limits_in_the_kernel_equal_the_plan(box):
    slot = (
        box.exec("cat", "/proc/self/cgroup", options=("-e", "AGENTRUN_INTENT=memory=64m,cpu=0.5,pids=99"))
        .stdout.strip()
        .rpartition("/")[2]
    )
    call = box.cgroup() / "agentrun-calls" / slot
    found = {
        name: (call / name).read_text().strip()
        for name in ("memory.max", "memory.oom.group", "pids.max", "cpu.max")
    }
    assert found == {
        "memory.max": str(64 << 20),
        "memory.oom.group": "1",
        "pids.max": "99",
        "cpu.max": "50000 100000",
    }


def test_intent_beyond_the_container_is_cut_to_it(box):
    box.exec("true", options=("-e", "AGENTRUN_INTENT=memory=64g"))
    record = records(box.id)[-1]
    assert record["limits"]["memory"] == 256 << 20
    assert any("cut to" in reason and "session" in reason for reason in record["reasons"])


def test_call_over_its_memory_dies_alone(box):
    # In user space: a read() into memory that cannot be had fails with EFAULT, it is not killed.
    hog = ("awk", 'BEGIN { s = "12345678"; while (length(s) < 150000000) s = s s }')
    with background(box, "sleep", "1000") as other:
        done = box.exec(*hog, options=("-e", "AGENTRUN_INTENT=memory=40m"), check=False)
        assert done.returncode == 137, done
        assert other.poll() is None
        assert json.loads(box("state", box.id).stdout)["status"] == "running"
    verdicts = [(r["verdict"], r["level"]) for r in records(box.id)]
    assert ("oom-killed", "call") in verdicts


def test_pids_limit_holds_in_the_call_only(box):
    script = "for i in $(seq 40); do sleep 5 & done; wait"
    done = box.exec("sh", "-c", script, options=("-e", "AGENTRUN_INTENT=pids=20"), check=False)
    assert "fork" in done.stderr
    assert box.exec("sh", "-c", "sleep 0 & wait").returncode == 0


@pytest.mark.parametrize("code", [0, 1, 2, 126, 127, 137, 143, 255])
def test_exit_code_passes_through(box, code):
    assert box.exec("sh", "-c", f"exit {code}", check=False).returncode == code


def test_every_exit_code_passes_through(crun_box):
    def difference(code: int) -> str:
        done = crun_box.exec("sh", "-c", f"exit {code}", check=False)
        return "" if done.returncode == code else f"{code} became {done.returncode}: {done.stderr!r}"

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        wrong = "; ".join(filter(None, pool.map(difference, range(256))))
    assert not wrong, wrong


@pytest.mark.parametrize(
    "command",
    [("no-such-command",), ("/etc/passwd",), ("/",)],
    ids=["missing", "not-executable", "directory"],
)
def test_errors_are_those_of_the_bare_backend(box, command):
    bare = [box.runtime[0].removeprefix("agentrun-"), *box.runtime[1:]]
    ours = box.exec(*command, check=False)
    theirs = run(*bare, "exec", box.id, *command, check=False)
    strip = slice(0, None)
    assert (ours.returncode, without_time(ours.stderr)[strip]) == (
        theirs.returncode,
        without_time(theirs.stderr)[strip],
    )


def without_time(text: str) -> str:
    """A runtime's error without its time stamp."""
    words = [word for word in text.split() if not word.startswith(("time=", "20"))]
    return " ".join(words)


def test_stdin_reaches_the_call_and_ends(box):
    done = run(*box.runtime, "exec", box.id, "cat", stdin="one\ntwo\n")
    assert done.stdout == "one\ntwo\n"


def test_user_directory_and_environment_are_kept(box):
    call = ["-u", "1000", "--cwd", "/tmp", "-e", "X=y z", "-e", f"PATH={PATH}", box.id]
    call += ["sh", "-c", "id -u; pwd; echo $X"]
    ours = box("exec", *call).stdout
    assert ours == run(box.runtime[0].removeprefix("agentrun-"), *box.runtime[1:], "exec", *call).stdout
    assert ours.endswith("\n/tmp\ny z\n")


def test_nothing_is_written_on_success(box, tmp_path):
    log = tmp_path / "log.json"
    command = [box.runtime[0], "--log", log, "--log-format", "json", *box.runtime[1:], "exec", box.id, "true"]
    done = run(*command)
    assert (done.stdout, done.stderr, log.read_text() if log.exists() else "") == ("", "", "")


def test_process_document_in_a_pipe_is_left_to_the_backend(box):
    document = {
        "args": ["cat", "/proc/self/cgroup"],
        "cwd": "/",
        "env": ["PATH=/bin", "AGENTRUN_INTENT=memory=64m"],
        "user": {"uid": 0, "gid": 0},
    }
    reading, writing = os.pipe()
    os.write(writing, json.dumps(document).encode())
    os.close(writing)
    done = run(*box.runtime, "exec", "--process", f"/dev/fd/{reading}", box.id, pass_fds=(reading,))
    os.close(reading)
    assert done.stdout.startswith("0::/agentrun-calls/call-")
    assert records(box.id)[-1]["intent"]["raw"] is None


def test_detached_call_writes_its_pid_where_it_was_told_to(box, tmp_path):
    box.detached("exec", "--detach", "--pid-file", tmp_path / "abc.pid", box.id, "sleep", "1000")
    pid = int((tmp_path / "abc.pid").read_text())
    cgroup = Path(f"/proc/{pid}/cgroup").read_text()
    assert "/agentrun-calls/call-" in cgroup
    os.kill(pid, 9)
    wait_for(lambda: any(r["exec_id"] == "abc" for r in records(box.id)), "the record of the call")


def test_pause_resume_update_ps_and_kill_work_as_before(box):
    with background(box, "sleep", "1000") as call:
        assert len(json.loads(box("ps", "--format", "json", box.id).stdout)) == 2
        box("pause", box.id)
        assert json.loads(box("state", box.id).stdout)["status"] == "paused"
        box("resume", box.id)
        box("update", "--memory", str(200 << 20), box.id)
        assert (box.cgroup() / "memory.max").read_text().strip() == str(200 << 20)
        box("update", "--memory", str(256 << 20), box.id)
        assert call.poll() is None


def test_64_calls_at_once_are_all_recorded(crun_box):
    with concurrent.futures.ThreadPoolExecutor(64) as pool:
        done = list(pool.map(lambda n: crun_box.exec("sh", "-c", f"echo {n}"), range(64)))
    assert [d.stdout.strip() for d in done] == [str(n) for n in range(64)]
    found = records(crun_box.id)
    assert len(found) == len({r["id"] for r in found}) == 64
    assert list((crun_box.cgroup() / "agentrun-calls").glob("call-*")) == []


def test_many_calls_in_a_row_leave_nothing_behind(crun_box):
    """A third of a thousand: a thousand (AGENTRUN_CALLS) take five to eleven of CI's minutes in the VM."""
    count = int(os.environ.get("AGENTRUN_CALLS", "333"))
    slots = set()
    for _ in range(count):
        slots.add(crun_box.exec("cat", "/proc/self/cgroup").stdout.strip().rpartition("/")[2])
    assert len(slots) <= 3
    assert len(records(crun_box.id)) == count
    assert list((crun_box.cgroup() / "agentrun-calls").glob("call-*")) == []


@pytest.mark.parametrize("runtime", ["runc", "crun"])
def test_container_that_run_started_gets_its_layout_at_the_first_call(tmp_path, runtime):
    bundle = Bundle(tmp_path / "bundle", f"agentrun-{runtime}", f"lazy-{runtime}")
    bundle.write(["sh", "-c", "while :; do sleep 0.1; done"])
    try:
        bundle.detached("run", "--detach", "--bundle", bundle.folder, bundle.id)
        assert bundle.exec("cat", "/proc/self/cgroup").stdout.startswith("0::/agentrun-calls/call-")
        assert (bundle.cgroup() / "cgroup.procs").read_text() == ""
    finally:
        bundle("delete", "--force", bundle.id, check=False)


@pytest.mark.parametrize("name", ["exec", "create", "delete"])
def test_container_may_be_called_as_a_verb(tmp_path, name):
    with started(Bundle(tmp_path / "bundle", "agentrun-crun", name)) as box:
        assert box.exec("create", "x", check=False).returncode != 0
        assert box.exec("cat", "/proc/self/cgroup").stdout.startswith("0::/agentrun-calls/call-")


def test_background_process_keeps_its_call_until_it_ends(crun_box):
    crun_box.exec("sh", "-c", "sleep 1000 >/dev/null 2>&1 </dev/null &")
    assert records(crun_box.id) == []
    call = next((crun_box.cgroup() / "agentrun-calls").glob("call-*"))
    (call / "cgroup.kill").write_text("1")
    wait_for(lambda: len(records(crun_box.id)) == 1, "its record")


def test_forced_delete_records_what_was_running(tmp_path):
    bundle = Bundle(tmp_path / "bundle", "agentrun-runc", "forced")
    with started(bundle):
        bundle.detached("exec", "--detach", bundle.id, "sleep", "1000")
    found = records("forced")
    assert len(found) == 1 and found[0]["pids_peak"] >= 1
    assert (found[0]["verdict"], found[0]["level"]) == ("killed", "engine")
    assert [path for path in leftovers() if "forced" in path] == []


HOSTILE = [
    "memory=$(reboot)",
    "memory=-1",
    "memory=1e99",
    "memory=a[$(touch /tmp/agentrun-pwned)]g",
    "memory=2g\nmemory=-5",
    "memory=" + "9" * 100_000,
    "../../../etc=1",
]


@pytest.mark.parametrize("intent", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_intent_is_refused_and_harmless(crun_box, intent):
    assert crun_box.exec("echo", "ok", options=("-e", f"AGENTRUN_INTENT={intent}")).stdout == "ok\n"
    record = records(crun_box.id)[-1]
    assert record["intent"]["refused"]
    assert record["limits"]["memory"] in (None, 256 << 20, 2 << 30)
    assert not Path("/tmp/agentrun-pwned").exists()


@pytest.mark.parametrize("name", ["..", "a/b", "x" * 300, "memory max"])
def test_hostile_id_gives_the_backends_own_error(name):
    ours, theirs = (run(r, "exec", name, "true", check=False) for r in ("agentrun-crun", "crun"))
    assert (ours.returncode, without_time(ours.stderr)) == (theirs.returncode, without_time(theirs.stderr))
    assert not any(name in str(path) for path in SESSIONS.rglob("*") if name != "..")


def test_our_log_stays_empty():
    assert not LOG.exists(), LOG.read_text()
    assert (CGROUP / "cgroup.controllers").exists()
