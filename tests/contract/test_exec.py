"""`exec` in a container that is ours: one insertion into argv, a slot, a cgroup, a record."""

from __future__ import annotations

import concurrent.futures
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

OURS = f"0 {os.nice(0)}"  # SCHED_OTHER, and how nice these tests were started
PROCESS = {"args": ["pytest", "-x"], "env": ["PATH=/bin", "AGENTRUN_INTENT=memory=64m"], "cwd": "/"}


def inserted(argv: list[str], slot: int = 0) -> list[str]:
    """An engine's arguments as the backend must get them."""
    at = argv.index("exec") + 1
    return [*argv[:at], "--cgroup", f"agentrun-calls/call-{slot}", *argv[at:]]


def root(box) -> list[str]:
    return ["--root", str(box.state)]


EXECS = {
    "docker": ["--log", "/dev/null", "--log-format", "json", "--systemd-cgroup", "exec", "--process", "P"]
    + ["--detach", "--pid-file", "/b/0123.pid", "box"],
    "podman": [
        "exec",
        "--pid-file",
        "/x/exec_pid",
        "--process",
        "P",
        "--detach",
        "--preserve-fds",
        "1",
        "box",
    ],
    "crio": ["--systemd-cgroup", "exec", "--process", "P", "box"],
    "by-hand": ["exec", "-t", "-u", "0:0", "-e", "A=b", "--cwd=/", "box", "exec", "--cgroup", "x"],
    "dashes": ["exec", "-user", "1", "box", "--", "ls", "-l"],
}


@pytest.mark.parametrize("name", EXECS)
def test_only_the_cgroup_option_is_inserted(box, name, tmp_path):
    document = tmp_path / "process.json"
    document.write_text(json.dumps(PROCESS))
    argv = [*root(box), *(str(document) if word == "P" else word for word in EXECS[name])]
    done = box.run(*argv)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert box.recording().all("argv")[1:] == inserted(argv)


def test_process_document_is_not_changed_where_there_is_nothing_to_tell(box, tmp_path):
    document = tmp_path / "process.json"
    document.write_text(json.dumps({**PROCESS, "env": ["AGENTRUN_INTENT=pids=99"]}))
    before = (document.read_bytes(), document.stat().st_ino)
    box.run(*root(box), "exec", "--process", document, "box")
    assert (document.read_bytes(), document.stat().st_ino) == before


def test_process_document_tells_a_narrower_call_about_its_machine(box, tmp_path):
    document = tmp_path / "process.json"
    document.write_text(json.dumps({**PROCESS, "env": ["GOMAXPROCS=9", "AGENTRUN_INTENT=cpu=1"]}))
    document.chmod(0o640)
    box.run(*root(box), "exec", "--process", document, "box")
    told = dict(entry.split("=", 1) for entry in json.loads(document.read_text())["env"])
    assert (told["OMP_NUM_THREADS"], told["MAKEFLAGS"], told["GOMAXPROCS"]) == ("1", "-j1", "9")
    assert document.stat().st_mode & 0o777 == 0o640
    assert os.listdir(tmp_path) == ["process.json"]


@pytest.mark.parametrize(
    ("asked", "own", "inherited"),
    [
        ([], {}, OURS),
        (["AGENTRUN_INTENT=priority=low"], {}, f"{os.SCHED_BATCH} 10"),
        (["AGENTRUN_INTENT=priority=low"], {"scheduler": {"policy": "SCHED_OTHER"}}, OURS),
    ],
)
def test_backend_hands_down_what_a_call_of_low_priority_is_scheduled_by(box, tmp_path, asked, own, inherited):
    document = tmp_path / "process.json"
    document.write_text(json.dumps({**PROCESS, "env": asked, **own}))
    box.run(*root(box), "exec", "--process", document, "box")
    assert box.recording().all("scheduler") == [inherited]


POLICY = """
version: 1
classes: {test: {pids: {max: 77}}, small: {pids: {max: 33}}}
rules:
  - {name: skipped, match: {command: skipme}, skip: true}
  - {name: watched, match: {command: watchme}, mode: observe}
  - {name: tests, match: {command: pytest}, class: test}
"""


def add_policy(box, text: str) -> None:
    folder = box.root / "etc/agentrun/policy.d"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "10-test.yaml").write_text(text)


@pytest.fixture
def policy_box(box):
    """The box, with a policy for the length of one test."""
    add_policy(box, POLICY)
    yield box
    (box.root / "etc/agentrun/policy.d/10-test.yaml").unlink()


def test_policy_decides_about_a_call(policy_box):
    policy_box.run(
        *root(policy_box), "exec", "box", "bash", "-lc", "cd / && AGENTRUN_INTENT=pids=50 pytest -q"
    )
    state = json.loads(slot_file(policy_box, 0).read_text())
    assert (state["class"], state["rule"], state["limits"]["pids"]) == ("test", "tests", 50)
    assert len(state["policy"]) == 16 and state["command"]["name"] == "pytest"
    care = {"feedback": "on", "background": "demote", "stall": None, "oom_score_adj": 500}
    assert (state["care"], state["tty"]) == (care, False)
    assert state["ceilings"]["pids"] == 77
    policy_box.run(*root(policy_box), "exec", "box", "env", "AGENTRUN_INTENT=class=small", "pytest")
    states = [json.loads(slot_file(policy_box, n).read_text()) for n in (0, 1) if slot_files(policy_box, n)]
    assert "small" in [state["class"] for state in states]


def slot_files(box, number: int) -> list[Path]:
    return list(box.root.glob(f"run/agentrun/sessions/*/box/call-{number}"))


def test_skipped_call_is_left_alone(policy_box):
    policy_box.run(*root(policy_box), "exec", "box", "skipme")
    assert policy_box.recording().all("argv")[1:] == [*root(policy_box), "exec", "box", "skipme"]
    assert not slot_files(policy_box, 0)


def test_observed_call_has_a_cgroup_and_no_limits(policy_box, cgroup_dir):
    policy_box.run(*root(policy_box), "exec", "box", "watchme")
    state = json.loads(slot_file(policy_box, 0).read_text())
    assert (state["mode"], state["limits"], state["care"]) == ("observe", None, {"feedback": "off"})
    assert "--cgroup" in policy_box.recording().all("argv")


def test_broken_policy_is_noted_once_and_the_last_good_one_stays(policy_box):
    policy_box.run(*root(policy_box), "exec", "box", "pytest")
    add_policy(policy_box, POLICY.replace("max: 77", "max: 77M"))
    for _ in range(2):
        policy_box.run(*root(policy_box), "exec", "box", "pytest")
    state = json.loads(slot_file(policy_box, 0).read_text())
    assert state["limits"]["pids"] == 77
    refused = [line for line in policy_box.log() if line["msg"].startswith("policy refused")]
    assert len(refused) == 1 and "10-test.yaml:3:" in refused[0]["error"]


def test_session_that_nobody_chose_leaves_no_trace(policy_box):
    add_policy(policy_box, POLICY + "sessions: [{match: {annotation: {agentrun.dev/tier: '*'}}}]\n")
    for verb in ("start", "exec"):
        argv = [*root(policy_box), verb, "box", *(["pytest"] if verb == "exec" else [])]
        policy_box.run(*argv)
        assert policy_box.recording().all("argv")[1:] == argv
    assert not (policy_box.root / "run/agentrun").exists() and policy_box.log() == []


def test_intent_of_the_process_document_is_read(box, tmp_path):
    (tmp_path / "process.json").write_text(json.dumps(PROCESS))
    box.run(*root(box), "exec", "--process", "process.json", "box", cwd=tmp_path)
    state = json.loads(slot_file(box, 0).read_text())
    assert state["intent"]["accepted"] == {"memory": 64 << 20}
    assert state["command"]["name"] == "pytest"


def slot_file(box, number: int) -> Path:
    """The state of a live call."""
    return next(box.root.glob(f"run/agentrun/sessions/*/box/call-{number}"))


def test_process_document_in_a_pipe_reaches_the_backend_whole(box):
    reading, writing = os.pipe()
    os.write(writing, json.dumps(PROCESS).encode())
    os.close(writing)
    os.set_inheritable(reading, True)
    box.run(*root(box), "exec", "--process", f"/dev/fd/{reading}", "box", pass_fds=(reading,))
    assert os.read(reading, 4096) == json.dumps(PROCESS).encode()
    os.close(reading)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"env": 5}', b"x" * 100_000])
def test_damaged_process_document_is_left_to_the_backend(box, tmp_path, content):
    (tmp_path / "p").write_bytes(content)
    argv = [*root(box), "exec", "--process", str(tmp_path / "p"), "box"]
    assert box.run(*argv).returncode == 0
    assert box.recording().all("argv")[1:] == inserted(argv)


def test_cgroup_that_the_caller_chose_is_respected(box):
    argv = [*root(box), "exec", "--cgroup", "mine", "box", "ls"]
    box.run(*argv)
    assert box.recording().all("argv")[1:] == argv


def test_init_moves_into_its_leaf_at_start(box):
    box.run(*root(box), "start", "box")
    assert (box.cgroup / "cgroup.procs").read_text() == ""
    assert (box.cgroup / "agentrun-agent/cgroup.procs").read_text() != ""
    assert (box.cgroup / "agentrun-calls").is_dir()


def test_finished_call_is_recorded_by_the_next(box):
    for _ in range(3):
        box.run(*root(box), "exec", "box", "ls")
    found = box.records()
    assert len(found) == 2 and {r["slot"] for r in found} == {"call-0"}
    assert [path.name for path in (box.cgroup / "agentrun-calls").glob("call-*")] == ["call-0"]


def test_delete_records_and_forgets_everything(box):
    box.run(*root(box), "exec", "box", "ls")
    box.run(*root(box), "delete", "--force", "box")
    assert len(box.records()) == 1
    assert list(box.root.glob("run/agentrun/sessions/*")) == []
    assert list((box.cgroup / "agentrun-calls").glob("call-*")) == []


def test_delete_without_force_spares_what_lives(box):
    box.run(*root(box), "exec", "box", "ls")
    call = box.cgroup / "agentrun-calls/call-0"
    with subprocess.Popen(["sleep", "1000"]) as process:
        (call / "cgroup.procs").write_text(str(process.pid))
        box.run(*root(box), "delete", "box")
        assert process.poll() is None and box.records() == []
        process.kill()


def test_64_calls_at_once_get_64_slots(box):
    def call(number: int) -> str:
        output = box.folder / f"recording-{number}"
        env = {**box.environment, "RECORDER_OUTPUT": str(output), "RECORDER_CAT": "1"}
        subprocess.run([box.program, *root(box), "exec", "box", "x"], env=env, input=b"", check=True)
        argv = [line for line in output.read_text().splitlines() if "agentrun-calls/" in line]
        output.unlink()
        return argv[0]

    with concurrent.futures.ThreadPoolExecutor(64) as pool:
        list(pool.map(call, range(64)))
    box.run(*root(box), "delete", "--force", "box")
    found = box.records()
    assert len(found) == len({r["id"] for r in found}) == 64
    assert list((box.cgroup / "agentrun-calls").glob("call-*")) == []


SOAK = """
import os, sys
sys.path.insert(0, sys.argv[1])
from agentrun.oci import handoff
from agentrun.runtime import verbs
handoff.exec_backend = lambda path, argv: os._exit(0)
for _ in range(int(sys.argv[3])):
    child = os.fork()
    if not child:
        os._exit(verbs.main(["--root", sys.argv[2], "exec", "box", "true"], "runc"))
    if os.waitpid(child, 0)[1]:
        sys.exit("a call failed")
"""


def test_10_000_calls_in_a_row_leave_nothing_behind(box):
    library = box.folder / "usr/libexec/agentrun"
    command = [sys.executable, "-c", SOAK, library, box.state, "10000"]
    subprocess.run(command, env=box.environment, check=True, timeout=600)
    box.run(*root(box), "delete", "--force", "box")
    assert len({r["id"] for r in box.records()}) == 10_000
    assert list((box.cgroup / "agentrun-calls").glob("call-*")) == []
    assert list(box.root.glob("run/agentrun/sessions/*")) == []
    assert box.log() == []


@pytest.mark.parametrize("name", ["..", "a/b", "x" * 300, "a\nb", "ä"])
def test_hostile_id_goes_to_the_backend_untouched(box, name):
    argv = [*root(box), "exec", name, "ls"]
    box.run(*argv)
    assert len(box.recording().all("argv")) == 1 + len(argv)
    assert list(box.root.glob("run/agentrun/sessions/*/*")) == []


def test_container_known_to_crun_goes_to_crun(box):
    (box.folder / "bin/crun").unlink(missing_ok=True)
    (box.folder / "bin/crun").symlink_to(box.backend)
    folder = box.state / "made-by-crun"
    folder.mkdir(exist_ok=True)
    state = {"pid": 1, "process-start-time": 1, "cgroup-path": "/x", "bundle": "/b"}
    (folder / "status").write_text(json.dumps(state))
    both = f'["{box.backend}", "{box.folder}/bin/crun"]'
    config = box.root / "etc/agentrun/config.toml"
    config.write_text(f"version = 1\nbackends = {both}\n")
    for verb in ("state", "exec", "delete"):
        box.run(*root(box), verb, "made-by-crun")
        assert box.recording().all("argv")[0] == f"{box.folder}/bin/crun"
        box.run(*root(box), verb, "box")
        assert box.recording().all("argv")[0] == str(box.backend)


def test_ps_on_crun_lists_the_calls_as_well(box):
    (box.folder / "bin/crun").unlink(missing_ok=True)
    (box.folder / "bin/crun").symlink_to(box.backend)
    (box.root / "etc/agentrun/config.toml").write_text(f'version = 1\nbackends = ["{box.folder}/bin/crun"]\n')
    runc_state = json.loads((box.state / "box/state.json").read_text())
    folder = box.state / "crun-box"
    folder.mkdir(exist_ok=True)
    state = {
        "pid": runc_state["init_process_pid"],
        "process-start-time": runc_state["init_process_start"],
        "cgroup-path": f"/{box.cgroup.name}",
        "bundle": "/b",
    }
    (folder / "status").write_text(json.dumps(state))
    box.run(*root(box), "start", "crun-box")
    done = box.run(*root(box), "ps", "--format", "json", "crun-box")
    assert json.loads(done.stdout) == [runc_state["init_process_pid"]]
    assert box.run(*root(box), "ps", "crun-box").stdout.split() == [b"PID", str(state["pid"]).encode()]


def test_delete_forgets_a_container_whose_cgroup_is_gone_already(box):
    """systemd removes a scope with its last process, before the engine calls delete."""
    box.run(*root(box), "exec", "box", "ls")
    assert list(box.root.glob("run/agentrun/sessions/*/*/call-*"))
    file = box.state / "box/state.json"
    state = json.loads(file.read_text())
    state["cgroup_paths"][""] += "/gone"
    state["init_process_start"] += 1
    file.write_text(json.dumps(state))
    box.run(*root(box), "delete", "box")
    assert list(box.root.glob("run/agentrun/sessions/*/*")) == []
