"""`agentrunctl policy suggest`: what it prints is a policy, loses nothing, and makes no limit lower."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from hosts import host_with
from hypothesis import example, given
from hypothesis import strategies as st
from kinds import MIB, row, samples

from agentrun.base import journal
from agentrun.base.paths import Paths
from agentrun.cli.main import cli
from agentrun.decision.match import CallFacts, match_rule
from agentrun.decision.unwrap import unwrap
from agentrun.learning import suggest
from agentrun.learning.usage import LEAST_CALLS, usages
from agentrun.oci.engine import SessionFacts
from agentrun.policy import compiler

TREE = Path(__file__).parents[3]
POLICIES = sorted((TREE / "configs/policy").glob("*.yaml"))
TEXT = """
version: 1
default-class: test
classes:
  test:
    description: "unit tests: slow"
    memory: {default: 512M, max: 2GiB, low: 10% of max}
    cpu: {max: 0.5, cpus: 0-3}
    time: {hard: 10m}
    network: none
    feedback: off
  wide: {memory: {max: 50% of session}}
rules:
  - {name: tests, match: {command: [pytest, tox], user: 1000, image: "*"}, class: test, mode: observe}
  - {match: {command: make}, class: wide}
"""


def source_of(*texts: str) -> suggest.Source:
    return suggest.read_source(texts, compiler.compile_texts([(f"{n}.yaml", t) for n, t in enumerate(texts)]))


def suggested(rows: list[dict[str, Any]], *texts: str, least: int = 1) -> tuple[str, dict[str, Any]]:
    """The suggestion as text, and what it compiles to behind the texts that it is made from."""
    source = source_of(*texts)
    text = suggest.render(suggest.propose(usages(samples(*rows), least), source), source, ["head"])
    named = [(f"{n}.yaml", t) for n, t in enumerate(texts)]
    return text, compiler.compile_texts([*named, ("90-learned.yaml", text)])


def matched(compiled: dict[str, Any], *words: str, image: str = "img", uid: int = 1000) -> dict[str, Any]:
    facts = SessionFacts()
    facts.set_image(image)
    rule = match_rule(compiled, CallFacts(unwrap(list(words)), list(words), "/", uid), facts, None)
    return dict(rule or {})


def test_class_is_the_one_that_such_calls_have_with_other_memory():
    before = compiler.compile_texts([("0.yaml", TEXT)])["classes"]["test"]
    text, compiled = suggested([row()] * 20, TEXT)
    made = compiled["classes"]["learned-pytest"]
    assert made["memory"] == {**before["memory"], "high": 128 * MIB, "adaptive": True}
    assert {k: v for k, v in made.items() if k not in ("memory", "selectable")} == {
        k: v for k, v in before.items() if k != "memory"
    }
    assert made["selectable"] is False
    assert (
        "# pytest in img" in text
        and "20 calls; peak P50 100M, P95 100M, max 100M; CPU P50 1s, P95 1s" in text
    )


def test_rule_is_the_one_that_such_calls_match_narrowed():
    _, compiled = suggested([row()] * 20, TEXT)
    rule = matched(compiled, "pytest", "-q")
    assert (rule["class"], rule["mode"], rule["match"]["user"]) == ("learned-pytest", "observe", [1000])
    assert matched(compiled, "pytest", image="other")["class"] == "test"
    assert matched(compiled, "tox")["class"] == "test"
    assert matched(compiled, "pytest", uid=7) == {}


def test_kills_at_a_limit_that_nobody_asked_for_raise_the_default():
    killed = row(verdict="oom-killed", level="call", limit=512 * MIB)
    text, compiled = suggested([row()] * 19 + [killed], TEXT)
    assert compiled["classes"]["learned-pytest"]["memory"]["default"] == 1 << 30
    assert "killed at their own limit: 1 at 512M" in text
    _, compiled = suggested([row()] * 20 + [{**killed, "asked_memory": 1}] * 9, TEXT)
    assert compiled["classes"]["learned-pytest"]["memory"]["default"] == 512 * MIB
    _, compiled = suggested([row()] * 99 + [killed], TEXT)
    assert compiled["classes"]["learned-pytest"]["memory"]["default"] == 512 * MIB
    text, compiled = suggested([row()] * 9 + [row(**{**killed, "limit": 2 << 30})] * 9, TEXT)
    assert compiled["classes"]["learned-pytest"]["memory"]["default"] == 2 << 30
    assert "may be too little" in text


NOTHING: dict[str, tuple[list[dict[str, Any]], str]] = {
    "too few calls": ([row()] * (LEAST_CALLS - 1), ""),
    "two classes": (
        [row(), row(rule="rule 2", **{"class": "wide"})] * 20,
        "several classes or rules (test, wide)",
    ),
    "two rules": ([row(), row(rule=None)] * 20, "several classes or rules (test)"),
    "an intent chose": ([row(asked_class="test")] * 20, "an intent chose"),
    "a class that is gone": ([row(**{"class": "gone"})] * 20, "not in this policy"),
    "a rule that is gone": ([row(rule="gone")] * 20, "not in this policy"),
    "a pattern for a name": ([row(family="*")] * 20, "cannot be written"),
    "a name of many lines": ([row(family="a\nrules: []")] * 20, "cannot be written"),
    "no room below the limit": ([row(peak=500 * MIB)] * 20, "nearly all of their limit of 512M"),
}


@pytest.mark.parametrize("name", NOTHING)
def test_nothing_is_suggested_where_it_might_be_wrong(name):
    rows, why = NOTHING[name]
    text, compiled = suggested(rows, TEXT, least=LEAST_CALLS)
    assert "classes:" not in text and why in text
    assert compiled["rules"] == compiler.compile_texts([("0.yaml", TEXT)])["rules"]


def test_share_of_the_container_stays_one():
    wide = {"rule": "rule 2", "class": "wide", "family": "make"}
    killed = row(verdict="oom-killed", level="call", limit=64 * MIB, **wide)
    text, compiled = suggested([row(**wide)] * 20 + [killed] * 5, TEXT)
    assert compiled["classes"]["learned-make"]["memory"] == {
        "max": [50.0, "session"],
        "high": 128 * MIB,
        "adaptive": True,
    }
    assert "give that more" in text and matched(compiled, "make")["class"] == "learned-make"


def test_more_words_and_one_image_come_first():
    kinds = [("img", "git"), ("", "git"), ("img", "git clone"), ("", "git clone")]
    plain = {"rule": None, "class": "test"}
    rows = [
        row(image=image, family=family, peak=(n + 1) * 50 * MIB, **plain)
        for n, (image, family) in enumerate(kinds)
    ]
    _, compiled = suggested(rows * 20, TEXT)
    highs = [
        compiled["classes"][matched(compiled, *words, image=image)["class"]]["memory"]["high"] >> 20
        for words, image in (
            (("git", "status"), "img"),
            (("git", "status"), "other"),
            (("git", "clone", "x"), "img"),
            (("git", "clone", "x"), "other"),
        )
    ]
    assert highs == [64, 128, 192, 256]


def test_suggestion_in_force_is_made_again_under_its_name():
    first, _ = suggested([row()] * 20, TEXT)
    now = row(rule="learned pytest (img)", peak=200 * MIB, **{"class": "learned-pytest"})
    second, compiled = suggested([now] * 20, TEXT, first)
    alone = compiler.compile_texts([("0.yaml", TEXT), ("90-learned.yaml", second)])
    for each in (compiled, alone):
        assert matched(each, "pytest")["class"] == "learned-pytest"
        assert each["classes"]["learned-pytest"]["memory"]["high"] == 256 * MIB
        assert each["classes"]["learned-pytest"]["network"] == "none"


def test_two_kinds_of_one_suggested_class_get_a_class_each():
    first, _ = suggested([row(image=None)] * 20, TEXT)
    fields = {"class": "learned-pytest", "rule": "learned pytest"}
    rows = [row(image=image, peak=peak * MIB, **fields) for image, peak in (("a", 200), ("b", 300))]
    _, compiled = suggested(rows * 20, TEXT, first)
    found = [matched(compiled, "pytest", image=image)["class"] for image in ("a", "b")]
    assert sorted(found) == ["learned-pytest", "learned-pytest-2"]
    assert [compiled["classes"][name]["memory"]["high"] >> 20 for name in found] == [256, 384]


@pytest.mark.parametrize("path", POLICIES, ids=lambda path: path.stem)
def test_every_class_of_the_ready_policies_can_be_taken_over(path):
    text = path.read_text()
    source = source_of(text)
    rows = [
        row(family=f"tool-{name}", rule=None, peak=40 * MIB, **{"class": name}) for name in source.classes
    ] * 20
    _, compiled = suggested(rows, text)
    before = compiler.compile_texts([("0.yaml", text)])["classes"]
    for name in before:
        made = compiled["classes"].get(f"learned-tool-{name}")
        assert made is None or {k for k in made if k != "selectable"} == {*before[name], "memory"} - {
            "selectable"
        }
    assert any(name.startswith("learned-") for name in compiled["classes"])


def test_without_a_policy_the_limits_of_the_configuration_are_kept():
    builtin = {"classes": {"standard": {"memory": {"max": [62.5, "session"]}, "pids": {"max": 99}}}}
    source = suggest.read_source([], builtin)
    found = usages(samples(*[row(rule=None, **{"class": "standard"})] * 20), 1)
    text = suggest.render(suggest.propose(found, source), source, [])
    classes = compiler.compile_texts([("90.yaml", text)])["classes"]
    assert classes["standard"] == builtin["classes"]["standard"]
    assert classes["learned-pytest"]["memory"] == {
        "max": [62.5, "session"],
        "high": 128 * MIB,
        "adaptive": True,
    }


NAMES = st.text(max_size=40) | st.sampled_from(
    ["a: b", "#", "'", "- x", "a\n  b: 1", "\x1b[2J", "${x}", "off", "1"]
)


@given(st.lists(st.tuples(NAMES, NAMES, st.integers(0, 1 << 41)), max_size=6))
@example([("", " ", 0)])  # a program may have such a name
def test_whatever_was_recorded_the_suggestion_is_a_policy(kinds):
    rows = [row(image=image, family=family, peak=peak) for image, family, peak in kinds]
    text, compiled = suggested(rows, TEXT)
    assert all(c.isprintable() or c == "\n" for c in text)
    assert set(compiler.compile_texts([("0.yaml", TEXT)])["classes"]) <= set(compiled["classes"])


@given(
    st.text(max_size=25)
    | st.integers().map(str)
    | st.floats().map(str)
    | st.sampled_from(["off", "true", "0x10", "1:30", "2001-01-01"])
)
def test_text_becomes_a_number_only_where_that_is_written_the_same(text):
    assert yaml.load(yaml.safe_dump(suggest._plain([text])), Loader=yaml.BaseLoader) == [text]


@pytest.fixture
def host(tmp_path, monkeypatch) -> Paths:
    monkeypatch.setenv("AGENTRUN_ROOT", str(tmp_path))
    monkeypatch.setattr(
        "agentrun.base.paths.getenv", lambda name: str(tmp_path) if name == "AGENTRUN_ROOT" else ""
    )
    return host_with(tmp_path, TEXT)


def record(number: int) -> str:
    now = time.time()
    return json.dumps(
        {
            "id": f"{number:04}",
            "end": now,
            "image": "img",
            "command": {"family": "pytest"},
            "mode": "enforce",
            "class": "test",
            "rule": "tests",
            "policy": "p",
            "memory_peak": 100 * MIB,
            "cpu_usage_us": 5,
            "verdict": "ok",
        }
    )


def test_command_prints_a_file_that_check_accepts(host):
    for number in range(LEAST_CALLS):
        journal.append(host.records, record(number), 1 << 30)
    run = CliRunner().invoke
    done = run(cli, ["policy", "suggest"])
    assert done.exit_code == 0 and "1 kinds with at least 20, 1 suggestions" in done.stdout
    Path(host.policy, "90-learned.yaml").write_text(done.stdout)
    checked = run(cli, ["policy", "check"])
    assert checked.exit_code == 0 and "3 rules" in checked.output
    found = json.loads(run(cli, ["policy", "suggest", "--json", "--min-calls", "1"]).stdout)
    assert [(each["family"], each["calls"], each["suggested"]["memory"]["high"]) for each in found] == [
        ("pytest", LEAST_CALLS, 128 * MIB)
    ]
    assert json.loads(run(cli, ["policy", "suggest", "--json", "--min-calls", "21"]).stdout) == []
    assert run(cli, ["policy", "suggest", "--since", "7"]).exit_code == 2
