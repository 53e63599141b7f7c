"""The process document: what a call is told about its machine, and how the file is replaced."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from agentrun.base import fastjson
from agentrun.decision.plan import Plan
from agentrun.decision.truth import machine_truth, rewritten
from agentrun.oci import processdoc
from agentrun.oci.argv import parse

DOCUMENT: dict[str, Any] = {
    "args": ["pytest"],
    "cwd": "/repo",
    "env": ["PATH=/bin", "GOMAXPROCS=7", "AGENTRUN_INTENT=cpu=1"],
    "user": {"uid": 1000, "gid": 1000},
    "terminal": False,
    "unknown": {"kept": [1, 2.5, None, True]},
}


def plan(cpus=None, memory=None, cpuset=None, priority="normal"):
    made = Plan()
    made.cpus, made.memory, made.cpuset, made.priority = cpus, memory, cpuset, priority
    return made


def test_call_that_is_as_wide_as_its_session_is_told_nothing():
    assert machine_truth(plan(4.0, 1 << 30), 4.0, 1 << 30) == {}
    assert machine_truth(plan(), None, None) == {}


@pytest.mark.parametrize(("cpus", "count"), [(0.5, "1"), (1.0, "1"), (1.2, "2"), (3.0, "3")])
def test_narrower_call_counts_its_own_cpus(cpus, count):
    truth = machine_truth(plan(cpus), 8.0, None)
    assert truth["OMP_NUM_THREADS"] == truth["GOMAXPROCS"] == truth["PYTEST_XDIST_AUTO_NUM_WORKERS"] == count
    assert truth["MAKEFLAGS"] == f"-j{count}"
    assert "JAVA_TOOL_OPTIONS" not in truth


def test_go_is_told_its_memory_a_little_early():
    assert machine_truth(plan(memory=1000), None, 2000) == {"GOMEMLIMIT": "900"}


def test_variables_that_are_set_stay_and_nothing_is_lost():
    process = processdoc.Process(DOCUMENT, "x")
    document = rewritten(process, plan(), {"GOMAXPROCS": "1", "OMP_NUM_THREADS": "1"}, False)
    assert document == {**DOCUMENT, "env": [*DOCUMENT["env"], "OMP_NUM_THREADS=1"]}


def test_intent_is_stripped_on_demand():
    process = processdoc.Process(DOCUMENT, "x")
    document = rewritten(process, plan(), {}, True)
    assert document is not None and document["env"] == ["PATH=/bin", "GOMAXPROCS=7"]


def test_pinning_and_low_priority_are_asked_of_the_backend():
    process = processdoc.Process(DOCUMENT, "x")
    document = rewritten(process, plan(cpuset="0-1", priority="low"), {}, False)
    assert document is not None
    assert document["execCPUAffinity"] == {"final": "0-1"}
    assert document["scheduler"]["policy"] == "SCHED_BATCH"
    assert document["ioPriority"]["class"] == "IOPRIO_CLASS_BE"
    own = {**DOCUMENT, "scheduler": {"policy": "SCHED_OTHER"}, "ioPriority": {"class": "x"}}
    assert rewritten(processdoc.Process(own, "x"), plan(priority="low"), {}, False) is None


def test_file_is_replaced_with_its_mode_and_nothing_left_beside_it(tmp_path):
    path = tmp_path / "process.json"
    path.write_text("{}")
    path.chmod(0o640)
    assert processdoc.replace(str(path), DOCUMENT)
    assert json.loads(path.read_text()) == DOCUMENT
    assert path.stat().st_mode & 0o777 == 0o640
    assert os.listdir(tmp_path) == ["process.json"]


def test_symlink_and_hard_link_are_left_alone(tmp_path):
    path = tmp_path / "process.json"
    path.write_text("{}")
    (tmp_path / "soft").symlink_to(path)
    assert not processdoc.replace(str(tmp_path / "soft"), DOCUMENT)
    os.link(path, tmp_path / "hard")
    assert not processdoc.replace(str(path), DOCUMENT)
    assert path.read_text() == "{}"


def test_bytes_that_are_not_utf8_survive(tmp_path):
    path = tmp_path / "process.json"
    path.write_bytes(b'{"env":["A=\xff\xfe","B=\xc3\xa4"],"args":["x"]}')
    invocation = parse(["exec", "--process", str(path), "c1"])
    assert invocation is not None
    process = processdoc.read(invocation)
    assert processdoc.replace(str(path), process.document)
    assert path.read_bytes() == b'{"env":["A=\xff\xfe","B=\xc3\xa4"],"args":["x"]}'


def test_half_a_surrogate_pair_is_refused_not_written(tmp_path):
    path = tmp_path / "process.json"
    path.write_text(r'{"env":["A=\ud800"]}')
    with pytest.raises(ValueError, match="surrogates not allowed"):
        processdoc.replace(str(path), fastjson.loads(path.read_bytes()))
    assert os.listdir(tmp_path) == ["process.json"]


@pytest.mark.parametrize("text", ["", "[]", "{", '{"args": 1, "env": "x", "user": 5, "cwd": 9}', "null"])
def test_broken_document_asks_for_nothing(tmp_path, text):
    path = tmp_path / "process.json"
    path.write_text(text)
    invocation = parse(["exec", "--process", str(path), "c1"])
    assert invocation is not None
    process = processdoc.read(invocation)
    assert (process.argv, process.environment, process.uid, process.tty) == ([], [], 0, False)


def test_options_of_a_call_by_hand_are_read():
    invocation = parse(["exec", "-t", "-u", "1000:5", "--cwd", "/w", "-e", "A=1", "c1", "ls", "-l"])
    assert invocation is not None
    process = processdoc.read(invocation)
    assert (process.argv, process.environment) == (["ls", "-l"], ["A=1"])
    assert (process.uid, process.cwd, process.tty, process.path) == (1000, "/w", True, None)


PID_FILES = {
    "/run/containerd/io.containerd.runtime.v2.task/moby/c1/0a1b.pid": "0a1b",
    "/var/lib/containers/storage/overlay-containers/c1/userdata/9f8e/exec_pid": "9f8e",
    "call.pid": "call",
    "exec_pid": None,
    None: None,
}


@pytest.mark.parametrize("path", PID_FILES, ids=str)
def test_engines_id_is_read_from_the_pid_files_path(path):
    from agentrun.oci.argv import exec_id as _exec_id

    assert _exec_id(path) == PID_FILES[path]
