"""Reading runtime command lines."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrun.oci import argv

EXECS = [
    # (arguments, container, process, command)
    (["exec", "c", "ls", "-l"], "c", None, ["ls", "-l"]),
    (["exec", "--process", "/p", "--detach", "c"], "c", "/p", []),
    (["exec", "--process=/p", "-d", "c"], "c", "/p", []),
    (["exec", "-process", "/p", "c"], "c", "/p", []),
    (["exec", "-p", "/p", "c"], "c", "/p", []),
    (["exec", "-p/p", "c"], "c", "/p", []),
    (["exec", "-p=/p", "c"], "c", "/p", []),
    (["exec", "--process", "/a", "--process", "/b", "c"], "c", "/b", []),
    (["exec", "-t", "-u", "0", "-e", "A=--process", "c", "--process", "/x"], "c", None, ["--process", "/x"]),
    (["exec", "c", "--", "ls"], "c", None, ["ls"]),
    (["exec", "--", "c", "ls"], "c", None, ["ls"]),
    (["exec", "exec", "create"], "exec", None, ["create"]),
    (["--root", "exec", "--log=start", "exec", "delete"], "delete", None, []),
    (["--debug", "--systemd-cgroup", "--rootless", "auto", "exec", "c"], "c", None, []),
]


@pytest.mark.parametrize(("words", "container", "process", "command"), EXECS, ids=range(len(EXECS)))
def test_exec_is_read(words, container, process, command):
    read = argv.parse(words)
    assert read is not None
    assert (read.verb, read.container_id, read.last("process"), list(read.command)) == (
        "exec",
        container,
        process,
        command,
    )


NOT_OURS = [
    [],
    ["--version"],
    ["state", "c"],
    ["create", "--bundle", "/b", "exec"],
    ["--unknown", "exec", "c"],
    ["--root"],
    ["exec"],
    ["exec", "--process"],
    ["exec", "--unknown", "c"],
    ["exec", "-x", "c"],
    ["-", "exec", "c"],
    ["delete", "--unknown", "c"],
    ["start"],
]


@pytest.mark.parametrize("words", NOT_OURS, ids=range(len(NOT_OURS)))
def test_what_is_not_understood_is_left_alone(words):
    assert argv.parse(words) is None


@pytest.mark.parametrize(
    "words", [["delete", "-f", "c"], ["delete", "c", "--force"], ["delete", "--force=true", "c"]]
)
def test_force_is_seen_before_and_after_the_container(words):
    read = argv.parse(words)
    assert read is not None and "force" in read.options and read.container_id == "c"


def test_globals_are_read_in_both_forms():
    read = argv.parse(["--root", "/a", "--log=/l", "-log-format", "json", "start", "c"])
    assert read is not None
    assert [read.last_global(n) for n in ("root", "log", "log-format")] == ["/a", "/l", "json"]


@given(
    st.lists(st.text(max_size=12) | st.sampled_from(["exec", "--root", "-p", "--", "-", "--process", "c"]))
)
def test_any_command_line_is_read_or_left_alone(words):
    read = argv.parse(words)
    assert read is None or (read.argv is words and words[read.verb_at] == read.verb)
