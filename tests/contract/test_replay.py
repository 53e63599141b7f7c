"""`agentrunctl replay` on plain processes: no container, no root, everything else real."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

TREE = Path(__file__).parents[2]
FLAT, SPIKY = (str(TREE / f"tests/data/traces/tiny-{name}.json") for name in ("flat", "spiky"))


def replay(*arguments: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    code = "from agentrun.cli.main import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, "replay", "--engine", "process", *arguments],
        cwd=TREE,
        text=True,
        capture_output=True,
        timeout=60,
        env={**os.environ, "PATH": path} if path is not None else None,
        check=False,
    )


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """One replay of both traces, as JSON and as a page."""
    folder = tmp_path_factory.mktemp("replay")
    out, html = folder / "out.json", folder / "page.html"
    done = replay("--speed", "2", "--tier", f"high={FLAT}", "--out", str(out), "--html", str(html), SPIKY)
    assert done.returncode == 0, done.stderr
    assert "2 of 2 sessions done" in done.stdout and done.stderr == ""
    assert html.read_text().startswith("<!doctype html>")
    return json.loads(out.read_text())


def test_every_call_of_the_traces_runs_to_its_end(found):
    assert [session["tier"] for session in found["sessions"]] == ["normal", "high"]
    for session in found["sessions"]:
        assert [call["outcome"] for call in session["calls"]] == ["ok", "ok"]
    assert found["figures"]["calls"] == {"ok": 4, "killed": 0, "failed": 0, "lost": 0}


def test_no_session_is_done_before_its_plan_says(found):
    for session in found["sessions"]:
        assert session["planned_s"] == pytest.approx(1.5, abs=0.2)
        assert session["done_s"] >= session["planned_s"] - 0.05


def test_memory_is_touched_chunk_by_chunk(found):
    spiky = found["sessions"][0]["calls"][1]
    # 60 MB and a bit for the sample's reach, less what the interpreter itself holds.
    assert 40 <= spiky["latency"]["chunks"] <= 62
    assert 0 < spiky["latency"]["p50_ms"] <= spiky["latency"]["p99_ms"]


def test_settings_say_what_was_replayed(found):
    assert found["settings"]["speed"] == 2.0
    assert [text.split()[0] for text in found["settings"]["sessions"]] == [
        "normal=tiny-spiky",
        "high=tiny-flat",
    ]


def test_session_that_is_not_done_in_time_is_reported_and_nothing_is_left(tmp_path):
    out = tmp_path / "out.json"
    done = replay("--limit", "1", "--out", str(out), FLAT)
    assert done.returncode == 0, done.stderr
    (session,) = json.loads(out.read_text())["sessions"]
    assert session["done_s"] is None and not session["agent_killed"]
    assert session["calls"][1]["outcome"] == "lost"
    assert workers() == []


def workers() -> list[str]:
    """Command lines of workers that still run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue  # ended since
        if words[1:4] == [b"-I", b"-S", b"-c"] and b"What runs inside a container" in words[4]:
            found.append(str(path))
    return found


@contextlib.contextmanager
def running(*arguments: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A replay whose agent is up: (the replay, the agent's pid)."""
    # A background job of a shell is started with SIGINT ignored, and CI may be one.
    script = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from agentrun.cli.main import main; main()"
    )
    command = [sys.executable, "-c", script, "replay", "--engine", "process"]
    with subprocess.Popen([*command, *arguments], cwd=TREE, stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 30
        while not (alive := workers()):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(0.5)
        try:
            yield process, int(alive[0].split("/")[2])
        finally:
            process.kill()


def kill_call(number: int, agent: int) -> None:
    """Kill the command that runs now, when there is one that was not killed before."""
    deadline = time.monotonic() + 30
    while True:
        calls = [int(path.split("/")[2]) for path in workers() if int(path.split("/")[2]) != agent]
        if calls:
            os.kill(calls[0], number)
            return
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_call_that_is_killed_is_run_again_where_asked_for(tmp_path):
    out = tmp_path / "out.json"
    with running("--retries", "1", "--out", str(out), FLAT) as (process, agent):
        kill_call(signal.SIGKILL, agent)
        assert process.wait(timeout=60) == 0
    found = json.loads(out.read_text())
    (session,) = found["sessions"]
    assert session["done_s"] is not None
    assert [(call["outcome"], call["lost_runs"]) for call in session["calls"]] == [("ok", 1), ("ok", 0)]
    assert found["figures"]["run_again"] == 1 and found["settings"]["retries"] == 1


def test_call_that_is_killed_more_often_than_it_may_be_run_again_ends_its_session(tmp_path):
    out = tmp_path / "out.json"
    with running("--retries", "1", "--out", str(out), FLAT) as (process, agent):
        kill_call(signal.SIGKILL, agent)
        time.sleep(0.2)  # that one is gone
        kill_call(signal.SIGKILL, agent)
        assert process.wait(timeout=60) == 0
    (session,) = json.loads(out.read_text())["sessions"]
    assert session["done_s"] is None and session["calls"][0]["outcome"] == "killed"


def test_agent_that_is_killed_ends_its_session(tmp_path):
    out = tmp_path / "out.json"
    with running("--out", str(out), FLAT) as (process, agent):
        os.kill(agent, signal.SIGKILL)
        assert process.wait(timeout=30) == 0
    (session,) = json.loads(out.read_text())["sessions"]
    assert session["agent_killed"] and session["done_s"] is None
    assert workers() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_replay_that_is_ended_leaves_nothing(number):
    with running(FLAT) as (process, _):
        process.send_signal(number)
        assert process.wait(timeout=30) != 0
    assert workers() == []


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["/none.json"], "agentrunctl: read trace '/none.json'"),
        (["synthetic:nobody"], "agentrunctl: synthesise 'synthetic:nobody': there are only cpu-heavy"),
        (["--window", "90:95", FLAT], "under two samples"),
        (["--window", "5", FLAT], "expected BEGIN:END"),
        (["--tier", "high", FLAT], "expected NAME=TRACE"),
        (["--memory", "100M", FLAT], "has no memory limits"),
        (["--engine", "hand", FLAT], "needs --runtime and --rootfs"),
        ([], "name at least one trace"),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else "",
)
def test_mistake_is_one_line_and_a_status(arguments, text):
    done = replay(*arguments)
    assert done.returncode != 0 and done.stdout == ""
    assert text in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("program", [None, "#!/bin/sh\nexit 3\n"], ids=["missing", "broken"])
def test_host_without_a_working_python_is_named(tmp_path, program):
    if program:
        (tmp_path / "python3").write_text(program)
        (tmp_path / "python3").chmod(0o755)
    done = replay(FLAT, path=str(tmp_path))
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.startswith("agentrunctl: ") and "python3" in done.stderr


def test_synthetic_trace_says_that_it_is_one(tmp_path):
    done = replay("--speed", "10", "--window", "0:4", "--scale", "0.1", "synthetic:like-faker-1520")
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("SYNTHETIC trace, not a recorded one: like-faker-1520: 123 s")


def test_part_of_the_memory_can_be_file_cache(tmp_path):
    out = tmp_path / "out.json"
    done = replay("--speed", "2", "--file-cache", "50", "--out", str(out), SPIKY)
    assert done.returncode == 0, done.stderr
    (session,) = json.loads(out.read_text())["sessions"]
    assert [call["outcome"] for call in session["calls"]] == ["ok", "ok"]
    assert session["calls"][1]["latency"]["chunks"] >= 40


def test_records_are_replayed(tmp_path):
    path = tmp_path / "calls.jsonl"
    row = {
        "container": "c" * 64,
        "start": 10.0,
        "end": 11.0,
        "memory_peak": 30_000_000,
        "cpu_usage_us": 200_000,
    }
    path.write_text(json.dumps({**row, "command": {"name": "pytest"}}) + "\n")
    done = replay("--speed", "2", "--scale", "0.5", str(path))
    assert done.returncode == 0, done.stderr
    assert "1 of 1 sessions done" in done.stdout
