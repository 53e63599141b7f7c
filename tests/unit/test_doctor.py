"""What `agentrunctl doctor` finds."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from agentrun import config, doctor
from agentrun.paths import Paths


@pytest.fixture
def paths(tmp_path) -> Paths:
    """A healthy host below a directory."""
    cgroup = tmp_path / "cgroup"
    cgroup.mkdir()
    (cgroup / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    for folder in ("etc/agentrun/policy.d", "var/log", "run"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "etc/agentrun/config.toml").write_text('version = 1\nbackends = ["/bin/true"]\n')
    made = Paths(str(tmp_path), str(cgroup))
    os.mkdir(made.run, 0o700)
    config.load(made)
    return made


def findings(paths: Paths, what: str) -> list[tuple[str, str]]:
    return [(f.level, f.text) for f in doctor.examine(paths) if f.what.startswith(what)]


def test_healthy_host_has_no_problem(paths):
    assert [f for f in doctor.examine(paths) if f.level == "problem"] == []
    assert findings(paths, "agentrund")[0][0] == "note"


def test_missing_controller_is_a_problem(paths):
    (Path(paths.cgroup_root) / "cgroup.controllers").write_text("cpu memory pids\n")
    assert findings(paths, "cgroup v2") == [("problem", "no io controller: these limits do not hold")]


def test_host_without_cgroup_v2_is_named(paths):
    os.unlink(paths.cgroup_root + "/cgroup.controllers")
    assert findings(paths, "cgroup v2")[0][0] == "problem"


def test_broken_policy_is_shown_until_it_is_mended(paths):
    file = Path(paths.policy) / "a.yaml"
    file.write_text("version: 1\nclases: {}\n")
    level, text = findings(paths, "configuration")[0]
    assert level == "problem" and "a.yaml:2:1: unknown key 'clases'" in text and "last good one" in text
    file.write_text("version: 1\n")
    assert findings(paths, "configuration") == []


def test_directory_that_others_can_write_is_a_problem(paths):
    os.chmod(paths.state, 0o777)
    assert ("problem", "belongs to others or can be written by them: agentrun will not use it") in findings(
        paths, f"directory {paths.state}"
    )


def test_recent_warnings_are_counted(paths):
    Path(paths.log).write_text(
        '{"time":"2001-01-01T00:00:00Z","msg":"old"}\n{"time":"2999-01-01T00:00:00Z","msg":"new"}\n'
    )
    level, text = findings(paths, "log")[0]
    assert level == "note" and text.startswith("1 in the last day") and '"new"' in text


def test_json_can_be_read_by_programs(paths, monkeypatch):
    from click.testing import CliRunner

    from agentrun import ctl

    monkeypatch.setattr(ctl, "host_paths", lambda: paths)
    done = CliRunner().invoke(ctl.cli, ["doctor", "--json"])
    assert done.exit_code == 0 and {f["level"] for f in json.loads(done.output)} <= {"ok", "note"}
    assert "agentrund" in CliRunner().invoke(ctl.cli, ["doctor"]).output


@pytest.mark.parametrize(
    ("text", "version"), [("crun version 1.21", (1, 21)), ("runc version 1.1.15+ds1", (1, 1, 15)), ("x", ())]
)
def test_version_is_found(text, version):
    assert doctor.parse_version(text) == version
