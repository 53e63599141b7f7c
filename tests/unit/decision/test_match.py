"""Choosing sessions and rules."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrun.base.limits import Limits
from agentrun.decision import match
from agentrun.decision.decide import decide
from agentrun.decision.unwrap import unwrap
from agentrun.oci import engine as session
from agentrun.oci.container import Container
from agentrun.oci.engine import SessionFacts
from agentrun.oci.processdoc import Process
from agentrun.policy.compiler import compile_texts

GLOBS = [
    ("pytest", "pytest", True),
    ("pytest", "pytest-3", False),
    ("py*", "pytest", True),
    ("*sweb.eval*", "docker.io/x/sweb.eval.y:1", True),
    ("a?c", "abc", True),
    ("a?c", "ac", False),
    ("*", "", True),
    ("", "", True),
    ("a*b*c", "aXbXbXc", True),
    ("a*b*c", "aXbXb", False),
    ("[ab]", "a", False),
]


@pytest.mark.parametrize(("pattern", "text", "matches"), GLOBS)
def test_glob(pattern, text, matches):
    assert match.glob(pattern, text) == matches


def test_hostile_pattern_costs_little():
    began = time.perf_counter()
    assert not match.glob("*a" * 50 + "b", "a" * 4000)
    assert time.perf_counter() - began < 1


@given(st.text(alphabet="ab*?", max_size=12), st.text(alphabet="ab", max_size=12))
def test_glob_agrees_with_fnmatch(pattern, text):
    import fnmatch

    assert match.glob(pattern, text) == fnmatch.fnmatchcase(text, pattern)


COMMANDS = [
    ("npm install", "npm install left-pad", True),
    ("npm install", "npm --silent install", True),
    ("npm install", "npm run install-hooks", False),
    ("npm run test*", "npm run test:unit", True),
    ("pytest", "/venv/bin/pytest -q", True),
    ("./gradlew test", "./gradlew test", True),
    ("/opt/*/make", "/opt/x/make", True),
    ("git status", "git", False),
    ("docker -v", "docker -v", True),
    ("python3*", "python3.12 x.py", True),
]


@pytest.mark.parametrize(("pattern", "command", "matches"), COMMANDS)
def test_command_pattern(pattern, command, matches):
    words = command.split()
    assert match.command_matches(pattern.split(), words, words[0].rpartition("/")[2]) == matches


POLICY = """
version: 1
classes: {test: {}, big: {}, locked: {selectable: false}}
tiers: {low: {classes: [test]}, high: {}}
sessions:
  - {name: off by name, match: {name: infra-*}, mode: off}
  - {name: tiered, match: {annotation: {agentrun.dev/tier: '*'}}, tier: low, annotations: [tier, class]}
  - {name: agents, match: {engine: [docker, podman], image: '*agent*'}, class: big, mode: observe}
  - {name: pods, match: {cgroup: /kubepods.slice/}}
rules:
  - {name: health, match: {healthcheck: true}, skip: true}
  - {name: tests, match: {command: [pytest, npm test]}, class: test}
  - {name: root, match: {user: root, cwd: /root/*}, class: locked}
  - {name: terminal, match: {tty: true}, mode: observe}
  - {name: low, match: {tier: low, annotation: {team: ml-*}}, class: big}
"""


@pytest.fixture(scope="module")
def compiled():
    return compile_texts([("p", POLICY)])


def facts(engine="docker", image=None, name=None, cgroup="/x", **annotations):
    made = SessionFacts(engine, cgroup, {key.replace("__", "/"): value for key, value in annotations.items()})
    made._engine_facts = {"image": image, "name": name}
    return made


def tiered(tier="high", **more):
    return facts(**{"agentrun.dev__tier": tier, **more})


def process(*argv, **document):
    return Process({"args": list(argv), **document}, None)


def run(compiled, session_facts, call, mode="enforce"):
    return decide(compiled, mode, session_facts, call, Limits(), Limits(1 << 34, 8.0))


def test_container_that_no_selector_chooses_is_left_alone(compiled):
    decision = run(compiled, facts(), process("pytest"))
    assert (decision.mode, decision.plan) == ("off", None)


def test_sessions_are_chosen_by_name_image_engine_cgroup_and_annotation(compiled):
    chosen = {
        "off by name": facts(name="infra-db", image="agent"),
        "tiered": tiered(),
        "agents": facts("podman", image="ghcr.io/agent:1"),
        "pods": facts("kubernetes", cgroup="/kubepods.slice/pod1"),
    }
    for name, session_facts in chosen.items():
        assert match.select_session(compiled, "enforce", session_facts).why == name


def test_annotations_count_as_far_as_the_session_lets_them(compiled):
    choice = match.select_session(
        compiled, "enforce", tiered(**{"agentrun.dev__mode": "off", "agentrun.dev__class": "big"})
    )
    assert (choice.mode, choice.tier, choice.class_name) == ("enforce", "high", "big")
    choice = match.select_session(compiled, "enforce", tiered("platinum"))
    assert choice.tier == "low"
    own = match.builtin()
    assert match.select_session(own, "enforce", facts(**{"agentrun.dev__mode": "observe"})).mode == "observe"


def test_the_weakest_mode_holds(compiled):
    agents = facts(image="agent")
    assert run(compiled, agents, process("ls")).mode == "observe"
    assert run(compiled, tiered(), process("ls"), "observe").mode == "observe"
    assert run(compiled, tiered(), process("ls"), "off").mode == "off"
    assert run(compiled, tiered(), process("ls", terminal=True)).mode == "observe"


def test_annotation_asks_for_all_calls_where_the_session_lets_it(compiled):
    annotated = facts(image="agent", **{"agentrun.dev__intent": "pids=99"})
    decision = run(compiled, annotated, process("ls"))
    assert decision.plan and decision.plan.pids == 99
    decision = run(compiled, tiered(**{"agentrun.dev__intent": "pids=99"}), process("ls"))
    assert decision.intent.raw is None  # this session's annotations are tier and class


def test_first_rule_that_matches_decides(compiled):
    calls = {
        "tests": process("bash", "-lc", "cd /x && npm test"),
        "root": process("ls", user={"uid": 0}, cwd="/root/x"),
        "terminal": process("pytest2", terminal=True, user={"uid": 5}),
        None: process("ls", user={"uid": 5}),
    }
    for name, call in calls.items():
        assert run(compiled, tiered(), call).rule == name
    assert run(compiled, tiered("low", team="ml-1"), process("ls")).rule == "low"


def test_intent_in_the_command_chooses_the_class_where_the_tier_lets_it(compiled):
    call = process("bash", "-lc", "AGENTRUN_INTENT=class=big pytest")
    high, low = run(compiled, tiered(), call), run(compiled, tiered("low"), call)
    assert high.plan and high.plan.class_name == "big"
    assert low.plan and low.plan.class_name == "test"
    assert low.intent.refused == [("class=big", "not in this tier")]
    assert low.plan.reasons[0] == "class: test by rule tests"


def test_healthcheck_of_docker_is_skipped(compiled, tmp_path):
    folder = tmp_path / "var/lib/docker/containers/c1"
    folder.mkdir(parents=True)
    config = {
        "Name": "/web",
        "Config": {"Image": "agent:1", "Healthcheck": {"Test": ["CMD-SHELL", "curl -f x"]}},
    }
    (folder / "config.v2.json").write_text(json.dumps(config))
    found = SessionFacts("docker", "/x", {"agentrun.dev/tier": "high"}, "c1", "/b", str(tmp_path))
    assert (found.name, found.image) == ("web", "agent:1")
    assert run(compiled, found, process("/bin/sh", "-c", "curl -f x")).rule == "health"
    assert run(compiled, found, process("/bin/sh", "-c", "curl -f y")).rule is None


def test_name_and_image_of_podman_are_found(tmp_path):
    bundle = tmp_path / "overlay-containers/abc/userdata"
    bundle.mkdir(parents=True)
    entry = {"id": "abc", "names": ["n"], "metadata": json.dumps({"image-name": "i:1", "name": "agent-1"})}
    (tmp_path / "overlay-containers/containers.json").write_text(json.dumps([{"id": "x"}, entry]))
    (bundle / "config.json").write_text(json.dumps({"annotations": {"agentrun.dev/mode": "off"}}))
    made = session.facts_of(Container("crun", "/r", "abc", "/c/g", 1, 1, str(bundle)), "/c")
    assert (made.engine, made.name, made.image, made.cgroup) == ("podman", "agent-1", "i:1", "/g")
    assert made.annotations == {"agentrun.dev/mode": "off"}


ENGINES = {
    "/run/docker/containerd/daemon/io.containerd.runtime.v2.task/moby/x": "docker",
    "/run/containerd/io.containerd.runtime.v2.task/moby/x": "docker",
    "/run/containerd/io.containerd.runtime.v2.task/k8s.io/x": "kubernetes",
    "/run/containerd/io.containerd.runtime.v2.task/default/x": "containerd",
    "/var/lib/containers/storage/overlay-containers/x/userdata": "podman",
    "/tmp/bundle": "unknown",
}


@pytest.mark.parametrize("bundle", ENGINES)
def test_engine_is_known_by_its_bundles(bundle):
    assert session.engine_of(bundle, {}) == ENGINES[bundle]


@pytest.mark.parametrize("broken", ["", "[]", "{", '{"Config": 5}', '{"Name": 1, "Config": {}}'])
def test_broken_files_of_an_engine_only_leave_facts_out(tmp_path, broken):
    folder = tmp_path / "var/lib/docker/containers/c1"
    folder.mkdir(parents=True)
    (folder / "config.v2.json").write_text(broken)
    found = SessionFacts("docker", "/x", {}, "c1", "/b", str(tmp_path))
    assert (found.name, found.image, found.is_healthcheck(["a"])) == (None, None, False)


def test_unwrapping_is_what_rules_see(compiled):
    assert unwrap(["timeout", "5", "pytest"]).program == "pytest"


@pytest.mark.parametrize(
    ("mode", "session", "by_class", "expected"),
    [
        ("enforce", None, "on", "on"),
        ("enforce", None, "quiet", "quiet"),
        ("enforce", "quiet", "on", "quiet"),
        ("enforce", "on", "quiet", "quiet"),
        ("enforce", "off", "on", "off"),
        ("observe", None, "on", "off"),
        ("observe", "on", "on", "on"),
        ("observe", "quiet", "on", "quiet"),
    ],
)
def test_less_feedback_wins_and_observing_is_silent(mode, session, by_class, expected):
    assert match.feedback_of(mode, session, by_class) == expected


def test_feedback_of_a_session_is_its_annotations_else_its_own():
    compiled = compile_texts([("p", "version: 1\nsessions: [{feedback: quiet}]")])
    for annotation, expected in (("off", "off"), ("on", "on"), ("nonsense", "quiet"), (None, "quiet")):
        given_ = {} if annotation is None else {"agentrun.dev/feedback": annotation}
        facts = SessionFacts(annotations=given_)
        assert match.select_session(compiled, "enforce", facts).feedback == expected


def test_stall_rule_is_compiled():
    text = "version: 1\nclasses: {a: {stall: {share: 60%, time: 1m, action: kill}, background: kill}}"
    klass = compile_texts([("p", text)])["classes"]["a"]
    assert klass == {"stall": {"share": 60.0, "time": 60.0, "action": "kill"}, "background": "kill"}
