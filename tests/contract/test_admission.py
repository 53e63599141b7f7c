"""A call waits before it starts while the gate is closed; the gate is the test's, the exec path is real."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from node import wait_for

from agentrun.base.paths import Paths
from agentrun.client import Client, blame
from agentrun.daemon.main import take_lock

POLICY = """
version: 1
classes: {{light: {{may-wait: false}}}}
tiers: {{low: {{admission: {admission}}}}}
sessions: [{{tier: low}}]
rules: [{{name: watched, match: {{command: watchme}}, mode: observe}}]
"""

ENDS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def _as_an_engine() -> None:
    """No signal is ignored from the start, as for whoever runs these tests in the background."""
    for number in ENDS:
        signal.signal(number, signal.SIG_DFL)


class Waiting:
    """The box with tenants that may wait, and what agentrund would do."""

    def __init__(self, box: Any, admission: str) -> None:
        self.box = box
        self.paths = Paths(str(box.root), str(box.cgroup.parent))
        self.gate = Path(self.paths.gate)
        folder = box.root / "etc/agentrun/policy.d"
        folder.mkdir(parents=True, exist_ok=True)
        self.policy = folder / "10-admission.yaml"
        self.policy.write_text(POLICY.format(admission=admission))
        self.lock = take_lock(self.paths)
        assert (
            box.run("--root", box.state, "exec", "box", "true").returncode == 0
        )  # compiles the policy, makes the layout

    def close(self, domain: str = "host", below: list[int] | None = None, valid_s: float = 5) -> None:
        """Close the gate as agentrund does."""
        entry = {"domain": domain, "below": below or [300, 100], "why": "9M of 9G left (host)"}
        text = json.dumps({"until": time.monotonic() + valid_s, "closed": [entry]})
        temporary = self.gate.with_suffix(".new")
        temporary.touch(0o600)
        temporary.write_text(text)
        temporary.rename(self.gate)

    def exec(self, *command: str, options: tuple[str, ...] = (), global_options: tuple[str, ...] = ()) -> Any:
        """An exec as an engine starts it, left running."""
        argv = [
            self.box.program,
            "--root",
            self.box.state,
            *global_options,
            "exec",
            *options,
            "box",
            *command,
        ]
        return subprocess.Popen(
            argv,
            env=self.box.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=_as_an_engine,
        )

    def shown(self) -> list[dict[str, Any]]:
        """Calls that `agentrunctl calls` shows as waiting."""
        return [row for row in Client(self.paths).calls() if row.get("waiting")]

    def wait_files(self) -> list[Path]:
        return list(self.box.root.glob("run/agentrun/sessions/*/box/*wait-*"))

    def states(self) -> list[dict[str, Any]]:
        """States of calls that have a slot, without the first."""
        files = self.box.root.glob("run/agentrun/sessions/*/box/call-*")
        states = [json.loads(path.read_text()) for path in files]
        return [state for state in states if state["command"]["name"] != "true"]

    def keep_closed(self, condition: Callable[[], Any], what: str) -> Any:
        """Wait for something with a gate that stays closed."""

        def refreshed() -> Any:
            self.close()
            return condition()

        return wait_for(refreshed, what, 20)


@pytest.fixture
def waiting(box, request) -> Iterator[Waiting]:
    """A gate that is open, and tenants whose calls wait up to 10 s unless the test says otherwise."""
    made = Waiting(box, getattr(request, "param", "{wait: 10s}"))
    yield made
    made.policy.unlink()
    with contextlib.suppress(OSError):
        os.close(made.lock)


def end(process: subprocess.Popen[bytes]) -> tuple[int, bytes, bytes]:
    out, error = process.communicate(timeout=30)
    return process.returncode, out, error


def test_call_waits_visibly_until_the_gate_opens(waiting):
    waiting.close()
    process = waiting.exec("pytest")
    row = waiting.keep_closed(waiting.shown, "the call to wait")[0]
    assert (row["command"]["name"], row["end"], row["verdict"], row["slot"]) == ("pytest", None, None, None)
    assert 0 < row["waiting"]["until"] - row["start"] <= 10 and "left" in row["waiting"]["why"]
    time.sleep(0.5)
    assert process.poll() is None and waiting.states() == []
    waiting.gate.unlink()
    assert end(process) == (0, b"", b"")
    assert "--cgroup" in waiting.box.recording().all("argv")
    state = waiting.states()[0]
    assert (state["id"], state["waited"]["outcome"], state["waited"]["level"]) == (row["id"], "room", "host")
    assert 0.5 <= state["waited"]["seconds"] < 20 and state["start"] >= row["start"] + 0.5
    assert waiting.wait_files() == [] and waiting.shown() == [] and waiting.box.log() == []


def test_those_that_wait_start_in_order_and_one_after_the_other(waiting):
    waiting.close()
    commands = [("env", "AGENTRUN_INTENT=priority=low", "last"), *((f"n{number}",) for number in range(7))]
    processes = []
    for number, command in enumerate(commands):
        processes.append(waiting.exec(*command))
        waiting.keep_closed(lambda wanted=number: len(waiting.shown()) > wanted, "the call to wait")
    waiting.gate.unlink()
    assert [end(process)[0] for process in processes] == [0] * 8
    states = sorted(waiting.states(), key=lambda state: state["start"])
    names = [state["command"]["name"] for state in states]
    expected = [*(f"n{number}" for number in range(7)), "last"]
    # Each sees the open gate at a time of its own: neighbours may change places, strangers do not.
    assert max(abs(names.index(name) - place) for place, name in enumerate(expected)) <= 2, names
    assert states[-1]["start"] - states[0]["start"] > 0.2


@pytest.mark.parametrize("waiting", ["{wait: 500ms}"], indirect=True)
def test_call_starts_all_the_same_after_its_longest_wait(waiting):
    waiting.close(below=None)
    assert end(waiting.exec("pytest")) == (0, b"", b"")
    waited = waiting.states()[0]["waited"]
    assert waited["outcome"] == "bound" and 0.5 <= waited["seconds"] < 5
    assert waiting.wait_files() == []


@pytest.mark.parametrize("waiting", ["{wait: 500ms, then: refuse}"], indirect=True)
def test_refused_call_fails_as_a_runtime_reports_it(waiting, tmp_path):
    waiting.close(valid_s=9)
    log = tmp_path / "log.json"
    process = waiting.exec("pytest", global_options=("--log", str(log), "--log-format", "json"))
    waiting.box.output.unlink()
    code, out, error = end(process)
    assert (code, out) == (255, b"") and error.startswith(b"agentrun: This call was refused and did not run")
    line = json.loads(log.read_text())
    assert (line["level"], line["msg"]) == ("error", error.decode().rstrip("\n"))
    assert not waiting.box.output.exists()  # the backend was not run
    assert waiting.states() == [] and waiting.wait_files() == []
    record = waiting.box.records()[-1]
    assert (record["verdict"], record["level"], record["flags"]) == ("refused", "host", ["waited"])
    assert (record["slot"], record["cgroup"], record["exit_code"]) == (None, None, None)
    assert record["waited"]["outcome"] == "refused" and record["feedback"][0]["text"] in line["msg"]
    assert blame(record) == "infrastructure"
    assert [r["id"] for r in Client(waiting.paths).calls() if r["verdict"] == "refused"] == [record["id"]]


GARBAGE = [b"", b"{", b"[]", b"null", b'{"until": "x", "closed": []}', b'{"until": 1e999, "closed": 7}']


@pytest.mark.parametrize(
    "plant",
    ["stale", "far future", "writable", "symlink", "folder", "pipe", "other domain", "not below"]
    + [f"garbage {number}" for number in range(len(GARBAGE))],
)
def test_gate_that_is_not_to_be_believed_is_open(waiting, plant):
    waiting.close(valid_s=8)
    if plant == "stale":
        waiting.close(valid_s=-0.1)
    elif plant == "far future":
        waiting.close(valid_s=1e6)
    elif plant == "writable":
        waiting.gate.chmod(0o622)
    elif plant == "symlink":
        waiting.gate.rename(waiting.gate.with_suffix(".real"))
        waiting.gate.symlink_to(waiting.gate.with_suffix(".real"))
    elif plant in ("folder", "pipe"):
        waiting.gate.unlink()
        waiting.gate.mkdir() if plant == "folder" else os.mkfifo(waiting.gate)
    elif plant == "other domain":
        waiting.close(domain=f"{waiting.box.cgroup}x", valid_s=8)
    elif plant == "not below":
        waiting.close(below=[100, 100], valid_s=8)
    else:
        waiting.gate.write_bytes(GARBAGE[int(plant.split()[1])])
    began = time.monotonic()
    assert end(waiting.exec("pytest")) == (0, b"", b"")
    assert time.monotonic() - began < 5
    assert waiting.states()[0].get("waited") is None
    assert len(waiting.box.log()) <= 1
    waiting.gate.rmdir() if plant == "folder" else waiting.gate.unlink()


@pytest.mark.parametrize(
    "command", [("watchme",), ("env", "AGENTRUN_INTENT=class=light", "x")], ids=["observed", "light"]
)
def test_call_that_need_not_wait_starts_at_once(waiting, command):
    waiting.close(valid_s=8)
    assert end(waiting.exec(*command)) == (0, b"", b"")
    assert waiting.states()[0].get("waited") is None


def test_dead_agentrund_keeps_nobody_waiting(waiting):
    waiting.close(valid_s=9)
    process = waiting.exec("pytest")
    wait_for(waiting.shown, "the call to wait")
    os.close(waiting.lock)  # it dies
    began = time.monotonic()
    assert end(process)[0] == 0 and time.monotonic() - began < 5
    assert waiting.states()[0]["waited"]["outcome"] == "gone"
    assert end(waiting.exec("another"))[0] == 0
    assert [state.get("waited") for state in waiting.states() if state["command"]["name"] == "another"] == [
        None
    ]


@pytest.mark.parametrize("number", ENDS)
def test_ended_runtime_leaves_nothing(waiting, number):
    waiting.close(valid_s=9)
    process = waiting.exec("pytest")
    wait_for(waiting.shown, "the call to wait")
    process.send_signal(number)
    assert end(process) == (-number, b"", b"")
    assert waiting.wait_files() == [] and waiting.states() == []


def test_killed_runtime_is_not_shown_and_is_forgotten(waiting):
    waiting.close(valid_s=9)
    process = waiting.exec("pytest")
    wait_for(waiting.shown, "the call to wait")
    process.kill()
    assert end(process) == (-signal.SIGKILL, b"", b"")
    assert waiting.shown() == [] and waiting.wait_files() == [] and waiting.states() == []


def test_waiting_call_can_be_killed_by_the_operator(waiting):
    waiting.close(valid_s=9)
    process = waiting.exec("pytest")
    row = wait_for(waiting.shown, "the call to wait")[0]
    assert Client(waiting.paths).kill(row["id"]) == [row["id"]]
    assert end(process)[0] == -signal.SIGTERM
    assert waiting.wait_files() == []


def test_container_that_ends_meanwhile_is_the_backends_to_report(waiting):
    waiting.close(valid_s=9)
    process = waiting.exec("pytest")
    wait_for(waiting.shown, "the call to wait")
    os.kill(
        json.loads((waiting.box.state / "box/state.json").read_text())["init_process_pid"], signal.SIGKILL
    )
    assert end(process) == (0, b"", b"")
    assert "--cgroup" not in waiting.box.recording().all("argv")
    assert waiting.states() == [] and waiting.wait_files() == []


def test_many_that_wait_hold_up_nobody_else_nor_delete(waiting):
    waiting.close(valid_s=9)
    processes = [waiting.exec("make") for _ in range(64)]
    waiting.keep_closed(lambda: len(waiting.shown()) == 64, "all to wait")
    began = time.monotonic()
    assert end(waiting.exec("watchme"))[0] == 0
    assert not [state for state in waiting.states() if state["command"]["name"] == "make"]
    waiting.box.run("--root", waiting.box.state, "delete", "--force", "box")
    assert time.monotonic() - began < 5
    assert not list(waiting.box.root.glob("run/agentrun/sessions/*/box"))
    os.kill(
        json.loads((waiting.box.state / "box/state.json").read_text())["init_process_pid"], signal.SIGKILL
    )
    assert {end(process)[0] for process in processes} == {0}
    assert waiting.wait_files() == [] and waiting.states() == []


def test_failure_of_ours_costs_the_wait_and_nothing_else(waiting):
    library = waiting.box.folder / "usr/libexec/agentrun/agentrun/runtime"
    parts = [library / "admission.py", *library.glob("__pycache__/admission.*")]
    for part in parts:
        part.rename(part.with_suffix(".away"))
    try:
        waiting.close(valid_s=9)
        assert end(waiting.exec("pytest")) == (0, b"", b"")
    finally:
        for part in parts:
            part.with_suffix(".away").rename(part)
    assert waiting.states()[0].get("waited") is None and "--cgroup" in waiting.box.recording().all("argv")
    assert ["cannot import name" in line["error"] for line in waiting.box.log()] == [True]
