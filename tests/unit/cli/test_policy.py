"""`agentrunctl policy`, as people run it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from agentrun.cli.main import cli
from agentrun.policy import hostconfig
from agentrun.policy.cases import CaseError, run_file

TREE = Path(__file__).parents[3]
DEFAULT = str(TREE / "configs/policy/default.yaml")
TENANTS = str(TREE / "configs/policy/multi-tenant.yaml")


def run(*arguments: str):
    """Run agentrunctl; returns its result."""
    return CliRunner().invoke(cli, ["policy", *arguments])


@pytest.fixture(autouse=True)
def own_root(tmp_path, monkeypatch):
    monkeypatch.setenv("AGENTRUN_ROOT", str(tmp_path))
    monkeypatch.setattr(
        "agentrun.base.paths.getenv", lambda name: str(tmp_path) if name == "AGENTRUN_ROOT" else ""
    )
    return tmp_path


def test_check_counts_what_a_policy_has():
    done = run("check", DEFAULT)
    assert (done.exit_code, done.output.split(": ", 1)[1]) == (
        0,
        "7 classes, 0 tiers, 6 rules, every container\n",
    )


def test_check_tells_every_mistake(tmp_path):
    path = tmp_path / "p.yaml"
    path.write_text("version: 1\nclases: {}\nrules: [{class: x}]\n")
    done = run("check", str(path))
    assert done.exit_code == 1
    assert f"{path}:2:1: unknown key 'clases' (did you mean 'classes'?)" in done.output
    assert f"{path}:3:17: rules[0].class: 'x': no such class" in done.output
    assert "2 problems" in done.output


def test_compile_says_what_is_in_force(own_root):
    folder = own_root / "etc/agentrun/policy.d"
    folder.mkdir(parents=True)
    (folder / "a.yaml").write_text("version: 1\nclasses: {a: {}}\n")
    good = run("compile")
    assert good.exit_code == 0 and "in force: policy " in good.output
    (folder / "a.yaml").write_text("version: 1\nclasses: {a: 1}\n")
    bad = run("compile")
    assert bad.exit_code == 1 and "a.yaml:2:14: classes.a: '1'" in bad.output
    assert bad.output.splitlines()[-1] == good.output.split(",")[0]


def test_explain_gives_each_number_its_reason():
    session = ("--tier", "low", "--annotation", "tier=low", "--memory", "4g")
    intent = ("--env", "AGENTRUN_INTENT=memory=9g,colour=red")
    done = run("explain", "--policy", TENANTS, *session, *intent, "--", "timeout", "5", "cargo", "build")
    assert done.exit_code == 0, done.output
    lines = [" ".join(line.split()) for line in done.output.splitlines()]
    for line in (
        "command cargo build",
        "session tier by annotation, tier low",
        "memory: 9G asked by the intent",
        "memory: cut to 2G by the class standard",
        "memory: cut to 1G by the tier",
        "refused colour=red: unknown name",
        "memory.max = 1073741824",
    ):
        assert any(line in found for found in lines), (line, done.output)


def test_explain_in_json_has_the_files():
    done = run(
        "explain", "--policy", DEFAULT, "--json", "--memory", "1g", "--", "bash", "-lc", "cd /x && pytest"
    )
    found = json.loads(done.output)
    assert (found["class"], found["rule"], found["command"]) == ("test", "tests", ["pytest"])
    assert found["files"]["memory.max"] == str((1 << 30) * 85 // 100)


def test_explain_of_a_container_that_is_not_chosen():
    done = run("explain", "--policy", TENANTS, "--", "ls")
    assert "off: left alone (no session of the policy chooses this container)" in done.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tier", "gold", "ls"], "--tier gold: no such tier, known: high, normal, low"),
        (["--memory", "5", "ls"], "'5': expected a size, such as 4g"),
        (["--container", "nowhere", "ls"], "find container 'nowhere': no backend knows it"),
    ],
)
def test_explain_refuses_what_it_does_not_know(arguments, message):
    done = run("explain", "--policy", TENANTS, *arguments)
    assert done.exit_code != 0
    assert message in done.output + str(done.exception)


def test_hostile_intent_does_not_reach_the_terminal():
    done = run(
        "explain",
        "--policy",
        DEFAULT,
        "--env",
        "AGENTRUN_INTENT=\x1b[2J=1,[bold]x=2\u202e",
        "--",
        "\x1b]0;x\x07",
    )
    assert done.exit_code == 0
    assert not {"\x1b", "\x07", "\u202e"} & set(done.output)
    assert "[bold]x=2" in done.output


CASES = """
tests:
  - name: good
    command: pytest -q
    session: {memory: 1GiB}
    expect: {class: test, memory: 870M, mode: enforce}
  - {command: [git, status], expect: {class: light, pids: 512, refused: []}}
"""


def test_cases_of_a_policy(tmp_path):
    path = tmp_path / "cases.yaml"
    path.write_text(CASES)
    done = run("test", "--policy", DEFAULT, str(path))
    assert done.exit_code == 1
    assert "memory: expected 912261120, got 912680550" in done.output
    path.write_text(CASES.replace("memory: 870M, ", ""))
    done = run("test", "--policy", DEFAULT, str(path))
    assert (done.exit_code, done.output) == (0, "ok   good\nok   git status\n2 of 2 cases hold\n")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tests: []", "expected a list of cases"),
        ("tests: [{command: ls}]", "expected a mapping with at least one key"),
        ("tests: [{comand: ls}]", "did you mean 'command'"),
        ("tests: [{command: ls, tier: gold, expect: {class: x}}]", "no such tier"),
        ("tests: [{command: ls, expect: {klass: x}}]", "did you mean 'class'"),
        (
            "tests: [{command: ls, session: {memory: 5}, expect: {class: x}}]",
            "session.memory: '5': not understood",
        ),
        ("tests: [{expect: {class: x}}]", "expected a command"),
        ("tests: [{command: ls, expect: {memory: 5Q}}]", "expect.memory: '5Q': not understood"),
    ],
)
def test_case_that_cannot_be_run_is_an_error(tmp_path, text, message):
    path = tmp_path / "cases.yaml"
    path.write_text(text)
    compiled = hostconfig.compile_file(config_paths(tmp_path)).policy
    with pytest.raises(CaseError, match=message):
        run_file(compiled, path)


def config_paths(root: Path):
    """Paths below a directory."""
    from agentrun.base.paths import Paths

    return Paths(str(root))
