"""The main job under docker and podman, on runc and crun: the same as bare, but for the cgroups."""

from __future__ import annotations

import concurrent.futures
import json
import re
from pathlib import Path

import pytest
from engine import IMAGE, MATRIX, Engine, configure, normalised, start_call
from runtimes import LOG, leftovers, records, run, wait_for

SLEEP = (IMAGE, "sleep", "1000000")


@pytest.fixture(scope="module", autouse=True)
def engines_configured(host):
    configure(Path(__file__).parents[2])


@pytest.fixture(scope="module", params=MATRIX, ids="-".join)
def pair(request):
    """An engine with two containers that differ in the runtime alone: bare, wrapped."""
    engine = Engine(*request.param)
    engine.create("bare", engine.bare, "-m", "300m", *SLEEP)
    engine.create("ours", engine.wrapped, "-m", "300m", *SLEEP)
    yield engine
    engine.rm("bare")
    engine.rm("ours")


EXECS = {
    "plain": ([], ["echo", "hi"]),
    "exit-code": ([], ["sh", "-c", "echo out; echo err >&2; exit 7"]),
    "killed": ([], ["sh", "-c", "kill -9 $$"]),
    "terminated": ([], ["sh", "-c", "kill -15 $$"]),
    "exit-255": ([], ["sh", "-c", "exit 255"]),
    "missing": ([], ["no-such-command"]),
    "not-executable": ([], ["/etc/passwd"]),
    "user": (["-u", "1000"], ["id"]),
    "no-such-user": (["-u", "nobody-here"], ["id"]),
    "directory": (["-w", "/tmp"], ["pwd"]),
    "environment": (["-e", "X=a b", "-e", "Y="], ["sh", "-c", 'echo "$X|$Y"']),
    "privileged": (["--privileged"], ["grep", "CapEff", "/proc/self/status"]),
    "descriptors": ([], ["sh", "-c", "ls /proc/self/fd | wc -l"]),
}


@pytest.mark.parametrize("name", EXECS)
def test_exec_is_the_same_as_bare(pair, name):
    options, command = EXECS[name]
    bare, ours = (pair("exec", *options, c, *command, check=False) for c in ("bare", "ours"))
    assert (ours.returncode, ours.stdout) == (bare.returncode, bare.stdout)
    assert normalised(ours.stderr, "ours") == normalised(bare.stderr, "bare")


def test_stdin_reaches_the_call_and_ends(pair):
    assert pair("exec", "-i", "ours", "sh", "-c", "cat; echo end", stdin="one\n").stdout == "one\nend\n"


def test_terminal_is_one(pair):
    done = run("script", "-qec", f"{pair.name} exec -t ours tty", "/dev/null")
    assert "/dev/pts/" in done.stdout


def test_detached_call_is_in_its_own_cgroup(pair):
    pair("exec", "-d", "ours", "sleep", "12345")
    calls = pair.cgroup("ours") / "agentrun-calls"

    def commands() -> list[str]:
        pids = [p for file in calls.glob("call-*/cgroup.procs") for p in file.read_text().split()]
        return [Path(f"/proc/{pid}/cmdline").read_bytes().decode().replace("\0", " ") for pid in pids]

    wait_for(lambda: any("sleep 12345" in command for command in commands()), "the detached call")
    (calls / "cgroup.kill").write_text("1")


@pytest.mark.smoke
def test_call_and_init_are_where_they_belong(pair):
    both = pair("exec", "ours", "cat", "/proc/self/cgroup", "/proc/1/cgroup").stdout
    assert re.fullmatch(r"0::/agentrun-calls/call-\d+\n0::/agentrun-agent\n", both)


@pytest.mark.smoke
def test_call_over_its_memory_dies_alone(pair):
    other = start_call(pair, "ours", "sh", "-c", "sleep 12; echo alive", env="AGENTRUN_INTENT=memory=64m")
    pid = pair.pid("ours")
    hog = ("python3", "-c", "x = bytearray(200 << 20)")
    assert pair("exec", "-e", "AGENTRUN_INTENT=memory=48m", "ours", *hog, check=False).returncode == 137
    out, _ = other.communicate(timeout=120)
    assert (out, other.returncode) == ("alive\n", 0)
    assert pair.pid("ours") == pid
    container = pair("inspect", "-f", "{{.Id}}", "ours").stdout.strip()
    killed = [r for r in records(container) if r["verdict"] == "oom-killed"]
    assert [(r["level"], r["limits"]["memory"]) for r in killed] == [("call", 48 << 20)]
    assert 0 < killed[0]["memory_peak"] <= 48 << 20


def test_eight_calls_at_once_each_have_their_own_cgroup(pair):
    script = "cat /proc/self/cgroup; sleep 3"
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        done = list(pool.map(lambda _: pair("exec", "ours", "sh", "-c", script).stdout, range(8)))
    assert all(out.startswith("0::/agentrun-calls/call-") for out in done)


def test_top_shows_the_same_processes(pair):
    def commands(container: str) -> list[str]:
        lines = pair("top", container).stdout.splitlines()
        return [" ".join(line.split()[-2:]) for line in lines[1:]]

    def is_quiet() -> bool:
        return len(commands("bare")) == 1

    wait_for(is_quiet, "no other process")
    assert commands("ours") == commands("bare")


def test_stats_show_the_same_limit_and_processes(pair):
    form = "{{.MemUsage}};{{.PIDs}}" if pair.name == "docker" else "{{.MemUsage}};{{.PIDS}}"

    def stats(container: str) -> tuple[str, str]:
        usage, pids = pair("stats", "--no-stream", "--format", form, container).stdout.strip().split(";")
        return usage.partition(" / ")[2], pids

    assert stats("ours") == stats("bare")


def test_update_changes_the_containers_own_limit(pair):
    memory = ["--memory", "280m"] + (["--memory-swap", "-1"] if pair.name == "docker" else [])
    for container in ("bare", "ours"):
        pair("update", *memory, container)
    limits = [(pair.cgroup(c) / "memory.max").read_text() for c in ("bare", "ours")]
    assert limits[0] == limits[1] == f"{280 << 20}\n"


def test_paused_container_refuses_calls_as_bare_does(pair):
    results = []
    for container in ("bare", "ours"):
        pair("pause", container)
        done = pair("exec", container, "true", check=False)
        pair("unpause", container)
        results.append((done.returncode, normalised(done.stderr, container)))
    assert results[0] == results[1]
    assert pair("exec", "ours", "echo", "on").stdout == "on\n"


def test_restart_makes_the_layout_again(pair):
    pair("restart", "-t", "0", "ours")
    both = pair("exec", "ours", "cat", "/proc/self/cgroup", "/proc/1/cgroup").stdout
    assert re.fullmatch(r"0::/agentrun-calls/call-\d+\n0::/agentrun-agent\n", both)


def test_run_rm_and_logs_are_the_same_as_bare(pair):
    script = "echo out; echo err >&2; exit 5"
    results = []
    for number, runtime in enumerate((pair.bare, pair.wrapped)):
        name = f"once-{number}"
        pair.create(name, runtime, IMAGE, "sh", "-c", script)
        code = pair("wait", name).stdout.strip()
        logs = pair("logs", name)
        results.append((code, logs.stdout, logs.stderr))
        pair.rm(name)
    assert results[0] == results[1] == ("5", "out\n", "err\n")


def test_stop_ends_as_bare_does(pair):
    codes = []
    for number, runtime in enumerate((pair.bare, pair.wrapped)):
        name = f"stop-{number}"
        pair.create(name, runtime, IMAGE, "sh", "-c", "trap 'exit 3' TERM; while :; do sleep 0.1; done")
        pair("stop", "-t", "20", name)
        codes.append(pair("inspect", "-f", "{{.State.ExitCode}}", name).stdout.strip())
        refused = pair("exec", name, "true", check=False)
        codes.append(str(refused.returncode))
        pair.rm(name)
    assert codes[:2] == codes[2:]


def test_removed_container_leaves_nothing(pair):
    container = pair.create("gone", pair.wrapped, *SLEEP)
    pair("exec", "-d", "gone", "sleep", "1000")
    pair("exec", "gone", "true")
    pair.rm("gone")
    assert [path for path in leftovers() if container in path] == []
    assert len(records(container)) == 2


OPTIONS = {
    "privileged": ["--privileged"],
    "host-cgroupns": ["--cgroupns=host"],
    "host-pid": ["--pid=host"],
    "read-only": ["--read-only"],
    "user": ["--user", "1000"],
    "init": ["--init"],
}


@pytest.mark.parametrize("name", OPTIONS)
def test_unusual_container_works(name):
    engine = Engine("docker", "crun")
    container = engine.create("unusual", engine.wrapped, *OPTIONS[name], *SLEEP)
    try:
        assert "agentrun-calls/call-" in engine("exec", "unusual", "cat", "/proc/self/cgroup").stdout
    finally:
        engine.rm("unusual")
    assert [path for path in leftovers() if container in path] == []


def test_docker_on_the_cgroupfs_driver(tmp_path):
    daemon = Path("/etc/docker/daemon.json")
    before = daemon.read_text()
    daemon.write_text(json.dumps({**json.loads(before), "exec-opts": ["native.cgroupdriver=cgroupfs"]}))
    run("systemctl", "restart", "docker")
    engine = Engine("docker", "runc")
    try:
        container = engine.create("cgroupfs", engine.wrapped, "-m", "200m", *SLEEP)
        assert engine.cgroup("cgroupfs") == Path(f"/sys/fs/cgroup/docker/{container}")
        out = engine("exec", "cgroupfs", "cat", "/proc/self/cgroup", "/proc/1/cgroup").stdout
        assert re.fullmatch(r"0::/agentrun-calls/call-\d+\n0::/agentrun-agent\n", out)
        engine.rm("cgroupfs")
        assert [r["memory_peak"] > 0 for r in records(container)] == [True]
    finally:
        daemon.write_text(before)
        run("systemctl", "restart", "docker")


def test_podman_on_the_cgroupfs_driver():
    engine = Engine("podman", "crun", "--cgroup-manager=cgroupfs")
    engine.create("cgroupfs", engine.wrapped, "-m", "200m", *SLEEP)
    try:
        out = engine("exec", "cgroupfs", "cat", "/proc/self/cgroup", "/proc/1/cgroup").stdout
        assert re.fullmatch(r"0::/agentrun-calls/call-\d+\n0::/agentrun-agent\n", out)
    finally:
        engine.rm("cgroupfs")


@pytest.mark.smoke
@pytest.mark.parametrize("runtime", ["agentrun-runc", "agentrun-crun"])
def test_containerd_by_ctr(runtime):
    image, name = "docker.io/agentrun-test/busybox:latest", f"by-ctr-{runtime}"
    options = ["--detach", "--memory-limit", str(200 << 20), "--runc-binary", f"/usr/bin/{runtime}"]
    run("ctr", "run", *options, image, name, "sleep", "1000000")
    try:
        command = ["ctr", "task", "exec", "--exec-id", "e1", name, "cat", "/proc/self/cgroup"]
        assert "/agentrun-calls/call-" in run(*command).stdout  # ctr shares the host's cgroup namespace
        failed = run("ctr", "task", "exec", "--exec-id", "e2", name, "sh", "-c", "exit 9", check=False)
        assert failed.returncode == 9
        assert [r["exec_id"] for r in records(name)] == ["e1", "e2"]
        metrics = run("ctr", "task", "metrics", name).stdout
        assert re.search(r"memory\.usage_limit\s+209715200", metrics)
    finally:
        run("ctr", "task", "kill", "-s", "SIGKILL", name, check=False)
        wait_for(lambda: run("ctr", "task", "rm", name, check=False).returncode == 0, "the task to end")
        run("ctr", "container", "rm", name)


@pytest.mark.smoke
def test_our_log_stays_empty():
    assert not LOG.exists(), LOG.read_text()
