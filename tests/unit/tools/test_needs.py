"""Marks of integration tests: what they need of a guest, and that each test is run in one of the two."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from itertools import product
from pathlib import Path

import needs
import pytest
from needs import UnknownNeedError, Wanted
from runner.parts import PARTS, Guest, title

TREE = Path(__file__).parents[3]


@cache
def collected(*options: str) -> frozenset[str]:
    """The integration tests that pytest would run."""
    argv = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*argv, "tests/integration", *options], cwd=TREE, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return frozenset(line for line in done.stdout.splitlines() if "::" in line)


def in_parts(tests: frozenset[str], guest: Guest | None) -> set[str]:
    """Those of the tests in the files of parts with that guest, or (None) of targets of their own alone."""
    of_all = {name for part in PARTS if not part.is_own_target for name in part.files}
    of_own = {name for part in PARTS if part.is_own_target for name in part.files} - of_all
    of_guest = {
        name for part in PARTS if part.guest is guest and not part.is_own_target for name in part.files
    }
    files = {f"tests/integration/test_{name}.py" for name in (of_own if guest is None else of_guest)}
    return {test for test in tests if test.partition("::")[0] in files}


@pytest.mark.parametrize("matrix", ["whole", "pairwise"])
def test_every_test_is_run_in_a_guest_or_has_a_target_of_its_own(matrix):
    option = f"--matrix={matrix}"
    fast = in_parts(collected("--guest=fast", option), Guest.FAST)
    full = in_parts(collected("--guest=full", option), Guest.FULL)
    own = in_parts(collected(option), None)
    assert not (collected(option) - fast - full - own)
    assert not own & (fast | full)


def test_both_guests_run_only_the_smoke_tests():
    twice = collected("--guest=fast", "--matrix=whole") & collected("--guest=full", "--matrix=whole")
    assert twice == collected("-m", "smoke")
    for engine in ("docker-runc", "docker-crun", "podman-runc", "podman-crun", "by_ctr[agentrun-runc]"):
        assert any(engine in test for test in twice), engine


@pytest.mark.parametrize("part", [part for part in PARTS if not part.is_own_target], ids=title)
def test_part_has_a_test_in_each_of_its_files(part):
    tests = in_parts(collected(f"--guest={part.guest}", "--matrix=pairwise"), part.guest)
    files = {test.partition("::")[0] for test in tests}
    assert {f"tests/integration/test_{name}.py" for name in part.files} <= files


def test_pairwise_run_keeps_each_case_with_each_engine_and_with_each_runtime():
    kept = [test for test in collected("--matrix=pairwise") if "test_exec_is_the_same_as_bare" in test]
    rows = [test.partition("[")[2].rstrip("]").split("-", 2) for test in kept]
    cases = {case for _, _, case in rows}
    assert len(cases) == 13 and len(rows) == 26
    assert {(engine, case) for engine, _, case in rows} == set(product(("docker", "podman"), cases))
    assert {(runtime, case) for _, runtime, case in rows} == set(product(("runc", "crun"), cases))


@pytest.mark.parametrize(
    ("text", "wanted"), [("bpf", Wanted("bpf")), ("cpus:2", Wanted("cpus", 2)), ("cpus", Wanted("cpus", 1))]
)
def test_need_is_read(text, wanted):
    assert needs.parse(text) == wanted


@pytest.mark.parametrize("text", ["", "bfp", "cpus:", "cpus:0", "cpus:-1", "cpus:two", "cpus:2:3", "cpus:²"])
def test_unknown_need_is_an_error(text):
    with pytest.raises(UnknownNeedError, match="unknown need"):
        needs.parse(text)


def test_unknown_need_ends_the_collection(tmp_path):
    (tmp_path / "conftest.py").write_text((TREE / "tests/integration/conftest.py").read_text())
    (tmp_path / "test_it.py").write_text("import pytest\n@pytest.mark.needs('bfp')\ndef test_it(): pass\n")
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = needs\n")
    path = os.pathsep.join(str(TREE / "tests" / name) for name in ("support", "integration"))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "."],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "test_it.py::test_it: unknown need 'bfp'; known are " in done.stderr


@pytest.mark.parametrize(
    ("wanted", "is_smoke", "guests"),
    [
        ([], False, ["fast"]),
        ([], True, ["fast", "full"]),
        (["cpus:1"], False, ["fast"]),
        (["cpus:2"], False, ["full"]),
        (["bpf"], True, ["full"]),
        (["cpus:1", "hugepages"], False, ["full"]),
    ],
)
def test_what_the_fast_guest_has_is_run_there(wanted, is_smoke, guests):
    parsed = [needs.parse(text) for text in wanted]
    assert [g for g in needs.GUESTS if needs.runs_in(g, parsed, is_smoke=is_smoke)] == guests


def test_what_is_missing_is_named():
    assert Wanted("cpus", 1).missing_here() is None
    assert Wanted("cpus", 4096).missing_here() == "fewer than 4096 CPUs"
