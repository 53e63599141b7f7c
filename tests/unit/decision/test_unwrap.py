"""Finding what a call really runs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrun.decision import shellwords
from agentrun.decision.unwrap import unwrap

# argv (blank-separated unless a list) -> the words that count
UNWRAPPED = [
    ("pytest -q", "pytest -q"),
    ("/usr/local/bin/pytest -q", "/usr/local/bin/pytest -q"),
    ("timeout 30 pytest", "pytest"),
    ("timeout -k 5s 30s pytest", "pytest"),
    ("timeout --kill-after=5s --signal KILL 30s pytest", "pytest"),
    ("env A=1 B=2 pytest -x", "pytest -x"),
    ("env -u HOME -i A=1 pytest", "pytest"),
    (["env", "-S", "A=1 pytest -q"], "pytest -q"),
    (["env", "--split-string=pytest -q", "x"], "pytest -q x"),
    ("nice -n 10 ionice -c 3 stdbuf -oL make -j8", "make -j8"),
    ("nice make", "make"),
    ("sudo -u app -E A=1 npm ci", "npm ci"),
    ("sudo -- npm ci", "npm ci"),
    ("nohup setsid time -p make", "make"),
    ("taskset 0x3 make", "make"),
    (["bash", "-c", "pytest -q"], "pytest -q"),
    (["bash", "-lc", "cd /repo && pytest -q"], "pytest -q"),
    (["bash", "--login", "-c", "pytest"], "pytest"),
    (["bash", "-euo", "pipefail", "-c", "pytest"], "pytest"),
    (["zsh", "-lc", "source venv/bin/activate; export A=1; python -m pytest tests"], "pytest tests"),
    (["sh", "-c", "exec timeout 5 bash -c 'pytest -k \"a b\"'"], "pytest -k|a b"),
    (["dash", "-c", "pytest 2>&1 >/tmp/log | tail -5"], "pytest"),
    (["bash", "-c", "# a comment\npytest # another"], "pytest"),
    (["bash", "-c", "A=1 B='x y' pytest"], "pytest"),
    (["bash", "-c", "(cd x; make)"], "make"),
    (["bash", "-c", "cd /repo"], "cd /repo"),
    (["bash", "-c", ""], "bash|-c|"),
    ("bash script.sh", "bash script.sh"),
    ("bash", "bash"),
    ("python -m pytest -q", "pytest -q"),
    ("python3.12 -I -W error -m unittest discover", "unittest discover"),
    ("python3 -Im pip install x", "pip install x"),
    ("python setup.py", "python setup.py"),
    (["python", "-c", "import os"], "python|-c|import os"),
    ("npx -y jest --ci", "jest --ci"),
    ("npx --package foo bar", "bar"),
    ("uv run --with x pytest -q", "pytest -q"),
    ("uv run python -m pytest", "pytest"),
    ("uv sync", "uv sync"),
    ("uvx ruff check", "ruff check"),
    ("poetry run pytest", "pytest"),
    ("pnpm exec vitest", "vitest"),
    ("bundle exec rspec", "rspec"),
    ("conda run -n env pytest", "pytest"),
    ("AGENTRUN_INTENT=memory=1g pytest", "pytest"),
    ("env", "env"),
    ("timeout", "timeout"),
    ("sudo -i", "sudo -i"),
]


@pytest.mark.parametrize(("argv", "words"), UNWRAPPED, ids=range(len(UNWRAPPED)))
def test_wrapped_command_is_found(argv, words):
    argv = argv.split() if isinstance(argv, str) else argv
    if "|" in words:
        expected = words.split("|")
        expected = [*expected[0].split(), *expected[1:]]
    else:
        expected = words.split()
    assert unwrap(argv).words == expected


ASSIGNED = [
    (["env", "AGENTRUN_INTENT=memory=2g", "pytest"], ["AGENTRUN_INTENT=memory=2g"]),
    (["bash", "-lc", "AGENTRUN_INTENT='memory=2g,cpu=1' pytest"], ["AGENTRUN_INTENT=memory=2g,cpu=1"]),
    (["bash", "-c", "export AGENTRUN_INTENT=class=test; cd /x && pytest"], ["AGENTRUN_INTENT=class=test"]),
    (["bash", "-c", "cd x && AGENT_RESOURCE_HINT=memory:2g make"], ["AGENT_RESOURCE_HINT=memory:2g"]),
    (["sudo", "A=1", "env", "B=2", "sh", "-c", "C=3 make"], ["A=1", "B=2", "C=3"]),
    (["make", "A=1"], []),
    (["bash", "-c", "echo AGENTRUN_INTENT=memory=2g"], []),
]


@pytest.mark.parametrize(("argv", "assignments"), ASSIGNED, ids=range(len(ASSIGNED)))
def test_assignments_on_the_way_are_kept(argv, assignments):
    assert unwrap(argv).assignments == assignments


def test_nothing_is_expanded():
    found = unwrap(["bash", "-c", 'AGENTRUN_INTENT=$(reboot; a) "$X $(b)" `id; c` ~/a*; d'])
    assert found.assignments == ["AGENTRUN_INTENT=$(reboot; a)"]
    assert found.words == ["$X $(b)", "`id; c`", "~/a*"]


def test_quotes_go_and_what_the_shell_would_expand_stays():
    words, complete = shellwords.first_command("a 'b $c' \"d $e\" f\\ g h* # end")
    assert words == ["a", "b $c", "d $e", "f g", "h*"]
    assert complete


def test_wrappers_in_each_other_end():
    assert unwrap(["nice"] * 300).words


@given(
    st.lists(
        st.text(max_size=60) | st.sampled_from(["bash", "-c", "env", "timeout", "-k", "A=1", "sudo"]),
        max_size=12,
    )
)
def test_any_argv_is_survived(argv):
    found = unwrap(argv)
    assert isinstance(found.words, list)
    assert all(isinstance(word, str) for word in found.words)


@given(st.text(alphabet="ab '\"\\$;&|<>#\n()=", max_size=80))
def test_any_command_string_is_survived(text):
    for words in shellwords.commands(text):
        assert words
    assert isinstance(unwrap(["sh", "-c", text]).words, list)
