"""What reaches the backend is what the engine gave: argv, environment, descriptors, signals, pid."""

from __future__ import annotations

import os
import signal
import subprocess

import pytest

LOG = ["--log", "/dev/null", "--log-format", "json"]

# Real command lines of the engines (go-runc, conmon, CRI-O, ctr), and some by hand.
COMMANDS = {
    "docker-create": [
        "--root", "/var/run/docker/runtime-runc/moby", *LOG, "--systemd-cgroup",
        "create", "--bundle", "/b", "--pid-file", "/b/init.pid", "c1",
    ],
    "docker-start": ["--root", "/r", *LOG, "--systemd-cgroup", "start", "c1"],
    "docker-exec": [
        "--root", "/r", *LOG, "--systemd-cgroup",
        "exec", "--process", "/tmp/runc-process1", "--detach", "--pid-file", "/b/e1.pid", "c1",
    ],
    "docker-ps": ["--root", "/r", *LOG, "ps", "--format", "json", "c1"],
    "docker-kill": ["--root", "/r", *LOG, "kill", "c1", "15"],
    "docker-delete": ["--root", "/r", *LOG, "delete", "--force", "c1"],
    "docker-update": ["--root", "/r", *LOG, "update", "--resources=-", "c1"],
    "docker-features": ["features"],
    "podman-create": ["--systemd-cgroup", "create", "--bundle", "/b", "--pid-file", "/p", "c1"],
    "podman-exec": ["exec", "--pid-file", "/p", "--process", "/s", "--detach", "--preserve-fds", "2", "c1"],
    "podman-kill": ["kill", "c1", "9"],
    "podman-delete": ["delete", "--force", "c1"],
    "podman-probe": ["checkpoint", "--help"],
    "crio-exec": ["--root", "/r", "--systemd-cgroup", "exec", "--process", "/tmp/p", "c1"],
    "crio-state": ["--root=/r", "state", "c1"],
    "restore": ["restore", "--detach", "-no-subreaper", "--bundle", "/b", "c1"],
    "version": ["--version"],
    "help": ["--help"],
    "nothing": [],
    "unknown-option": ["--new-thing", "x", "exec", "c1", "ls"],
    "unknown-verb": ["frobnicate", "c1"],
    "container-called-exec": ["exec", "exec", "create"],
    "container-called-create": ["delete", "create"],
    "equals-and-dash": ["-root=/r", "exec", "-b=x", "c1"],
    "not-utf-8": ["run", os.fsdecode(b"\xff\xfe"), "new\nline"],
}  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_argv_reaches_the_backend_as_it_was(host, name):
    assert host.run(*COMMANDS[name]).returncode == 0
    expected = [ascii_bytes(os.fsencode(word)) for word in COMMANDS[name]]
    assert host.recording().all("argv") == [str(host.backend), *expected]


def ascii_bytes(word: bytes) -> str:
    """A word as the recorder writes it."""
    return "".join(chr(b) if 32 <= b < 127 and b != 92 else f"\\x{b:02x}" for b in word)


@pytest.mark.parametrize("verb", ["state", "exec"])
def test_environment_reaches_the_backend_as_it_was(host, verb):
    # PWD: every POSIX shell sets it, so the front cannot help adding it where it was missing.
    given = {"PATH": "/usr/bin:/bin", "LISTEN_PID": "7", "LISTEN_FDS": "2", "EMPTY": "", "X": "a\tb=c"}
    given["PWD"] = os.getcwd()
    host.run(verb, "c1", "x", env=given)
    assert host.recording().env() == {**given, "X": "a\\x09b=c"}


@pytest.mark.parametrize("verb", ["state", "exec", "delete"])
def test_empty_environment_is_enough(host, verb):
    keep = {k: host.environment[k] for k in ("AGENTRUN_ROOT", "RECORDER_OUTPUT")}
    done = subprocess.run([host.program, verb, "c1"], env=keep, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert host.recording().all("argv")[1:] == [verb, "c1"]


@pytest.mark.parametrize("verb", ["state", "exec", "start"])
def test_no_descriptor_is_added_or_lost(host, verb, tmp_path):
    with (tmp_path / "kept").open("w") as file:
        kept = file.fileno()
        os.set_inheritable(kept, True)
        host.run(verb, "c1", pass_fds=(kept,))
    fds = host.recording().all("fd")
    assert [fd.split()[0] for fd in fds] == ["0", "1", "2", str(kept)]
    assert fds[3] == f"{kept} {tmp_path / 'kept'}"


def signals_of_a_plain_child():
    """What any program started by this process inherits: its parents may ignore some signal."""
    status = subprocess.run(["cat", "/proc/self/status"], capture_output=True, text=True, check=True).stdout
    fields = dict(line.split(":", 1) for line in status.splitlines())
    return int(fields["SigBlk"], 16), int(fields["SigIgn"], 16)


@pytest.mark.parametrize("verb", ["state", "exec"])
def test_signals_arrive_as_the_engine_left_them(host, verb):
    host.run(verb, "c1")
    recording = host.recording()
    arrived = recording.signal_set("SigBlk"), recording.signal_set("SigIgn")
    assert arrived == signals_of_a_plain_child()


def test_ignored_sigpipe_stays_ignored_on_the_way_through(host):
    host.run(
        "create",
        "c1",
        preexec_fn=lambda: signal.signal(signal.SIGPIPE, signal.SIG_IGN),
        restore_signals=False,
    )
    assert host.recording().signal_set("SigIgn") & 1 << (signal.SIGPIPE - 1)


@pytest.mark.parametrize("verb", ["state", "exec"])
def test_backend_has_the_pid_that_the_engine_started(host, verb):
    host.output.unlink(missing_ok=True)
    process = subprocess.Popen([host.program, verb, "c1"], env=host.environment)
    process.wait()
    assert host.recording().all("pid") == [str(process.pid)]


@pytest.mark.parametrize("verb", ["state", "exec"])
def test_directory_is_kept(host, verb, tmp_path):
    host.run(verb, "c1", cwd=tmp_path)
    assert host.recording().all("cwd") == [str(tmp_path)]


@pytest.mark.parametrize("verb", ["update", "exec"])
def test_stdin_is_left_to_the_backend(host, verb):
    done = subprocess.run(
        [host.program, verb, "c1"],
        input=b"one\0two\xff",
        env={**host.environment, "RECORDER_CAT": "1"},
        capture_output=True,
        check=False,
    )
    assert done.stdout == b"one\0two\xff"


def test_every_exit_code_passes_through(host):
    codes = [host.run("state", "c1", env={"RECORDER_EXIT": str(code)}).returncode for code in range(256)]
    assert codes == list(range(256))


@pytest.mark.parametrize("code", [0, 1, 126, 127, 137, 255])
def test_exit_code_passes_through_exec(host, code):
    assert host.run("exec", "c1", "x", env={"RECORDER_EXIT": str(code)}).returncode == code


@pytest.mark.parametrize("verb", ["state", "exec"])
def test_nothing_is_written_on_success(host, verb, tmp_path):
    log = tmp_path / "log"
    done = host.run("--log", log, "--log-format", "json", verb, "c1", "x")
    assert (done.stdout, done.stderr, log.exists()) == (b"", b"", False)


@pytest.mark.parametrize("verb", ["state", "exec"])
def test_long_command_line_passes(host, verb):
    word = "x" * 120_000
    host.run(verb, "c1", word)
    assert host.recording().all("argv")[-1] == word


@pytest.mark.parametrize("verb", ["state", "exec"])
def test_few_descriptors_are_enough(host, verb):
    import resource

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (16, 16))

    host.run(verb, "c1", preexec_fn=limit)
    assert host.recording().all("argv")[1:] == [verb, "c1"]


@pytest.mark.parametrize("verb", ["state", "exec"])
def test_closed_stdio_stays_closed(host, verb):
    host.output.unlink(missing_ok=True)
    script = f'exec "{host.program}" {verb} c1 <&- >&- 2>&-'
    subprocess.run(["/bin/sh", "-c", script], env=host.environment, check=True)
    assert host.recording().all("fd") == []


def test_python_paths_of_the_engine_are_not_trusted(host, tmp_path):
    (tmp_path / "posix.py").write_text("raise SystemExit(66)")
    (tmp_path / "agentrun").mkdir()
    (tmp_path / "agentrun/__init__.py").write_text("raise SystemExit(66)")
    env = {"PYTHONPATH": str(tmp_path), "PYTHONHOME": str(tmp_path), "PATH": str(tmp_path)}
    assert host.run("exec", "c1", env=env, cwd=tmp_path).returncode == 0
