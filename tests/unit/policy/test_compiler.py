"""Policy files: what is compiled, and what people are told of their mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from agentrun.policy.compiler import PolicyError, compile_files, compile_texts
from agentrun.policy.frame import Problem
from agentrun.policy.reference import json_schema, reference

TREE = Path(__file__).parents[3]
READY = sorted((TREE / "configs/policy").glob("*.yaml"))

# What is wrong, a file with it, and what people are told.
MISTAKES = yaml.safe_load((Path(__file__).parent / "mistakes.yaml").read_text())


@pytest.mark.parametrize("case", MISTAKES, ids=[case["what"] for case in MISTAKES])
def test_mistake_is_named_where_it_is(case):
    with pytest.raises(PolicyError) as caught:
        compile_texts([("p.yaml", case["file"])])
    assert case["message"] in str(caught.value)
    assert all(str(problem).startswith("p.yaml:") for problem in caught.value.problems)


def test_there_are_many_kinds_of_mistakes():
    assert len({case["what"] for case in MISTAKES}) >= 40


def test_all_mistakes_are_told_at_once_in_order():
    text = "version: 1\nclasses: {a: {memory: {max: 5}, cpu: {weight: 0}}}\nrules: [{class: b}]\nx: 1\n"
    with pytest.raises(PolicyError) as caught:
        compile_texts([("one.yaml", text), ("two.yaml", "version: 3\n")])
    places = [(p.file, p.line) for p in caught.value.problems]
    assert places == [("one.yaml", 2), ("one.yaml", 2), ("one.yaml", 3), ("one.yaml", 4), ("two.yaml", 1)]


def test_file_that_cannot_be_read_is_a_problem_of_its_own(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"version: 1 # \xff")
    with pytest.raises(PolicyError, match=r"a\.yaml:1:1: not valid UTF-8.*\n.*b\.yaml:1:1: cannot be read"):
        compile_files([tmp_path / "a.yaml", tmp_path / "b.yaml"])


def test_amounts_are_compiled_to_numbers_and_shares():
    text = """
version: 1
classes:
  a:
    memory: {default: 512M, max: 50%, high: 90% of max, min: 4096B}
    cpu: {max: 500m, default: 0.25, cpus: "0-1, 3"}
    pids: {max: 25% of host}
    time: {hard: 1h30m}
    io: {max: {/dev/sda: {wbps: 1M, riops: 10}}}
"""
    assert compile_texts([("p", text)])["classes"]["a"] == {
        "memory": {"default": 512 << 20, "max": [50.0, "session"], "high": [90.0, "max"], "min": 4096},
        "cpu": {"max": 0.5, "default": 0.25, "cpus": "0-1,3"},
        "pids": {"max": [25.0, "host"]},
        "time": {"hard": 5400.0},
        "io": {"max": [["/dev/sda", "wbps=1048576 riops=10"]]},
    }


def test_zero_is_a_number_where_it_means_something():
    compiled = compile_texts([("p", "version: 1\ntiers: {a: {oom-score-adj: 0}}\n")])
    assert compiled["tiers"]["a"]["oom-score-adj"] == 0


def test_yaml_booleans_are_read_as_the_words_they_were():
    text = "version: 1\nclasses: {a: {feedback: off}}\nsessions: [{mode: off}]\n"
    compiled = compile_texts([("p", text)])
    assert compiled["classes"]["a"]["feedback"] == compiled["sessions"][0]["mode"] == "off"


def test_later_files_win():
    one = "version: 1\ndefault-class: a\nclasses: {a: {pids: {max: 100}}, b: {}}\n"
    one += "rules: [{name: r1, class: a}]\n"
    two = "version: 1\nclasses: {a: {pids: {max: 200}}}\nrules: [{name: r2, match: {tty: true}, class: b}]\n"
    compiled = compile_texts([("1", one), ("2", two)])
    assert compiled["classes"]["a"]["pids"]["max"] == 200
    assert [rule["name"] for rule in compiled["rules"]] == ["r2", "r1"]


def test_hash_is_of_the_content_not_of_its_form():
    compact = "version: 1\nclasses: {a: {pids: {max: 100}}}\n"
    spread = "# the same\nversion: 1\nclasses:\n  a:\n    pids:\n      max: 100\n"
    assert compile_texts([("x", compact)])["hash"] == compile_texts([("y", spread)])["hash"]
    assert (
        compile_texts([("x", compact)])["hash"]
        != compile_texts([("x", compact.replace("100", "101"))])["hash"]
    )


@pytest.mark.parametrize("path", READY, ids=lambda path: path.stem)
def test_ready_policies_compile_and_follow_the_schema(path):
    assert compile_files([path])["hash"]
    jsonschema.validate(yaml.safe_load(path.read_text()), json_schema())


def test_published_schema_and_reference_are_those_of_the_code():
    published = json.loads((TREE / "configs/policy.schema.json").read_text())
    assert published == json_schema()
    jsonschema.Draft202012Validator.check_schema(published)
    assert reference() == (TREE / "docs/policy-reference.md").read_text()


@given(st.text(max_size=300) | st.text(alphabet="version: 1\n{}[]&*a,'\"%-#", max_size=120))
def test_any_text_is_compiled_or_refused_with_a_place(text):
    try:
        compile_texts([("p", text)])
    except PolicyError as error:
        assert error.problems and all(isinstance(problem, Problem) for problem in error.problems)
