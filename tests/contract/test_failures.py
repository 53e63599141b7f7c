"""When our own part fails: handed off untouched with one record, or refused as configured."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from agentrun.decision import config

ENGINE_WORDS = (
    "permission denied",
    "no such file or directory",
    "executable file not found",
    "not a directory",
    "is a directory",
    "does not exist",
    "container not running",
    "no such process",
    "operation not permitted",
)


def exec_argv(box) -> list[str]:
    return ["--root", str(box.state), "exec", "box", "ls"]


def make_symlink(run: Path) -> None:
    run.parent.mkdir(parents=True, exist_ok=True)
    (run.parent / "elsewhere").mkdir(exist_ok=True)
    run.symlink_to(run.parent / "elsewhere")


def make_file(run: Path) -> None:
    run.parent.mkdir(parents=True, exist_ok=True)
    run.write_text("")


def make_writable_by_all(run: Path) -> None:
    run.mkdir(parents=True)
    run.chmod(0o777)


def make_foreign(run: Path) -> None:
    run.mkdir(parents=True, mode=0o700)
    os.chown(run, 1000, 1000)


def plant_symlink_below(run: Path) -> None:
    run.mkdir(parents=True, mode=0o700)
    (run / "sessions").symlink_to("/etc")


STATES = [make_symlink, make_file, make_writable_by_all, make_foreign, plant_symlink_below]


@pytest.mark.parametrize("damage", STATES, ids=lambda f: f.__name__)
def test_unusable_state_directory_hands_off_untouched(box, damage):
    damage(box.root / "run/agentrun")
    done = box.run(*exec_argv(box))
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert box.recording().all("argv")[1:] == exec_argv(box)
    assert [record["verb"] for record in box.log()] == ["exec"]


@pytest.mark.parametrize("damage", STATES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("form", ["json", "text"])
def test_fail_closed_refuses_as_a_runtime_does(box, damage, form, tmp_path):
    box.configure('fail = "closed"\n')
    box.run("--version")
    damage(box.root / "run/agentrun")
    log = tmp_path / "log"
    done = box.run("--log", log, "--log-format", form, *exec_argv(box))
    assert done.returncode == 255 and not box.output.exists()
    assert done.stderr.startswith(b"agentrun: ") and done.stdout == b""
    assert not any(word in done.stderr.decode().lower() for word in ENGINE_WORDS)
    line = log.read_text()
    if form == "json":
        record = json.loads(line)
        assert record["level"] == "error" and record["msg"] == done.stderr.decode().strip()
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", record["time"])
    else:
        assert line.startswith('level="error" msg="agentrun: ')


def test_fail_closed_never_refuses_to_kill_or_delete(box):
    box.configure('fail = "closed"\n')
    make_symlink(box.root / "run/agentrun")
    for verb in ("kill", "delete", "state"):
        assert box.run("--root", str(box.state), verb, "box").returncode == 0
        assert box.output.exists()


@pytest.fixture
def broken(box):
    """A way to break parts of the installation that is undone at the end."""
    backup = box.folder / "backup"
    shutil.copytree(box.folder / "usr", backup, symlinks=True)
    yield box
    shutil.rmtree(box.folder / "usr")
    backup.rename(box.folder / "usr")


def remove_python(box) -> None:
    text = box.program.read_text()
    box.program.write_text(re.sub(r"^python='.*'", "python='/gone/python3'", text, flags=re.M))


def remove_standard_library(box) -> None:
    text = box.program.read_text()
    box.program.write_text(re.sub(r"^stdlib='.*'", "stdlib='/gone'", text, flags=re.M))


def remove_library(box) -> None:
    shutil.rmtree(box.folder / "usr/libexec/agentrun")


def remove_modules(box) -> None:
    shutil.rmtree(box.folder / "usr/libexec/agentrun/agentrun")
    (box.folder / "usr/libexec/agentrun/hotpath.bin").unlink()


def damage_bundle(box) -> None:
    path = box.folder / "usr/libexec/agentrun/hotpath.bin"
    path.write_bytes(path.read_bytes()[:2000])


DAMAGES = [remove_python, remove_standard_library, remove_library, remove_modules, damage_bundle]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda f: f.__name__)
def test_broken_installation_becomes_the_plain_backend(broken, damage):
    damage(broken)
    for verb in ("create", "start", "exec", "kill", "state", "delete"):
        argv = ["--root", str(broken.state), verb, "box"]
        done = broken.run(*argv)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
        recording = broken.recording()
        assert recording.all("argv")[1:] == argv
        assert not recording.signal_set("SigIgn") & 1 << (signal.SIGPIPE - 1)  # Python ignores it


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda f: f.__name__)
def test_broken_installation_refuses_exec_where_the_policy_is_closed(broken, damage):
    broken.configure('fail = "closed"\n')
    broken.run("--version")
    damage(broken)
    done = broken.run(*exec_argv(broken))
    assert done.returncode == 255 and done.stderr.startswith(b"agentrun: ") and not broken.output.exists()
    assert broken.run("--root", str(broken.state), "delete", "box").returncode == 0


def test_bundle_of_another_interpreter_is_passed_over(broken):
    path = broken.folder / "usr/libexec/agentrun/hotpath.bin"
    path.write_bytes(b"\0\0\0\0" + path.read_bytes()[4:])
    broken.run(*exec_argv(broken))
    assert "--cgroup" in broken.recording().all("argv")


def test_broken_configuration_keeps_the_last_good_one(box):
    (box.root / "etc/agentrun/config.toml").write_text("version = 1\nbackend = 5\n")
    for _ in range(3):
        assert box.run(*exec_argv(box)).returncode == 0
        assert "--cgroup" in box.recording().all("argv")
    errors = [record["error"] for record in box.log()]
    assert len(errors) == 1 and "did you mean 'backends'" in errors[0]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 99}'])
def test_corrupt_compiled_configuration_is_made_again(box, content):
    (box.root / "var/lib/agentrun/config.json").write_text(content)
    box.run(*exec_argv(box))
    assert "--cgroup" in box.recording().all("argv")
    assert json.loads((box.root / "var/lib/agentrun/config.json").read_text())["format"] == config.FORMAT


def test_missing_list_of_backends_is_made_again(box):
    (box.root / "var/lib/agentrun/backends").unlink()
    box.run("state", "c1")
    assert box.recording().all("argv") == [str(box.backend), "state", "c1"]
    assert (box.root / "var/lib/agentrun/backends").read_text() == f"runc {box.backend}\n"


def test_no_cgroup_v2_is_a_pure_pass_through(box, tmp_path):
    box.run(*exec_argv(box), env={"AGENTRUN_CGROUP_ROOT": str(tmp_path)})
    assert box.recording().all("argv")[1:] == exec_argv(box)
    assert box.log() == [] and not (box.root / "run/agentrun").exists()


def test_mode_off_is_a_pure_pass_through(box):
    box.configure('mode = "off"\n')
    box.run(*exec_argv(box))
    assert box.recording().all("argv")[1:] == exec_argv(box)
    assert not (box.root / "run/agentrun").exists()


def test_backend_that_is_agentrun_itself_is_refused(box):
    (box.root / "etc/agentrun/config.toml").write_text(f'version = 1\nbackends = ["{box.program}"]\n')
    assert box.run(*exec_argv(box)).returncode == 0
    assert "this is agentrun itself" in box.log()[0]["error"]


def test_wrapper_that_leads_back_to_agentrun_ends(box, tmp_path):
    loop = tmp_path / "looping-runtime"
    loop.write_text(f'#!/bin/sh\nexec {box.program} "$@"\n')
    loop.chmod(0o755)
    (box.root / "etc/agentrun/config.toml").write_text(f'version = 1\nbackends = ["{loop}"]\n')
    # The second agentrun in the chain goes to the plain runc or crun of this machine, or says it has none.
    done = box.run("--version")
    assert b"version" in done.stdout or b"neither runc nor crun" in done.stderr


def test_stacking_under_another_wrapper_works(box, tmp_path):
    wrapper = tmp_path / "nvidia-container-runtime"
    wrapper.write_text(f'#!/bin/sh\nexec {box.backend} "$@"\n')
    wrapper.chmod(0o755)
    (box.root / "etc/agentrun/config.toml").write_text(f'version = 1\nbackends = ["{wrapper}"]\n')
    box.run(*exec_argv(box))
    assert "--cgroup" in box.recording().all("argv")


def test_log_cannot_be_injected_into(box):
    make_file(box.root / "run/agentrun")
    subprocess.run(
        [box.program, "--root", str(box.state), "exec", "box", 'x\n{"level":"error"}\x1b[2J'],
        env=box.environment,
        check=True,
    )
    assert len(box.log()) == 1
